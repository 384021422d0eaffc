"""Reads a Markdown page and executes its Python blocks, in order, in one namespace.

In a block, ``expression  # -> text`` holds the expression's repr to that text, and
``statement  # raises Name`` wants that exception; both at the top level of the block only, so
that none goes unchecked. A bare ``await`` is allowed, as in ``python -m asyncio``.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```[ ]*$", re.M | re.S)
_EXPECTED = re.compile(r"#\s*(->|raises)\s+(.+)")
_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
NOT_RUN = re.compile(r"# not run\b")
# Servers that a test run does not have.
_ABSENT = re.compile(r"\b(?:rediss|redis\+cluster|redis\+sentinel|memcacheds|postgresql)s?://")


class Block(NamedTuple):
    """One fenced block; ``line`` is that of its first line of content, from 1."""

    language: str
    text: str
    line: int

    @property
    def is_not_run(self) -> bool:
        return NOT_RUN.match(self.text) is not None

    @property
    def may_be_not_run(self) -> bool:
        return _ABSENT.search(self.text) is not None


def blocks(page: str) -> Iterator[Block]:
    for found in FENCE.finditer(page):
        line = page.count("\n", 0, found.start(2)) + 1
        yield Block(found.group(1).strip(), found.group(2), line)


class Wrong(AssertionError):
    """A block does not do what the page says."""


class Page:
    """The namespace of one page. ``replaced``: text to put in place of other text (addresses of
    servers) before a block is compiled. A context manager: caches left open are closed."""

    def __init__(self, path: Path, replaced: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.replaced = dict(replaced or {})
        # A real module: dataclasses and type hints look their names up there.
        self.module = ModuleType("docs_" + re.sub(r"\W", "_", path.stem))
        self._loop = asyncio.Runner()

    def __enter__(self) -> Page:
        sys.modules[self.module.__name__] = self.module
        return self

    def __exit__(self, *_: object) -> None:
        for found in list(vars(self.module).values()):
            close = getattr(found, "close", None)
            if type(found).__module__ == "cachekit.cache" and callable(close):
                close()
        self._loop.close()
        sys.modules.pop(self.module.__name__, None)

    def run(self, block: Block) -> None:
        text = block.text
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        # The page's own line numbers in every traceback.
        padded = "\n" * (block.line - 1) + text
        tree = compile(padded, str(self.path), "exec", ast.PyCF_ONLY_AST | _FLAGS)
        expected = _expectations(padded)
        for node in tree.body:  # type: ignore[attr-defined]  # a Module
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            wants = [expected.pop(at, None) for at in {first, node.end_lineno}]
            self._step(node, next((want for want in wants if want), None))
        if expected:
            raise Wrong(f"{self.path.name}:{min(expected)}: not at the top level, so not checked")

    def _step(self, node: ast.stmt, want: tuple[str, str] | None) -> None:
        where = f"{self.path.name}:{node.lineno}"
        if want is None:
            self._execute(self._compiled(node))
            return
        kind, text = want
        if kind == "raises":
            try:
                self._execute(self._compiled(node))
            except Exception as error:
                names = {cls.__name__ for cls in type(error).__mro__}
                if text.split()[0].rstrip(":,") not in names:
                    raise
                return
            raise Wrong(f"{where}: nothing was raised, the page says {text}")
        if not isinstance(node, ast.Expr):
            raise Wrong(f"{where}: '->' stands behind something that has no value")
        code = compile(ast.Expression(node.value), str(self.path), "eval", _FLAGS)
        value = repr(self._execute(code))
        if value != text:
            raise Wrong(f"{where}: gives {value}, the page says {text}")

    def _compiled(self, node: ast.stmt) -> CodeType:
        return compile(ast.Module([node], []), str(self.path), "exec", _FLAGS)

    def _execute(self, code: CodeType) -> Any:
        result = eval(code, vars(self.module))
        return self._loop.run(result) if code.co_flags & inspect.CO_COROUTINE else result


def _expectations(text: str) -> dict[int, tuple[str, str]]:
    """Line -> what its comment promises."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and (match := _EXPECTED.match(token.string)):
            found[token.start[0]] = (match.group(1), match.group(2).strip())
    return found


def run_page(
    path: Path, replacement: Callable[[str], str | None], addresses: tuple[str, ...]
) -> list[int]:
    """Execute a page; gives the lines of the blocks left out because no server is there.

    ``replacement(address)`` is the address of a private server, or None."""
    left_out = []
    with Page(path) as page:
        for block in blocks(path.read_text(encoding="utf-8")):
            if block.language != "python":
                continue
            if block.is_not_run:
                if not block.may_be_not_run:
                    raise Wrong(f"{path.name}:{block.line}: '# not run', but nothing hinders it")
                compile(block.text, str(path), "exec", ast.PyCF_ONLY_AST | _FLAGS)
                continue
            needed = [address for address in addresses if address in block.text]
            for address in needed:
                private = replacement(address)
                if private is not None:
                    page.replaced[address] = private
            if any(address not in page.replaced for address in needed):
                left_out.append(block.line)
                continue
            page.run(block)
    return left_out
