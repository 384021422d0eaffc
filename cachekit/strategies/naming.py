"""What a strategy's key and tag options mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..core.templates import Template, compile_template
from ..errors import ConfigurationError

RESULT = ("value", "result")


def reader_of(name: str, template: Template) -> Callable[[Any], tuple[Any, ...]]:
    """id -> the field values of its key."""
    if template.fields == (name,):
        return lambda id: (id,)
    source = f"lambda {name}: ({''.join(f + ',' for f in template.fields)})"
    return eval(source, {"__builtins__": {}})  # type: ignore[no-any-return]  # fields are checked names


def split_tags(
    tags: Sequence[str] | Callable[[Any], Sequence[str]], id_name: str, owner: str
) -> tuple[list[Template], list[Template], Callable[[Any], Sequence[str]] | None]:
    """Templates known from the id, templates that need the value, or a function of the value."""
    if callable(tags):
        return [], [], tags
    if isinstance(tags, str):
        raise ConfigurationError(f"{owner}: tags must be a list of templates, got one str")
    compiled = [compile_template(t, (id_name, *RESULT), f"{owner}: tag") for t in tags]
    by_value = [t for t in compiled if set(t.names) & set(RESULT)]
    for template in by_value:
        if id_name in template.names:
            raise ConfigurationError(
                f"{owner}: tag {template.text!r} uses both {id_name!r} and the value; "
                "give tags=function_of_the_value instead"
            )
    return [t for t in compiled if t not in by_value], by_value, None
