"""Runs test-suites of others, unedited, with and without ``cachekit.dax`` in front of their
clients; passes when every test ends with it as without.

    python tests/dax/conformance.py --suite moto|ministack|all [--weak] [--preset dax]
                                    [-- pytest arguments]

The tests come from the source distributions of the versions that are installed, fetched with pip
once; the runs go on at the same time. ``--weak``: two more runs, where strong reads are taken as
eventual ones, so that they too are answered by the cache; in the second, every read is also made
twice and only the second answer is seen.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from conformance_suites import SUITES, Suite

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SECONDS = 900.0
ROW = "{:<17} {:<13} {:>6} {:>11} {:>7}  {}"


class Run:
    """One run of a suite, from its start on. ``way``: without, with, weak or twice."""

    def __init__(self, suite: Suite, way: str, preset: str, more: list[str], stack: ExitStack):
        self.way = way
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cachekit-")))
        self._report, self._output = folder / "report", folder / "output"
        plugins = ["conformance_report", *suite.plugins]
        if way != "without":
            plugins.append("conformance_plugin")
        command = [
            str(suite.python), "-m", "pytest", "-q", "--no-header", "--tb=short", "-o", "addopts=",
            "-W", "ignore", "--continue-on-collection-errors", "-p", "no:cacheprovider",
            f"--rootdir={suite.root}", *(f"-p{name}" for name in plugins), *suite.tests, *more,
        ]  # fmt: skip
        served = stack.enter_context(suite.served())  # type: ignore[arg-type]
        self._process = subprocess.Popen(
            command,
            cwd=suite.root,
            env=_environment(suite, way, preset, self._report, served or {}),
            stdin=subprocess.DEVNULL,
            stdout=stack.enter_context(self._output.open("wb")),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        stack.callback(self._kill)

    def _kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def wait(self) -> None:
        """Until it ended; exits where the tests could not be run."""
        code = self._process.wait(SECONDS)
        self.output = self._output.read_text(errors="replace")
        if code not in (0, 1) or not self._report.exists():
            sys.exit(f"{self.way}: pytest ended with {code}\n{self.output[-3000:]}")
        told: dict[str, Any] = json.loads(self._report.read_text())
        self.tests: dict[str, str] = told["tests"]
        self.told: dict[str, int] = told["told"]

    def failures(self) -> int:
        return sum(outcome in ("failed", "error") for outcome in self.tests.values())


def _environment(
    suite: Suite, way: str, preset: str, report: Path, served: Mapping[str, str]
) -> dict[str, str]:
    options: dict[str, Any] = {"preset": preset, "settle": 0}
    if preset == "dax":
        options["query_ttl"] = 0  # its pages outlive writes
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "PYTEST_"))}
    return {
        **mine,
        **served,
        "PYTHONPATH": os.pathsep.join(map(str, [HERE, ROOT, *suite.path])),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CONFORMANCE_REPORT": str(report),
        "CACHEKIT_DAX_OPTIONS": json.dumps(options),
        "CACHEKIT_DAX_SPAN": suite.span,
        "CACHEKIT_DAX_WEAK": "1" if way in ("weak", "twice") else "0",
        "CACHEKIT_DAX_TWICE": "1" if way == "twice" else "0",
    }


def judged(suite: Suite, preset: str, weak: bool, more: list[str]) -> bool:
    """Run it in all ways; whether the cache made no difference but what is expected."""
    ways = ["without", "with", *(["weak", "twice"] if weak else [])]
    with ExitStack() as stack:
        runs = [Run(suite, way, preset, more, stack) for way in ways]
        for run in runs:
            run.wait()
    base, fine = runs[0], True
    for run in runs:
        differ = sorted(
            name
            for name in base.tests.keys() | run.tests.keys()
            if base.tests.get(name) != run.tests.get(name)
        )
        told = " ".join(f"{name}={count}" for name, count in run.told.items())
        print(ROW.format(suite.name, run.way, len(run.tests), run.failures(), len(differ), told))
        for name in differ:
            fine &= _tell(suite, base, run, name)
        # A cache that answers nothing makes no difference either.
        if run is not base and not more and (not run.told["item_hits"] or run.told["faults"]):
            print("  the cache answered nothing, or had a fault")
            fine = False
    sys.stdout.flush()
    return fine


def _tell(suite: Suite, base: Run, run: Run, name: str) -> bool:
    """Print a test that ended otherwise; whether that is expected."""
    ends = f"{base.tests.get(name, 'absent')} -> {run.tests.get(name, 'absent')}"
    for pattern, why in suite.expected.items():
        if re.fullmatch(pattern, name):
            print(f"  expected: {name}: {ends}: {why}")
            return True
    print(f"  {name}: {ends}")
    short = re.escape(name.rpartition("::")[2].replace("::", "."))
    found = re.search(rf"^_+ \S*{short} _+$.*?(?=^_+ \S+ _+$|^=+ |\Z)", run.output, re.M | re.S)
    if found:
        print("    " + "\n    ".join(found[0].splitlines()[-12:]))
    return False


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--suite", default="all", choices=[*SUITES, "all"])
    parser.add_argument("--weak", action="store_true", help="two more runs without strong reads")
    parser.add_argument("--preset", default="coherent", choices=["coherent", "dax"])
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / ".servers" / "conformance",
        help="where suites and their environments are kept",
    )
    parser.add_argument("more", nargs="*", help="arguments for pytest")
    asked = parser.parse_args()
    names = list(SUITES) if asked.suite == "all" else [asked.suite]
    suites = [SUITES[name](asked.folder.resolve()) for name in names]
    print(ROW.format("suite", "cache", "tests", "not passed", "differ", ""))
    fine = [judged(suite, asked.preset, asked.weak, asked.more) for suite in suites]
    return int(not all(fine))


if __name__ == "__main__":
    sys.exit(main())
