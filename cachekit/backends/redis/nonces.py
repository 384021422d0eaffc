"""The steps on nonces: of tags (or the blocks in their place) and of the namespace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from ...core.deadline import Deadline
from ...core.notes import Note, NoteKind, pack
from ...protocols import TOKEN_BYTES, Nonces
from . import scripts
from .layout import expiry, milliseconds, parse_nonce, partitions_key
from .routes import Call, checked, values_of
from .speaker import Speaker, Step
from .verb import Verb
from .wire import ErrorReply


class NonceSteps(Speaker):
    """The verbs of ``protocols.Slots`` that concern tags and the namespace as a whole."""

    async def nonces(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> Nonces:
        if not keys and not tags:
            return Nonces([], [])
        with Verb("nonces", deadline, keys) as verb:
            layout = self._layout or await self._learn(verb.until)
            partitions = [layout.partition(key) for key in keys]
            spaces = [layout.spaces[p] for p in dict.fromkeys(partitions)]
            names = [layout.tag(tag) for tag in dict.fromkeys(tags)]
            found = await self._present(spaces, names, ttl, verb.until)
            missing: list[Step] = [
                (scripts.NONCE, name, (fresh(), b"0", self._trust))
                for name in spaces
                if found[name] is None
            ]
            if missing:
                await self._check_partitions(layout, verb.until)
            missing += [
                (scripts.NONCE, name, (fresh(), expiry(ttl), self._trust))
                for name in names
                if found[name] is None
            ]
            if missing:
                made = await self._eval(missing, verb.until)
                for (_, name, _), nonce in zip(missing, made, strict=True):
                    whole = isinstance(nonce, bytes) and len(nonce) == TOKEN_BYTES
                    found[name] = nonce if whole else None  # else a block
            return Nonces(
                [found[layout.spaces[p]] for p in partitions],
                [found[layout.tag(tag)] for tag in tags],
            )

    async def _present(
        self, spaces: Sequence[bytes], tags: Sequence[bytes], ttl: float | None, until: float
    ) -> dict[bytes, bytes | None]:
        """The nonces that stand. A tag's that has less than half of ``ttl`` left is prolonged, by
        EXPIRE only: SET could bring back what was just dropped."""
        calls: list[Call] = [(name, (b"MGET", name)) for name in spaces]
        for name in tags:
            calls += [(name, (b"MGET", name)), (name, (b"PTTL", name))]
        replies = await self._send(calls, until)
        found: dict[bytes, bytes | None] = {}
        for i, name in enumerate(spaces):
            found[name] = parse_nonce(values_of(replies[i], 1)[0], replies.run_of(i))
        prolong: list[Call] = []
        for i, name in enumerate(tags):
            at = len(spaces) + 2 * i
            value, left = replies[at], replies[at + 1]
            found[name] = parse_nonce(values_of(value, 1)[0], replies.run_of(at))
            if found[name] is None or not isinstance(left, int) or left < 0:
                continue
            if ttl is None:
                prolong.append((name, (b"PERSIST", name)))
            elif left < milliseconds(ttl) / 2:
                prolong.append((name, (b"PEXPIRE", name, milliseconds(ttl))))
        if prolong:
            await self._send(prolong, until)
        return found

    async def drop_tags(self, tags: Sequence[str], deadline: Deadline) -> None:
        await self._tell("drop_tags", scripts.VOID, tags, (), deadline, kind=NoteKind.TAG)

    async def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        args = (writer, b"%d" % milliseconds(lease))
        await self._tell("seize_tags", scripts.SEIZE, tags, args, deadline, kind=NoteKind.TAG)

    async def end_tags(self, tags: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        await self._tell("end_tags", scripts.END, tags, (writer,), deadline, kind=NoteKind.TAG)

    async def drop_space(self, deadline: Deadline) -> None:
        with Verb("drop_space", deadline) as verb:
            layout = self._layout or await self._learn(verb.until)
            await self._route.delete(layout.spaces, verb.until)
            note = pack(Note(NoteKind.SPACE, "", self.sender, monotonic()))
            call: Call = (partitions_key(self._namespace), (b"PUBLISH", self._channel, note))
            replies = await self._route.send([call], verb.until)
            if isinstance(replies[0], ErrorReply) and replies[0].code == "NOPERM":
                self._count_refusal()
            else:
                checked(replies)
