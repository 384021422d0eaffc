"""PostgreSQL as the source of a benchmark."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..errors import ConfigurationError, MissingDependencyError
from .source import Pool, Source

CONNECTIONS = 32  # a server's default bound is 100, and it has other clients


class PostgreSQLSource(Source):
    """A table of its own in a PostgreSQL database, dropped at the end. Needs psycopg 3."""

    def __init__(self, url: str, delay: float = 0.0, *, table: str | None = None) -> None:
        """``table`` is one that another source made, and will drop."""
        super().__init__(delay)
        try:
            import psycopg
        except ImportError as error:
            raise MissingDependencyError(
                "a PostgreSQL source needs psycopg: pip install 'cachekit-strategies[postgresql]'"
            ) from error
        connect = partial(psycopg.connect, url, autocommit=True, connect_timeout=5)
        self._pool = Pool(connect, CONNECTIONS)
        self._url = url
        self._owns = table is None
        self._table = table or f"cachekit_bench_{secrets.token_hex(4)}"
        try:
            number = self._pool.use(lambda connection: int(connection.info.server_version))
            if self._owns:
                self._do(
                    f"CREATE TABLE {self._table} (id BIGINT PRIMARY KEY, version BIGINT NOT NULL,"
                    " payload TEXT NOT NULL)"
                )
        except psycopg.Error as error:
            self._pool.close()
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigurationError(f"the PostgreSQL source refused: {reason}") from error
        self.name = f"PostgreSQL {number // 10000}.{number % 10000}"

    def reset(self, records: int) -> None:
        self._do(f"DELETE FROM {self._table} WHERE id >= %s", (records,))
        self._do(f"UPDATE {self._table} SET version = 0 WHERE version <> 0")

    def versions(self) -> list[tuple[int, int]]:
        return self._rows(f"SELECT id, version FROM {self._table}")

    def close(self) -> None:
        try:
            if self._owns:
                self._do(f"DROP TABLE IF EXISTS {self._table}")
        finally:
            self._pool.close()

    def opener(self) -> Callable[[], Source]:
        return partial(PostgreSQLSource, self._url, self.delay, table=self._table)

    def _do(self, sql: str, values: Sequence[Any] = ()) -> None:
        self._pool.use(lambda connection: connection.execute(sql, values))

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        def run(connection: Any) -> list[Any]:
            found: list[Any] = connection.execute(sql, values).fetchall()
            return found

        return self._pool.use(run)

    def _read(self, keys: Sequence[int]) -> list[tuple[int, int, str]]:
        return self._rows(
            f"SELECT id, version, payload FROM {self._table} WHERE id = ANY(%s)", (list(keys),)
        )

    def _write(self, rows: Sequence[tuple[int, int, str]]) -> None:
        def write(connection: Any) -> None:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany(
                    f"INSERT INTO {self._table} VALUES (%s, %s, %s) ON CONFLICT (id) DO UPDATE"
                    " SET version = excluded.version, payload = excluded.payload",
                    sorted(rows),  # two batches lock their rows in one order: no deadlock
                )

        self._pool.use(write)

    def _remove(self, key: int) -> None:
        self._do(f"DELETE FROM {self._table} WHERE id = %s", (key,))
