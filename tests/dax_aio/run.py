"""Runs the tests of asyncio clients in an environment of its own, which it makes at the first run.

    python tests/dax_aio/run.py [--venv PATH] [--aioboto3 VERSIONS] [-- pytest arguments]

aioboto3 holds botocore at versions that moto can not live with, so the two are never in one
environment. A second run needs no network. The exit code is pytest's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SERVERS = ROOT / ".servers"
TOOLS = ("pytest>=8", "pytest-timeout>=2.3")
AIOBOTO3 = ">=12.0"
# Where ``make servers`` puts them.
PROGRAMS = {
    "CACHEKIT_MINISTACK": SERVERS / "ministack" / "bin" / "ministack",
    "CACHEKIT_DYNALITE": SERVERS / "node_modules" / "dynalite" / "cli.js",
}


def packages(versions: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *TOOLS, f"aioboto3{versions}"]


def environment(folder: Path, wanted: Sequence[str]) -> Path:
    """The interpreter of an environment that has the packages. Raises CalledProcessError."""
    python = folder / "bin" / "python"
    made = folder / "made-of"
    said = "\n".join([sys.version, *wanted])
    if not made.is_file() or made.read_text() != said:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q", "install"]
        subprocess.run([*pip, *wanted], check=True)
        made.write_text(said)
    return python


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--venv", type=Path, default=SERVERS / "aioboto3")
    parser.add_argument("--aioboto3", default=AIOBOTO3, metavar="VERSIONS")
    parser.add_argument("more", nargs="*")
    given = parser.parse_args(arguments)
    python = environment(given.venv.resolve(), packages(given.aioboto3))
    found = {name: str(path) for name, path in PROGRAMS.items() if path.is_file()}
    # -m pytest from the root: what is tested is this tree, not a package that is installed.
    command = [str(python), "-m", "pytest", "-rs", "-p", "no:cacheprovider", str(HERE), *given.more]
    return subprocess.run(command, cwd=ROOT, env={**found, **os.environ}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
