"""P96: importing cachekit opens nothing, starts nothing, and is quick."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_IMPORT = """
import sys, threading, time, socket
opened = []
original = socket.socket.__init__
socket.socket.__init__ = lambda self, *a, **k: (opened.append(a), original(self, *a, **k))[1]
import asyncio  # every server application has it; its cost is not cachekit's
started = time.perf_counter()
import cachekit
took = time.perf_counter() - started
drivers = {"redis", "pymemcache", "msgspec", "rich", "typer", "hiredis"} & set(sys.modules)
print(took, threading.active_count(), len(opened), sorted(drivers))
"""


def test_importing_opens_nothing_and_is_quick(tmp_path: Path) -> None:
    # From bytecode, as any installed package after its first import.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    # The least of several: other work on the machine only ever adds.
    times = []
    for _ in range(7):
        took, threads, sockets, drivers = (
            subprocess.run(
                [sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True, env=env
            )
            .stdout.strip()
            .split(" ", 3)
        )
        assert (threads, sockets, drivers) == ("1", "0", "[]")
        times.append(float(took))
    print(f"import cachekit: {min(times) * 1000:.1f} ms")
    assert min(times) < 0.050
