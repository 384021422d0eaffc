"""Real processes over one backend: reads are never older than what had returned before they began,
while processes are killed and the backend forgets everything."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from shared_source import SharedSource

PROCESSES = 4
SECONDS = 4.0
WORKER = Path(__file__).parent / "process_worker.py"


class Fleet:
    def __init__(self, folder: Path, url: str, coherence: Any, bound: float) -> None:
        self.findings = folder / "findings"
        self.source = SharedSource(folder / "source")
        self.rng = random.Random()
        self._given = {
            "url": url,
            "namespace": uuid.uuid4().hex[:8],
            "source": str(folder / "source"),
            "findings": str(self.findings),
            "coherence": coherence,
            "bound": bound,
        }
        self.end = time.monotonic() + SECONDS
        self.running = [self.start() for _ in range(PROCESSES)]

    def start(self) -> subprocess.Popen[bytes]:
        left = max(0.2, self.end - time.monotonic())
        given = {**self._given, "seed": self.rng.randrange(2**32), "seconds": left}
        return subprocess.Popen([sys.executable, str(WORKER), json.dumps(given)])

    def kill_one(self) -> None:
        number = self.rng.randrange(PROCESSES)
        self.running[number].send_signal(signal.SIGKILL)
        self.running[number].wait()
        self.running[number] = self.start()

    def finish(self) -> None:
        for process in self.running:
            try:
                assert process.wait(SECONDS + 20.0) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
        told = self.findings.read_text() if self.findings.exists() else ""
        writes, reads = self.source.totals()
        assert not told, f"{told.count(chr(10))} old reads of {reads}:\n{told[:2000]}"
        assert writes > 50, writes
        assert reads > 200, reads


def _play(fleet: Fleet, flush: Any) -> None:
    try:
        while time.monotonic() < fleet.end - 0.5:
            time.sleep(SECONDS / 6)
            fleet.kill_one()
            flush()
        fleet.finish()
    finally:
        for process in fleet.running:
            if process.poll() is None:
                process.kill()
                process.wait()


def _flusher(place: str, request: pytest.FixtureRequest) -> tuple[str, Any]:
    if place == "redis":
        import redis

        server = request.getfixturevalue("redis_server")
        return server.url, redis.Redis(port=server.port).flushall
    from pymemcache.client.base import Client

    server = request.getfixturevalue("memcached_server")
    return server.url, Client(("127.0.0.1", server.port)).flush_all


@pytest.mark.parametrize("place", ["redis", "memcached", "sqlite"])
def test_strict_processes_read_nothing_older_than_what_had_returned(
    place: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if place == "sqlite":
        url, flush = f"sqlite:///{tmp_path}/cache.db", lambda: None
    else:
        url, flush = _flusher(place, request)
    _play(Fleet(tmp_path, url, "strict", 0.0), flush)


def test_by_default_processes_follow_within_the_stated_bound(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url, flush = _flusher("redis", request)
    _play(Fleet(tmp_path, url, None, 1.0), flush)
