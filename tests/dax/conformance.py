"""Runs a test-suite of others with and without ``cachekit.dax`` in front of its clients.

    python tests/dax/conformance.py [--weak] [--preset dax] [-- pytest arguments]

The suite is ``tests/test_dynamodb`` of moto's source distribution, of the version that is
installed here, fetched with pip into a temporary folder. Passes when the same tests fail with
the cache as without, but for ``EXPECTED``; prints those that differ.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SUITE = "tests/test_dynamodb"
# They ask what capacity a read used that the cache answers: it used none.
EXPECTED = re.compile(r".*::test_only_return_consumed_capacity_when_required\[(INDEXES|TOTAL)-.*\]")
NEEDED = "needed"  # what the suite imports beside moto, in a folder of its own
NEEDS = ["freezegun"]


def fetched(into: Path) -> Path:
    """The unpacked source distribution."""
    version = importlib.metadata.version("moto")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:",
         f"moto=={version}", "-d", str(into)],
        check=True,
    )  # fmt: skip
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(into / NEEDED),
            *NEEDS,
        ],
        check=True,
    )
    with tarfile.open(next(into.glob("moto-*.tar.gz"))) as packed:
        packed.extractall(into, filter="data")
    return into / f"moto-{version}"


def run(root: Path, more: list[str], environment: dict[str, str]) -> tuple[set[str], str]:
    """The tests that did not pass, and the end of what was printed."""
    path = os.pathsep.join([str(HERE), str(HERE.parent.parent), str(root.parent / NEEDED)])
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no",
        "-rfE", "-o", "addopts=", "-W", "ignore", SUITE, *more,
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    failed = set(re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M))
    kept = [line for line in done.stdout.splitlines() if not line.startswith(("FAILED", "ERROR"))]
    return failed, "\n".join(kept[-2:])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--source", type=Path, help="an unpacked source distribution of moto")
    parser.add_argument("--weak", action="store_true", help="send strong reads through the cache")
    parser.add_argument("--preset", default="coherent", choices=["coherent", "dax"])
    parser.add_argument("more", nargs="*", help="arguments for pytest")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cachekit-") as folder:
        root = asked.source or fetched(Path(folder))
        without, told = run(root, asked.more, {})
        print(f"without: {len(without)} do not pass\n{told}")
        options = {"preset": asked.preset, "settle": 0}
        if asked.preset == "dax":
            options["query_ttl"] = 0  # its pages outlive writes
        failed, told = run(
            root,
            ["-p", "conformance_plugin", *asked.more],
            {
                "CACHEKIT_DAX_OPTIONS": json.dumps(options),
                "CACHEKIT_DAX_WEAK": "1" if asked.weak else "0",
            },
        )
        print(f"with:    {len(failed)} do not pass\n{told}")
    differ = sorted(failed ^ without)
    for name in differ:
        print(("only with the cache: " if name in failed else "only without it: ") + name)
    return int(not all(map(EXPECTED.fullmatch, differ)))


if __name__ == "__main__":
    sys.exit(main())
