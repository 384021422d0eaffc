"""Backends x strategies: opens what is asked for, then runs it row by row."""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CacheKitError, ConfigurationError
from . import freshness
from .course import Bounds, Stop
from .result import Outcome, Result
from .runner import measure
from .source import Source, open_source, payload
from .subjects import NO_CACHE, STRATEGIES, Idle, NoCache, Recipe, Strategy, level_of
from .watcher import Watcher
from .workloads import Plan

BACKENDS = ("memory", "sqlite", "redis", "memcached")
_HARNESS_OPERATIONS = 20_000

Progress = Callable[[str, int, int, float], None]  # row, its number, how many rows, share done


@dataclass(frozen=True, slots=True)
class Request:
    """What to run. ``backends`` empty: every one that this machine can start."""

    plan: Plan
    bounds: Bounds
    backends: Sequence[str]
    strategies: Sequence[str]
    source: str
    source_delay: float
    ttl: float | None
    value_size: int
    capacity: int
    seed: int
    readers: int = 0  # processes that read what this one writes
    watched: Sequence[str] = ()  # the strategies that they read through
    watch_seconds: float = 1.0  # a row of theirs


@dataclass(frozen=True, slots=True)
class Place:
    """A backend that answers. ``url`` gives a fresh URL for each row; None = embedded. ``log``
    gives a fresh log for write-back; None = the backend has one itself."""

    name: str
    url: Callable[[], str | None]
    log: Callable[[], str | None]


def hide_secrets(text: str) -> str:
    """URLs without user and password."""
    return re.sub(r"(\w://)[^@/\s]*@", r"\1", text)


@contextmanager
def ready(request: Request, outcome: Outcome) -> Iterator[Callable[[Stop, Progress], None]]:
    """Open source and backends; what it gives runs the rows, appending them to the outcome.

    Raises ConfigurationError for whatever was asked for and does not answer."""
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="cachekit-bench-", ignore_cleanup_errors=True)
            )
        )
        source = open_source(request.source, folder=folder, delay=request.source_delay)
        stack.callback(source.close)
        outcome.source = source.name
        places: list[Place] = []
        if any(name != NO_CACHE for name in request.strategies):
            places = _open(request.backends, folder, stack, outcome.skipped)

        def run(stop: Stop, progress: Progress) -> None:
            _run(request, source, places, outcome, stop, progress)

        yield run


def _run(
    request: Request,
    source: Source,
    places: Sequence[Place],
    outcome: Outcome,
    stop: Stop,
    progress: Progress,
) -> None:
    source.prepare(request.plan.records, payload(request.value_size, request.seed))
    outcome.harness = _harness(request, source, stop)
    rows: list[tuple[str, str, str | None, Recipe]] = [("none", NO_CACHE, None, NoCache())]
    for place in places:
        for name in request.strategies:
            if name != NO_CACHE:
                level = level_of(name, place.log())
                rows.append((place.name, name, level, _strategy(name, place, request)))
    cases: list[freshness.Case] = []
    if request.readers:
        for place in places:
            cases += freshness.cases(
                place.name, place.url(), request.watched, request.ttl, place.log
            )
    count = len(rows) + len(cases)
    for number, (backend, strategy, level, recipe) in enumerate(rows):
        if stop.requested:
            break
        label = f"{backend} / {strategy}"

        def report(share: float, label: str = label, number: int = number) -> None:
            progress(label, number, count, share)

        report(0.0)
        try:
            measured = measure(
                recipe, request.plan, request.bounds, source, stop=stop, report=report
            )
        except Exception as error:  # one broken row must not take the others with it
            outcome.failed.append(f"{label}: {type(error).__name__}: {hide_secrets(str(error))}")
            continue
        outcome.results.append(Result(backend, strategy, level, measured))
    if cases and not stop.requested:
        _watch(request, source, cases, outcome, stop, progress)
    outcome.interrupted = stop.requested


def _watch(
    request: Request,
    source: Source,
    cases: Sequence[freshness.Case],
    outcome: Outcome,
    stop: Stop,
    progress: Progress,
) -> None:
    first = len(outcome.results)
    with ExitStack() as stack:
        progress("starting the readers", first, first + len(cases), 0.0)
        readers = [stack.enter_context(Watcher()) for _ in range(request.readers)]
        for number, case in enumerate(cases):
            if stop.requested:
                return
            label = f"{case.backend} / {case.strategy} ({case.near}) read by another process"
            progress(label, first + number, first + len(cases), 0.0)
            try:
                found = freshness.watch(
                    case, source, readers, records=request.plan.records, ttl=request.ttl,
                    seconds=request.watch_seconds, stop=stop,
                )  # fmt: skip
            except Exception as error:
                outcome.failed.append(
                    f"{label}: {type(error).__name__}: {hide_secrets(str(error))}"
                )
                continue
            outcome.freshness.append(found)


def _strategy(name: str, place: Place, request: Request) -> Strategy:
    options: dict[str, Any] = {
        "max_entries": request.capacity,
        "namespace": f"bench-{secrets.token_hex(4)}",
    }
    return Strategy(name, place.url, ttl=request.ttl, options=options, log=place.log)


def _harness(request: Request, source: Source, stop: Stop) -> float | None:
    """Operations a second when reads and writes do nothing: the ceiling of every row."""
    if stop.requested:
        return None
    bounds = replace(request.bounds, operations=_HARNESS_OPERATIONS, seconds=None, warmup=0.0)
    measured = measure(Idle(), request.plan, bounds, source, stop=stop, report=lambda share: None)
    return measured.tally.done / measured.seconds if measured.tally.done else None


def _open(names: Sequence[str], folder: Path, stack: ExitStack, skipped: list[str]) -> list[Place]:
    places = []
    for name in dict.fromkeys(names or BACKENDS):
        try:
            place = _place(name, folder, stack)
            _probe(place)
        except CacheKitError as error:
            if names:
                raise
            skipped.append(f"{name}: {error}")
        else:
            places.append(place)
    return places


def _place(name: str, folder: Path, stack: ExitStack) -> Place:
    def file() -> str:
        return f"sqlite:///{folder}/log-{secrets.token_hex(4)}.db"

    if "://" in name:
        own = name.startswith(("redis", "unix"))
        return Place(hide_secrets(name), lambda: name, (lambda: None) if own else file)
    if name == "memory":
        return Place(name, lambda: None, file)
    if name == "sqlite":
        return Place(name, lambda: f"sqlite:///{folder}/cache-{secrets.token_hex(4)}.db", file)
    if name in ("redis", "memcached"):
        from ..testing import servers

        kind = servers.RedisServer if name == "redis" else servers.MemcachedServer
        try:
            url: str = stack.enter_context(kind()).url
        except (servers.ServerMissing, servers.ServerFailed) as error:
            raise ConfigurationError(f"no {name} server can be started here: {error}") from error
        return Place(name, lambda: url, (lambda: None) if name == "redis" else file)
    raise ConfigurationError(
        f"unknown backend {name!r}; give {', '.join(BACKENDS)} or a URL like redis://host:6379/0"
    )


def _probe(place: Place) -> None:
    """One write and one read that must succeed."""
    import cachekit

    try:
        cache = cachekit.Cache(place.url(), strict=True, timeout=2.0, namespace="bench-probe")
        try:
            cache.set("probe", 1, ttl=10)
            cache.get("probe")
        finally:
            cache.close()
    except CacheKitError as error:
        raise ConfigurationError(
            f"backend {place.name} refused: {hide_secrets(str(error))}"
        ) from error


def strategies_or_all(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names)) or list(STRATEGIES)
