"""The documentation does what it says: its code runs, its links and commands exist."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import docs_runner
import pytest
import typer

import cachekit
from cachekit.cli import _app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SERVERS = {
    "redis://localhost:6379/0": "redis_server",
    "memcached://localhost:11211": "memcached_server",
}
LINK = re.compile(r"(?<!!)\[[^\]\[]*\]\(([^)\s]+)\)")
NUMBERS = [
    *range(1, 12), *range(20, 28), *range(30, 35), *range(40, 43),
    *range(50, 59), *range(60, 68), *range(70, 73), *range(80, 97),
]  # fmt: skip

pages = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


@pages
def test_every_python_block_of_the_page_runs(
    path: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def private(address: str) -> str | None:
        try:
            server = request.getfixturevalue(SERVERS[address])
        except pytest.skip.Exception:
            return None
        return str(server.url)

    left_out = docs_runner.run_page(path, private, tuple(SERVERS))
    if left_out:
        pytest.skip(f"{path.name}: the blocks of lines {left_out} need a server that is not there")


def test_the_example_in_the_package_docstring_is_right() -> None:
    tried = doctest.testmod(cachekit)
    assert tried.attempted
    assert not tried.failed


@pages
def test_every_relative_link_of_the_page_leads_somewhere(path: Path) -> None:
    for target in LINK.findall(without_code(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name) if name else path
        assert file.exists(), f"{path.name} links {target}"
        if anchor:
            assert anchor in anchors(file), f"{path.name} links {target}: no such heading"


@pages
def test_no_block_of_the_page_escapes_the_tests(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"^[ \t]+```", text, re.M), "an indented block is not executed"
    known = {"python", "sh", "text"}
    assert {block.language for block in docs_runner.blocks(text)} <= known
    assert text.count("\n```") == 2 * len(list(docs_runner.blocks(text)))


@pages
def test_every_command_of_the_page_exists(path: Path) -> None:
    for block in docs_runner.blocks(path.read_text(encoding="utf-8")):
        if block.language == "sh":
            for line in block.text.splitlines():
                check_command(shlex.split(line, comments=True), f"{path.name}: {line}")


def test_the_page_of_promises_has_every_number_once_and_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (P\d\d) \|[^|]*\| ([^|]*) \|([^|]*)\|$", text, re.M)
    assert [number for number, *_ in rows] == [f"P{number:02}" for number in NUMBERS]
    for number, state, shown in rows:
        assert state in ("kept", "partly", "not yet"), number
        files = re.findall(r"`([^`]+)`", shown)
        assert bool(files) == (state != "not yet"), f"{number} is {state}: shown by {files}"
        for file in files:
            assert (ROOT / file).exists(), f"{number}: there is no {file}"


def test_every_test_of_a_promise_is_on_the_page_of_promises() -> None:
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    for file in (ROOT / "tests" / "promises").glob("test_*.py"):
        assert f"`tests/promises/{file.name}`" in text, f"docs/promises.md: name {file.name}"


def test_the_page_of_the_architecture_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = Path(cachekit.__file__).parent
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        whole = f"{path.relative_to(package).parts[0]}/"
        assert f"`{name}`" in text or f"`{whole}`" in text, f"docs/architecture.md: name {name}"


def without_code(path: Path) -> str:
    text = docs_runner.FENCE.sub("", path.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(path: Path) -> set[str]:
    """Headings as GitHub names them."""
    text = docs_runner.FENCE.sub("", path.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.M)
    }


def check_command(words: list[str], where: str) -> None:
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]  # a variable of the environment
    if not words:
        return
    program, rest = os.path.basename(words[0]), words[1:]
    if program.startswith("python") and rest[:2] == ["-m", "cachekit"]:
        program, rest = "cachekit", rest[2:]
    if program.startswith("python") and rest and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).exists(), where
    elif program == "cachekit":
        check_cachekit(rest, where)
    elif program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(rest) <= set(targets), f"{where}: targets are {targets}"
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for asked in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
            assert set(asked.split(",")) <= set(extras["optional-dependencies"]), where


def check_cachekit(words: list[str], where: str) -> None:
    group = typer.main.get_command(_app(with_bench=True))
    if words and words[0].startswith("--"):
        assert words[0] in ("--help", "--version"), where
        return
    assert words, where
    while hasattr(group, "commands"):
        known = f"{where}: there are {', '.join(group.commands)}"
        assert words, known
        assert words[0] in group.commands, known
        group, words = group.commands[words[0]], words[1:]
    options = set(_options(group))
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= options, f"{where}: no option {', '.join(given - options)}"


def _options(command: object) -> Iterator[str]:
    for parameter in command.params:  # type: ignore[attr-defined]  # a click command
        yield from parameter.opts
    yield "--help"
