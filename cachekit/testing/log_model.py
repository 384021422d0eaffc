"""The model of a log: one queue as plain tables, one step after the other. No I/O, no waiting.

Versions and the time come from outside, so that a model can follow a real log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from ..protocols import Bounds, Letter, Look, Record, Standing

ROOMY = Bounds()


class Ownership:
    """Who owns a partition: at most one lease at a time, under an epoch that only grows."""

    def __init__(self) -> None:
        self.owner = b""
        self.epoch = 0
        self.until = 0.0

    def claim(self, owner: bytes, lease: float, beyond: int, now: float) -> int | None:
        if self.owner not in (b"", owner) and now < self.until:
            return None
        self.owner, self.until = owner, now + lease
        self.epoch = max(self.epoch, beyond) + 1
        return self.epoch

    def renew(self, owner: bytes, epoch: int, lease: float, now: float) -> bool:
        if (self.owner, self.epoch) != (owner, epoch):
            return False
        self.until = now + lease
        return True

    def release(self, owner: bytes, epoch: int) -> None:
        if (self.owner, self.epoch) == (owner, epoch):
            self.owner = b""


class LogModel:
    """All of one queue. ``told``: how many settled keys it remembers to tell of."""

    identity = ""

    def __init__(
        self,
        parts: int = 1,
        bounds: Bounds = ROOMY,
        told: int = 1000,
    ) -> None:
        self.parts = parts
        self.bounds = bounds
        self.ops: list[dict[int, Record]] = [{} for _ in range(parts)]  # by version, growing
        self.sizes = [0] * parts
        self.newest = [0] * parts
        self.owners = [Ownership() for _ in range(parts)]
        self.dead: dict[int, Letter] = {}
        self.settled: deque[tuple[int, str]] = deque()  # (mark, key), oldest first
        self.mark = 0
        self.forgotten = 0  # the mark of the last settled key that is not remembered
        self._told = told

    # -- from put to the log ---------------------------------------------------------------

    def has_room(self, part: int, record: Record) -> bool:
        size = self.sizes[part] + size_of(record)
        return len(self.ops[part]) < self.bounds.operations and size <= self.bounds.size

    def admit(
        self, records: Sequence[Record], part_of: Callable[[str], int], version: Callable[[], int]
    ) -> list[int | None]:
        """Accept what there is room for."""
        answer: list[int | None] = []
        full: set[int] = set()
        for record in records:
            part = part_of(record.key)
            if part in full or not self.has_room(part, record):
                full.add(part)
                answer.append(None)
            else:
                answer.append(self.accept(part, record, version()))
        return answer

    def accept(self, part: int, record: Record, version: int) -> int:
        assert version > self.newest[part], "versions only grow"
        self.ops[part][version] = record._replace(version=version)
        self.sizes[part] += size_of(record)
        self.newest[part] = version
        return version

    def pending(self, key: str) -> Record | None:
        found = [r for ops in self.ops for r in ops.values() if r.key == key]
        return found[-1] if found else None

    def look(self, keys: Sequence[str], since: int) -> Look:
        told: list[str] | None = [key for mark, key in self.settled if mark > since]
        if 0 < since < self.forgotten:
            told = None
        return Look([self.pending(key) for key in keys], told, self.mark)

    # -- the owner -------------------------------------------------------------------------

    def read(self, part: int, after: int, limit: int) -> list[Record]:
        return [r for version, r in self.ops[part].items() if version > after][:limit]

    def settle(
        self, part: int, epoch: int, done: Sequence[tuple[str, int]], letters: Sequence[Letter]
    ) -> bool:
        if epoch != self.owners[part].epoch:
            return False
        for letter in letters:
            known = self.dead.get(letter.record.version)
            outdated = letter.outdated or (known is not None and known.outdated)
            self.dead[letter.record.version] = letter._replace(outdated=outdated)
        parked = [(letter.record.key, letter.record.version) for letter in letters]
        for key, version in [*done, *parked]:
            self._leave(part, key, version)
            for number, letter in self.dead.items():
                if letter.record.key == key and number < version:
                    self.dead[number] = letter._replace(outdated=True)
        return True

    def _leave(self, part: int, key: str, upto: int) -> None:
        ops = self.ops[part]
        gone = [version for version, r in ops.items() if r.key == key and version <= upto]
        for version in gone:
            self.sizes[part] -= size_of(ops.pop(version))
        if gone:
            self.mark += 1
            self.settled.append((self.mark, key))
            if len(self.settled) > self._told:
                self.forgotten, _ = self.settled.popleft()

    # -- the whole queue and its dead letters ----------------------------------------------

    def standing(self) -> Standing:
        held = [record for ops in self.ops for record in ops.values()]
        return Standing(
            depth=len(held),
            size=sum(map(size_of, held)),
            oldest=min((record.at for record in held), default=None),
            newest=tuple(self.newest),
            dead=len(self.dead),
        )

    def left(self, upto: Sequence[int]) -> int:
        return sum(
            version <= most for ops, most in zip(self.ops, upto, strict=True) for version in ops
        )

    def letters(self, after: int, limit: int) -> list[Letter]:
        return [self.dead[version] for version in sorted(self.dead) if version > after][:limit]

    def revive(
        self,
        versions: Sequence[int],
        force: bool,
        part_of: Callable[[str], int],
        version: Callable[[], int],
    ) -> list[int]:
        revived = []
        for number in versions:
            letter = self.dead.get(number)
            if letter is None:
                continue
            if not force and (letter.outdated or self.pending(letter.record.key) is not None):
                continue
            del self.dead[number]
            self.accept(part_of(letter.record.key), letter.record, version())
            revived.append(number)
        return revived

    def outdate(self, keys: Sequence[str]) -> None:
        for number, letter in self.dead.items():
            if letter.record.key in keys:
                self.dead[number] = letter._replace(outdated=True)

    def drop(self, versions: Sequence[int]) -> list[int]:
        return [version for version in versions if self.dead.pop(version, None) is not None]


def size_of(record: Record) -> int:
    """What an operation counts towards the bound: bytes of its key and data."""
    return len(record.key.encode()) + len(record.data)
