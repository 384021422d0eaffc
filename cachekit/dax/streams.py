"""A table's own change stream, followed: what anybody wrote is evicted here.

One daemon thread per table and process reads (of a fleet on one bus, one process reads, and tells
the others). A table is kept only while its changes are told: from the moment that the iterators of
all open shards are held, as long as no change may be untold for longer than ``max_lag``. Before,
and whenever that can not be shown, DynamoDB answers and nothing is kept: no stream, no rights to
read it, a gap, a reader that lags.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Final

from ..errors import BackendError
from ..feeds.connecting import Connect, connect_as, default_connect
from ..feeds.seat import Seat
from ..feeds.shards import Record
from ..feeds.stream_reader import ReaderThread, StreamReader
from . import notes
from .fleet import Fleet
from .notes import Told
from .others import Others
from .settings import StreamSettings
from .store import Scope, Store, TableState
from .values import Key, Uncertain, key_of, stored, wire_atom

MOST_FOLLOWED: Final = 64  # tables, each with a thread
PART: Final = 200  # changes that others are told of in one step
_NEVER: Final = float("-inf")


class Following:
    """The tables of one handle that are followed."""

    def __init__(self, store: Store, others: Others, fleet: Fleet | None) -> None:
        self.store = store
        self.others = others
        self.fleet = fleet
        self._followed: dict[bytes, Follower] = {}
        self._closed = False

    def meet(self, scope: Scope, state: TableState) -> None:
        """A table is used for the first time in a scope. With the gate held."""
        settings = self.store.settings.stream_of(state.name)
        if settings is None:
            return
        follower = self._followed.get(state.mark)
        if follower is None:
            follower = Follower(self, state, settings, _connect(scope, settings))
            self._followed[state.mark] = follower
            if self._closed or len(self._followed) > MOST_FOLLOWED:
                self.store.meter.count("streams_refused")
                self.store.meter.warn_once(
                    "streams", "cachekit.dax: more than %d tables with streams: the others are"
                    " not kept", MOST_FOLLOWED,
                )  # fmt: skip
            else:
                follower.start()
        state.follows = follower

    def states(self) -> dict[str, str]:
        """By table: "starting", "reading", "behind", "standing by", or "refused" with the
        reason."""
        return {each.table: each.state for each in list(self._followed.values())}

    def check(self) -> None:
        """Before a look, with the gate held: nothing is kept whose stream is not heard of."""
        now = self.store.clock()
        for each in self._followed.values():
            each.check(now)

    def close(self) -> None:
        """End the threads; waits for each at most a second."""
        self._closed = True
        followed = list(self._followed.values())
        for each in followed:
            each.open = False
            each.thread.halt()
        for each in followed:
            each.thread.stop()
            each.leave()


def _connect(scope: Scope, settings: StreamSettings) -> Connect:
    if settings.connect is not None:
        return settings.connect
    client = None if scope.client is None else scope.client()
    return default_connect() if client is None else connect_as(client)


class Follower:
    """One table's stream. ``open``: its changes are told, so it may be kept. Does not keep the
    handle alive."""

    def __init__(
        self, of: Following, state: TableState, settings: StreamSettings, connect: Connect
    ) -> None:
        self.table = state.name
        self.mark = state.mark
        self.open = False
        self.refused = ""  # what the last failure was
        self._of = weakref.ref(of)
        self._settings = settings
        self._connect = connect
        self._runtime = of.store.runtime
        self._meter = of.store.meter
        self._reader: StreamReader | None = None
        self._trusted = _NEVER  # until then, without word of the stream
        self._alive_at = _NEVER
        self._seat: Seat | None = None
        if of.fleet is not None:
            self._seat = Seat(of.fleet.parts, f"dax:{self.mark.hex()}", settings.max_lag)
            of.fleet.alive[self.mark] = self._hear_alive
        self.thread = ReaderThread(
            self._runtime, self._read, wanted=self._wanted, turn=self._turn, after=self._after
        )
        self._runtime.on_fork(self._after_fork)

    def start(self) -> None:
        self.thread.start()

    @property
    def state(self) -> str:
        state = self.thread.state
        return f"refused: {self.refused}" if self.refused and not self.open else state

    def leave(self) -> None:
        """Let another process read."""
        if self._seat is not None:
            self._seat.leave()

    def _after_fork(self) -> None:
        self.open, self._trusted, self._reader = False, _NEVER, None

    # -- the thread -----------------------------------------------------------------------

    def _wanted(self) -> bool:
        of = self._of()
        return of is not None and not of._closed

    def _turn(self) -> bool:
        return self._seat is None or self._seat.hold()

    def _read(self) -> StreamReader:
        runtime, settings = self._runtime, self._settings
        self._reader = StreamReader(
            self.table, changed=self._changed, lost=self._lost, connect=self._connect,
            tell=self._tell, clock=runtime.clock, wall=runtime.wall, poll=settings.poll,
            max_lag=settings.max_lag,
        )  # fmt: skip
        return self._reader

    def _after(self) -> None:
        now, reader = self._runtime.clock(), self._reader
        if self.thread.state != "standing by" and reader is not None:
            lag = reader.lag
            self._trusted = now + self._settings.max_lag - lag
            if now <= self._trusted:
                self._start_keeping()
                self._say_alive(now, lag)
        self.check(now)
        if self._seat is not None:
            self._seat.judge(self.thread.state == "behind")

    # -- whether it is told of --------------------------------------------------------------

    def check(self, now: float) -> None:
        """Stop keeping where the last word is too old: a reader may hang in a call."""
        if self.open and now > self._trusted:
            self._shut()

    def _start_keeping(self) -> None:
        """All goes once more: what was asked for before now may be outdated."""
        of = self._of()
        if of is None or of._closed:
            return
        with of.store.gate:
            if not self.open:
                of.others.written(self.mark, None)
                self.open, self.refused = True, ""

    def _shut(self) -> None:
        of = self._of()
        if of is None or not self.open:
            return
        with of.store.gate:
            self.open = False
            of.others.written(self.mark, None)
        self._meter.count("stream_flushes")

    def _say_alive(self, now: float, lag: float) -> None:
        of = self._of()
        if of is None or of.fleet is None or now < self._alive_at:
            return
        self._alive_at = now + self._settings.max_lag / 4
        told = Told(notes.ALIVE, self.mark, None, notes.lag_mark(lag))
        of.fleet.relay([told], certain=False)

    def _hear_alive(self, lag: float) -> None:
        """The process that reads has told everything up to ``lag`` seconds ago."""
        reads = self.thread.state in ("reading", "behind")
        if not reads and lag < self._settings.max_lag:
            self._trusted = self._runtime.clock() + self._settings.max_lag - lag
            self._start_keeping()

    # -- what it reads ----------------------------------------------------------------------

    def _changed(self, records: Sequence[Record]) -> None:
        """Raises BackendError where the fleet could not be told: then it is told again."""
        of = self._of()
        if of is None:
            return
        now = self._runtime.wall()
        self._meter.count("stream_records", len(records))
        marks: dict[Key, bytes] = {}
        for record in records:
            key = key_of(dict(record.wire["Keys"]), wire_atom)
            if key is None:
                self._tell("feed_failed", step="key")
                self._lost()
                return
            marks[key] = _image(record)
            if record.created is not None:
                self._meter.time("stream_lag", max(0.0, now - record.created))
        told = [Told(notes.CHANGED, self.mark, key, mark) for key, mark in marks.items()]
        of.others.hear(told)
        if of.fleet is not None:
            for at in range(0, len(told), PART):
                if not of.fleet.relay(told[at : at + PART], certain=False):
                    raise BackendError("the bus can not be told of what a stream says")

    def _lost(self) -> None:
        of = self._of()
        if of is None:
            return
        with of.store.gate:
            of.others.written(self.mark, None)
        self._meter.count("stream_flushes")
        if of.fleet is not None:
            of.fleet.relay([Told(notes.APPLIED, self.mark)])

    def _tell(self, event: str, **fields: Any) -> None:
        if event in ("feed_behind", "feed_lost"):
            self._shut()
        if event in ("feed_lost", "feed_failed", "feed_behind"):
            what = ": ".join([event.removeprefix("feed_"), *map(str, fields.values())])
            if fields:
                self.refused = str(fields.get("error") or fields.get("reason") or event)
            self._meter.warn_once(
                f"{self.table} {what}",
                "cachekit.dax: the stream of %r: %s; until it is read, nothing of the table is"
                " kept", self.table, what,
            )  # fmt: skip
        self._meter.event(f"dax_{event}", table=self.table, **fields)


def _image(record: Record) -> bytes:
    """The mark of what the item is now; NONE where the stream's view does not say."""
    if record.kind == "remove":
        return notes.NO_ITEM
    new = record.wire.get("NewImage")
    if new is None:
        return notes.NONE
    try:
        return notes.image_mark(stored(new))
    except (Uncertain, ValueError, TypeError):
        return notes.NONE
