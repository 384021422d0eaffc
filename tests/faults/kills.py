"""A campaign of kills: writers on one log are killed with SIGKILL again and again, then one clean
process drains the log, and the checker compares."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checks import Verdict, judge
from history import read_trails

PROGRAM = Path(__file__).with_name("writer_process.py")
BATCH = 20
LEASE = 0.25
IN_A_WRITE = ("appending", "appended", "acknowledged")
IN_A_BATCH = ("called", "sink", "committed", "settling", "settled")
POINTS = ("",) * 8 + IN_A_WRITE + IN_A_BATCH  # none: at any moment
START = 30.0  # seconds for a process to begin
LIFE = 0.5  # at most this long after it began, unless it dies at a point of its own
PATIENCE = 30.0
PAUSES = 0.5  # how often one of several is frozen before one is killed


class Process:
    """A writer as its parent sees it. ``died``: when it certainly did nothing any more."""

    def __init__(self, folder: Path, given: dict[str, Any]) -> None:
        self.given = given
        self.output = folder / f"{given['name']}.output"
        with self.output.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(PROGRAM), json.dumps(given)],
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )
        self.died = 0.0

    def wait_until_ready(self) -> None:
        told = self._process.stdout
        assert told is not None
        if not select.select([told], [], [], START)[0] or told.readline() != b"ready\n":
            self.kill()
            raise AssertionError(f"a writer did not start: {self.said()}")

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self.died = self.died or time.monotonic()

    def freeze(self, seconds: float) -> None:
        self._process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._process.send_signal(signal.SIGCONT)

    def end(self, patience: float) -> int | None:
        """The exit code, or None if it goes on."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(patience)
            self.died = self.died or time.monotonic()
            return code
        return None

    def finish(self, patience: float) -> None:
        code = self.end(patience)
        self.kill()
        assert code == 0, f"exit code {code}: {self.said()}"

    def said(self) -> str:
        return self.output.read_text()[-2000:]


@dataclass
class Campaign:
    """``given`` names log, level, cache and source, as for the processes' App. ``grace``: seconds
    after a writer's death in which a server may still take what it had sent."""

    folder: Path
    given: dict[str, Any]
    source: Any
    seed: int
    points: tuple[str, ...] = POINTS
    styles: tuple[str, ...] = ("sync", "async")
    threads: int = 2
    pause: float = 0.002
    grace: float = 0.0
    life: float = LIFE
    kills: int = 0
    aimed: int = 0
    pauses: int = 0
    ends: dict[str, float] = field(default_factory=dict)
    drained: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._rng = random.Random(self.seed)
        self._born = 0
        self._all: list[Process] = []
        defaults = {"batch": BATCH, "delay": 0.01, "lease": LEASE, "pause": self.pause}
        self.given = {**defaults, "source": self.source.spec, **self.given}

    # -- processes ------------------------------------------------------------------------

    def start(self, slot: int, point: str = "") -> Process:
        """A writer; ``slot`` says which hot keys are its own, as they were its predecessor's."""
        self._born += 1
        name = f"w{self._born}"
        given = {
            **self.given,
            "name": name,
            "mode": "write",
            "slot": slot,
            "seed": self.seed,
            "style": self._rng.choice(self.styles),
            "writers": [f"{name}.{n}" for n in range(self.threads)],
            "trails": str(self.folder),
            "point": point,
            "count": self._rng.randint(1, 40 if point in IN_A_WRITE else 6),
        }
        process = Process(self.folder, given)
        self._all.append(process)
        process.wait_until_ready()
        return process

    def bury(self, process: Process) -> None:
        process.kill()
        self.kills += 1
        for writer in process.given["writers"]:
            self.ends[writer] = process.died + self.grace

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever happens, no process is left."""
        try:
            yield
        finally:
            for process in self._all:
                process.kill()

    # -- the campaign ---------------------------------------------------------------------

    def run(self, kills: int) -> None:
        """About so many: one writer alone, two or three at once, of which one is killed at a
        time, then all."""
        with self.kept():
            goal = self.kills + kills
            while self.kills < goal:
                crowd = min(self._rng.choice((1, 1, 2, 3)), goal - self.kills)
                self._stretch(crowd, min(6, goal - self.kills))

    def _stretch(self, crowd: int, kills: int) -> None:
        alive = [self.start(slot, self._point()) for slot in range(crowd)]
        for _ in range(kills - crowd):
            slot = self._rng.randrange(crowd)
            free = [process for process in alive if not process.given["point"]]
            if crowd > 1 and free and self._rng.random() < PAUSES:
                self._pause(self._rng.choice(free))
            self._let_live(alive[slot])
            self.bury(alive[slot])
            alive[slot] = self.start(slot, self._point())
        self._let_live(self._rng.choice(alive))
        for process in alive:
            self.bury(process)

    def _pause(self, process: Process) -> None:
        """Frozen for longer than the lease, at any moment; then it goes on, and is too late."""
        if process.end(self._rng.random() * self.life) is None:
            process.freeze(2 * self.given["lease"])
            self.pauses += 1

    def _point(self) -> str:
        return self._rng.choice(self.points)

    def _let_live(self, process: Process) -> None:
        """A moment of any length; one that is to die at a point has longer, to come to it."""
        life = self._rng.random() * self.life
        if process.given["point"]:
            life = 3 * self.life
        code = process.end(life)
        if code is not None:
            assert code == -signal.SIGKILL, f"exit code {code}: {process.said()}"
            self.aimed += 1

    def drain(self, patience: float = PATIENCE) -> None:
        """In one process that nobody kills."""
        report = self.folder / "drained.json"
        given = {
            **self.given,
            "worker": True,
            "name": "drain",
            "mode": "drain",
            "style": self._rng.choice(self.styles),
            "patience": patience,
            "report": str(report),
            "point": "",
            "count": 0,
        }
        with self.kept():
            process = Process(self.folder, given)
            self._all.append(process)
            process.finish(patience + START)
        self.drained = json.loads(report.read_text())

    def verdict(self) -> Verdict:
        told = read_trails(self.folder, self.ends)
        found = judge(
            told.calls,
            self.source.rows(),
            self.source.deliveries(),
            batch=self.given["batch"],
            kills=self.kills + self.pauses,
        )
        found.violations += told.wrong
        found.raised = told.raised
        for process in self._all:
            if "Traceback" in process.said():
                found.violations.append(f"{process.output}: {process.said()[-300:]}")
        if self.drained and not self.drained["complete"]:
            found.violations.append(f"{self.drained['left']} operations were left in the log")
        if self.drained.get("dead"):
            found.violations.append(f"{self.drained['dead']} operations were parked")
        return found
