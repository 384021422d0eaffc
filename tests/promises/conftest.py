"""The stage and its fixtures are those of the strategies' tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

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
