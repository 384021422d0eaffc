"""What a session knows of its changed rows, and what it has to ask for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from types import FunctionType, MethodType
from typing import Any


class AsItWas:
    """A changed row with its former values: attributes, and properties and methods over them."""

    def __init__(self, row: Any, previous: Mapping[str, Any]) -> None:
        self.__row = row
        self.__previous = previous

    @property  # type: ignore[misc]  # so that isinstance() sees the row's class
    def __class__(self) -> type:
        return type(self.__row)

    def __getattr__(self, name: str) -> Any:
        if name in self.__previous:
            return self.__previous[name]
        found = inspect.getattr_static(type(self.__row), name, None)
        if isinstance(found, property) and found.fget is not None:
            return found.fget(self)
        if isinstance(found, FunctionType):
            return MethodType(found, self)
        return getattr(self.__row, name)


def replaced(state: Any) -> dict[str, Any]:
    """{attribute: the value that a flush replaces or removes}, as far as the session has it."""
    found: dict[str, Any] = {}
    for attribute in state.attrs:
        removed = attribute.history.deleted
        if removed:
            relationship = state.mapper.relationships.get(attribute.key)
            many = relationship is not None and relationship.uselist
            found[attribute.key] = tuple(removed) if many else removed[0]
    return found


def unknown(state: Any) -> list[str]:
    """Column attributes that a flush changes and whose old values were never loaded."""
    found = {}
    columns = state.mapper.column_attrs
    for attribute in state.attrs:
        history = attribute.history
        if not history.added and not history.deleted:
            continue
        if attribute.key in columns:
            if not history.deleted:
                found[attribute.key] = True
            continue
        relationship = state.mapper.relationships.get(attribute.key)
        if relationship is None or relationship.direction.name != "MANYTOONE":
            continue
        for column in relationship.local_columns:  # what the flush is going to set
            key = state.mapper.get_property_by_column(column).key
            if key in state.unloaded:
                found[key] = True
    return list(found)


def stored(session: Any, state: Any, keys: list[str]) -> dict[str, Any]:
    """Columns of a row as they are in the database, {} if it is gone."""
    mapper = state.mapper
    statement = import_module("sqlalchemy").select(*(getattr(mapper.class_, key) for key in keys))
    pairs = zip(mapper.primary_key, state.identity, strict=True)
    statement = statement.where(*(column == value for column, value in pairs))
    row = session.execute(statement).first()
    return {} if row is None else dict(zip(keys, row, strict=True))


def complete(row: Any, state: Any) -> None:
    """Load what a row that is going to be deleted does not have: afterwards it can not."""
    expired = [key for key in state.expired_attributes if key in state.mapper.column_attrs]
    if expired:
        gone = import_module("sqlalchemy.orm.exc").ObjectDeletedError
        with suppress(gone):
            getattr(row, expired[0])


def tables_written(state: Any) -> list[str]:
    """Full names of the tables that a bulk statement writes."""
    table = getattr(state.statement, "table", None)
    tables = [] if table is None else [table]
    if state.bind_mapper is not None:
        tables += state.bind_mapper.tables
    return list(dict.fromkeys(str(t.fullname) for t in tables if hasattr(t, "fullname")))
