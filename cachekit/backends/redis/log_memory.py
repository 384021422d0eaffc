"""What a process knows of a queue in Redis: what it has seen there, and which of its own attempts
to append may still be on their way."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

MOST_MEMORIES = 16  # that a partition's past names
MOST_FAILED = 100  # numbers that are kept before they become one


class Known(NamedTuple):
    """A memory by its name, and the newest place seen in it."""

    name: bytes
    place: bytes


class Memory:
    """Per partition: the newest place ever seen (``newest``, which never goes back), and in which
    memory of the server (see ``log_scripts``) which place was seen last.

    ``alarm`` is called with each partition that has lost something."""

    def __init__(self, alarm: Callable[[int], None]) -> None:
        self.newest: dict[int, bytes] = {}
        self.runs: dict[int, bytes] = {}  # the run that was met
        self._known: dict[int, Known] = {}
        self._before: dict[int, Known] = {}  # of the memory before
        self._untold: set[int] = set()  # those that have lost something
        self._told: dict[int, bytes] = {}  # up to which places a loss was told
        self._alarm = alarm

    def known(self, part: int) -> Known | None:
        return self._known.get(part)

    def name(self, part: int) -> bytes:
        known = self._known.get(part)
        return known.name if known is not None else b""

    def saw(self, part: int, name: bytes, place: bytes) -> None:
        """A place given out in a memory. One of before says nothing of what is there now."""
        self.newest[part] = max(place, self.newest.get(part, b""))
        known = self._known.get(part)
        if known is not None and known.name == name:
            self._known[part] = Known(name, max(place, known.place))

    def witness(
        self, part: int, asked: Known | None, told: Sequence[Any], of: bytes, run: bytes
    ) -> bool:
        """Whether all that was known when the server was asked (``asked``) is still there or was
        settled, by what it told: newest, of, run, memory and past of the partition."""
        newest, queue, met, name, past = told
        place, bases = newest or b"", _bases(past or b"")
        before, present = self._before.get(part), self._known.get(part)
        # Who wrote first in a memory may tell with what it began after others have seen it.
        kept = before is None or before.name not in bases or _kept(before, place, bases)
        if asked is not None:
            kept = kept and queue == of and _kept(asked, place, bases)
        if not kept and self.name(part) == (asked and asked.name):  # else somebody else found out
            self._untold.add(part)
            self._alarm(part)
            self._known.pop(part, None)
            self._before.pop(part, None)
            present = None
        if name and met == run:
            if present is not None and present.name == name:
                place = max(place, present.place)
            elif present is not None:
                self._before[part] = present
            self._known[part] = Known(name, place)
        self.newest[part] = max(newest or b"", self.newest.get(part, b""))
        return kept

    def owes(self, upto: Sequence[tuple[int, bytes]]) -> bool:
        """Whether who waits for what was accepted up to these places (of partitions) must be told
        of a loss: it was not told yet, or nothing newer is waited for."""
        newer = any(place > self._told.get(part, b"") for part, place in upto)
        if not self._untold and (newer or not self._told):
            return False
        self._untold.clear()
        for part, place in upto:
            known = self._told.get(part, b""), self.newest.get(part, b"")
            self._told[part] = max(place, *known)
        return True


def _bases(past: bytes) -> dict[bytes, bytes]:
    """Memories by their names, in their order: the newest place that each began with."""
    return {name: base for name, _, base in (entry.partition(b":") for entry in past.split())}


def _kept(known: Known, newest: bytes, bases: dict[bytes, bytes]) -> bool:
    if newest < known.place:
        return False
    names = list(bases)
    if known.name in bases:
        names = names[names.index(known.name) + 1 :]
    elif len(names) < MOST_MEMORIES:
        return False  # else so many have begun since that it is forgotten
    return all(bases[name] >= known.place for name in names)


class Writer:
    """Numbers this process's attempts to append, so that one which failed without an answer can be
    refused should it arrive after a later one: each attempt names those that are dead by then, by
    the highest number of one that failed. A living one with a lower number may be refused by that
    too, and is made again: nobody has been told of it.

    From any thread, without a lock to wait for; a forked child is another writer."""

    def __init__(self) -> None:
        self._pid = 0
        self._begin()

    def _begin(self) -> None:
        self.name = os.urandom(8)
        self._numbers = itertools.count(time.time_ns() // 1000)
        self._failed: list[int] = [0]
        self._tidying = threading.Lock()
        self._pid = os.getpid()

    def attempt(self) -> tuple[bytes, int, int]:
        """The writer, the number of a new attempt, the highest that is dead."""
        if os.getpid() != self._pid:
            self._begin()
        dead, number = max(self._failed), next(self._numbers)
        if number <= dead:  # two have failed at once
            self._numbers = itertools.count(dead + 1)
            number = next(self._numbers)
        return self.name, number, dead

    def failed(self, number: int) -> None:
        # By the time, so that the server may forget the lowest first: those that failed long ago.
        # Living attempts with lower numbers are made again.
        dead = max(number, next(self._numbers), time.time_ns() // 1000)
        self._failed.append(dead)
        self._numbers = itertools.count(dead + 1)
        if len(self._failed) > MOST_FAILED and self._tidying.acquire(blocking=False):
            try:
                known = len(self._failed)
                self._failed.append(max(self._failed[:known]))
                del self._failed[:known]
            finally:
                self._tidying.release()


WRITER = Writer()  # of this process: its objects of one queue are one writer
