"""A fenced sink over a plain DB-API driver: sqlite3, psycopg and others of PEP 249.

    sink = DBAPISink("shop.db", table="items", key="id")

Drivers that send one statement per row (psycopg2, pg8000) are slow at it; psycopg is not.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from ..backends.pool import Pool
from ..backends.sqlite_gate import gate
from ..core.deadline import Deadline
from ..core.ops import Op
from ..core.policy import Duration
from ..observe import log
from . import statements
from .drivers import Driver, check_style, close, driver_of, opener, opens_sqlite
from .fence import FENCE_TABLE, IDLE_LIMIT, fenced_out, idle_milliseconds
from .rows import Batch, Puts, Rows, ToRow, UnknownColumn
from .verdicts import SourceUnready, is_in_step, is_loss, refusal, told, unready

__all__ = ["DBAPISink"]

T = TypeVar("T")

CONNECTIONS = 16
WAIT = 30.0  # seconds for one of them to come free
_STATEMENTS = 256  # kept, one for each set of columns and number of rows
MOST_ROWS, LEAST_ROWS = 256, 8  # of one statement, powers of two

_inherited: list[_Kept] = []  # a parent's connections: neither used nor closed in the child


class _Source(NamedTuple):
    """What the first connection told."""

    driver: Driver
    columns: frozenset[str]


class _Kept:
    """One connection of the pool, which counts those that live; not every driver's can be asked."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection


class DBAPISink:
    """Writes a batch as upserts and deletes of one table, in one transaction with its fence.

    Safe for threads: at most 16 connections, opened when batches need them. Safe across fork.
    After :meth:`close` the next batch opens anew. The driver's errors pass unchanged, after a
    rollback, but for those whose class misleads: a ValueError stands for a row that the source
    will never take (too large for its index, no JSON for an expression of the table), a
    ConnectionError for a source that takes no rows now (read-only, without the table, damaged,
    out of connections), as for whatever fails before the rows come."""

    fences = True

    def __init__(
        self,
        connect: Callable[[], Any] | str | os.PathLike[str],
        *,
        table: str,
        key: str = "id",
        columns: Iterable[str] | None = None,
        to_row: ToRow | None = None,
        fence: str = FENCE_TABLE,
        create_fence: bool = True,
        idle_limit: Duration | None = IDLE_LIMIT,
        style: str | None = None,
    ) -> None:
        """``connect`` opens a connection for the sink alone, or is the path of a SQLite file. For
        sqlite3 let it pass ``check_same_thread=False``: else each batch opens one of its own.

        SQLite from 3.24 and PostgreSQL: ``INSERT ... ON CONFLICT (key) DO UPDATE``, so ``key``
        needs a primary key or unique constraint of its own (keys of several columns are not
        supported). Names are taken exactly as spelled; a table may be ``"schema.table"``.

        A put's value is a mapping or a dataclass; else ``to_row(id, value)`` gives the mapping
        {column: value}. The key's column is added where it is missing. ``columns``: what is
        written of it, all of it required; None: all that it has (not for values whose field names
        come from outside). An operation without such a row fails alone.

        ``create_fence``: make the table ``fence`` where it is missing (see :attr:`ddl`).
        ``idle_limit``: PostgreSQL ends a batch's transaction that lies still for so many seconds,
        lest a frozen writer hold up its successor; None = as the server is set up. ``style``: the
        driver's paramstyle, "qmark" or "format", where its module does not tell.

        Raises ConfigurationError for what can not fit together. Does no I/O."""
        self._connect = opener(connect)
        self._opens_sqlite = opens_sqlite(connect)
        check_style(style)
        self._style = style
        self._fence = statements.quoted_table(fence)
        self._create_fence = create_fence
        self._idle = idle_milliseconds(idle_limit)
        self._table = statements.quoted_table(table)
        self._key = key
        self._rows = Rows(key, columns, to_row)
        for column in self._rows.columns:
            statements.quoted(column)
        self._source: _Source | None = None
        self._upserts: dict[tuple[tuple[str, ...], int], str] = {}
        self._pool: Pool[_Kept] = Pool(
            lambda deadline: _Kept(self._open()),
            lambda kept: close(kept.connection),
            limit=CONNECTIONS,
            ready=lambda connection, deadline: True,
            abandon=_inherited.append,
        )

    @property
    def ddl(self) -> str:
        """The statement that makes the fence table."""
        return statements.make_fence(self._fence)

    def write_many(self, ops: Sequence[Op]) -> dict[Any, Exception]:
        """Apply operations of one lane and epoch: {id: error} of those that have no row.

        Deletes go first: they can only make room. Raises FencedOut unless the epoch is above all
        that the source has seen of the lane, or what the driver raised; nothing is applied then."""
        if not ops:
            return {}
        source = self._source or self._meet()
        batch = self._rows.sort_out(ops, source.columns)
        if any(isinstance(error, UnknownColumn) for error in batch.failed.values()):
            # A migration may have added it since.
            source = self._meet()
            batch = self._rows.sort_out(ops, source.columns)
        if batch:
            self._use(source.driver, lambda c: self._apply(source.driver, c, batch))
        return batch.failed

    def last_epoch(self, lane: str) -> int:
        """The highest epoch that the source has seen of a lane; 0 = none."""
        driver = (self._source or self._meet()).driver

        def ask(connection: Any) -> int:
            cursor = connection.cursor()
            cursor.execute(driver.sql(statements.last_epoch(self._fence)), (lane,))
            row = cursor.fetchone()
            connection.rollback()
            return int(row[0]) if row else 0

        return self._use(driver, ask)

    def close(self) -> None:
        """Close the connections, those in use when their batch ends. Twice is fine."""
        with self._gated():
            self._pool.close()

    # -- connections ----------------------------------------------------------------------

    def _gated(self) -> AbstractContextManager[None]:
        """The gate, where it is known that SQLite is behind it: others may hang for long."""
        source = self._source
        is_sqlite = self._opens_sqlite if source is None else source.driver.sqlite
        return gate if is_sqlite else nullcontext()

    def _open(self) -> Any:
        driver = (self._source or self._meet()).driver
        try:
            connection = self._connect()
        except Exception as error:
            raise unready(error)
        try:
            driver.take_over(connection)
        except BaseException:
            close(connection)
            raise
        return connection

    def _use(self, driver: Driver, step: Callable[[Any], T]) -> T:
        try:
            if not driver.sqlite:
                return self._lend(driver, step)
            with gate:
                if gate.cut:
                    raise SourceUnready("sink: forked while a SQLite file was in use")
                if driver.roams:
                    return self._lend(driver, step)
                connection = self._open()
                try:
                    return step(connection)
                finally:
                    close(connection)
        except Exception as error:
            raise told(error)

    def _lend(self, driver: Driver, step: Callable[[Any], T]) -> T:
        """With a connection of the pool, which keeps it unless it may be lost."""

        def attempt(kept: _Kept) -> tuple[T] | Exception:
            connection = kept.connection
            try:
                return (step(connection),)
            except Exception as error:
                whole = not is_loss(error) and (driver.sqlite or is_in_step(error))
                if not whole or not _undone(connection):
                    raise
                return error

        answer = self._pool.use(Deadline(WAIT, time.monotonic), attempt)
        if isinstance(answer, Exception):
            raise answer
        return answer[0]

    def _meet(self) -> _Source:
        """Look at the source over a connection for that alone; make the fence if it is to."""
        try:
            with (passage := self._gated()):
                connection = self._connect()
                known = passage is gate or not isinstance(connection, sqlite3.Connection)
                source = self._look(connection) if known else None
            if source is None:
                with gate:
                    source = self._look(connection)
        except Exception as error:
            raise unready(error)
        if source.driver.sqlite and self._source is None:
            gate.enlist(self._pool)
            if not source.driver.roams:
                log.warning(
                    "DBAPISink: its SQLite connections are bound to one thread, so every batch "
                    "opens its own: let connect pass check_same_thread=False"
                )
        self._source = source
        return source

    def _look(self, connection: Any) -> _Source:
        try:
            driver = driver_of(connection, self._style)
            driver.take_over(connection)
            if self._create_fence:
                self._make_fence(driver, connection)
            cursor = connection.cursor()
            cursor.execute(driver.sql(statements.columns_of(self._table)))
            columns = frozenset(column[0] for column in cursor.description)
            connection.rollback()
            if missing := set(self._rows.columns) - columns:
                raise SourceUnready(f"sink: the table has no column {missing.pop()!r}")
            return _Source(driver, columns)
        finally:
            close(connection)

    def _make_fence(self, driver: Driver, connection: Any) -> None:
        def fails(statement: str, *values: Any) -> Exception | None:
            try:
                connection.cursor().execute(driver.sql(statement), *([values] if values else []))
                connection.commit()
            except Exception as error:
                _undone(connection)
                return error
            return None

        # Asked first: to create what is there may need a right that to use it does not.
        if fails(statements.last_epoch(self._fence), ""):
            error = fails(self.ddl)
            # Two processes that create at once: one of them may be refused.
            if error and fails(statements.last_epoch(self._fence), ""):
                raise error

    # -- writing --------------------------------------------------------------------------

    def _apply(self, driver: Driver, connection: Any, batch: Batch) -> None:
        try:
            driver.begin(connection)
            cursor = connection.cursor()
            cursor.execute(self._raising(driver), (batch.lane, batch.epoch))
        except Exception as error:
            raise unready(error)
        if cursor.rowcount != 1:
            raise fenced_out(batch.lane, batch.epoch)
        if batch.deletes:
            gone = driver.sql(statements.delete(self._table, self._key))
            _run(cursor.executemany, gone, [(key,) for key in batch.deletes], connection)
        for puts in batch.puts:
            self._put(driver, connection, cursor, puts)
        if self._idle is not None and driver.postgresql:
            # After a pipeline, as psycopg makes of many rows, the server times no idling.
            cursor.execute("SELECT 1")
        connection.commit()

    def _put(self, driver: Driver, connection: Any, cursor: Any, puts: Puts) -> None:
        rows, columns, start = puts.values(), puts.columns, 0
        # SQLite takes half the time for the rows of one statement that it takes one by one. Of
        # few lengths, so that the statements are prepared ones. PostgreSQL gains nothing.
        size = MOST_ROWS if driver.variables else 0
        while size >= LEAST_ROWS:
            while len(rows) - start >= size and size * len(columns) <= driver.variables:
                values = chain.from_iterable(rows[start : start + size])
                sql = self._upsert(driver, columns, size)
                _run(cursor.execute, sql, [*values], connection)
                start += size
            size //= 2
        if start < len(rows):
            _run(cursor.executemany, self._upsert(driver, columns, 1), rows[start:], connection)

    def _raising(self, driver: Driver) -> str:
        idle = self._idle if driver.postgresql else None
        return driver.sql(statements.raise_fence(self._fence, idle))

    def _upsert(self, driver: Driver, columns: tuple[str, ...], rows: int) -> str:
        found = self._upserts.get((columns, rows))
        if found is None:
            if len(self._upserts) >= _STATEMENTS:
                self._upserts.clear()
            found = driver.sql(statements.upsert(self._table, self._key, columns, rows))
            self._upserts[columns, rows] = found
        return found


def _run(execute: Callable[[str, Any], Any], sql: str, values: Any, connection: Any) -> None:
    """Execute what brings rows."""
    try:
        execute(sql, values)
    except Exception as error:
        raise refusal(error, lambda again, none: connection.cursor().execute(again, none), sql)


def _undone(connection: Any) -> bool:
    """Whether what a connection had begun was rolled back."""
    try:
        connection.rollback()
    except Exception:
        return False
    return True
