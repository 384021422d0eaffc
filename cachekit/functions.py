"""A decorated function: its keys, its tags, and how one call is answered."""

from __future__ import annotations

import ast
import copy as copying
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .core import keys as keytext
from .core.entry import MISSING
from .core.outcome import Outcome
from .core.place import Place, Shelf, Table
from .core.policy import Policy
from .core.templates import Template, compile_template
from .core.wrapper import Shape, generate
from .errors import ConfigurationError
from .protocols import Codec
from .runtime import AnyWorld
from .strategies.discovery import Discovery
from .strategies.job import Job, Recipe
from .strategies.many import peek_many
from .strategies.parts import Parts


class CacheInfo(NamedTuple):
    """As ``functools.lru_cache``'s: ``maxsize`` is the whole cache's bound."""

    hits: int
    misses: int
    maxsize: int
    currsize: int


class Call(NamedTuple):
    """A call in canonical form: the key's field values, and the arguments."""

    values: tuple[Any, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(slots=True)
class Options:
    """What ``cached`` was given."""

    key: str | Callable[..., str] | None = None
    tags: Sequence[str] | Callable[[Any], Sequence[str]] = ()
    name: str | None = None
    version: str | int | None = None
    ignore: Sequence[str] = ()
    condition: Callable[..., bool] | None = None
    copy: bool = False
    codec: Codec | None = None
    count: str = "exact"


class Function:
    """One decorated function of one cache."""

    def __init__(
        self, parts: Parts, fn: Callable[..., Any], policy: Policy, options: Options
    ) -> None:
        refuse_generators(fn)
        self.parts = parts
        self.fn = fn
        self.policy = policy
        self.options = options
        self.is_async = inspect.iscoroutinefunction(fn)
        self.signature = inspect.signature(fn)
        self.parameters = list(self.signature.parameters)
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        self._ordinary = all(p.kind not in variable for p in self.signature.parameters.values())
        if options.count not in ("exact", "sampled"):
            raise ConfigurationError(f'stats={options.count!r}: use "exact" or "sampled"')
        self.name = self._name()
        for name in options.ignore:
            if name not in self.parameters:
                raise ConfigurationError(
                    f"{self.name}: ignore names {name!r}, which is no parameter; "
                    f"known: {', '.join(self.parameters) or 'none'}"
                )
        self._key, fields, reads, labels = self._compile_key()
        self.instance = self._instance_parameter()
        if self.instance is not None:
            at = labels.index(self.instance)
            fields, labels = _without(fields, at), _without(labels, at)
        if not fields:
            fields, labels = ("None",), ("()",)
        self._tag_templates, self._result_templates, discover = self._compile_tags()
        templates = [*self._tag_templates, *self._result_templates]
        tagged = bool(templates or discover)
        self.table = parts.table(
            self.name,
            labels,
            self._text,
            explicit=options.key is not None,
            carries=(lambda tag: discover is not None or any(t.may_give(tag) for t in templates))
            if tagged
            else None,
        )
        parts.tables[self.name] = self.table
        self.table.parse = self._parse
        self._discover = discover
        self.recipe = Recipe(
            self.name,
            policy,
            options.codec or parts.codec,
            self.table.tally,
            discovery=Discovery(self._tags_of_result)
            if self._result_templates or discover
            else None,
        )
        self._shape = Shape(
            fields,
            instance=self.instance,
            reads=reads,
            tagged=tagged,
            timed=policy.ttl is not None
            or policy.negative_ttl is not None
            or parts.far is not None,
            count=options.count,
            coarse=parts.coarse,
        )
        # condition= and copy= need a look at every call: their wrappers never find a hot entry.
        self._plain_hits = options.condition is None and not options.copy

    # -- names, keys, tags ----------------------------------------------------------------

    def _name(self) -> str:
        fn, given = self.fn, self.options.name
        if given is not None and "(" in keytext.check_text(given, "name"):
            raise ConfigurationError(f"name={given!r}: '(' is where the arguments of a key begin")
        name = given or f"{fn.__module__}.{fn.__qualname__}"
        if self.options.version is not None:
            name = f"{name}@{self.options.version}"
        local = "<locals>" in fn.__qualname__ or fn.__name__ == "<lambda>"
        if self.parts.far is not None and local and given is None and self.options.key is None:
            raise ConfigurationError(
                f"{name}: a closure or lambda has no name of its own in a shared backend; "
                "give name= or key="
            )
        return self.parts.claim(name, shared_ok=self.options.key is not None)

    def _compile_key(
        self,
    ) -> tuple[Template | None, tuple[str, ...], tuple[Callable[..., Any], ...], tuple[str, ...]]:
        """The template if there is one, the key's expressions, what they call, and their names."""
        key = self.options.key
        kinds = {name: p.kind for name, p in self.signature.parameters.items()}
        if key is None:
            names = [n for n in self.parameters if n not in self.options.ignore]
            fields = tuple(
                f"\0{0}({n})" if kinds[n] is inspect.Parameter.VAR_KEYWORD else n for n in names
            )
            return None, fields, (_keywords,), tuple(names)
        if isinstance(key, str):
            template = compile_template(key, self.parameters, f"{self.name}: key")
            if template.plain:
                return template, template.fields, (), template.fields
            arguments = ", ".join(dict.fromkeys(template.names))
            values = eval(  # the fields are checked names, see templates
                f"lambda {arguments}: ({''.join(f + ',' for f in template.fields)})"
            )
            shaped, name = template, self.name

            def make(*arguments: Any) -> str:
                return shaped.key(values(*arguments), name)

            return None, (f"\0{0}({arguments})",), (make,), ("key",)
        if callable(key):
            passed = ", ".join(_passed(name, kinds[name]) for name in self.parameters)
            return None, (f"\0{0}({passed})",), (key,), ("key",)
        raise ConfigurationError(f"{self.name}: key must be a template or a function")

    def _instance_parameter(self) -> str | None:
        """The parameter whose identity picks the shelf: a method's ``self`` (or ``cls``) in an
        embedded cache. With a far tier it is part of the key, by ``__cache_key__()``."""
        if not self.parameters or self.options.key is not None or self.parts.far is not None:
            return None
        first = self.parameters[0]
        owner = self.fn.__qualname__.rpartition(".")[0]
        in_class = bool(owner) and not owner.endswith("<locals>")
        if first in ("self", "cls") and in_class and first not in self.options.ignore:
            return first
        return None

    def _text(self, values: tuple[Any, ...]) -> str:
        if self._key is not None:
            return self._key.key(values if self._key.fields else (), self.name)
        if self.options.key is not None:
            return keytext.check_text(values[0], f"{self.name}: key")
        if self._shape.fields == ("None",):
            return f"{self.name}()"
        labels = self.table.fields
        return f"{self.name}({','.join(keytext.named(keytext.literal, values, labels, self.name))})"

    def _parse(self, text: str) -> Place | None:
        """The place of a generated text key of primitive arguments; None if it is none."""
        if self.options.key is not None or self.instance is not None:
            return None
        if self._shape.fields == ("None",):
            return self.table.place((None,)) if text == f"{self.name}()" else None
        try:
            found = ast.literal_eval(text[len(self.name) :])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
        values = (found,) if len(self.table.fields) == 1 else found
        if not isinstance(values, tuple) or len(values) != len(self.table.fields):
            return None
        place = self.table.place(values)
        return place if place.text == text else None

    def _compile_tags(
        self,
    ) -> tuple[list[Template], list[Template], Callable[[Any], Sequence[str]] | None]:
        tags = self.options.tags
        if callable(tags):
            return [], [], tags
        if isinstance(tags, str):
            raise ConfigurationError(f"{self.name}: tags must be a list, got one str")
        known = list(self.parameters)
        if "result" not in known:
            known.append("result")
        compiled = [compile_template(t, known, f"{self.name}: tag") for t in tags]
        by_result = [t for t in compiled if "result" in t.names and "result" not in self.parameters]
        for template in by_result:
            if set(template.names) != {"result"}:
                raise ConfigurationError(
                    f"{self.name}: tag {template.text!r} mixes result with parameters; put the "
                    "parameter into the result, or give tags= a function of the result"
                )
        return [t for t in compiled if t not in by_result], by_result, None

    def _tags_of_result(self, value: Any) -> list[str]:
        if self._discover is not None:
            return [keytext.tag_name(t) for t in self._discover(value)]
        return [t.tag({"result": value}) for t in self._result_templates]

    def tags_of(self, call: Call) -> tuple[str, ...]:
        if not self._tag_templates:
            return ()
        scope = self.scope(call)
        return tuple(dict.fromkeys([t.tag(scope) for t in self._tag_templates]))

    def scope(self, call: Call) -> dict[str, Any]:
        """Parameter names -> values of a call in canonical form, which leaves nothing out."""
        if self._ordinary:
            return {**dict(zip(self.parameters, call.args, strict=False)), **call.kwargs}
        return dict(self.signature.bind(*call.args, **call.kwargs).arguments)

    def place(self, call: Call) -> Place:
        shelf: Shelf | None = None
        if self.instance is not None:
            shelf = self.table.shelf_of(call.args[0], self.parts.near.buried)
        return self.table.place(call.values, shelf)

    # -- one call -------------------------------------------------------------------------

    def job(self, call: Call) -> Job:
        fn, args, kwargs = self.fn, call.args, call.kwargs
        return Job(
            self.recipe,
            self.place(call),
            lambda world: world.call(fn, args, kwargs),
            self.tags_of(call),
        )

    async def read(self, world: AnyWorld, call: Call) -> Outcome:
        """Answer a call that the hit road did not."""
        options = self.options
        try:
            if self.parts.off or (
                options.condition is not None and not options.condition(*call.args, **call.kwargs)
            ):
                return await world.call(self.fn, call.args, call.kwargs)
            job = self.job(call)
        except keytext.NotANumberKey:
            return await world.call(self.fn, call.args, call.kwargs)
        except Exception as error:
            return Outcome(error=error)
        if self.parts.coarse:
            self.parts.clock.start()
        outcome = await self.parts.reader.read(world, job)
        return self._handed_out(outcome)

    def _handed_out(self, outcome: Outcome) -> Outcome:
        if not self.options.copy or outcome.error is not None or outcome.value is MISSING:
            return outcome
        try:
            return Outcome(copying.deepcopy(outcome.value))
        except Exception as error:
            return Outcome(error=error)

    async def peek(self, world: AnyWorld, call: Call) -> Outcome:
        try:
            if self.parts.off:
                return Outcome(MISSING)
            job = self.job(call)
        except keytext.NotANumberKey:
            return Outcome(MISSING)
        except Exception as error:
            return Outcome(error=error)
        (found,) = await peek_many(self.parts.reader, world, self.recipe, [job.place], [job.tags])
        return self._handed_out(Outcome(found))

    async def refresh(self, world: AnyWorld, call: Call) -> Outcome:
        try:
            if self.parts.off:
                return await world.call(self.fn, call.args, call.kwargs)
            job = self.job(call)
        except keytext.NotANumberKey:
            return await world.call(self.fn, call.args, call.kwargs)
        except Exception as error:
            return Outcome(error=error)
        return self._handed_out(await self.parts.reader.refresh(world, job))

    async def invalidate(self, world: AnyWorld, call: Call) -> Outcome:
        try:
            place = self.place(call)
        except keytext.NotANumberKey:  # never cached
            return Outcome()
        except Exception as error:
            return Outcome(error=error)
        await self.parts.invalidator.invalidate(world, [place])
        return Outcome()

    # -- the wrapper ----------------------------------------------------------------------

    def wrap(self, slow: Callable[..., Any]) -> Callable[..., Any]:
        """The generated wrapper; ``slow`` answers what its hit road does not."""
        table = self.table
        hot: dict[Any, Any] = table.by_instance if self.instance else table.shelf.hot
        visible = self._plain_hits and not self.parts.off
        wrapper, cells = generate(
            self.fn,
            self.signature,
            self._shape,
            hot=hot if visible else {},
            clock=self.parts.clock,
            epoch=table.epoch,
            slow=slow,
        )
        table.epoch_moved = cells.epoch
        if self._plain_hits:
            self.parts.switches.append(lambda on: cells.hot(hot if on else {}))
        return wrapper

    def binder(self) -> Callable[..., Call]:
        """A function of the same signature that gives the call in canonical form."""
        binder, _ = generate(
            self.fn,
            self.signature,
            self._shape,
            hot={},
            clock=self.parts.clock,
            epoch=None,
            slow=Call,
            is_async=False,
        )
        return binder

    def info(self) -> CacheInfo:
        table: Table = self.table
        near = self.parts.near
        return CacheInfo(table.hits(), table.tally.misses, near.max_entries, table.size())


def refuse_generators(fn: Callable[..., Any]) -> None:
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise ConfigurationError(
            f"{fn.__qualname__} is a generator function, whose result can be used only once; "
            "return a list instead"
        )


def _without(items: tuple[str, ...], at: int) -> tuple[str, ...]:
    return items[:at] + items[at + 1 :]


def _keywords(given: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The order of keywords is no part of a call's identity."""
    return tuple(sorted(given.items()))


def _passed(name: str, kind: Any) -> str:
    if kind is inspect.Parameter.VAR_POSITIONAL:
        return f"*{name}"
    if kind is inspect.Parameter.VAR_KEYWORD:
        return f"**{name}"
    if kind is inspect.Parameter.KEYWORD_ONLY:
        return f"{name}={name}"
    return name
