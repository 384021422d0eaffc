"""The public types, as mypy and pyright see them: `tests/typing/` says which lines are errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "tests" / "typing").glob("*.py"))
Found = dict[tuple[str, int], str]  # (file name, line) -> message
SECONDS = 110


def run(program: str, arguments: Iterable[object]) -> subprocess.CompletedProcess[str]:
    path = Path(sys.executable).parent / program
    if not path.exists():
        pytest.skip(f"{program} is not installed beside this Python: pip install {program}")
    return subprocess.run(
        [path, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=SECONDS
    )


def mypy(files: list[Path]) -> Found:
    done = run("mypy", ["--strict", "--no-pretty", "--no-color-output", *files])
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: Found = {}
    for line in done.stdout.splitlines():
        match = re.match(r"(.+?):(\d+)(?::\d+)?: error: (.*)", line)
        if match is not None:
            found[Path(match[1]).name, int(match[2])] = match[3]
    return found


def pyright(files: list[Path]) -> Found:
    done = run("pyright", ["--outputjson", "--pythonpath", sys.executable, *files])
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {
        (Path(told["file"]).name, told["range"]["start"]["line"] + 1): told["message"]
        for told in json.loads(done.stdout)["generalDiagnostics"]
        if told["severity"] == "error"
    }


CHECKERS: list[Callable[[list[Path]], Found]] = [mypy, pyright]


def marked(files: list[Path], checker: str) -> set[tuple[str, int]]:
    return {
        (file.name, number)
        for file in files
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(rf"# error( in {checker})?$", line)
    }


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_checker_finds_exactly_the_marked_errors(checker: Callable[[list[Path]], Found]) -> None:
    found, expected = checker(FILES), marked(FILES, checker.__name__)
    assert len(expected) > 40
    wrong = {f"{name}:{line}": found[name, line] for name, line in sorted(set(found) - expected)}
    assert wrong == {}
    missed = [f"{name}:{line}" for name, line in sorted(expected - set(found))]
    assert missed == []


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_checker_sees_an_error_that_is_not_marked(
    checker: Callable[[list[Path]], Found], tmp_path: Path
) -> None:
    """The check above can fail: a decorator that lost the signature would pass silently."""
    file = tmp_path / "wrong.py"
    file.write_text(
        "import cachekit\n"
        "@cachekit.Cache().cached(ttl=1)\n"
        "def f(i: int) -> str: return str(i)\n"
        "f('x')\n"
        "f(1)\n"
    )
    assert set(checker([file])) == {("wrong.py", 4)}
