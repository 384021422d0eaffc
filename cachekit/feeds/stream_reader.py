"""The reader of one DynamoDB stream: from a moment on, every change, in order, or word of a gap.

It knows no cache: what it is given are functions to call (``changed``, ``lost``), so that other
things that keep items can be driven by it too. What to trust follows from two times: up to when
all changes were told, and when everything was forgotten last. Whichever is later, nothing kept
may be older by more than ``max_lag``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from ..core.eventcount import Flag
from ..core.threads import begin
from ..runtime import Runtime
from .connecting import Connect
from .shards import Gap, Listed, Record, Shard, Shards, record_of

__all__ = ["ReaderThread", "StreamReader"]

LOOK = 10.0  # between looks at the table and at its stream's shards
LOOK_SOON = 1.0  # while the successor of a shard is not listed
SPLITTING = 30.0  # after a shard's end, its successors may still come to be listed
PAGE = 1000
RETRY_FIRST, RETRY_MOST = 0.25, 5.0
RETENTION = 20 * 3600.0  # DynamoDB keeps records for 24 hours
LEAST_PAUSE = 0.05
SLOW = 1.0
SLICE = 0.5  # between looks whether it is still wanted
JOIN = 0.9
AFTER_FORK = 0.1
_NEVER = float("-inf")
_GONE = {"ResourceNotFoundException", "TrimmedDataAccessException"}
_inherited: list[Any] = []  # a parent's connections: neither used nor closed in the child


class StreamReader:
    """Reads the stream of one table, in the caller's thread, by :meth:`step` again and again.

    ``changed(records)`` is told of each page, in order; when it raises, the page is told again.
    ``lost()`` means: forget all that came from the table. ``tell(event, **fields)`` hears what
    happens. ``clock``: monotonic seconds, ``wall``: Unix seconds."""

    def __init__(
        self,
        table: str,
        *,
        changed: Callable[[Sequence[Record]], None],
        lost: Callable[[], None],
        connect: Connect,
        tell: Callable[..., None],
        clock: Callable[[], float],
        wall: Callable[[], float],
        poll: float = 0.5,
        max_lag: float = 10.0,
    ) -> None:
        self.table = table
        self.poll = poll
        self.max_lag = max_lag
        self.stopped = False
        self._changed = changed
        self._lost = lost
        self._connect = connect
        self._tell = tell
        self._clock = clock
        self._wall = wall
        self._clients: dict[str, Any] = {}
        self._arn = ""
        self._shards: Shards | None = None
        self._looked = self._flushed = self._ended = _NEVER
        self._stepped: tuple[float, float] | None = None
        self._failures = 0
        self.behind = False  # changes are not told within max_lag

    @property
    def lag(self) -> float:
        """Seconds for which changes may be untold; inf before the stream is read."""
        return self._clock() - self._known()

    def step(self) -> float:
        """Tell what is new; gives the seconds until the next step. Raises nothing but what
        ``lost`` raises."""
        pause = self.poll
        try:
            self._awake()
            shards = self._shards or self._begin()
            # The second child of a split may be listed after the first.
            soon = shards.childless() or self._clock() - self._ended < SPLITTING
            if self._clock() - self._looked >= (LOOK_SOON if soon else LOOK):
                self._look(shards)
            if self._round(shards):
                pause = 0.0
            self._failures = 0
        except Gap as gap:
            pause = self._retry()
            read, self._shards = self._shards is not None, None
            self._tell("feed_lost" if read else "feed_failed", reason=str(gap))
            if read:
                self.forget()  # else nothing has been trusted since
        except Exception as error:
            self._tell("feed_failed", step="read", error=_code(error) or type(error).__name__)
            pause = self._retry()
        return min(pause, self._judge())

    def forget(self) -> None:
        """Have all that came from the table forgotten; what is loaded from now on is new."""
        began = self._clock()
        self._lost()
        self._flushed = began

    def close(self) -> None:
        """Close the connections."""
        self.stopped = True
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    # -- trust ----------------------------------------------------------------------------

    def _known(self) -> float:
        return _NEVER if self._shards is None else self._shards.known()

    def _judge(self) -> float:
        """Nothing that was loaded before the oldest untold change may stand for long; gives the
        seconds that are left."""
        now = self._clock()
        behind = now - self._known() > self.max_lag
        if behind is not self.behind:
            self.behind = behind
            self._tell("feed_behind" if behind else "feed_caught_up")
        if now - max(self._known(), self._flushed) >= self.max_lag:
            self.forget()
        left = self.max_lag - (now - max(self._known(), self._flushed))
        return max(left, LEAST_PAUSE)

    def _awake(self) -> None:
        now, before = (self._clock(), self._wall()), self._stepped
        self._stepped = now
        if self._shards is None or before is None:
            return
        if max(now[0] - before[0], now[1] - before[1], now[0] - self._known()) > RETENTION:
            raise Gap("nothing was read for longer than DynamoDB keeps records")

    def _retry(self) -> float:
        self._failures += 1
        return min(RETRY_FIRST * 2.0 ** min(self._failures, 10), RETRY_MOST)

    # -- the stream -----------------------------------------------------------------------

    def _client(self, service: str) -> Any:
        client = self._clients.get(service)
        if client is None:
            client = self._clients[service] = self._connect(service)
        return client

    def _ask(self, verb: str, **arguments: Any) -> Any:
        try:
            return getattr(self._client("dynamodbstreams"), verb)(**arguments)
        except Exception as error:
            if _code(error) in _GONE:
                raise Gap(f"{verb}: {_code(error)}") from error
            raise

    def _begin(self) -> Shards:
        self._arn = ""
        began = self._clock()
        shards = Shards(self._listed(), began)
        for shard in shards.open():
            shard.iterator = self._iterator(shard)
            if self._clock() - began > SLOW:
                self._judge()
        self._looked = began
        self.forget()  # only now: what changes from here on is told
        self._shards = shards
        self._tell("feed_began", shards=len(shards.open()))
        return shards

    def _look(self, shards: Shards) -> None:
        self._looked = self._clock()
        shards.learn(self._listed())

    def _listed(self) -> list[Listed]:
        """All shards of the table's present stream."""
        try:
            told = self._client("dynamodb").describe_table(TableName=self.table)["Table"]
        except Exception as error:
            if _code(error) in _GONE:
                raise Gap("there is no such table") from error
            raise
        arn = told.get("LatestStreamArn")
        if not arn or not (told.get("StreamSpecification") or {}).get("StreamEnabled"):
            raise Gap("the table has no stream")
        if self._arn and arn != self._arn:
            raise Gap("the table has another stream")
        self._arn = arn
        listed: list[Listed] = []
        more: dict[str, str] = {}
        while True:
            page = self._ask("describe_stream", StreamArn=arn, **more)["StreamDescription"]
            if page["StreamStatus"] != "ENABLED":
                raise Gap(f"the stream is {page['StreamStatus'].lower()}")
            for each in page["Shards"]:
                closed = "EndingSequenceNumber" in each.get("SequenceNumberRange", {})
                listed.append(Listed(each["ShardId"], each.get("ParentShardId"), closed))
            last = page.get("LastEvaluatedShardId")
            if not last:
                return listed
            more = {"ExclusiveStartShardId": last}

    def _iterator(self, shard: Shard) -> str:
        where = {"StreamArn": self._arn, "ShardId": shard.name, **shard.position()}
        found: str = self._ask("get_shard_iterator", **where)["ShardIterator"]
        return found

    def _round(self, shards: Shards) -> bool:
        """One page of each shard whose turn it is; whether there may be more at once."""
        busy, refused = False, None
        for shard in shards.readable():
            if self.stopped:
                break
            asked = self._clock()
            try:
                busy = self._page(shards, shard) or busy
            except Exception as error:
                if not _code(error):  # ours, or nobody answers: no use to ask for the others
                    raise
                refused = refused or error  # throttled, say: the others are not held up
            if self._clock() - asked > SLOW:
                self._judge()
        if refused is not None:
            raise refused
        return busy

    def _page(self, shards: Shards, shard: Shard) -> bool:
        asked = self._clock()
        if shard.iterator is None:
            shard.iterator = self._iterator(shard)
        try:
            page = self._ask("get_records", ShardIterator=shard.iterator, Limit=PAGE)
        except Exception as error:
            if _code(error) != "ExpiredIteratorException":
                raise
            shards.expire(shard.name)
            return True
        records = self._understood(page["Records"])
        last, known = None, asked
        if self.stopped:
            return False
        if records:
            self._changed(records)
            last, created = records[-1].sequence, records[-1].created
            # Behind by the age of what was just told, until a page is empty.
            known = _NEVER if created is None else asked - max(0.0, self._now(page) - created)
        shards.advance(shard.name, page.get("NextShardIterator"), last, known)
        if shards[shard.name].done:
            self._ended = asked
            self._look(shards)
            return True
        return bool(records)

    def _understood(self, told: Sequence[Any]) -> list[Record]:
        try:
            return [record_of(self.table, each) for each in told]
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise Gap(f"a record that can not be read: {type(error).__name__}") from error

    def _now(self, answer: Any) -> float:
        """DynamoDB's own time, so that a wrong clock here hides no lag."""
        try:
            date = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
            return max(parsedate_to_datetime(date).timestamp(), 0.0)
        except (KeyError, TypeError, ValueError):
            return self._wall()


def _code(error: BaseException) -> str:
    told = getattr(error, "response", None)
    return str((told or {}).get("Error", {}).get("Code", "")) if isinstance(told, dict) else ""


class ReaderThread:
    """A daemon thread that turns a reader, until it is stopped or no longer ``wanted()``.

    Whatever ends the thread besides passes, and a successor begins anew with another reader; so
    does a forked child. ``turn()``: whether it is this process's turn to read; ``after()`` is
    called behind each step and each look at whose turn it is, ``ended()`` at the end."""

    def __init__(
        self,
        runtime: Runtime,
        make: Callable[[], StreamReader],
        *,
        wanted: Callable[[], bool],
        turn: Callable[[], bool] = lambda: True,
        after: Callable[[], None] = lambda: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.state = "starting"  # then "reading", "behind" or "standing by"
        self._clock = runtime.clock
        self._make = make
        self._still = wanted
        self._turn = turn
        self._after = after
        self._ended = ended
        self._reader: StreamReader | None = None
        self._stopped = Flag()
        self._thread: threading.Thread | None = None
        runtime.on_fork(self._after_fork)

    def start(self, pause: float = 0.0) -> None:
        """Begin after ``pause`` seconds."""
        self._thread = threading.Thread(
            target=self._run, args=(pause,), name="cachekit-dynamodb-stream", daemon=True
        )
        begin(self._thread)

    def halt(self) -> None:
        """Nothing is told after this, but what is being told."""
        self._stopped.set()
        reader = self._reader
        if reader is not None:
            reader.stopped = True

    def stop(self) -> None:
        """The same, and wait until that is told too, for at most a second."""
        self.halt()
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(JOIN)

    def _wanted(self) -> bool:
        return not self._stopped.is_set and self._still()

    def _run(self, pause: float) -> None:
        try:
            while self._rest(pause):
                pause = self._step()
        finally:
            self._drop()
            if self._wanted():
                self.start(SLICE)
            else:
                self._ended()

    def _rest(self, pause: float) -> bool:
        end = self._clock() + pause
        while self._wanted():
            left = end - self._clock()
            if left <= 0:
                return True
            self._stopped.wait(min(left, SLICE))
        return False

    def _step(self) -> float:
        if not self._turn():
            self._drop()
            self.state = "standing by"
            self._after()
            return SLICE
        reader = self._reader
        if reader is None:
            reader = self._reader = self._make()
            reader.stopped = self._stopped.is_set
        pause = reader.step()
        self.state = "behind" if reader.behind else "reading"
        self._after()
        return pause

    def _drop(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _after_fork(self) -> None:
        ran, self._thread = self._thread is not None, None
        if self._reader is not None:
            _inherited.append(self._reader)
            self._reader = None
        if ran and self._wanted():
            self._stopped = Flag()
            # The pause lets the other parts of what follows finish with the fork.
            self.start(AFTER_FORK)
