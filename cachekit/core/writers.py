"""Writers in flight, as this process knows them: the block of protocols section 1.

While a key is blocked no load fills it. A writer fills at its end only if it was alone from
beginning to end and no invalidation came between. A block whose writers never ended (killed,
cancelled, timed out) stops standing at its ``until``. The near tier's lock is held by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable


class Block:
    __slots__ = ("contested", "ids", "until")

    def __init__(self) -> None:
        self.ids: set[object] = set()
        self.contested = False
        self.until = 0.0


class Writers:
    """Blocks by key identity. ``clock`` is monotonic seconds."""

    __slots__ = ("_blocks", "_clock", "_sweep_at")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._blocks: dict[Hashable, Block] = {}
        self._clock = clock
        self._sweep_at = 64

    def __len__(self) -> int:
        return len(self._blocks)

    def seize(self, idents: Iterable[Hashable], writer: object, lease: float) -> None:
        now = self._clock()
        if len(self._blocks) >= self._sweep_at:  # of writers that never ended
            self._blocks = {i: b for i, b in self._blocks.items() if now < b.until}
            self._sweep_at = 2 * len(self._blocks) + 64
        until = now + lease
        for ident in idents:
            block = self._standing(ident) or self._blocks.setdefault(ident, Block())
            block.contested = block.contested or bool(block.ids)
            block.ids.add(writer)
            block.until = max(block.until, until)

    def end(self, ident: Hashable, writer: object) -> bool:
        """The writer is done; False when no block stands any more: its own had run out."""
        block = self._standing(ident)
        if block is None:
            return False
        block.ids.discard(writer)
        if not block.ids:
            del self._blocks[ident]
        else:
            block.contested = True
        return True

    def may_fill(self, ident: Hashable, writer: object | None) -> bool:
        """A load may fill where no block stands; a writer where it was alone."""
        block = self._standing(ident)
        if writer is None:
            return block is None
        return block is not None and not block.contested and block.ids == {writer}

    def blocked(self, ident: Hashable) -> bool:
        """Whether a block stands. Changes nothing: may be asked without the lock."""
        block = self._blocks.get(ident)
        return block is not None and self._clock() < block.until

    def any(self) -> bool:
        """Whether any block stands."""
        now = self._clock()
        return any(now < block.until for block in list(self._blocks.values()))

    def contest(self, ident: Hashable) -> None:
        block = self._blocks.get(ident)
        if block is not None:
            block.contested = True

    def contest_each(self, idents: Iterable[Hashable]) -> None:
        if self._blocks:
            for ident in idents:
                self.contest(ident)

    def contest_all(self) -> None:
        for block in self._blocks.values():
            block.contested = True

    def _standing(self, ident: Hashable) -> Block | None:
        block = self._blocks.get(ident)
        if block is not None and self._clock() >= block.until:
            del self._blocks[ident]
            return None
        return block
