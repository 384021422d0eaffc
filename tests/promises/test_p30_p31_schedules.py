"""P30, P31: no read gives what is older than a finished invalidation or save.

Random schedules of the real code over the real backends, with crashes, cancellations, lost
replies, evictions, late writes; ``make nightly`` plays a million per backend.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "schedules" / "run.py"


@pytest.mark.parametrize("backend", ["memory", "tiered", "sqlite", "redis", "memcached"])
def test_p30_p31_no_schedule_reads_what_is_outdated(backend: str) -> None:
    seed = random.SystemRandom().randrange(2**40)
    run = subprocess.run(
        [
            *(sys.executable, str(RUN), "--backend", backend, "--seed", str(seed)),
            *("--schedules", "400", "--seconds", "20"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    (line,) = [line for line in run.stdout.splitlines() if line.startswith(f"{backend}: ")]
    played = int(line.split()[1])
    assert played >= 50, line
    assert " 0 failed" in line, line


def test_p30_the_checker_catches_the_naive_variants() -> None:
    """Nonces read after the load, deleting in place of blocking, near fills without generations."""
    found = Path(RUN.parent, "test_naive_is_caught.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(found)],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert run.returncode == 0, run.stdout[-5000:]
    assert " passed" in run.stdout
