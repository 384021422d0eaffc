"""The generated wrapper: a function's own signature with the hit inlined.

As ``dataclasses`` does for ``__init__``, the source of a wrapper is written for each decorated
function, compiled once and kept in ``linecache`` for tracebacks. Positional, keyword and default
spellings of one call meet in the same expression, so a hit is a dictionary look-up by the
arguments themselves, an identity test of their types, one comparison with the clock, a count,
and ``return``. No lock, no text key, no call but the clock's.

Everything else goes to ``slow(values, args, kwargs)``: the key's field values and the call in
canonical form.
"""

from __future__ import annotations

import inspect
import itertools
import linecache
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_numbers = itertools.count(1)
_KINDS = inspect.Parameter
# CPython 3.11 calls a built-in without arguments 2 of 100 ns faster by the way of f(*()); later
# ones do not.
_CALL = "(*())" if sys.version_info < (3, 12) else "()"


@dataclass(slots=True)
class Cells:
    """Closure cells of a wrapper that can be replaced while it is in use."""

    hot: Callable[[dict[Any, Any]], None]
    epoch: Callable[[object | None], None]


@dataclass(frozen=True, slots=True)
class Shape:
    """What to generate. ``fields`` are the key's expressions over the parameters (one dictionary
    key of all of them); ``instance`` is the parameter (``self``) whose identity picks the shelf.
    ``timed``: entries have a deadline; ``tagged``: entries have an epoch; ``count``: "exact" adds
    one a hit, "sampled" marks; ``coarse``: compare with ``clock.now`` instead of ``clock()``."""

    fields: tuple[str, ...]
    instance: str | None = None
    timed: bool = True
    tagged: bool = False
    count: str = "exact"
    coarse: bool = False
    reads: tuple[Callable[..., Any], ...] = field(default=())  # callables used by the fields


def generate(
    fn: Callable[..., Any],
    signature: inspect.Signature,
    shape: Shape,
    *,
    hot: dict[Any, Any],
    clock: Any,
    epoch: object | None,
    slow: Callable[..., Any],
    is_async: bool | None = None,
) -> tuple[Callable[..., Any], Cells]:
    """The wrapper of ``fn`` and the cells to swap its table and epoch.

    ``hot`` is the table, or {id(instance): table} with ``shape.instance``; ``is_async`` None = as
    ``fn`` is."""
    source = _Source(fn, signature, shape, is_async)
    scope: dict[str, Any] = {}
    code = compile(source.text, source.filename, "exec")
    # The user's own globals: annotations given as text resolve where they were written.
    exec(code, fn.__globals__, scope)
    wrapper, set_hot, set_epoch = scope[source.factory](
        hot, clock, epoch, (slow, Exception), type, id, *shape.reads, *source.defaults
    )
    linecache.cache[source.filename] = (
        len(source.text),
        None,
        source.text.splitlines(True),
        source.filename,
    )
    wrapper.__name__ = fn.__name__
    return wrapper, Cells(set_hot, set_epoch)


class _Source:
    def __init__(
        self,
        fn: Callable[..., Any],
        signature: inspect.Signature,
        shape: Shape,
        is_async: bool | None,
    ) -> None:
        self.signature = signature
        self.shape = shape
        taken = " ".join((*signature.parameters, *shape.fields))
        mark = "_ck"
        while mark in taken:
            mark += "_"
        self.mark = mark
        # Given where the wrapper is made: CPython 3.13 calls a function slower for good (4 ns)
        # once its __defaults__ were assigned.
        self.defaults = [
            p.default for p in signature.parameters.values() if p.default is not _KINDS.empty
        ]
        self.is_async = inspect.iscoroutinefunction(fn) if is_async is None else is_async
        self.factory = f"{mark}_make"
        self.filename = f"<cachekit {fn.__module__}.{fn.__qualname__} {next(_numbers)}>"
        self.text = self._write()

    def _n(self, name: str) -> str:
        return f"{self.mark}_{name}"

    def _write(self) -> str:
        n, shape = self._n, self.shape
        reads = [n(f"read{i}") for i in range(len(shape.reads))]
        written = [f.replace("\0", f"{self.mark}_read") for f in shape.fields]
        # What runs the user's code runs once a call, and outside our try.
        made = {f: n(f"k{i}") for i, f in enumerate(written) if not f.isidentifier()}
        fields = tuple(made.get(f, f) for f in written)
        values = f"({', '.join(fields)}{',' if len(fields) == 1 else ''})"
        key = fields[0] if len(fields) == 1 else values
        table = f"{n('hot')}[{n('id')}({shape.instance})]" if shape.instance else n("hot")
        e, of_type = n("e"), n("type")
        now = f"{n('clock')}.now" if shape.coarse else n("clock") + _CALL
        tests = [f"{now} < {e}.deadline"] if shape.timed else []
        types = [n(f"t{i}") for i in range(len(fields))]
        if len(fields) > 1:
            tests += [f"{t} is {of_type}({f})" for t, f in zip(types, fields, strict=True)]
        elif fields != ("None",):
            tests.append(f"{e}.types is {of_type}({fields[0]})")
        if shape.tagged:
            tests.append(f"{e}.epoch is {n('epoch')}")
        counting = f"{e}.uses = " + (f"1.0 + {e}.uses" if shape.count == "exact" else "2.0")
        call = f"{n('miss')}[0]({values}, {self._positional()}, {self._keywords()})"
        awaited = "await " if self.is_async else ""
        # The layout is measured: `try` on one line with its statement and `1.0 + uses` in place
        # of `uses += 1.0` are 5 of 100 ns on 3.11. Each name from outside costs every call 1 ns,
        # so the two that only a miss needs (slow; Exception, which a module may shadow) share one.
        lines = [
            f"def {self.factory}({', '.join(self._given(reads))}):",
            f"    {'async ' if self.is_async else ''}def {n('call')}({self._parameters()}):",
            *(f"        {name} = {field}" for field, name in made.items()),
            f"        try: {e} = {table}[{key}]",
            # Whatever a user's __hash__ raised comes again below, without our KeyError behind it.
            f"        except {n('miss')}[1]: pass",
            "        else:",
        ]
        if len(fields) > 1:
            lines.append(f"            {', '.join(types)} = {e}.types")
        lines += [
            f"            if {' and '.join(tests) or 'True'}:",
            f"                {counting}",
            f"                return {e}.value",
            f"        return {awaited}{call}",
            f"    def {n('set_hot')}({n('new')}):",
            f"        nonlocal {n('hot')}",
            f"        {n('hot')} = {n('new')}",
            f"    def {n('set_epoch')}({n('new')}):",
            f"        nonlocal {n('epoch')}",
            f"        {n('epoch')} = {n('new')}",
            f"    return {n('call')}, {n('set_hot')}, {n('set_epoch')}",
            "",
        ]
        return "\n".join(lines)

    def _given(self, reads: list[str]) -> list[str]:
        """The factory's parameters."""
        own = map(self._n, ("hot", "clock", "epoch", "miss", "type", "id"))
        return [*own, *reads, *(self._n(f"d{i}") for i in range(len(self.defaults)))]

    def _parameters(self) -> str:
        """The signature without annotations."""
        parts: list[str] = []
        defaults = (self._n(f"d{i}") for i in range(len(self.defaults)))
        star = False
        positional_only = False
        for p in self.signature.parameters.values():
            if positional_only and p.kind is not _KINDS.POSITIONAL_ONLY:
                parts.append("/")
            positional_only = p.kind is _KINDS.POSITIONAL_ONLY
            if p.kind is _KINDS.VAR_POSITIONAL:
                parts.append(f"*{p.name}")
                star = True
                continue
            if p.kind is _KINDS.VAR_KEYWORD:
                parts.append(f"**{p.name}")
                continue
            if p.kind is _KINDS.KEYWORD_ONLY and not star:
                parts.append("*")
                star = True
            parts.append(p.name if p.default is _KINDS.empty else f"{p.name}={next(defaults)}")
        if positional_only:
            parts.append("/")
        return ", ".join(parts)

    def _positional(self) -> str:
        parts = [
            f"*{p.name}" if p.kind is _KINDS.VAR_POSITIONAL else p.name
            for p in self.signature.parameters.values()
            if p.kind
            in (_KINDS.POSITIONAL_ONLY, _KINDS.POSITIONAL_OR_KEYWORD, _KINDS.VAR_POSITIONAL)
        ]
        return f"({', '.join(parts)}{',' if parts else ''})"

    def _keywords(self) -> str:
        parts = []
        for p in self.signature.parameters.values():
            if p.kind is _KINDS.KEYWORD_ONLY:
                parts.append(f"{p.name!r}: {p.name}")
            elif p.kind is _KINDS.VAR_KEYWORD:
                parts.append(f"**{p.name}")
        return "{" + ", ".join(parts) + "}"
