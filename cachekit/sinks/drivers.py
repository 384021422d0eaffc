"""What the DB-API leaves to each driver: placeholders, transactions, threads."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from ..core.threads import begin
from ..errors import ConfigurationError
from .statements import MARK

_MARKS = {"qmark": "?", "format": "%s", "pyformat": "%s"}
_VARIABLES = 999  # of one statement; every build of SQLite allows as many unless told otherwise
_POSTGRESQL = frozenset({"psycopg", "psycopg2", "pg8000"})


class Driver(NamedTuple):
    """How to speak to the connections of one driver."""

    sqlite: bool
    postgresql: bool
    mark: str
    roams: bool  # whether a connection may be used by a thread that did not open it
    variables: int  # that one statement may have to write many rows; 0: one row at a time

    def sql(self, statement: str) -> str:
        # Drivers of this style unescape a statement only where it has parameters.
        if self.mark == "%s" and MARK in statement:
            statement = statement.replace("%", "%%")
        return statement.replace(MARK, self.mark)

    def take_over(self, connection: Any) -> None:
        """Let transactions of a new connection begin and end by our word only."""
        if not self.sqlite:
            # Some drivers have a method of this name; "off" is the DB-API's default.
            if getattr(connection, "autocommit", False) is True:
                connection.autocommit = False
            return
        if connection.in_transaction:
            connection.rollback()
        if sys.version_info >= (3, 12):
            # By way of True: from False a transaction stays open that it had begun by itself.
            connection.autocommit = True
            connection.autocommit = sqlite3.LEGACY_TRANSACTION_CONTROL

    def begin(self, connection: Any) -> None:
        if self.sqlite:  # other drivers do so by themselves
            connection.execute("BEGIN IMMEDIATE")


def driver_of(connection: Any, style: str | None) -> Driver:
    """``style``: a paramstyle, where the connection's module does not tell."""
    if isinstance(connection, sqlite3.Connection):
        most = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
        return Driver(True, False, "?", _roams(connection), min(most, _VARIABLES))
    roots = [cls.__module__.partition(".")[0] for cls in type(connection).__mro__]
    for root in roots:
        style = style or getattr(sys.modules.get(root), "paramstyle", None)
    if style not in _MARKS:
        raise ConfigurationError(
            f"sink: can not tell the paramstyle of {roots[0]}: pass style='qmark' or 'format'"
        )
    return Driver(False, not _POSTGRESQL.isdisjoint(roots), _MARKS[style], True, 0)


def check_style(style: str | None) -> None:
    if style is not None and style not in _MARKS:
        raise ConfigurationError("sink: style must be 'qmark' or 'format'")


def opener(connect: Callable[[], Any] | str | os.PathLike[str]) -> Callable[[], Any]:
    """What opens connections: such a function itself, or one for the path of a SQLite file."""
    if callable(connect):
        return connect
    name = os.fspath(connect) if isinstance(connect, (str, os.PathLike)) else ""
    if not isinstance(name, str) or name in ("", ":memory:") or "://" in name:
        raise ConfigurationError("sink: connect must be a function or the path of a SQLite file")
    path = os.path.abspath(name)  # a later chdir must not lead to another file
    return lambda: sqlite3.connect(path, check_same_thread=False)


def opens_sqlite(connect: Callable[[], Any] | str | os.PathLike[str]) -> bool:
    """Whether what is given opens SQLite connections, as far as it can be told beforehand."""
    return not callable(connect) or getattr(connect, "func", connect) is sqlite3.connect


def close(connection: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        with contextlib.suppress(Exception):  # else a cursor in some traceback keeps its locks
            connection.rollback()
    with contextlib.suppress(Exception):  # it may be lost already
        connection.close()


def _roams(connection: sqlite3.Connection) -> bool:
    """Tried by another thread, as nothing else tells."""
    answers: list[bool] = []

    def ask() -> None:
        with contextlib.suppress(sqlite3.ProgrammingError):
            connection.cursor().close()
            answers.append(True)

    thread = threading.Thread(target=ask, name="cachekit-sink-check", daemon=True)
    if not begin(thread):
        return False
    thread.join()
    return bool(answers)
