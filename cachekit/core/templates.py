"""Key and tag templates: ``"user:{user.id}"``, compiled once and checked at decoration."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from types import CodeType
from typing import Any, Final

from ..errors import ConfigurationError
from . import keys

_FIELD: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*|\[[^\[\]{}'\"\\]+\])*\Z")
_NO_BUILTINS: Final[dict[str, Any]] = {"__builtins__": {}}
_WORD: Final = re.compile(r"[\w@.+-]+\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Template:
    """``literals[0] field[0] literals[1] field[1] ... literals[-1]``.

    ``fields`` are Python expressions over parameter names; ``plain`` says that no field has a
    conversion or a format spec, so that the fields' values alone are the identity."""

    text: str
    literals: tuple[str, ...]
    fields: tuple[str, ...]
    shapes: tuple[tuple[str, str], ...]  # per field: conversion, format spec
    plain: bool
    codes: tuple[CodeType, ...]  # per field: its expression
    formatted: CodeType  # the whole template as one f-string

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that the fields start from."""
        return tuple(re.split(r"[.\[]", field, maxsplit=1)[0] for field in self.fields)

    def key(self, values: tuple[Any, ...], owner: str) -> str:
        """The text key of these field values (typed: 7 and "7" differ)."""
        if self.plain:
            if len(values) == 1 and type(values[0]) is int:
                return self.literals[0] + keys.bare(values[0]) + self.literals[1]
            encoded = keys.named(keys.bare, values, self.fields, owner)
            for i, after in enumerate(self.literals[1:-1]):
                # What follows must show where this value ends: a-b + c is not a + b-c.
                if _WORD.match(encoded[i]) and (not after or after[0] in encoded[i]):
                    value = values[i]
                    encoded[i] = ascii(value) if type(value) is str else f"({encoded[i]})"
            return self._join(encoded)
        return self._join(
            [
                keys.bare(value) if shape == ("", "") else _shaped(value, *shape)
                for value, shape in zip(values, self.shapes, strict=True)
            ]
        )

    def read(self, scope: Mapping[str, Any]) -> tuple[Any, ...]:
        """The fields' values in a scope of names. What a property raises passes unchanged."""
        # A list, not a generator: that would turn a user's StopIteration into another error.
        return tuple([eval(code, _NO_BUILTINS.copy(), scope) for code in self.codes])

    def tag(self, scope: Mapping[str, Any]) -> str:
        """The name of the tag this template gives in a scope of names: by the rules of
        ``str.format``. What a property raises passes unchanged."""
        return keys.tag_name(eval(self.formatted, _NO_BUILTINS.copy(), scope))

    def may_give(self, text: str) -> bool:
        """Whether some values could give this text; True when in doubt."""
        if "%" in text or "~" in text:  # an escaped or hashed name
            return True
        return text.startswith(self.literals[0]) and text.endswith(self.literals[-1])

    def _join(self, encoded: list[str]) -> str:
        parts = [self.literals[0]]
        for value, after in zip(encoded, self.literals[1:], strict=True):
            parts.append(value)
            parts.append(after)
        return "".join(parts)


def _shaped(value: Any, conversion: str, spec: str) -> str:
    if conversion == "r":
        value = repr(value)
    elif conversion == "a":
        value = ascii(value)
    elif conversion == "s":
        value = str(value)
    return format(value, spec)


def compile_template(text: str, known: Collection[str] | None, what: str) -> Template:
    """Parse a template; with ``known`` parameter names, refuse a field that is none of them.

    Raises ConfigurationError with the offending field and what is known."""
    keys.check_text(text, what)
    literals = [""]
    fields: list[str] = []
    shapes: list[tuple[str, str]] = []
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise ConfigurationError(f"{what} {text!r}: {error}") from None
    for before, field, spec, conversion in parsed:
        literals[-1] += before
        if field is None:
            continue
        if not _FIELD.match(field):
            raise ConfigurationError(
                f"{what} {text!r}: field {{{field}}} must be a parameter name, "
                "with .attribute or [key] behind it"
            )
        if spec and "{" in spec:
            raise ConfigurationError(f"{what} {text!r}: nested fields are not supported")
        names = re.findall(r"(?:\A|\.)(\w+)", re.sub(r"\[[^\]]*\]", "", field))
        if any(keyword.iskeyword(name) or not name.isidentifier() for name in names):
            raise ConfigurationError(f"{what} {text!r}: field {{{field}}} is no Python name")
        if conversion not in (None, "r", "s", "a"):
            raise ConfigurationError(f"{what} {text!r}: use !r, !s or !a, not !{conversion}")
        fields.append(_expression(field))
        shapes.append((conversion or "", spec or ""))
        literals.append("")
    template = Template(
        text,
        tuple(literals),
        tuple(fields),
        tuple(shapes),
        all(s == ("", "") for s in shapes),
        tuple(compile(field, f"<{what}>", "eval") for field in fields),
        _formatted(literals, fields, shapes, what),
    )
    if known is not None:
        for name in template.names:
            if name not in known:
                raise ConfigurationError(
                    f"{what} {text!r}: no parameter {name!r}; known: {', '.join(known) or 'none'}"
                )
    return template


def _formatted(
    literals: Sequence[str], fields: Sequence[str], shapes: Sequence[tuple[str, str]], what: str
) -> CodeType:
    """The template compiled to one f-string: a tag is made of it on every tagged read."""
    parts: list[ast.expr] = [ast.Constant(literals[0])]
    for field, (conversion, spec), after in zip(fields, shapes, literals[1:], strict=True):
        parts.append(
            ast.FormattedValue(
                ast.parse(field, mode="eval").body,
                ord(conversion) if conversion else -1,
                ast.JoinedStr([ast.Constant(spec)]) if spec else None,
            )
        )
        parts.append(ast.Constant(after))
    whole = ast.fix_missing_locations(ast.Expression(ast.JoinedStr(parts)))
    return compile(whole, f"<{what}>", "eval")


def _expression(field: str) -> str:
    """``d[key]`` as str.format reads it (an unquoted string, or an index) as Python reads it."""

    def index(match: re.Match[str]) -> str:
        inner = match.group(1)
        return f"[{int(inner)}]" if inner.isascii() and inner.isdigit() else f"[{inner!r}]"

    return re.sub(r"\[([^\[\]]+)\]", index, field)
