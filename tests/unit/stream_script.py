"""A DynamoDB stream that a script plays: splits, rotations, trimmed data, throttling. And a cache
of its items that a reader keeps true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cachekit.feeds.shards import Record
from cachekit.feeds.stream_reader import StreamReader

ITEMS = range(8)
MAX_LAG = 10.0
EXPIRES = 900.0


class Refused(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


class Part:
    """One shard of the script."""

    def __init__(self, parent: str | None, items: set[int]) -> None:
        self.parent = parent
        self.items = items
        self.records: list[dict[str, Any]] = []
        self.trimmed = 0
        self.met = False  # an iterator was given
        self.closed = False
        self.listed = True


class Script:
    """A table and its stream; stands for both clients. Time is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.values = dict.fromkeys(ITEMS, 0)
        self.written: dict[int, list[tuple[float, int]]] = {item: [] for item in ITEMS}
        self.status = "ENABLED"
        self.refusals: list[str] = []
        self.slow = 0.0  # how long an answer takes
        self.asked: list[str] = []
        self.streams = self.count = 0
        self.anew()

    # -- what happens

    def anew(self) -> None:
        """The table gets another stream."""
        self.streams += 1
        self.arn = f"table/stream/{self.streams}"
        self.parts: dict[str, Part] = {}
        self.begin(None, {0, 1, 2, 3})
        self.begin(None, {4, 5, 6, 7})

    def begin(self, parent: str | None, items: set[int]) -> str:
        self.count += 1
        # Names say nothing of the order.
        name = f"shard-{(self.count * 7919) % 9973:04d}"
        self.parts[name] = Part(parent, items)
        return name

    def home(self, item: int) -> str:
        return next(n for n, p in self.parts.items() if item in p.items and not p.closed)

    def put(self, item: int) -> None:
        self.count += 1
        self.values[item] += 1
        self.written[item].append((self.now, self.values[item]))
        self.parts[self.home(item)].records.append(
            {
                "eventName": "MODIFY",
                "dynamodb": {
                    "Keys": {"id": {"N": str(item)}},
                    "NewImage": {"id": {"N": str(item)}, "v": {"N": str(self.values[item])}},
                    "SequenceNumber": f"{self.count:020d}",
                    "ApproximateCreationDateTime": self.now,
                },
            }
        )

    def end(self, name: str, *, split: bool = False, listed: bool = True) -> list[str]:
        """A shard is closed and followed by one or two."""
        part = self.parts[name]
        part.closed = True
        low = set(sorted(part.items)[: len(part.items) // 2])
        halves = [low, part.items - low] if split and low else [part.items]
        children = [self.begin(name, half) for half in halves]
        for child in children:
            self.parts[child].listed = listed
        return children

    def trim(self, name: str, count: int) -> None:
        part = self.parts[name]
        count = min(count, len(part.records))
        del part.records[:count]
        part.trimmed += count

    # -- what is asked

    def client(self, service: str) -> Script:
        return self

    def close(self) -> None: ...

    def _admit(self, verb: str, arn: str | None = None) -> None:
        self.asked.append(verb)
        self.now += self.slow
        if self.refusals:
            code = self.refusals.pop(0)
            if code:
                raise Refused(code)
        if arn is not None and arn != self.arn:
            raise Refused("ResourceNotFoundException")

    def describe_table(self, TableName: str) -> Any:
        self._admit("describe_table")
        return {
            "Table": {
                "LatestStreamArn": self.arn,
                "StreamSpecification": {"StreamEnabled": self.status != "DISABLED"},
            }
        }

    def describe_stream(self, StreamArn: str, ExclusiveStartShardId: str = "") -> Any:
        self._admit("describe_stream", StreamArn)
        names = sorted(n for n, p in self.parts.items() if p.listed)
        page = [n for n in names if n > ExclusiveStartShardId][:2]  # the longest page there is
        shards = []
        for name in page:
            part, span = self.parts[name], {"StartingSequenceNumber": "1"}
            if part.closed:
                span["EndingSequenceNumber"] = "9"
            parent = {"ParentShardId": part.parent} if part.parent else {}
            shards.append({"ShardId": name, "SequenceNumberRange": span, **parent})
        told = {"StreamStatus": self.status, "Shards": shards}
        if page and page[-1] != names[-1]:
            told["LastEvaluatedShardId"] = page[-1]
        return {"StreamDescription": told}

    def get_shard_iterator(
        self, StreamArn: str, ShardId: str, ShardIteratorType: str, SequenceNumber: str = ""
    ) -> Any:
        self._admit("get_shard_iterator", StreamArn)
        part = self.parts.get(ShardId)
        if part is None:
            raise Refused("ResourceNotFoundException")
        part.met, at = True, part.trimmed
        if ShardIteratorType == "LATEST":
            at += len(part.records)
        elif ShardIteratorType == "AFTER_SEQUENCE_NUMBER":
            numbers = [r["dynamodb"]["SequenceNumber"] for r in part.records]
            if SequenceNumber not in numbers:
                raise Refused("TrimmedDataAccessException")
            at += numbers.index(SequenceNumber) + 1
        return {"ShardIterator": f"{StreamArn} {ShardId} {at} {self.now}"}

    def get_records(self, ShardIterator: str, Limit: int) -> Any:
        arn, name, at, issued = ShardIterator.split(" ")
        self._admit("get_records", arn)
        part, start = self.parts.get(name), int(at)
        if part is None:
            raise Refused("ResourceNotFoundException")
        if self.now - float(issued) > EXPIRES:
            raise Refused("ExpiredIteratorException")
        if start < part.trimmed:
            raise Refused("TrimmedDataAccessException")
        page = part.records[start - part.trimmed :][:3]
        told: dict[str, Any] = {"Records": page}
        if not part.closed or start + len(page) < part.trimmed + len(part.records):
            told["NextShardIterator"] = f"{arn} {name} {start + len(page)} {self.now}"
        return told


class Stage:
    """A script, its reader, and a cache of its items."""

    def __init__(self) -> None:
        self.script = script = Script()
        self.kept: dict[int, tuple[float, int]] = {}  # item -> loaded when, and what
        self.told: list[tuple[int, int]] = []
        self.events: list[str] = []
        self.flushes = 0
        self.failing = 0
        self.reader = StreamReader(
            "users",
            changed=self._changed,
            lost=self._lost,
            connect=script.client,
            tell=lambda event, **fields: self.events.append(event),
            clock=lambda: script.now,
            wall=lambda: script.now,
            max_lag=MAX_LAG,
        )

    def _changed(self, records: Sequence[Record]) -> None:
        if self.failing:
            self.failing -= 1
            raise OSError("the cache is away")
        for record in records:
            assert record.new is not None
            self.told.append((record.keys["id"], record.new["v"]))
            self.kept.pop(record.keys["id"], None)

    def _lost(self) -> None:
        self.flushes += 1
        self.kept.clear()

    def load(self) -> None:
        for item in ITEMS:
            self.kept.setdefault(item, (self.script.now, self.script.values[item]))

    def run(self, seconds: float = 2.0) -> None:
        """Steps, with time passing as the reader asks."""
        end = self.script.now + seconds
        while self.script.now < end:
            self.script.now += self.reader.step() or 0.01

    def outdated(self) -> dict[int, float]:
        """Kept items that are no longer so, and for how many seconds."""
        script, found = self.script, {}
        for item, (_, value) in self.kept.items():
            later = [when for when, v in script.written[item] if v > value]
            if later:
                found[item] = script.now - later[0]
        return found

    def settled(self) -> bool:
        self.run()
        return not self.outdated()
