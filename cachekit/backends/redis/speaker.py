"""What all verbs need to talk: the layout in use, scripts sent by digest, and notes for the bus."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from ...core.deadline import Deadline
from ...core.notes import SENDER_BYTES, Note, NoteKind, pack
from . import scripts
from .layout import MAX_PARTITIONS, Layout, bus_channel, partitions_key
from .routes import Call, Route, checked, is_lost
from .verb import NodeLost, Verb
from .wire import ErrorReply, ProtocolViolation, Replies, Reply, remaining

Step = tuple[scripts.Script, bytes, tuple[Any, ...]]  # script, name of its key, arguments

_REFUSED = 2  # what a script's answer has more when its note was refused


class Speaker:
    """Speaks for one store. ``sender`` stands in its notes, and is another in a forked child.

    ``refused`` counts notes that the server would not publish (the user lacks the channel);
    ``on_refused`` is called for each, from within the verb, and must neither block nor raise."""

    def __init__(
        self, route: Route, namespace: str, partitions: int, trust_restart: bool = False
    ) -> None:
        self._route = route
        self._namespace = namespace
        self._channel = bus_channel(namespace)
        self._wanted = partitions
        self._trust = b"1" if trust_restart else b"0"
        self._layout: Layout | None = None
        self.sender = os.urandom(SENDER_BYTES)
        self.refused = 0
        self.on_refused: Callable[[], None] | None = None
        _speakers.add(self)

    # -- the number of partitions --------------------------------------------------------

    async def _learn(self, until: float) -> Layout:
        layout = Layout(self._namespace, await self._recorded(self._wanted, until))
        self._layout = layout
        return layout

    async def _recorded(self, wanted: int, until: float) -> int:
        remaining(until)
        name = partitions_key(self._namespace)
        copies = self._route.copies(name)
        if copies:
            return await self._recorded_in_copies(name, copies, wanted, until)
        return await self._record(name, wanted, until)

    async def _record(self, name: bytes, wanted: int, until: float) -> int:
        calls: list[Call] = [
            (name, (b"SET", name, wanted, b"NX")),
            (name, (b"GET", name)),
        ]
        _, recorded = await self._send(calls, until)
        return _count(recorded, name)

    async def _recorded_in_copies(
        self, name: bytes, copies: Sequence[bytes], wanted: int, until: float
    ) -> int:
        """The record decides; its copies are written with what it said, and by nobody else, so
        that any of them can tell while its node is lost. Where it is gone (flushed, evicted, a
        replica that did not know it) they bring it back, so that no two numbers are in use."""
        names = [name, *copies]
        calls: list[Call] = [(each, (b"GET", each)) for each in names]
        replies = await self._route.send_each(calls, until)
        told = {count for r in replies[1:] if (count := _count_in(r)) is not None}
        if is_lost(replies[0]):
            if len(told) != 1:  # nobody knows, or a copy that was cut off since
                raise replies[0]
            return told.pop()
        if isinstance(replies[0], ErrorReply):
            raise replies[0]
        if replies[0] is not None:
            count = _count(replies[0], name)
        else:
            count = await self._record(name, told.pop() if len(told) == 1 else wanted, until)
        behind = [n for n, r in zip(copies, replies[1:], strict=True) if r != b"%d" % count]
        writes: list[Call] = [(each, (b"SET", each, count)) for each in behind]
        if writes:
            with suppress(OSError, ErrorReply):  # the next process does it
                await self._route.send_each(writes, until)
        return count

    async def _check_partitions(self, layout: Layout, until: float) -> None:
        """Nonces that are gone may mean a flushed server, where a process configured otherwise
        recorded another number first: then nothing may be filled under the old names."""
        if await self._recorded(layout.partitions, until) != layout.partitions:
            self._layout = None
            raise ConnectionError("the number of partitions changed on the server")

    # -- scripts -------------------------------------------------------------------------

    async def _one(
        self,
        operation: str,
        script: scripts.Script,
        key: str,
        args: tuple[Any, ...],
        deadline: Deadline,
    ) -> bool:
        """A script on one key that answers 1 or 0 and tells nobody."""
        with Verb(operation, deadline, (key,)) as verb:
            [reply] = await self._each(script, (key,), (args,), verb.until)
            if reply not in (0, 1):
                raise ProtocolViolation(f"no answer to {operation}")
            return bool(reply)

    async def _each(
        self,
        script: scripts.Script,
        keys: Sequence[str],
        args: Sequence[tuple[Any, ...]],
        until: float,
    ) -> list[Reply]:
        """The script on every key with its own arguments, in one pipeline."""
        if not keys:
            return []
        layout = self._layout or await self._learn(until)
        steps = [(script, layout.slot(key), arg) for key, arg in zip(keys, args, strict=True)]
        return await self._eval(steps, until)

    async def _tell(
        self,
        operation: str,
        script: scripts.Script,
        keys: Sequence[str],
        args: tuple[Any, ...],
        deadline: Deadline,
        *,
        kind: NoteKind = NoteKind.KEY,
    ) -> list[bool]:
        """A script that publishes, on every key (or tag) with the same arguments."""
        is_key = kind is NoteKind.KEY
        with Verb(operation, deadline, keys if is_key else ()) as verb:
            if not keys:
                return []
            layout = self._layout or await self._learn(verb.until)
            name_of = layout.slot if is_key else layout.tag
            channel, sender, now = self._channel, self.sender, monotonic()
            steps: list[Step] = [
                (script, name_of(key), (channel, pack(Note(kind, key, sender, now)), *args))
                for key in keys
            ]
            answers, lost, why = [], [], None
            for key, reply in zip(keys, await self._try(steps, verb.until), strict=True):
                if isinstance(reply, Exception):
                    if not is_lost(reply):
                        raise reply
                    lost.append(key)
                    why = why or reply
                    continue
                if not isinstance(reply, int):
                    raise ProtocolViolation(f"no answer to {operation}")
                if reply & _REFUSED:
                    self._count_refusal()
                answers.append(reply & 1 == 1)
            if why is not None:
                if not answers:
                    raise why
                raise NodeLost(operation, why, **{"keys" if is_key else "tags": lost}) from why
            return answers

    def _count_refusal(self) -> None:
        self.refused += 1
        if self.on_refused is not None:
            self.on_refused()

    async def _eval(self, steps: Sequence[Step], until: float) -> list[Reply]:
        return checked(await self._try(steps, until))

    async def _try(self, steps: Sequence[Step], until: float) -> Replies:
        """Every step, in one pipeline; errors in place, as ``Route.send_each`` has them. EVALSHA
        first: a server that does not know the digest has done nothing, and gets the source."""
        calls: list[Call] = [
            (name, (b"EVALSHA", script.digest, b"1", name, *args)) for script, name, args in steps
        ]
        replies = await self._route.send_each(calls, until)
        unknown = [
            i for i, r in enumerate(replies) if isinstance(r, ErrorReply) and r.code == "NOSCRIPT"
        ]
        if unknown:
            again: list[Call] = [
                (name, (b"EVAL", script.source, b"1", name, *args))
                for script, name, args in (steps[i] for i in unknown)
            ]
            for i, reply in zip(unknown, await self._route.send_each(again, until), strict=True):
                replies[i] = reply
        return replies

    async def _send(self, calls: Sequence[Call], until: float) -> Replies:
        return checked(await self._route.send_each(calls, until))


def _count_in(recorded: Reply) -> int | None:
    """A number of partitions, None for anything else."""
    if isinstance(recorded, bytes) and recorded.isdigit():
        count = int(recorded)
        if 1 <= count <= MAX_PARTITIONS:
            return count
    return None


def _count(recorded: Reply, name: bytes) -> int:
    if (count := _count_in(recorded)) is not None:
        return count
    raise ProtocolViolation(
        "the recorded number of partitions is damaged; delete the key "
        f"{name.decode()!r} while no process uses this namespace"
    )


_speakers: weakref.WeakSet[Speaker] = weakref.WeakSet()


def _after_fork() -> None:
    # a child that kept its parent's name would take the parent's notes for its own
    for speaker in list(_speakers):
        speaker.sender = os.urandom(SENDER_BYTES)


os.register_at_fork(after_in_child=_after_fork)
