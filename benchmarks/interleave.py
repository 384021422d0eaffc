"""Ratios of call costs from one interleaved run: every round times every subject once.

Machines drift and share cores; the subjects of one round drift together. So the number that is
kept is the ratio inside a round, and beside it the ratio of each subject's fastest round.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

ROUND_SECONDS = 0.0004  # one subject's turn; short, so that a round sees one machine state


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing to time: ``call`` is an expression over the loop's target and ``names``."""

    name: str
    call: str
    names: Mapping[str, Any]
    is_async: bool = False


@dataclass(frozen=True, slots=True)
class Promise:
    """A figure a ratio is held against. ``speed``: the figure is reference / subject, at least."""

    id: str
    figure: float
    speed: bool = False
    held: bool = True  # False: shown beside the figure, which another row is held against

    def kept(self, *ratios: float) -> bool:
        if self.speed:
            return all(ratio >= self.figure for ratio in ratios)
        return all(ratio <= self.figure for ratio in ratios)


@dataclass(slots=True)
class Row:
    """One line of the report. Times in nanoseconds a call, the loop's own cost taken off."""

    group: str
    subject: str
    minimum: float | None = None
    median: float | None = None
    ratio: float | None = None  # median of the rounds' ratios
    ratio_of_minima: float | None = None
    promise: str = ""
    figure: float | None = None
    verdict: str = ""
    note: str = ""


@dataclass(slots=True)
class Group:
    """Subjects measured against one of them, over the same keys in the same rounds."""

    title: str
    reference: str
    keys: Sequence[Any]
    target: str = "k"
    fill: Sequence[Any] = ()  # equal keys to fill the caches with; () = the very keys
    subjects: list[Subject] = field(default_factory=list)
    promises: dict[str, Promise] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    turn: float = ROUND_SECONDS
    thin: int = 1  # of how many rounds one is enough, where a turn is long

    def add(
        self, name: str, call: str, promise: Promise | None = None, note: str = "", **names: Any
    ) -> None:
        is_async = call.startswith("await ")
        self.subjects.append(Subject(name, call, names, is_async))
        if promise is not None:
            self.promises[name] = promise
        if note:
            self.notes[name] = note

    def measure(self, rounds: int) -> list[Row]:
        """Time the group. The first turn of each subject fills its cache and is not counted."""
        with asyncio.Runner() as runner:
            turns = [_Turn(s, self, runner) for s in self.subjects]
            empty = _Turn(Subject("", "pass", {}), self, runner)
            costs: dict[str, list[float]] = {s.name: [] for s in self.subjects}
            loop: list[float] = []
            gc.collect()
            gc.disable()
            try:
                for number in range(rounds):
                    loop.append(empty.cost())
                    at = number % len(turns)  # nobody always runs first
                    for turn in turns[at:] + turns[:at]:
                        costs[turn.name].append(turn.cost())
            finally:
                gc.enable()
        own = min(loop)
        return self._rows({name: [c - own for c in cost] for name, cost in costs.items()})

    def _rows(self, costs: Mapping[str, list[float]]) -> list[Row]:
        reference = costs[self.reference]
        rows = []
        for name, cost in costs.items():
            promise = self.promises.get(name)
            speed = promise is not None and promise.speed
            pairs = (
                zip(reference, cost, strict=True) if speed else zip(cost, reference, strict=True)
            )
            ratio = statistics.median(a / b for a, b in pairs)
            lowest = min(cost) / min(reference)
            row = Row(
                self.title,
                name,
                min(cost) * 1e9,
                statistics.median(cost) * 1e9,
                ratio,
                1 / lowest if speed else lowest,
                note=self.notes.get(name, ""),
            )
            judge(row, promise)
            rows.append(row)
        return rows + self.absent()

    def absent(self) -> list[Row]:
        return [Row(self.title, name, note=f"missing: {why}") for name, why in self.missing.items()]


def judge(row: Row, promise: Promise | None) -> None:
    """Write the promise's figure and whether both ratios keep it into the row."""
    if promise is None or row.ratio is None or row.ratio_of_minima is None:
        return
    row.promise = f"{promise.id} {'≥' if promise.speed else '≤'} {promise.figure:g}"
    row.figure = promise.figure
    row.verdict = "met" if promise.kept(row.ratio, row.ratio_of_minima) else "not met"
    if not promise.held:
        row.verdict = f"({row.verdict})"


def merged(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """The same rows of several processes as one: the fastest minimum, medians of all else."""
    rows = []
    for same in zip(*runs, strict=True):
        row = replace(same[0])
        row.minimum = min((r.minimum for r in same if r.minimum is not None), default=None)
        for name in ("median", "ratio", "ratio_of_minima"):
            values = [value for r in same if (value := getattr(r, name)) is not None]
            setattr(row, name, statistics.median(values) if values else None)
        if row.figure is not None:
            speed, held = "≥" in row.promise, not row.verdict.startswith("(")
            judge(row, Promise(row.promise.rsplit(maxsplit=2)[0], row.figure, speed, held))
        rows.append(row)
    return rows


class _Turn:
    """One subject's loop, compiled for it alone, so that no inline cache is shared."""

    def __init__(self, subject: Subject, group: Group, runner: asyncio.Runner) -> None:
        self.name = subject.name
        self._runner = runner if subject.is_async else None
        names = ", ".join(("keys", "now", *subject.names))
        text = (
            f"{'async ' if subject.is_async else ''}def timed({names}):\n"
            f"    start = now()\n"
            f"    for {group.target} in keys: {subject.call}\n"
            f"    return now() - start\n"
        )
        scope: dict[str, Any] = {}
        exec(text, scope)
        self._timed: Callable[..., Any] = scope["timed"]
        self._names = subject.names
        self._keys = group.fill or group.keys
        self._sample()  # fills
        self._keys = group.keys[:20]
        rough = min(self._sample() for _ in range(3)) / len(self._keys)
        self._keys = group.keys[: max(20, int(group.turn / max(rough, 1e-9)))]
        self._sample()

    def cost(self) -> float:
        """Seconds a call, the loop included."""
        return self._sample() / len(self._keys)

    def _sample(self) -> float:
        made = self._timed(self._keys, time.perf_counter, **self._names)
        taken: float = made if self._runner is None else self._runner.run(made)
        return taken


def table(rows: Sequence[Row]) -> str:
    """The rows as text, grouped."""
    lines: list[str] = []
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            lines += ["", group, f"  {'':34}{'min ns':>9}{'median':>9}{'ratio':>8}{'of min':>8}"]
        numbers = "".join(
            f"{'' if value is None else format(value, f'.{digits}f'):>{width}}"
            for value, width, digits in (
                (row.minimum, 9, 1),
                (row.median, 9, 1),
                (row.ratio, 8, 2),
                (row.ratio_of_minima, 8, 2),
            )
        )
        tail = "  ".join(part for part in (row.promise, row.verdict, row.note) if part)
        lines.append(f"  {row.subject:34}{numbers}  {tail}".rstrip())
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]
