"""A pytest plug-in that writes how every test ended to the file ``CONFORMANCE_REPORT``, as JSON:
``{"tests": {name: outcome}}``. Other plug-ins add to ``told``, which goes along as ``"told"``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

told: dict[str, int] = {}
_ended: dict[str, str] = {}
_WORST = ("passed", "skipped", "xfailed", "xpassed", "failed", "error")


def _note(name: str, outcome: str) -> None:
    _ended[name] = max(_ended.get(name, "passed"), outcome, key=_WORST.index)


def pytest_runtest_logreport(report: Any) -> None:
    outcome = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = "xfailed" if outcome == "skipped" else "xpassed"
    elif outcome == "failed" and report.when != "call":
        outcome = "error"
    _note(report.nodeid, outcome)


def pytest_collectreport(report: Any) -> None:
    if report.failed:
        _note(report.nodeid, "error")


def pytest_unconfigure() -> None:
    Path(os.environ["CONFORMANCE_REPORT"]).write_text(json.dumps({"tests": _ended, "told": told}))
