"""Processes with a Memcached backend each, and ears on its bus."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cachekit.backends.memcached import MemcachedBackend, bus
from cachekit.core.deadline import Deadline
from cachekit.protocols import Note, NoteKind
from cachekit.runtime import Runtime, drive

SPACE = [Note(NoteKind.SPACE, "")]
SLACK = 1.0  # for the machine to run a thread at all
ME = b"w" * 16


class Hearing:
    """Ears that write down what they are told, and when; ``own`` is what is known to be ours."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any, float]] = []
        self._more = threading.Condition()

    def joined(self) -> None:
        self._note("joined", None)

    def lost(self) -> None:
        self._note("lost", None)

    def heard(self, notes: Sequence[Note]) -> None:
        assert notes
        for note in notes:
            self._note("heard" if [note] == SPACE else "own", [note])

    def lag(self, seconds: float) -> None:
        self._note("lag", seconds)

    def foreign(self, count: int) -> None:
        self._note("foreign", count)

    def _note(self, what: str, value: Any) -> None:
        with self._more:
            self.told.append((what, value, time.monotonic()))
            self._more.notify_all()

    def all(self, what: str) -> list[Any]:
        return [value for each, value, _ in self.told if each == what]

    def wait(self, what: str, count: int = 1, seconds: float = bus.BOUND + SLACK) -> float:
        """When it was told for the ``count``-th time; fails if it is not, in time."""

        def times() -> list[float]:
            return [at for each, _, at in self.told if each == what]

        with self._more:
            assert self._more.wait_for(lambda: len(times()) >= count, seconds), self.told[-8:]
            return times()[count - 1]

    def polls(self, count: int) -> None:
        """Wait for so many whole rounds from now on."""
        self.wait("lag", len(self.all("lag")) + count, 5.0)


class Party:
    """One process's backend, as far as a test needs one."""

    def __init__(self, url: str, namespace: str) -> None:
        self.backend = MemcachedBackend(url, namespace=namespace)
        self.world = Runtime().threads
        self.store: Any = self.backend.open(self.world)
        self._stops: list[Callable[[], None]] = []

    def late(self) -> Deadline:
        return self.world.deadline(5.0)

    def do(self, verb: str, *args: Any) -> Any:
        return drive(getattr(self.store, verb)(*args, self.late()))

    def listen(self) -> Hearing:
        ears = Hearing()
        assert self.backend.bus is not None
        self._stops.append(self.backend.bus.listen(ears))
        ears.wait("joined")
        return ears

    def close(self) -> None:
        for stop in self._stops:
            stop()
        drive(self.store.close())


@contextmanager
def parties() -> Iterator[Callable[[str, str], Party]]:
    """Opens one by (url, namespace); closes all at the end."""
    opened: list[Party] = []

    def open_one(url: str, namespace: str) -> Party:
        opened.append(Party(url, namespace))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()
