"""Worker processes over one log and one source, and an application that only puts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_app import App
from fault_sources import Doom

PROGRAM = Path(__file__).with_name("worker_process.py")
LEASE = 1.0
PATIENCE = 30.0


def eventually(what: str, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"it never came to pass that {what}"
        time.sleep(0.01)


class Stage:
    """One log, one source, an application that only puts, and worker processes."""

    def __init__(
        self, folder: Path, log: str, source: Any, *, fenced: bool = True, batch: int = 50
    ) -> None:
        self.folder = folder
        self.source = source
        self._given: dict[str, Any] = {
            "log": log,
            "namespace": uuid.uuid4().hex[:8],
            "source": source.spec,
            "batch": batch,
            "delay": 0.01,
            "lease": LEASE,
            "folder": str(folder),
            "fenced": fenced,
        }
        self.app = App({**self._given, "worker": False}, Doom())
        self.workers: list[subprocess.Popen[bytes]] = []

    def worker(self, name: str, **more: Any) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.output").open("wb") as output:
            worker = subprocess.Popen(
                [sys.executable, str(PROGRAM), json.dumps({**self._given, "name": name, **more})],
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )
        self.workers.append(worker)
        return worker

    def counts(self, name: str) -> dict[str, int]:
        report = self.folder / f"{name}.json"
        return json.loads(report.read_text()) if report.exists() else {}

    def put(self, **values: str) -> None:
        for key, value in values.items():
            self.app.strategy.put(key, {"value": value})

    def frozen_in_its_batch(self, point: str) -> subprocess.Popen[bytes]:
        zombie = self.worker("zombie", trap=point)
        eventually("the worker is in its batch", (self.folder / "entered").exists)
        zombie.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, zombie.pid, os.WSTOPPED)  # until then a thread of it may go on
        (self.folder / "go").touch()
        return zombie

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()  # also one that is stopped
            worker.wait()
        self.app.cache.close()


def log_url(place: str, folder: Path, request: pytest.FixtureRequest) -> str:
    if place == "sqlite":
        return f"sqlite:///{folder}/log.db"
    url: str = request.getfixturevalue("redis_server").url
    return url
