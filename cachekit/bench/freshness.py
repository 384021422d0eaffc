"""What other processes read: old values, counted and timed against what each row promises."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from .accounting import Ledger
from .course import Stop
from .histogram import Histogram
from .source import Source
from .subjects import IN_MEMORY, NO_CACHE, STRATEGIES, Strategy
from .watcher import ABSENT, Opening, Seen, Watcher

WRITERS = 2
WATCHED = 16  # rows that are written and read
PAUSE = 0.005  # seconds between two writes of one writer
NEAR_BOUND = 0.25  # seconds, of the rows that keep near copies by a bound
TIMEOUT = 2.0  # of a call to the backend: a busy machine is not a dead backend
_LOOK = 0.01  # seconds between two looks at what should have come right

ABOUT = (
    "Freshness in another process: this process writes {rows} rows all the while, read by "
    "{readers} through a cache of their own over the same backend. A read is stale if it began "
    "after a write was acknowledged and gave something older; its age is the time from that "
    "acknowledgement to the beginning of the read. 'promised' is the oldest that the row's "
    "strategy and coherence may serve: 0 = never stale; a time = never longer than that; 'until "
    "flushed' = a queued write is seen by others only once it is in the source, and always from "
    "then on; 'up to its ttl' = nothing tells the other process. A row that breaks its promise is "
    "marked BROKEN and makes the command end with code 3. In the table of workloads every read is "
    "in the process that writes, and every row promises 0."
)


@dataclass(frozen=True, slots=True)
class Promise:
    """How old a value may be that another process gives. ``bound``: seconds, None = any age.

    With ``settles`` all is right ``delay`` seconds after the writes ended and were flushed."""

    text: str
    bound: float | None
    settles: bool = True
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Case:
    """A row: one strategy, and how the reader's near tier follows the writer."""

    backend: str
    url: str | None
    strategy: str
    near: str
    coherence: float | str | None
    promise: Promise
    log: str | None = None


@dataclass(frozen=True, slots=True)
class Freshness:
    """What one row's readers saw. ``left_stale`` counts keys that stayed wrong after the end."""

    backend: str
    strategy: str
    near: str
    promise: Promise
    readers: int
    seconds: float
    reads: int
    writes: int
    stale_reads: int
    ages: Histogram
    left_stale: int
    lost_writes: int
    errors: int
    error: str
    complete: bool

    @property
    def oldest(self) -> float:
        """Seconds."""
        return self.ages.largest / 1e9

    @property
    def kept(self) -> bool:
        """Whether the promise was kept."""
        if self.lost_writes or (self.left_stale and self.promise.settles):
            return False
        bound = self.promise.bound
        return not self.stale_reads or bound is None or (bound > 0 and self.oldest <= bound)

    def as_json(self) -> dict[str, Any]:
        p99 = self.ages.percentile(99)
        return {
            "backend": self.backend,
            "strategy": self.strategy,
            "near": self.near,
            "promise": self.promise.text,
            "promise_seconds": self.promise.bound,
            "kept": self.kept,
            "readers": self.readers,
            "seconds": round(self.seconds, 6),
            "reads": self.reads,
            "writes": self.writes,
            "stale_reads": self.stale_reads,
            "stale_p99_ms": None if p99 is None else round(p99 / 1e6, 6),
            "stale_max_ms": round(self.oldest * 1e3, 6) if self.stale_reads else None,
            "left_stale": self.left_stale,
            "lost_writes": self.lost_writes,
            "errors": self.errors,
            "first_error": self.error or None,
            "complete": self.complete,
        }


def cases(
    backend: str,
    url: str | None,
    strategies: Sequence[str],
    ttl: float | None,
    log: Callable[[], str | None],
) -> Iterator[Case]:
    """The rows of one backend: every strategy with near copies that are always asked about, and
    the first one also with those that a bus or a bound in seconds keeps right."""
    import cachekit
    from cachekit.errors import ConfigurationError

    chosen = [name for name in strategies if name != NO_CACHE]
    if url is None:
        text = "up to its ttl" if ttl is not None else "never told"
        plain = [name for name in chosen if STRATEGIES[name].cls != "WriteBack"]
        for name in plain[:1]:
            yield Case(backend, url, name, "own copy", None, Promise(text, ttl, settles=False))
        if "write-back" in chosen:
            zero = Promise("0", 0.0)
            yield Case(backend, url, "write-back", "shared log", None, zero, log())
        return
    for name in chosen:
        promise = Promise("0", 0.0) if name != IN_MEMORY else Promise("until flushed", None)
        yield Case(backend, url, name, "strict", "strict", promise, log())
    near = next((name for name in chosen if STRATEGIES[name].cls != "WriteBack"), None)
    if near is None:
        return
    try:
        cache = cachekit.Cache(url, coherence="push")
    except ConfigurationError:
        pass  # no bus: no such row
    else:
        cache.close()
        # By the bus while it is whole, by the near tier's own bound while it is cut.
        bus: Any = cache._parts.coherence.bus
        late = max(bus.bound, cache._parts.coherence.bound)
        yield Case(backend, url, near, "push", "push", Promise(f"≤ {late:g} s", late, delay=late))
    bound = Promise(f"≤ {NEAR_BOUND:g} s", NEAR_BOUND, delay=NEAR_BOUND)
    yield Case(backend, url, near, f"{NEAR_BOUND:g} s", NEAR_BOUND, bound)


def watch(
    case: Case,
    source: Source,
    readers: Sequence[Watcher],
    *,
    records: int,
    ttl: float | None,
    seconds: float,
    stop: Stop,
) -> Freshness:
    """Run one row. The source's rows are brought back to version 0 first."""
    source.reset(records)
    options: dict[str, Any] = {
        "namespace": f"bench-{secrets.token_hex(4)}", "timeout": TIMEOUT,
        "coherence": case.coherence,
    }  # fmt: skip
    opening = Opening(source.opener(), case.url, case.strategy, ttl, options, case.log)
    keys = range(min(WATCHED, records))
    with ExitStack() as stack:
        recipe = Strategy(
            case.strategy, lambda: case.url, ttl=ttl, options=options, log=lambda: case.log
        )
        subject = recipe.build(source)
        stack.callback(subject.close)
        for reader in readers:
            stack.callback(reader.close)
            reader.open(opening)
            reader.look(keys)  # every key has a copy before the first write
        for reader in readers:
            reader.start(keys)
        began = time.perf_counter()
        writing = Writing(Ledger(records), source, subject.write, keys, began + seconds, stop)
        writing.run()
        flushed = subject.flush()
        seen_by = [reader.stop() for reader in readers]
        took = time.perf_counter() - began
        final = dict(source.versions())
        wrong = [_left(reader, keys, final, case.promise) for reader in readers]
    ages = Histogram()
    stale = 0
    for seen in seen_by:
        stale += _judge(seen, writing.ledger, ages)
    return Freshness(
        backend=case.backend,
        strategy=case.strategy,
        near=case.near,
        promise=case.promise,
        readers=len(readers),
        seconds=took,
        reads=sum(len(seen.began) for seen in seen_by),
        writes=writing.done,
        stale_reads=stale,
        ages=ages,
        left_stale=sum(wrong) if flushed else 0,
        lost_writes=writing.ledger.lost(final.items()).writes if flushed else 0,
        errors=writing.errors + sum(seen.errors for seen in seen_by),
        error=writing.error or next((seen.error for seen in seen_by if seen.error), ""),
        complete=flushed and not stop.requested,
    )


class Writing:
    """Writers in threads, each going round the keys with a pause after every write.

    A write that says its invalidation is pending has promised nothing yet to other processes:
    it counts as one of unknown outcome."""

    def __init__(
        self, ledger: Ledger, source: Source, write: Any, keys: Sequence[int], until: float,
        stop: Stop,
    ) -> None:  # fmt: skip
        self.ledger = ledger
        self.done = 0
        self.errors = 0
        self.error = ""
        self._source = source
        self._write = write
        self._keys = keys
        self._until = until
        self._stop = stop
        self._lock = threading.Lock()

    def run(self) -> None:
        threads = [
            threading.Thread(
                target=self._go, args=(number,), name="cachekit-bench-writer", daemon=True
            )
            for number in range(WRITERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.1)  # so that a signal is handled in between

    def _go(self, number: int) -> None:
        turn = number * len(self._keys) // WRITERS
        while time.perf_counter() < self._until and not self._stop.requested:
            key = self._keys[turn % len(self._keys)]
            turn += 1
            version = self.ledger.begin(key)
            try:
                written = self._write(key, self._source.row(key, version))
            except Exception as error:
                with self._lock:
                    self.errors += 1
                    self.error = self.error or f"{type(error).__name__}: {error}"
            else:
                if not getattr(written, "pending", False):
                    self.ledger.acknowledge(key, version)
                with self._lock:
                    self.done += 1
            time.sleep(PAUSE)


def _judge(seen: Seen, ledger: Ledger, ages: Histogram) -> int:
    stale = 0
    for began, key, version in zip(seen.began, seen.keys, seen.versions, strict=True):
        age = ledger.stale_for(key, None if version == ABSENT else version, began)
        if age is not None:
            stale += 1
            ages.record(int(age * 1e9))
    return stale


def _left(reader: Watcher, keys: Sequence[int], final: dict[int, int], promise: Promise) -> int:
    """Keys that read other than the source when the promise says that all has settled."""
    until = time.perf_counter() + promise.delay
    while True:
        # The time first: what counts is a look that began when the promise was due.
        due = time.perf_counter() >= until
        wrong = sum(
            version != final.get(key, ABSENT)
            for key, version in zip(keys, reader.look(keys), strict=True)
        )
        if due or not wrong:
            return wrong
        time.sleep(_LOOK)
