"""What a DynamoDB stream says, without the wire: the tree of its shards, and its records.

The tree keeps the order that DynamoDB promises for one item: an item's changes lie in one shard
after the other, so a shard is read when its parent has been read to its end. Where the chain
from what was read to what is offered can not be shown to be whole, a :class:`Gap` is raised:
nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

__all__ = ["Gap", "Kind", "Listed", "Record", "Shard", "Shards", "plain", "record_of"]

Kind = Literal["insert", "modify", "remove"]
_KINDS: dict[str, Kind] = {"INSERT": "insert", "MODIFY": "modify", "REMOVE": "remove"}


class Gap(Exception):
    """Changes may have been missed; the text says why."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One shard as DescribeStream lists it."""

    name: str
    parent: str | None = None
    closed: bool = False


@dataclass(slots=True)
class Shard:
    """One shard as far as it is read. ``known``: monotonic seconds up to which all of its changes
    were told."""

    name: str
    parent: str | None
    start: Literal["LATEST", "TRIM_HORIZON"]
    known: float
    iterator: str | None = None
    last: str | None = None  # the sequence number that was applied last
    done: bool = False

    def position(self) -> dict[str, str]:
        """Where an iterator has to begin, as GetShardIterator wants it."""
        if self.last is None:
            return {"ShardIteratorType": self.start}
        return {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": self.last}


class Shards:
    """The shards of one stream, from a moment on: what was open then is read from its end
    (``LATEST``), what comes later from its beginning. Times are monotonic seconds."""

    def __init__(self, listed: Iterable[Listed], now: float) -> None:
        self._began = now
        self._shards = {
            each.name: Shard(each.name, each.parent, "LATEST", now, done=each.closed)
            for each in listed
        }
        if not self._shards:
            raise Gap("the stream has no shards yet")

    def __getitem__(self, name: str) -> Shard:
        return self._shards[name]

    def open(self) -> list[Shard]:
        """Those that are not read to their end."""
        return [shard for shard in self._shards.values() if not shard.done]

    def readable(self) -> list[Shard]:
        """Those whose turn it is: not at their end, and the parent is."""
        return [shard for shard in self.open() if not self._waits(shard)]

    def childless(self) -> list[Shard]:
        """Those at their end whose successors are not listed yet: a stream that is enabled has
        some."""
        parents = {shard.parent for shard in self._shards.values()}
        return [s for s in self._shards.values() if s.done and s.name not in parents]

    def learn(self, listed: Iterable[Listed]) -> None:
        """Take over a later, complete list, in any order. Raises Gap for a shard that descends
        from none that is known: it may have been written to since before it was seen."""
        found = {each.name: each for each in listed}
        for name in self._ancestors(found):
            # Listed later than its offspring, which was there in the beginning: it ended before.
            parent = found[name].parent
            self._shards[name] = Shard(name, parent, "LATEST", self._began, done=True)
        for name in found:
            self._adopt(name, found)
        for shard in list(self._shards.values()):
            if shard.done and shard.name not in found:
                del self._shards[shard.name]  # beyond its 24 hours

    def _ancestors(self, found: Mapping[str, Listed]) -> list[str]:
        """Listed shards that are not known, but something that descends from them is."""
        above: dict[str, None] = {}
        for shard in self._shards.values():
            name = shard.parent
            while name is not None and name in found and name not in above:
                if name in self._shards:
                    break
                above[name] = None
                name = found[name].parent
        return list(above)

    def _adopt(self, name: str, found: Mapping[str, Listed]) -> None:
        line: list[Listed] = []
        while name not in self._shards:
            each = found.get(name)
            if each is None or each.parent is None or each in line:
                raise Gap("a shard appeared that descends from none that was read")
            line.append(each)
            name = each.parent
        known = self._shards[name].known
        for each in reversed(line):
            self._shards[each.name] = Shard(each.name, each.parent, "TRIM_HORIZON", known)

    def advance(self, name: str, following: str | None, last: str | None, known: float) -> None:
        """A page was applied: its next iterator (None: the shard's end), its last sequence number
        (None: it was empty), and the time up to which everything is told now."""
        shard = self._shards[name]
        if following is None and last is None:
            known = shard.known  # it ended before this look: later changes are in its children
        shard.iterator, shard.done = following, following is None
        shard.last = last or shard.last
        shard.known = max(shard.known, known)
        if shard.done:
            for child in self._shards.values():
                if child.parent == name:
                    child.known = max(child.known, shard.known)

    def expire(self, name: str) -> None:
        """The iterator is too old: the next begins behind what was applied last. Raises Gap if
        nothing was: then no place is known to go on from."""
        shard = self._shards[name]
        if shard.last is None:
            raise Gap("an iterator expired before its first record")
        shard.iterator = None

    def known(self) -> float:
        """The time up to which all changes are told."""
        behind = [*self.readable(), *self.childless()]
        return min((shard.known for shard in behind), default=float("-inf"))

    def _waits(self, shard: Shard) -> bool:
        parent = self._shards.get(shard.parent) if shard.parent is not None else None
        return parent is not None and not parent.done


# -- records -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """One change of one item. ``old`` and ``new`` are None where the item did not exist, or where
    the stream's view does not have them. Values are plain: str, int, Decimal (a number that is
    not whole), bytes, bool, None, list, dict, set. ``created``: Unix seconds, by DynamoDB's
    clock; ``wire``: the same in the client's form."""

    table: str
    kind: Kind
    keys: dict[str, Any]
    old: dict[str, Any] | None = None
    new: dict[str, Any] | None = None
    sequence: str = ""
    created: float | None = None
    wire: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def images(self) -> list[dict[str, Any]]:
        """The item before and after, as far as the view has them."""
        return [image for image in (self.old, self.new) if image is not None]


def record_of(table: str, told: Mapping[str, Any]) -> Record:
    """A record of GetRecords. Raises KeyError, TypeError or ValueError for what is none."""
    wire = told["dynamodb"]
    old, new = wire.get("OldImage"), wire.get("NewImage")
    created = wire.get("ApproximateCreationDateTime")
    if isinstance(created, datetime):
        created = created.timestamp()
    return Record(
        table,
        _KINDS[told["eventName"]],
        _item(wire["Keys"]),
        None if old is None else _item(old),
        None if new is None else _item(new),
        wire["SequenceNumber"],
        created,
        wire,
    )


def _item(wire: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain(value) for name, value in wire.items()}


def plain(value: Mapping[str, Any]) -> Any:
    """The Python value of an attribute in the client's form."""
    ((tag, inner),) = value.items()
    if tag in ("S", "BOOL"):
        return inner
    if tag == "N":
        return _number(inner)
    if tag == "B":
        return bytes(inner)
    if tag == "NULL":
        return None
    if tag == "M":
        return _item(inner)
    if tag == "L":
        return [plain(each) for each in inner]
    if tag in ("SS", "NS", "BS"):
        return {plain({tag[0]: each}) for each in inner}
    raise ValueError(f"{tag!r} is no type of an attribute")


def _number(text: str) -> int | Decimal:
    value = Decimal(text)
    # At most 38 digits and 125 places: an int of a bounded size.
    return int(value) if value == value.to_integral_value() else value
