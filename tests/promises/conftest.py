"""The stage and its fixtures are those of the strategies' tests."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

_HOME = Path(__file__).parent.parent / "strategies"
if str(_HOME) not in sys.path:
    sys.path.insert(0, str(_HOME))

_spec = importlib.util.spec_from_file_location("stage_fixtures", _HOME / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

open_cache = _fixtures.open_cache
open_shared = _fixtures.open_shared
stage = _fixtures.stage
shared_stage = _fixtures.shared_stage
embedded = _fixtures.embedded


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test marked ``alone`` counts what its process holds: thousands of tests before it, in
    one interpreter, would be counted too."""
    if pyfuncitem.get_closest_marker("alone") is None or os.environ.get("CACHEKIT_ALONE"):
        return None
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--runxfail", pyfuncitem.nodeid],
        cwd=pyfuncitem.config.rootpath,
        env={**os.environ, "CACHEKIT_ALONE": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    return True
