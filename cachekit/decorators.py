"""The decorators: thin doors into the read path, the invalidator and write-back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .core.entry import MISSING
from .core.ops import Flushed
from .core.outcome import Outcome
from .core.place import Place
from .core.policy import Policy
from .core.templates import Template, compile_template
from .errors import CacheKitError, ConfigurationError
from .functions import Call, Function, Options, refuse_generators
from .protocols import Codec
from .runtime import AnyWorld, drive
from .strategies.intent import outcome_unknown
from .strategies.job import Recipe
from .strategies.many import peek_many, read_many
from .strategies.parts import HasParts, Parts, codec_for
from .strategies.write_back import WriteBack


def options(parts: Parts, given: dict[str, Any]) -> Options:
    """Take what is ``cached``'s own out of the options; what is left in ``given`` is policy.

    Raises TypeError for one that is neither."""
    names = ("key", "tags", "name", "version", "ignore", "condition", "copy")
    known = {*names, "codec", "stats", *Policy.__dataclass_fields__}
    unknown = sorted(set(given) - known)
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; known: {', '.join(sorted(known))}")
    own = {name: given.pop(name) for name in names if name in given}
    codec = parts.codec_of(given.pop("codec", None))
    count = given.pop("stats", None) or parts.count
    return Options(codec=codec, count=count, **own)


def cached(parts: Parts, fn: Any, policy: Policy, options: Options) -> Any:
    """Decorate a function, coroutine function, classmethod or staticmethod."""
    if isinstance(fn, (classmethod, staticmethod)):
        return type(fn)(cached(parts, fn.__func__, policy, options))
    if not inspect.isfunction(fn):
        raise ConfigurationError(
            f"cached decorates functions and methods, got {type(fn).__name__}; "
            "for another callable use cache.get_or_set"
        )
    if options.codec is None:
        options.codec = codec_for(parts.codec, fn)
    function = Function(parts, fn, policy, options)
    runtime = parts.runtime
    threads = runtime.threads
    if function.is_async:

        async def slow_async(*call: Any) -> Any:
            return (await function.read(runtime.asyncio(), Call(*call))).settle()

        wrapper = function.wrap(slow_async)
    else:

        def slow(*call: Any) -> Any:
            return drive(function.read(threads, Call(*call))).settle()

        wrapper = function.wrap(slow)
    functools.update_wrapper(wrapper, fn)
    _add_helpers(wrapper, function)
    return wrapper


def _add_helpers(wrapper: Any, function: Function) -> None:
    runtime, near = function.parts.runtime, function.parts.near
    threads = runtime.threads
    bind = function.binder()

    def key(*args: Any, **kwargs: Any) -> str:
        text = function.place(bind(*args, **kwargs)).text
        if text is None:
            raise TypeError(f"{function.name}: this call has no text key")
        return text

    def cache_clear() -> None:
        for world in runtime.worlds():
            world.flights.detach_all()
        near.kill_table(function.table)
        function.table.tally.hits = 0.0
        function.table.tally.misses = 0

    if function.is_async:

        async def peek(*args: Any, **kwargs: Any) -> Any:
            return (await function.peek(runtime.asyncio(), bind(*args, **kwargs))).settle()

        async def refresh(*args: Any, **kwargs: Any) -> Any:
            return (await function.refresh(runtime.asyncio(), bind(*args, **kwargs))).settle()

        async def invalidate(*args: Any, **kwargs: Any) -> None:
            (await function.invalidate(runtime.asyncio(), bind(*args, **kwargs))).settle()

        wrapper.peek, wrapper.refresh, wrapper.invalidate = peek, refresh, invalidate
    else:
        wrapper.peek = lambda *a, **k: drive(function.peek(threads, bind(*a, **k))).settle()
        wrapper.refresh = lambda *a, **k: drive(function.refresh(threads, bind(*a, **k))).settle()
        wrapper.invalidate = lambda *a, **k: drive(
            function.invalidate(threads, bind(*a, **k))
        ).settle()
    wrapper.key = key
    wrapper.uncached = function.fn
    wrapper.cache_info = function.info
    wrapper.cache_clear = cache_clear
    wrapper.cached_function = function


def cached_many(
    parts: Parts,
    fn: Any,
    policy: Policy,
    *,
    key: str,
    over: str | None,
    tags: Sequence[str],
    codec: Codec | None,
) -> Any:
    """Decorate a loader of many: ``fn(items) -> {item: value}`` is called for what misses."""
    refuse_generators(fn)
    many = _Many(parts, fn, policy, key=key, over=over, tags=tags, codec=codec)
    runtime, threads = parts.runtime, parts.runtime.threads
    wrapper: Any
    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def wrapper_async(*args: Any, **kwargs: Any) -> Any:
            return (await many.read(runtime.asyncio(), args, kwargs)).settle()

        async def invalidate_async(*args: Any, **kwargs: Any) -> None:
            await many.invalidate(runtime.asyncio(), args, kwargs)

        async def peek_async(*args: Any, **kwargs: Any) -> Any:
            return await many.peek(runtime.asyncio(), args, kwargs)

        wrapper = wrapper_async
        wrapper.invalidate, wrapper.peek = invalidate_async, peek_async
    else:

        @functools.wraps(fn)
        def wrapper_plain(*args: Any, **kwargs: Any) -> Any:
            return drive(many.read(threads, args, kwargs)).settle()

        wrapper = wrapper_plain
        wrapper.invalidate = lambda *a, **k: drive(many.invalidate(threads, a, k))
        wrapper.peek = lambda *a, **k: drive(many.peek(threads, a, k))
    wrapper.uncached = fn
    return wrapper


class _Many:
    """A decorated loader of many."""

    def __init__(
        self,
        parts: Parts,
        fn: Callable[..., Any],
        policy: Policy,
        *,
        key: str,
        over: str | None,
        tags: Sequence[str],
        codec: Codec | None,
    ) -> None:
        self.parts = parts
        self.fn = fn
        self.signature = inspect.signature(fn)
        names = list(self.signature.parameters)
        self.name = f"{fn.__module__}.{fn.__qualname__}"
        self.over = over or next((n for n in names if n not in ("self", "cls")), "")
        if self.over not in names:
            raise ConfigurationError(f"{self.name}: over={over!r} is no parameter")
        self.template = compile_template(key, None, f"{self.name}: key")
        items = sorted(set(self.template.names) - set(names))
        if len(items) != 1:
            raise ConfigurationError(
                f"{self.name}: key {key!r} must use one name that is no parameter, the item, "
                'as in "price:{sku}"'
            )
        (self.item,) = items
        self.tags = [compile_template(t, (*names, self.item), f"{self.name}: tag") for t in tags]
        self.table = parts.table(
            parts.claim(self.name, shared_ok=True),
            self.template.fields,
            self._text,
            explicit=True,
            carries=(lambda tag: any(t.may_give(tag) for t in self.tags)) if tags else None,
        )
        self.recipe = Recipe(
            self.name, policy, codec or codec_for(parts.codec, fn), self.table.tally
        )

    def _text(self, values: tuple[Any, ...]) -> str:
        return self.template.key(values, self.name)

    def _split(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], inspect.BoundArguments]:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return list(dict.fromkeys(bound.arguments[self.over])), bound

    def _places(
        self, items: Sequence[Any], bound: inspect.BoundArguments
    ) -> tuple[list[Place], list[tuple[str, ...]]]:
        places, tags = [], []
        for item in items:
            scope = {**bound.arguments, self.item: item}
            places.append(self.table.place(self.template.read(scope)))
            tags.append(tuple([t.tag(scope) for t in self.tags]))
        return places, tags

    async def read(
        self, world: AnyWorld, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Outcome:
        items, bound = self._split(args, kwargs)
        if self.parts.off:
            return await world.call(self.fn, args, kwargs)

        async def load(world: AnyWorld, positions: Sequence[int]) -> Outcome:
            wanted = [items[i] for i in positions]
            some = inspect.BoundArguments(
                self.signature, type(bound.arguments)({**bound.arguments, self.over: wanted})
            )
            outcome = await world.call(self.fn, some.args, some.kwargs)
            if outcome.error is not None:
                return outcome
            if not isinstance(outcome.value, Mapping):
                return Outcome(
                    error=TypeError(
                        f"{self.name} must return a mapping {{item: value}}, got "
                        f"{type(outcome.value).__name__}"
                    )
                )
            found = outcome.value
            return Outcome({i: found[items[i]] for i in positions if items[i] in found})

        places, tags = self._places(items, bound)
        outcomes = await read_many(self.parts.reader, world, self.recipe, places, tags, load)
        answer = {}
        for item, outcome in zip(items, outcomes, strict=True):
            if outcome.error is not None:
                return outcome
            if outcome.value is not MISSING:
                answer[item] = outcome.value
        return Outcome(answer)

    async def peek(
        self, world: AnyWorld, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[Any, Any]:
        if self.parts.off:
            return {}
        items, bound = self._split(args, kwargs)
        places, tags = self._places(items, bound)
        found = await peek_many(self.parts.reader, world, self.recipe, places, tags)
        return {i: v for i, v in zip(items, found, strict=True) if v is not MISSING}

    async def invalidate(
        self, world: AnyWorld, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        items, bound = self._split(args, kwargs)
        await self.parts.invalidator.invalidate(world, self._places(items, bound)[0])


def invalidates(
    parts: Parts,
    fn: Any,
    *,
    tags: Sequence[str],
    keys: Sequence[str],
    place_of: Callable[[str], Place],
) -> Any:
    """Decorate a function that changes the source: afterwards, also when it raised, the tags and
    keys are invalidated. Never switched off by ``disabled()``."""
    if isinstance(fn, (classmethod, staticmethod)):
        inner = invalidates(parts, fn.__func__, tags=tags, keys=keys, place_of=place_of)
        return type(fn)(inner)
    refuse_generators(fn)
    signature = inspect.signature(fn)
    known = [*signature.parameters, *(["result"] if "result" not in signature.parameters else [])]
    tag_templates = _compiled(tags, known, fn, "tag")
    key_templates = _compiled(keys, known, fn, "key")

    def targets(
        args: Any, kwargs: Any, result: Any
    ) -> tuple[list[Place], list[str], Exception | None]:
        """What the call makes outdated, and the first error of a template: the others count."""
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        scope = {"result": result, **bound.arguments}
        known_now = "result" in signature.parameters or result is not MISSING
        places: list[Place] = []
        labels: list[str] = []
        broken: Exception | None = None
        for template in (*key_templates, *tag_templates):
            if not known_now and "result" in template.names:
                continue
            try:
                if template in key_templates:
                    places.append(place_of(template.key(template.read(scope), "key")))
                else:
                    labels.append(template.tag(scope))
            except Exception as error:
                broken = broken or error
        return places, labels, broken

    async def afterwards(
        world: AnyWorld, args: Any, kwargs: Any, result: Any, error: BaseException | None
    ) -> None:
        places, labels, broken = targets(args, kwargs, result)
        try:
            if error is not None and outcome_unknown(error):
                await parts.writer.block(world, places, labels, parts.policy.write_lease)
            await parts.invalidator.invalidate(world, places, labels)
        except CacheKitError:
            raise
        except BaseException:
            parts.invalidator.owe(places, labels)
            raise
        if broken is not None and error is None:
            raise broken

    runtime = parts.runtime
    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def wrapper_async(*args: Any, **kwargs: Any) -> Any:
            try:
                result = await fn(*args, **kwargs)
            except BaseException as error:
                await afterwards(runtime.asyncio(), args, kwargs, MISSING, error)
                raise
            await afterwards(runtime.asyncio(), args, kwargs, result, None)
            return result

        return wrapper_async

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            drive(afterwards(runtime.threads, args, kwargs, MISSING, error))
            raise
        drive(afterwards(runtime.threads, args, kwargs, result, None))
        return result

    return wrapper


def _compiled(texts: Sequence[str], known: Sequence[str], fn: Any, what: str) -> list[Template]:
    if isinstance(texts, str):
        raise ConfigurationError(f"{fn.__qualname__}: {what}s must be a list, got one str")
    return [compile_template(t, known, f"{fn.__qualname__}: {what}") for t in texts]


def write_back(cache: HasParts, fn: Any, options: Mapping[str, Any]) -> Any:
    """Decorate a batch writer ``fn({id: value})``: calling it with (id, value) logs one write."""
    strategy = WriteBack(cache, store_many=fn, **options)
    wrapper: Any
    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def put_async(id: Any, value: Any) -> None:
            await strategy.aio.put(id, value)

        async def flush_async(timeout: float | None = None) -> Flushed:
            return await strategy.aio.flush(timeout)

        wrapper = put_async
        wrapper.flush, wrapper.put_many = flush_async, strategy.aio.put_many
        wrapper.close = strategy.aio.close
    else:

        @functools.wraps(fn)
        def put(id: Any, value: Any) -> None:
            strategy.put(id, value)

        wrapper = put
        wrapper.flush, wrapper.put_many = strategy.flush, strategy.put_many
        wrapper.close = strategy.close
    wrapper.strategy = strategy
    wrapper.uncached = fn
    del wrapper.__wrapped__  # its signature is (id, value), not the batch writer's
    return wrapper
