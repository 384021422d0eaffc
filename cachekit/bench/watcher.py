"""A second process that reads what the first one writes, and notes when it saw which version."""

from __future__ import annotations

import multiprocessing
import signal
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from ..errors import CacheKitError
from .source import Source
from .subjects import Strategy, Subject

ABSENT = -1
PAUSE = 0.0002  # seconds between two reads: a reader leaves the processor to those it watches
PATIENCE = 30.0  # seconds for an answer of the other process
MOST_READS = 4_000_000  # noted in one row; 24 bytes each


class WatcherFailed(CacheKitError):
    """The reading process ended, did not answer, or could not open what it was to read."""


class Opening(NamedTuple):
    """What the other process opens. Must be picklable."""

    source: Callable[[], Source]
    url: str | None
    strategy: str
    ttl: float | None
    options: dict[str, Any]
    log: str | None = None


@dataclass(slots=True)
class Seen:
    """Reads in order: when each began (``time.perf_counter``), its key, the version it gave."""

    began: array[float] = field(default_factory=lambda: array("d"))
    keys: array[int] = field(default_factory=lambda: array("q"))
    versions: array[int] = field(default_factory=lambda: array("q"))
    errors: int = 0
    error: str = ""


class Watcher:
    """One reading process, for one row after the other. A context manager."""

    def __init__(self) -> None:
        # A fresh interpreter: it shares no connection, lock or thread with this one.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs,), name="cachekit-bench-reader", daemon=True
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *raised: object) -> None:
        self._pipe.close()  # which ends it
        self._process.join(5.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def open(self, opening: Opening) -> None:
        self._ask("open", opening)

    def start(self, keys: Sequence[int]) -> None:
        """Read these keys in turn until :meth:`stop`."""
        self._ask("start", list(keys))

    def stop(self) -> Seen:
        seen: Seen = self._ask("stop")
        return seen

    def look(self, keys: Sequence[int]) -> list[int]:
        """Read each key once."""
        found: list[int] = self._ask("look", list(keys))
        return found

    def close(self) -> None:
        """Close what was opened; the process stays for the next row."""
        self._ask("close")

    def _ask(self, *question: Any) -> Any:
        try:
            self._pipe.send(question)
            if not self._pipe.poll(PATIENCE):
                raise WatcherFailed(f"the reading process did not answer within {PATIENCE:g} s")
            failed, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise WatcherFailed(f"the reading process ended: {error}") from error
        if failed:
            raise WatcherFailed(answer)
        return answer


def _serve(pipe: Connection) -> None:
    """The other process: answers until its asker is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the asker's affair
    reader = _Reader(pipe)
    try:
        while True:
            verb, *given = pipe.recv()
            try:
                answer = (False, getattr(reader, verb)(*given))
            except Exception as error:
                answer = (True, f"{type(error).__name__}: {error}")
            pipe.send(answer)
            if verb == "start":
                reader.read_on()
    except (EOFError, OSError):
        pass  # the asker is gone
    finally:
        reader.close()


class _Reader:
    """What the other process has open, and what it saw."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._source: Source | None = None
        self._subject: Subject | None = None
        self._wanted: list[int] = []
        self._seen: Seen = Seen()

    def open(self, opening: Opening) -> None:
        self._source = opening.source()
        recipe = Strategy(
            opening.strategy,
            lambda: opening.url,
            ttl=opening.ttl,
            options=opening.options,
            log=lambda: opening.log,
            worker=False,  # it only reads
        )
        self._subject = recipe.build(self._source)

    def start(self, keys: list[int]) -> None:
        self._wanted = keys
        self._seen = Seen()

    def read_on(self) -> None:
        """Until the pipe has the next question."""
        assert self._subject is not None
        read, clock, asked = self._subject.read, time.perf_counter, self._pipe.poll
        seen = self._seen
        while len(seen.began) < MOST_READS:
            for key in self._wanted:
                if asked(0):
                    return
                at = clock()
                try:
                    row = read(key)
                except Exception as error:
                    seen.errors += 1
                    seen.error = seen.error or f"{type(error).__name__}: {error}"
                else:
                    seen.began.append(at)
                    seen.keys.append(key)
                    seen.versions.append(ABSENT if row is None else row["version"])
                time.sleep(PAUSE)

    def stop(self) -> Seen:
        return self._seen

    def look(self, keys: list[int]) -> list[int]:
        assert self._subject is not None
        rows = [self._subject.read(key) for key in keys]
        return [ABSENT if row is None else row["version"] for row in rows]

    def close(self) -> None:
        subject, self._subject = self._subject, None
        source, self._source = self._source, None
        try:
            if subject is not None:
                subject.close()
        finally:
            if source is not None:
                source.close()
