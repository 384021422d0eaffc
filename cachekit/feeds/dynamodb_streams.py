"""DynamoDB Streams as an event source: what anybody changed in a table is invalidated.

    detach = cache.follow(dynamodb_stream("users", lambda r: [f"user:{r.keys['id']}"]))

One daemon thread reads the stream; where the cache has a far tier, one in the whole fleet does,
elected by a lease there, and the others hear of it as of any invalidation. Told at least once,
one item's changes in their order. Nothing is trusted before the iterators of all open shards are
held; wherever changes may have been missed (a trimmed shard, another stream, a disabled one, an
iterator without a place to go on from, a restart) all that the feed covers is invalidated and the
reading begins anew. While changes can not be told within ``max_lag``, the same happens every
``max_lag`` seconds: no value is served that is out of date for longer than about twice that.

Functions that load should read with ConsistentRead: an eventual read may find the old item after
its change was told. ``settle`` invalidates a second time for those that can not.

Rights: DescribeTable, DescribeStream, GetShardIterator, GetRecords.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..core.keys import check_text, tag_name
from ..core.policy import Duration, seconds
from ..errors import ConfigurationError, InvalidationFailed
from ..pending import SPACE, Name
from ..strategies.parts import Parts
from .connecting import Connect, default_connect
from .seat import Seat
from .shards import Record
from .stream_reader import ReaderThread, StreamReader

__all__ = ["DynamoDBStreamFeed", "Record", "StreamReader", "dynamodb_stream"]

TagsOf = Callable[[Record], Iterable[str]]

MOST_AGAIN = 10_000
PART = 200  # names that are invalidated in one step, within its budget
_names: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


def dynamodb_stream(
    table: str,
    tags_of: TagsOf | None = None,
    *,
    keys_of: TagsOf | None = None,
    covers: Iterable[str] | None = None,
    connect: Connect | None = None,
    poll: Duration = 0.5,
    max_lag: Duration = 10,
    settle: Duration = 0,
    name: str | None = None,
) -> DynamoDBStreamFeed:
    """A feed of one table's stream, of any view type.

    ``tags_of(record)`` and ``keys_of(record)`` give what one change makes outdated
    (:class:`Record`). What they raise invalidates all that the feed covers: ``covers``, tags that
    everything loaded from the table carries; without it the whole namespace.

    ``connect(service)`` makes a boto3 client of "dynamodb" or "dynamodbstreams"; it is called by
    the reading thread of each process, and again after a fork; None: the usual credentials and
    region. Bound the timeouts of yours. ``poll``: seconds between looks at a shard, at least 0.2;
    a look costs one read of the stream. ``settle``: for so long eventual reads of yours may find
    the old item. ``name`` tells the feed from others in the fleet: processes that share a far
    tier, a namespace and a name must ask the same functions, since one reads for all; the table's
    name unless told.

    Raises ConfigurationError naming what does not fit."""
    if not isinstance(table, str) or not table:
        raise ConfigurationError("dynamodb_stream: table must be a table's name")
    name = table if name is None else name
    if not isinstance(name, str) or not name:
        raise ConfigurationError("dynamodb_stream: name must be a str that is not empty")
    if tags_of is None and keys_of is None:
        raise ConfigurationError("dynamodb_stream: give tags_of= or keys_of=")
    for what, fn in (("tags_of", tags_of), ("keys_of", keys_of), ("connect", connect)):
        if fn is not None and not callable(fn):
            raise ConfigurationError(f"dynamodb_stream: {what} must be a function")
    try:
        times = seconds(poll, "poll"), seconds(max_lag, "max_lag"), seconds(settle, "settle")
        if isinstance(covers, str):
            raise TypeError("covers must be a list of str, got one str")
        covered = None if covers is None else tuple(covers)
        for tag in covered or ():
            tag_name(tag)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"dynamodb_stream: {error}") from None
    if covered == ():
        raise ConfigurationError("dynamodb_stream: covers must name a tag")
    if times[0] < 0.2 or times[1] < 2 * times[0]:
        raise ConfigurationError(
            "dynamodb_stream: poll must be at least 0.2 seconds, max_lag at least twice that"
        )
    if connect is None:
        connect = default_connect()
    return DynamoDBStreamFeed(table, tags_of, keys_of, covered, connect, times=times, name=name)


class DynamoDBStreamFeed:
    """Made by :func:`dynamodb_stream`; may be attached to several caches. Safe for threads and
    across fork. Nothing is opened before the first :meth:`attach`."""

    def __init__(
        self,
        table: str,
        tags_of: TagsOf | None,
        keys_of: TagsOf | None,
        covers: tuple[str, ...] | None,
        connect: Connect,
        *,
        times: tuple[float, float, float],
        name: str,
    ) -> None:
        self.table = table
        self.name = name
        self.tags_of = tags_of
        self.keys_of = keys_of
        self.covers = covers
        self.connect = connect
        self.poll, self.max_lag, self.settle = times
        self._links: list[_Link] = []

    def attach(self, cache: Any) -> Callable[[], None]:
        """Begin to read; gives the function that ends it, within a second."""
        link = _Link(self, cache)
        taken = _names.setdefault(cache, set())
        if self.name in taken:
            raise ConfigurationError(
                f"dynamodb_stream: this cache follows {self.name!r} already; give name="
            )
        taken.add(self.name)
        self._links = [*self._links, link]
        link.thread.start()

        def detach() -> None:
            if link in self._links:
                link.thread.stop()
                self._let_go(link)
                taken.discard(self.name)

        return detach

    def _let_go(self, link: _Link) -> None:
        self._links = [other for other in self._links if other is not link]

    @property
    def states(self) -> list[str]:
        """For each cache that follows: "starting", "reading", "behind" (by more than
        ``max_lag``), or "standing by" (another process reads)."""
        return [link.thread.state for link in self._links]


class _Link:
    """One feed attached to one cache, which it does not keep alive."""

    def __init__(self, feed: DynamoDBStreamFeed, cache: Any) -> None:
        self.feed = feed
        self._cache = weakref.ref(cache)
        self._parts: Parts = cache.parts
        self._seat = Seat(self._parts, f"dynamodb:{feed.name}", feed.max_lag)
        self._covered: list[Name] = (
            [SPACE] if feed.covers is None else [("tag", tag) for tag in feed.covers]
        )
        self._again: dict[Name, float] = {}  # when to invalidate a second time
        self.thread = ReaderThread(
            self._parts.runtime, self._read, wanted=self._wanted, turn=self._seat.hold,
            after=self._after, ended=self._ended,
        )  # fmt: skip

    def _read(self) -> StreamReader:
        runtime, feed = self._parts.runtime, self.feed
        return StreamReader(
            feed.table, changed=self._changed, lost=self._lost, connect=feed.connect,
            tell=self._tell, clock=runtime.clock, wall=runtime.wall, poll=feed.poll,
            max_lag=feed.max_lag,
        )  # fmt: skip

    def _wanted(self) -> bool:
        cache = self._cache()
        return cache is not None and not cache._closed

    def _after(self) -> None:
        self._settle()
        self._seat.judge(self.thread.state == "behind")

    def _ended(self) -> None:
        if self._wanted():
            self._seat.leave()
        self.feed._let_go(self)

    # -- what it reads --------------------------------------------------------------------

    def _changed(self, records: Sequence[Record]) -> None:
        meter, now = self._parts.meter, self._parts.runtime.wall()
        meter.count("feed_records", len(records))
        names: dict[Name, None] = {}
        try:
            for record in records:
                names.update(dict.fromkeys(self._names(record)))
                if record.created is not None:
                    meter.time("feed_lag", max(0.0, now - record.created))
        except Exception as error:
            self._tell("feed_failed", step="tags", error=type(error).__name__)
            self._lost()
            return
        self._invalidate(list(names))
        self._later(names)

    def _names(self, record: Record) -> Iterator[Name]:
        """What one record makes outdated; refuses what is no tag or key."""
        if self.feed.tags_of is not None:
            for tag in _texts(self.feed.tags_of(record)):
                tag_name(tag)
                yield "tag", tag
        if self.feed.keys_of is not None:
            for key in _texts(self.feed.keys_of(record)):
                yield "key", check_text(key, "a key")

    def _lost(self) -> None:
        self._parts.meter.count("feed_flushes")
        self._invalidate(self._covered)
        self._later(self._covered)

    def _invalidate(self, names: Sequence[Name]) -> None:
        for at in range(0, len(names), PART):
            self._carry_out(names[at : at + PART])

    def _carry_out(self, names: Sequence[Name]) -> None:
        cache = self._cache()
        if cache is None:
            return
        try:
            if SPACE in names:
                cache.clear()
            else:
                cache.invalidate(
                    keys=[name for kind, name in names if kind == "key"],
                    tags=[name for kind, name in names if kind == "tag"],
                )
        except InvalidationFailed:  # until it is told, this process counts them as missing
            self._parts.invalidator.postpone(
                [(kind, tag_name(name) if kind == "tag" else name) for kind, name in names]
            )

    def _later(self, names: Iterable[Name]) -> None:
        """Once more, when eventual reads find what was written."""
        if not self.feed.settle:
            return
        due = self._parts.runtime.clock() + self.feed.settle
        for name in names:
            self._again.pop(name, None)  # at its new place: they are in the order of their times
            self._again[name] = due
        if len(self._again) > MOST_AGAIN:
            self._again = dict.fromkeys(self._covered, due)

    def _settle(self) -> None:
        now, due = self._parts.runtime.clock(), []
        for name, when in self._again.items():
            if when > now:
                break
            due.append(name)
        self._invalidate(due)
        for name in due:
            del self._again[name]

    def _tell(self, event: str, **fields: Any) -> None:
        table, meter = self.feed.table, self._parts.meter
        meter.event(event, feed="dynamodb", table=table, **fields)
        if event in ("feed_lost", "feed_failed", "feed_behind"):
            what = ": ".join([event.removeprefix("feed_"), *map(str, fields.values())])
            meter.warn_once(f"{table} {what}", "the DynamoDB stream of %r: %s", table, what)


def _texts(names: Iterable[str]) -> Iterable[str]:
    if isinstance(names, str):
        raise TypeError("expected a list of str, got one str")
    return names
