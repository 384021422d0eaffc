"""`cachekit bench`: options, their checks before anything runs, and what is written after."""

from __future__ import annotations

import enum
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..core.policy import seconds as as_seconds
from ..errors import ConfigurationError
from . import matrix, report, traces, workloads
from .course import Bounds, Stop
from .html import to_html
from .result import Outcome
from .subjects import STRATEGIES, strategy_named

DEFAULT_SECONDS = 2.0
QUICK_SECONDS = 0.5
WATCHED_SECONDS = 1.0
QUICK_WATCHED_SECONDS = 0.4
QUICK_STRATEGIES = ("cache-aside", "write-through", "write-back")
QUICK_TRACE = 20_000
BROKEN = 3  # exit code: a row did not keep what it promises
LONGEST_TRACE = 10_000_000
_WARMUP = 0.2


class WorkloadName(enum.StrEnum):
    A = "a"
    B = "b"
    C = "c"
    D = "d"
    F = "f"


class Keys(enum.StrEnum):
    ZIPFIAN = "zipfian"
    UNIFORM = "uniform"


class TraceFormat(enum.StrEnum):
    TEXT = "text"
    INT32BE = "int32be"
    INT32LE = "int32le"
    INT64BE = "int64be"


class Mode(enum.StrEnum):
    THREADS = "threads"
    TASKS = "tasks"


_STRATEGIES = ", ".join(STRATEGIES)
_BACKENDS = ", ".join(matrix.BACKENDS)
_WHAT, _WHERE, _HOW, _OUT = "What to run", "Against what", "How", "Where it goes"


HELP = (
    "Run one workload over backends x strategies against a real source, and compare. "
    "Per row: throughput, read and write latency, hit ratio, load on the source, stale reads "
    "(older than the last write acknowledged before the read began) and lost writes "
    "(acknowledged, but not in the source at the end). Then the same in other processes: what "
    "each strategy promises them beside what they read. Code 3: a promise was broken."
)


def bench(
    context: typer.Context,
    workload: Annotated[
        WorkloadName | None,
        typer.Option(
            case_sensitive=False,
            help="YCSB core workload: a 50/50 read/update, b 95/5 read/update, c read only, "
            "d 95/5 read latest/insert, f 50/50 read/read-modify-write. Default: a.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    keys: Annotated[
        Keys | None,
        typer.Option(
            case_sensitive=False,
            help="How keys are drawn. Default: the workload's own: latest for d, else zipfian.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Replay a trace file (plain, gz or xz) instead.", rich_help_panel=_WHAT),
    ] = None,
    trace_format: Annotated[
        TraceFormat,
        typer.Option(help="text = one key a line.", rich_help_panel=_WHAT),
    ] = TraceFormat.TEXT,
    write_ratio: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of a trace's rows to turn into updates.",
            rich_help_panel=_WHAT,
        ),
    ] = 0.0,
    records: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000_000,
            help="Rows in the source. Default: 10000.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    value_size: Annotated[
        int,
        typer.Option(
            min=0, max=100_000_000, help="Characters in a row's payload.", rich_help_panel=_WHAT
        ),
    ] = 1000,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{_BACKENDS}, or a URL; repeat for more. Default: all that can be started.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{_STRATEGIES}; repeat for more. no-cache is always run. Default: all.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            help="The system of record: sqlite (a temporary file) or postgresql://...",
            rich_help_panel=_WHERE,
        ),
    ] = "sqlite",
    source_delay: Annotated[
        str,
        typer.Option(
            help="Added to every operation of the source, e.g. 2ms.", rich_help_panel=_WHERE
        ),
    ] = "0",
    capacity: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Entries of the near tier. Default: a tenth of the records.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    ttl: Annotated[
        str,
        typer.Option(
            help="Life of a cached value, e.g. 30s; none = for ever.", rich_help_panel=_WHERE
        ),
    ] = "10m",
    operations: Annotated[
        int | None,
        typer.Option(min=1, help="Operations a row.", rich_help_panel=_HOW),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Seconds a row. Default: 2; a trace runs to its end.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=10.0,
            rich_help_panel=_HOW,
            help="Unmeasured run before, as a share of the measured. Default: 0.2; trace: 0.",
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=10_000, help="Workers at a time.", rich_help_panel=_HOW)
    ] = 8,
    mode: Annotated[
        Mode, typer.Option(help="Workers are threads or asyncio tasks.", rich_help_panel=_HOW)
    ] = Mode.THREADS,
    readers: Annotated[
        int,
        typer.Option(
            min=0,
            max=16,
            help="Processes that read what this one writes, one row each way of keeping near "
            "copies right; 0 = no such rows.",
            rich_help_panel=_HOW,
        ),
    ] = 1,
    seed: Annotated[
        int, typer.Option(help="Same seed, same operations.", rich_help_panel=_HOW)
    ] = 1,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="A glance: 1000 records, half a second a row.", rich_help_panel=_HOW
        ),
    ] = False,
    json: Annotated[
        Path | None, typer.Option(help="Write the result as JSON.", rich_help_panel=_OUT)
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write a report with charts, one file.", rich_help_panel=_OUT),
    ] = None,
) -> int:
    """Check everything that was asked for, run it, print the table and write the files."""
    if operations is not None and seconds is not None:
        raise ConfigurationError("give --operations or --seconds, not both")
    if trace is not None and (workload is not None or keys is not None or records is not None):
        raise ConfigurationError("--trace brings its own keys: drop --workload, --keys, --records")
    if trace is None and write_ratio:
        raise ConfigurationError("--write-ratio is for --trace; workloads have their own")
    for path, option in ((json, "--json"), (html, "--html")):
        if path is not None:
            report.check_target(path, option)
    strategies = matrix.strategies_or_all([strategy_named(name) for name in strategy or []])
    seconds_watched = seconds or (QUICK_WATCHED_SECONDS if quick else WATCHED_SECONDS)
    watched = strategies
    if quick and not strategy:
        watched = [name for name in strategies if name in QUICK_STRATEGIES]
    if trace is not None:
        limit = operations or (QUICK_TRACE if quick else LONGEST_TRACE)
        plan = workloads.replay(
            traces.accesses(trace, trace_format), name=f"trace {trace.name}", limit=limit,
            write_ratio=write_ratio, seed=seed,
        )  # fmt: skip
        operations = None if seconds is not None else len(plan)
        warmup = warmup or 0.0
    else:
        warmup = _WARMUP if warmup is None else warmup
        if operations is None and seconds is None:
            seconds = QUICK_SECONDS if quick else DEFAULT_SECONDS
        chosen = workloads.WORKLOADS[workload or "a"]
        plan = workloads.draw(
            chosen,
            keys=keys or chosen.keys,
            records=records or (1000 if quick else 10_000),
            count=None if operations is None else int(operations * (1 + warmup)),
            seed=seed,
        )
    request = matrix.Request(
        plan=plan,
        bounds=Bounds(operations, seconds, warmup, concurrency, mode is Mode.TASKS),
        backends=backend or [],
        strategies=strategies,
        source=source,
        source_delay=_duration(source_delay, "--source-delay") or 0.0,
        ttl=_duration(ttl, "--ttl"),
        value_size=value_size,
        capacity=capacity or max(1, plan.records // 10),
        seed=seed,
        readers=readers,
        watched=watched,
        watch_seconds=seconds_watched,
    )
    command = shlex.join(["cachekit", *(context.obj or ())])
    return _run(request, command, mode, json, html)


def _run(
    request: matrix.Request, command: str, mode: Mode, json: Path | None, html: Path | None
) -> int:
    outcome = Outcome(
        command=matrix.hide_secrets(command),
        workload=request.plan.name,
        about=request.plan.about,
        source="",
        settings={
            "records": request.plan.records,
            "value_size": request.value_size,
            "capacity": request.capacity,
            "ttl_seconds": request.ttl,
            "concurrency": request.bounds.concurrency,
            "mode": mode.value,
            "operations": request.bounds.operations,
            "seconds": request.bounds.seconds,
            "warmup": request.bounds.warmup,
            "source_delay_seconds": request.source_delay,
            "seed": request.seed,
            "readers": request.readers,
            "watch_seconds": request.watch_seconds,
        },
    )
    stop = Stop()
    with _signals(stop) as caught, matrix.ready(request, outcome) as run, _progress() as progress:
        run(stop, progress)
    wide = Console()
    if not wide.is_terminal:
        wide = Console(width=report.WIDE)
    report.print_outcome(outcome, wide)
    if json is not None:
        report.write_target(json, report.to_json(outcome))
    if html is not None:
        report.write_target(html, to_html(outcome))
    if caught:
        return 128 + caught[0]
    if outcome.broken:
        return BROKEN
    return 1 if outcome.failed else 0


@contextmanager
def _signals(stop: Stop) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM ends the run gently, the second at once."""
    caught: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        stop.requested = True

    before: dict[int, Any] = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress() -> Iterator[matrix.Progress]:
    """A bar on stderr, when that is a terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]}"),
        TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("preparing the source", total=1.0, rows="")

        def show(row: str, number: int, rows: int, share: float) -> None:
            bar.update(
                task, description=row, total=float(rows), completed=number + share,
                rows=f"{number + 1} of {rows}",
            )  # fmt: skip

        yield show


def _duration(text: str, option: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return as_seconds(float(text) if _is_number(text) else text, option)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(str(error)) from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
