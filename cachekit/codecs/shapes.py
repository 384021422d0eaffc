"""The classes a codec may restore: found in annotations, named by their own fields."""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple
from zlib import crc32

from ..errors import CodecError

_ANNOTATION_MODULES = {"typing", "types", "typing_extensions"}


class Shape(NamedTuple):
    """How one registered class becomes a plain state and comes back.

    ``name`` holds a digest of the fields, so that another version of the class is unknown."""

    name: str
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def registry_of(annotation: Any) -> frozenset[type]:
    """The classes of an annotation that can be registered: in generics, unions, Annotated,
    type aliases, Literal members, and the fields of classes found, to any depth.

    Names that can not be resolved are left out; never raises."""
    found: set[type] = set()
    seen: dict[int, Any] = {}  # holds the objects too: the id of a dead one is given out again
    pending = [annotation]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, enum.Enum):  # a member in a Literal
            pending.append(type(item))
        elif isinstance(item, (list, tuple)):  # the parameters of a Callable
            pending += item
        elif isinstance(item, type) and not isinstance(item, types.GenericAlias):
            if _kind_of(item) is not None:
                found.add(item)
                pending += [hint for _, hint in _fields_of(item)]
            elif typing.is_typeddict(item):
                pending += _hints(item).values()
        elif type(item).__module__ in _ANNOTATION_MODULES:
            pending += _parts(item)
    return frozenset(found)


def _parts(item: Any) -> list[Any]:
    parts = [*typing.get_args(item), *(getattr(item, "__constraints__", None) or ())]
    # The origin of a generic may be a class of its own: Page[Row].
    parts += [
        getattr(item, name, None)
        for name in ("__origin__", "__value__", "__supertype__", "__bound__")
    ]
    return parts


def _fields_of(cls: Any) -> list[tuple[str, Any]]:
    """The fields an instance's content is in, with their annotations as far as resolved."""
    if issubclass(cls, enum.Enum):
        return []
    if issubclass(cls, tuple):
        names = cls._fields
    elif _is_model(cls):
        return [(name, info.annotation) for name, info in cls.model_fields.items()]
    elif dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
    else:
        names = [field.name for field in cls.__attrs_attrs__]
    hints = _hints(cls)
    return [(name, hints.get(name)) for name in names]


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception:  # a name that exists for type checkers only
        hints: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            try:
                hints.update(getattr(base, "__annotations__", None) or {})
            except Exception:
                continue
        return hints


def shape_of(cls: type) -> Shape | None:
    """How to keep instances of exactly this class; None where there is no exact way."""
    make = _kind_of(cls)
    return None if make is None else make(cls)


def _kind_of(cls: type) -> Callable[[type], Shape] | None:
    if issubclass(cls, enum.Enum):
        return _enum if len(cls) else None
    if issubclass(cls, tuple):
        return _named_tuple if isinstance(getattr(cls, "_fields", None), tuple) else None
    if _is_model(cls):
        return _model
    if dataclasses.is_dataclass(cls) or "__attrs_attrs__" in cls.__dict__:
        try:
            object.__new__(cls)
        except TypeError:  # built on dict, int, ...: its content is not in the fields
            return None
        return _record
    return None


def _is_model(cls: type) -> bool:
    fields = getattr(cls, "model_fields", None)
    return isinstance(fields, dict) and hasattr(cls, "__pydantic_fields_set__")


def _name(cls: type, fields: Any) -> str:
    # An address in a default's repr would differ in every process.
    shape = re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(fields))
    return f"{cls.__module__}.{cls.__qualname__}#{crc32(shape.encode('utf-8', 'replace')):08x}"


def _enum(cls: Any) -> Shape:
    if issubclass(cls, enum.Flag):

        def write_flag(value: Any) -> Any:
            return value.value

        def read_flag(state: Any) -> Any:
            value = cls(state)
            if type(state) is not int or type(value) is not cls:
                raise ValueError("not a value of the flag")
            return value

        return Shape(_name(cls, [(m.name, m.value) for m in cls]), write_flag, read_flag)

    members = cls.__members__

    def write(value: Any) -> Any:
        if members.get(value.name) is not value:
            raise CodecError(f"{cls.__qualname__} has a value that is not one of its members")
        return value.name

    return Shape(_name(cls, []), write, members.__getitem__)


def _named_tuple(cls: Any) -> Shape:
    fields = cls._fields

    def write(value: Any) -> Any:
        if len(value) != len(fields):
            raise CodecError(f"a {cls.__qualname__} has not as many items as fields")
        _refuse_extra(cls, value, frozenset())
        return list(value)

    def read(state: Any) -> Any:
        if type(state) is not list or len(state) != len(fields):
            raise ValueError("not the fields of the named tuple")
        return tuple.__new__(cls, state)

    return Shape(_name(cls, _fields_of(cls)), write, read)


def _record(cls: Any) -> Shape:
    described = _fields_of(cls)
    fields = frozenset(name for name, _ in described)
    slots = _slots_beside(cls, fields)

    def write(value: Any) -> Any:
        _refuse_extra(cls, value, fields, slots)
        return {name: getattr(value, name) for name, _ in described}

    def read(state: Any) -> Any:
        if type(state) is not dict or state.keys() != fields:
            raise ValueError("not the fields of the class")
        value = object.__new__(cls)
        for name, item in state.items():
            object.__setattr__(value, name, item)
        return value

    return Shape(_name(cls, described), write, read)


def _model(cls: Any) -> Shape:
    """By the model's own pickle state: dumping and validating again would lose subclasses,
    private attributes and which fields were set, and depends on aliases and serializers."""
    fields = frozenset(cls.model_fields)
    private = frozenset(getattr(cls, "__private_attributes__", None) or ())

    def write(value: Any) -> Any:
        _refuse_extra(cls, value, fields)
        state = value.__getstate__()
        return [
            {name: state["__dict__"][name] for name in cls.model_fields},
            sorted(state["__pydantic_fields_set__"]),
            state.get("__pydantic_extra__"),  # a RootModel has none
            state.get("__pydantic_private__"),
        ]

    def read(state: Any) -> Any:
        content, given, extra, hidden = state
        if content.keys() != fields or not private.issuperset(hidden or ()):
            raise ValueError("not the fields of the model")
        value = cls.__new__(cls)
        value.__setstate__(
            {
                "__dict__": content,
                "__pydantic_fields_set__": set(given),
                "__pydantic_extra__": extra,
                "__pydantic_private__": hidden,
            }
        )
        return value

    return Shape(_name(cls, _fields_of(cls)), write, read)


def _slots_beside(cls: type, fields: frozenset[str]) -> tuple[str, ...]:
    """Slots of bases that are no fields; they are in no ``__dict__``."""
    found = []
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{base.__name__.lstrip('_')}{name}"
            if name not in fields and name not in ("__dict__", "__weakref__"):
                found.append(name)
    return tuple(found)


def _refuse_extra(
    cls: type, value: Any, fields: frozenset[str], slots: tuple[str, ...] = ()
) -> None:
    """What is not a field would be lost, unless it is computed again when asked for."""
    extra = [name for name in getattr(value, "__dict__", ()) if name not in fields]
    extra += [name for name in slots if hasattr(value, name)]
    for name in extra:
        found = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
        if not isinstance(found, functools.cached_property):
            raise CodecError(
                f"{cls.__qualname__} keeps {name!r} outside its fields: make it a field, "
                f"or choose codec=Pickle(secret=...)"
            )
