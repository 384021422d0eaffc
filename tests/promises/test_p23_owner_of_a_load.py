"""P23: the owner of a load that dies or is paused holds nobody up, and overwrites nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachekit import Cache
from cachekit.testing.servers import RedisServer

_OWNER = """
import sys, time
from cachekit import Cache
cache = Cache(sys.argv[1], namespace="lease", coherence="strict")
def load():
    print("loading", flush=True)
    time.sleep(float(sys.argv[2]))
    return "of the first"
print(cache.get_or_set("k", load, ttl=60, lease=1.0), flush=True)
"""


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def _owner(url: str, seconds: float, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _OWNER, url, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    return process


def test_when_the_owner_of_a_load_is_killed_others_go_on_after_its_lease(
    own_server: RedisServer, tmp_path: Path
) -> None:
    owner = _owner(own_server.url, 60, tmp_path)
    time.sleep(1.2)  # renewed by now
    owner.kill()
    owner.wait()
    with Cache(own_server.url, namespace="lease", coherence="strict", timeout=2.0) as cache:
        began = time.monotonic()
        assert cache.get_or_set("k", lambda: "of the second", ttl=60) == "of the second"
        assert time.monotonic() - began < 1.0 + 1.0
        assert cache.get("k") == "of the second"


def test_an_owner_paused_beyond_its_lease_does_not_overwrite_what_came_after(
    own_server: RedisServer, tmp_path: Path
) -> None:
    owner = _owner(own_server.url, 2.0, tmp_path)
    os.kill(owner.pid, signal.SIGSTOP)
    with Cache(own_server.url, namespace="lease", coherence="strict", timeout=2.0) as cache:
        began = time.monotonic()
        assert cache.get_or_set("k", lambda: "of the second", ttl=60) == "of the second"
        assert time.monotonic() - began < 1.0 + 1.0
        os.kill(owner.pid, signal.SIGCONT)
        assert owner.stdout is not None
        assert owner.stdout.read() == "of the first\n"  # its own caller gets what it loaded
        owner.wait()
        assert cache.get("k") == "of the second"
