"""The SQL of a DB-API sink, for SQLite (from 3.24) and PostgreSQL alike.

Placeholders are NUL characters until a driver puts in its own: no identifier can have one.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigurationError
from .fence import IDLE_SETTING

MARK = "\0"


def quoted(name: str) -> str:
    """An identifier in double quotes, exactly as spelled."""
    if not isinstance(name, str) or not name or MARK in name:
        raise ConfigurationError(f"sink: {name!r} can not be the name of a table or column")
    return '"' + name.replace('"', '""') + '"'


def quoted_table(name: str) -> str:
    """The same for a table, which may be in a schema: ``schema.table``."""
    return ".".join(quoted(part) for part in str(name).split("."))


def make_fence(table: str) -> str:
    return (
        f"CREATE TABLE IF NOT EXISTS {table} "
        "(lane TEXT NOT NULL PRIMARY KEY, epoch BIGINT NOT NULL)"
    )


def last_epoch(table: str) -> str:
    return f"SELECT epoch FROM {table} WHERE lane = {MARK}"


def raise_fence(table: str, idle: int | None) -> str:
    """Counts one row if the epoch is above what was seen of the lane, else none. ``idle``: the
    milliseconds that PostgreSQL lets this transaction lie still; set by the same round trip."""
    sql = (
        f"INSERT INTO {table} AS fence (lane, epoch) VALUES ({MARK}, {MARK}) "
        "ON CONFLICT (lane) DO UPDATE SET epoch = excluded.epoch "
        "WHERE fence.epoch < excluded.epoch"
    )
    return sql if idle is None else sql + f" RETURNING set_config('{IDLE_SETTING}', '{idle}', true)"


def upsert(table: str, key: str, columns: Sequence[str], rows: int) -> str:
    """Of so many rows, whose values follow one another."""
    names = [quoted(column) for column in columns]
    sets = [f"{name} = excluded.{name}" for name in names if name != quoted(key)]
    row = f"({', '.join([MARK] * len(names))})"
    return (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES {', '.join([row] * rows)} "
        f"ON CONFLICT ({quoted(key)}) DO {'UPDATE SET ' + ', '.join(sets) if sets else 'NOTHING'}"
    )


def delete(table: str, key: str) -> str:
    # SQLite takes an unknown name in quotes for a text, unless a table is named before it.
    return f"DELETE FROM {table} WHERE {table}.{quoted(key)} = {MARK}"


def columns_of(table: str) -> str:
    return f"SELECT * FROM {table} WHERE 1 = 0"
