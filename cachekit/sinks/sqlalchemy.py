"""Fenced sinks over SQLAlchemy Core, 2.0 or later, for SQLite and PostgreSQL.

    sink = SQLAlchemySink(engine, items)
    sink = AsyncSQLAlchemySink(async_engine, items)

One for plain strategies, one for async ones; both speak one table.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

from ..backends.sqlite_gate import gate
from ..core.ops import Op
from ..core.policy import Duration
from ..errors import ConfigurationError, MissingDependencyError
from ..runtime import drive
from .fence import FENCE_TABLE, IDLE_LIMIT, IDLE_SETTING, fenced_out, idle_milliseconds
from .rows import Batch, Rows, ToRow
from .verdicts import SourceUnready, is_in_step, is_loss, refusal, told, unready

__all__ = ["AsyncSQLAlchemySink", "SQLAlchemySink"]

_DIALECTS = ("sqlite", "postgresql")
_STATEMENTS = 64  # kept, one for each set of columns
_MOST_KEYS = 500  # of one DELETE; SQLite before 3.32 takes 999 parameters


def _sqlalchemy() -> Any:
    try:
        return import_module("sqlalchemy")
    except ImportError:
        raise MissingDependencyError(
            "this sink needs SQLAlchemy: pip install 'cachekit-strategies[sqlalchemy]'"
        ) from None


class _TableSink:
    """Both faces in one: the steps are coroutines that suspend only in :meth:`_run`."""

    fences = True
    _is_async = False

    def __init__(
        self,
        engine: Any,
        table: Any,
        *,
        key: Any = None,
        columns: Iterable[Any] | None = None,
        to_row: ToRow | None = None,
        fence: str = FENCE_TABLE,
        create_fence: bool = True,
        idle_limit: Duration | None = IDLE_LIMIT,
    ) -> None:
        """``table`` is a Table or a mapped class. ``key`` is its column (or the name) that an
        operation's id is compared with, under a primary key or unique constraint of its own;
        None: its primary key. Keys of several columns are not supported.

        A put's value is a mapping or a dataclass; else ``to_row(id, value)`` gives the mapping
        {column: value}, by the names that the columns have in Python. The key's column is added
        where it is missing. ``columns``: what is written of it, all of it required; None: all
        that it has (not for values whose field names come from outside). An operation without
        such a row fails alone. Python-side ``onupdate`` does not run in an upsert.

        ``create_fence``: make the table ``fence`` (``schema.name``) where it is missing.
        ``idle_limit``: PostgreSQL ends a batch's transaction that lies still for so many seconds,
        lest a frozen writer hold up its successor; None = as the server is set up.

        Raises ConfigurationError for what can not fit together, as another dialect. Does no
        I/O."""
        sa = self._sa = _sqlalchemy()
        self._engine = engine
        core = self._core = getattr(engine, "sync_engine", engine)
        self._dialect = getattr(getattr(core, "dialect", None), "name", None)
        if self._dialect not in _DIALECTS:
            raise ConfigurationError(
                f"sink: writes to {' and '.join(_DIALECTS)} through an Engine, "
                f"not to {self._dialect or type(engine).__name__}"
            )
        if self._is_async != (core is not engine):
            raise ConfigurationError(
                "sink: SQLAlchemySink takes an Engine, AsyncSQLAlchemySink an AsyncEngine"
            )
        self._insert = import_module(f"sqlalchemy.dialects.{self._dialect}").insert
        self._table, self._names = _columns_of(table)
        if not isinstance(self._table, sa.Table):
            raise ConfigurationError("sink: table must be a sqlalchemy Table or a mapped class")
        self._key = self._key_name(key)
        written = None if columns is None else [self._name(column) for column in columns]
        self._rows = Rows(self._key, written, to_row)
        self._create_fence = create_fence
        self._idle = idle_milliseconds(idle_limit)
        schema, _, name = fence.rpartition(".")
        self._fence = sa.Table(
            name,
            sa.MetaData(),
            sa.Column("lane", sa.Text, primary_key=True),
            sa.Column("epoch", sa.BigInteger, nullable=False),
            schema=schema or None,
        )
        self._raising = self._raise_fence()
        keys = sa.bindparam("keys", expanding=True)
        self._gone = sa.delete(self._table).where(self._names[self._key].in_(keys))
        self._upserts: dict[tuple[str, ...], Any] = {}
        self._met = False
        self.forked = False
        self._on_file = self._dialect == "sqlite" and _is_file(core.url)
        _sinks.add(self)

    @property
    def ddl(self) -> str:
        """The statement that makes the fence table."""
        made = self._sa.schema.CreateTable(self._fence, if_not_exists=True)
        return str(made.compile(dialect=self._core.dialect)).strip()

    def _name(self, given: Any) -> str:
        """The name of a column that is given by it, or as itself, or as a mapped attribute."""
        if isinstance(given, str) and given in self._names:
            return given
        mapped = getattr(getattr(given, "property", None), "columns", [given])
        for name, column in self._names.items():
            if column is mapped[0]:
                return name
        raise ConfigurationError(f"sink: {self._table.name} has no column {given!r}")

    def _key_name(self, key: Any) -> str:
        if key is not None:
            return self._name(key)
        columns = list(self._table.primary_key.columns)
        if len(columns) != 1:
            raise ConfigurationError(
                f"sink: the primary key of {self._table.name} is not one column: name a unique "
                "one by key"
            )
        return self._name(columns[0])

    # -- statements -----------------------------------------------------------------------

    def _raise_fence(self) -> Any:
        sa, fence = self._sa, self._fence
        made = self._insert(fence).values(lane=sa.bindparam("lane"), epoch=sa.bindparam("epoch"))
        made = made.on_conflict_do_update(
            index_elements=[fence.c.lane],
            set_={fence.c.epoch: made.excluded.epoch},
            where=fence.c.epoch < made.excluded.epoch,
        ).inline()
        if self._dialect == "sqlite":  # has no RETURNING before 3.35, but tells the count
            return made.execution_options(preserve_rowcount=True)
        if self._idle is None:
            return made.returning(fence.c.epoch)
        # In the fence's own round trip, and for this transaction only: the engine is not ours.
        return made.returning(sa.func.set_config(IDLE_SETTING, str(self._idle), True))

    def _upsert(self, names: tuple[str, ...]) -> Any:
        found = self._upserts.get(names)
        if found is None:
            made = self._insert(self._table)
            keyed = [self._names[self._key]]
            others = [self._names[name] for name in names if name != self._key]
            found = (
                made.on_conflict_do_update(
                    index_elements=keyed,
                    set_={column: made.excluded[column.key] for column in others},
                )
                if others
                else made.on_conflict_do_nothing(index_elements=keyed)
            )
            if len(self._upserts) >= _STATEMENTS:
                self._upserts.clear()
            self._upserts[names] = found
        return found

    # -- the verbs ------------------------------------------------------------------------

    async def _run(self, step: Callable[..., Any], *args: Any) -> Any:
        """What a step answers, in a transaction of its own."""
        raise NotImplementedError

    def _enlist(self) -> None:
        """Have idle connections closed before a fork, where that is needed."""

    async def _write(self, ops: Sequence[Op]) -> dict[Any, Exception]:
        if not ops:
            return {}
        batch = self._rows.sort_out(ops, self._names)
        if batch:
            await self._meet()
            await self._run(self._apply, batch)
        return batch.failed

    async def _last_epoch(self, lane: str) -> int:
        await self._meet()
        return int(await self._run(self._seen, lane))

    async def _meet(self) -> None:
        """Before the first use, and in a forked child: leave a parent's connections alone."""
        if self.forked:
            self.forked = False
            if self._on_file or self._dialect != "sqlite":  # not what is kept in memory
                self._core.dispose(close=False)
        if self._met:
            return
        self._enlist()
        try:
            await self._look()
        except Exception as error:
            raise unready(error)
        self._met = True

    async def _look(self) -> None:
        # Asked first: to create what is there may need a right that to use it does not.
        if self._create_fence and await self._fails(self._seen, ""):
            error = await self._fails(self._make_fence)
            # Two processes that create at once: one of them may be refused.
            if error and await self._fails(self._seen, ""):
                raise error

    async def _fails(self, step: Callable[..., Any], *args: Any) -> Exception | None:
        try:
            await self._run(step, *args)
        except ConfigurationError:
            raise
        except Exception as error:
            return error
        return None

    # -- steps in a transaction -----------------------------------------------------------

    def _apply(self, connection: Any, batch: Batch) -> None:
        try:
            raised = connection.execute(self._raising, {"lane": batch.lane, "epoch": batch.epoch})
        except Exception as error:
            raise unready(error)
        _check_transaction(connection)
        if not (raised.first() if raised.returns_rows else raised.rowcount == 1):
            raise fenced_out(batch.lane, batch.epoch)
        for start in range(0, len(batch.deletes), _MOST_KEYS):
            keys = batch.deletes[start : start + _MOST_KEYS]
            _execute(connection, self._gone, {"keys": keys})
        for puts in batch.puts:
            keys = [self._names[name].key for name in puts.columns]
            rows = [dict(zip(keys, values, strict=True)) for values in puts.values()]
            _execute(connection, self._upsert(puts.columns), rows)
        if self._idle is not None and connection.dialect.name == "postgresql":
            # After a pipeline, as psycopg makes of many rows, the server times no idling.
            connection.execute(self._sa.text("SELECT 1"))

    def _guarded(self, connection: Any, step: Callable[..., Any], *args: Any) -> Any:
        try:
            return step(connection, *args)
        except Exception as error:
            better = told(error)
            # SQLAlchemy knows of some losses itself. A database in memory ends with its connection.
            if self._dialect == "sqlite":
                lost = isinstance(better, SourceUnready) and is_loss(error)
            else:
                lost = is_loss(error) or not is_in_step(error)
            if lost:
                connection.invalidate()  # the next may reach a server that is ready
            raise better

    def _seen(self, connection: Any, lane: str) -> int:
        fence = self._fence
        query = self._sa.select(fence.c.epoch).where(fence.c.lane == lane)
        seen = connection.scalar(query)
        _check_transaction(connection)
        return int(seen or 0)

    def _make_fence(self, connection: Any) -> None:
        connection.execute(self._sa.schema.CreateTable(self._fence, if_not_exists=True))


class SQLAlchemySink(_TableSink):
    """Writes a batch as upserts and deletes of one table, in one transaction with its fence.

    As safe for threads as the engine, which stays the caller's: its pool, its timeouts (PostgreSQL:
    ``connect_args={"options": "-c statement_timeout=30s -c lock_timeout=10s"}``), its end. The
    database's errors pass unchanged, after a rollback, but for those whose class misleads: a
    ValueError stands for a row that the source will never take (too large for its index, no JSON
    for an expression of the table), a ConnectionError for a source that takes no rows now
    (read-only, without the table, damaged, out of connections).

    In a forked child the engine lets go of the parent's connections. One on a SQLite file closes
    its idle connections before the fork; none of them may be in another's use then."""

    def write_many(self, ops: Sequence[Op]) -> dict[Any, Exception]:
        """Apply operations of one lane and epoch: {id: error} of those that have no row.

        Deletes go first: they can only make room. Raises FencedOut unless the epoch is above all
        that the source has seen of the lane, or what the database raised; nothing is applied
        then."""
        return drive(self._write(ops))

    def last_epoch(self, lane: str) -> int:
        """The highest epoch that the source has seen of a lane; 0 = none."""
        return drive(self._last_epoch(lane))

    def close_idle(self) -> None:
        """Called before a fork."""
        self._core.dispose()

    def _enlist(self) -> None:
        if self._on_file:
            gate.enlist(self)

    async def _run(self, step: Callable[..., Any], *args: Any) -> Any:
        if not self._on_file:
            return self._begin(step, *args)
        with gate:
            if gate.cut:
                raise SourceUnready("sink: forked while a SQLite file was in use")
            return self._begin(step, *args)

    def _begin(self, step: Callable[..., Any], *args: Any) -> Any:
        connected = False
        try:
            with self._engine.begin() as connection:
                connected = True
                return self._guarded(connection, step, *args)
        except Exception as error:
            raise (told if connected else unready)(error)


class AsyncSQLAlchemySink(_TableSink):
    """The same over an AsyncEngine, for async strategies. Not for SQLite across a fork."""

    _is_async = True

    async def write_many(self, ops: Sequence[Op]) -> dict[Any, Exception]:
        """See :meth:`SQLAlchemySink.write_many`."""
        return await self._write(ops)

    async def last_epoch(self, lane: str) -> int:
        """The highest epoch that the source has seen of a lane; 0 = none."""
        return await self._last_epoch(lane)

    async def _run(self, step: Callable[..., Any], *args: Any) -> Any:
        connected = False
        try:
            async with self._engine.begin() as connection:
                connected = True
                return await connection.run_sync(self._guarded, step, *args)
        except Exception as error:
            raise (told if connected else unready)(error)


def _execute(connection: Any, statement: Any, values: Any) -> None:
    """What brings rows."""
    try:
        connection.execute(statement, values)
    except Exception as error:
        sql = getattr(error, "statement", None)
        raise refusal(error, connection.exec_driver_sql, sql)


def _columns_of(table: Any) -> tuple[Any, dict[str, Any]]:
    """The Table itself, and its columns by the names that rows have in Python."""
    mapper = getattr(table, "__mapper__", None)
    if mapper is None:
        return table, dict(getattr(table, "columns", {}))
    target = mapper.local_table
    own = {a.key: a.columns[0] for a in mapper.column_attrs if a.columns[0].table is target}
    return target, own


def _is_file(url: Any) -> bool:
    name = url.database or ":memory:"
    return ":memory:" not in name and url.query.get("mode") != "memory"


def _check_transaction(connection: Any) -> None:
    """Without a transaction the fence guards nothing."""
    bare = getattr(connection.connection.dbapi_connection, "autocommit", False) is True
    driver = connection.connection.driver_connection
    if hasattr(driver, "in_transaction"):  # sqlite3 begins at the first change, if it is to
        bare = driver.isolation_level is None and not driver.in_transaction
    if bare:
        raise ConfigurationError(
            "sink: its engine commits every statement: give it one with transactions, as "
            "engine.execution_options(isolation_level=...)"
        )


_sinks: weakref.WeakSet[_TableSink] = weakref.WeakSet()


def _in_child() -> None:
    for sink in list(_sinks):
        sink.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
