"""Sources that the sinks write to: a private PostgreSQL cluster, and batches to write."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest

from cachekit.core.ops import Op, OpKind
from cachekit.strategies.intent import outcome_unknown
from cachekit.testing import PostgreSQLServer, ServerMissing

LANE = "shop/0"
START = 30.0


def put(id: Any, value: Any, *, epoch: int = 1, lane: str = LANE) -> Op:
    return Op(str(id), OpKind.PUT, value, id, version=1, epoch=epoch, lane=lane)


def gone(id: Any, *, epoch: int = 1, lane: str = LANE) -> Op:
    return Op(str(id), OpKind.DELETE, None, id, version=1, epoch=epoch, lane=lane)


def at(epoch: int, ops: Sequence[Op]) -> list[Op]:
    """The same batch, delivered under another epoch."""
    return [replace(op, epoch=epoch) for op in ops]


class Cluster(PostgreSQLServer):
    """The PostgreSQL server of this test run."""

    def connect(self, **options: Any) -> Any:
        import psycopg

        return psycopg.connect(self.dsn, **options)


@cache
def _cluster() -> Cluster | str:
    try:
        import psycopg  # noqa: F401

        return Cluster("deadlock_timeout=100ms").__enter__()  # until the interpreter ends
    except ServerMissing as error:
        return str(error)
    except ImportError:
        return "no psycopg: pip install 'psycopg[binary]'"


def postgresql_cluster() -> Cluster:
    """The one of this test run; skips the test, or fails it where servers are required."""
    found = _cluster()
    if isinstance(found, str):
        if os.environ.get("CACHEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail(found)
        pytest.skip(found)
    return found


@dataclass
class Item:
    id: int
    name: str
    stock: int


class Hold:
    """Stands before every commit of a sink: counts them, and keeps them waiting while shut."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Semaphore(0)
        self.error: Exception | None = None

    def __call__(self, *_: Any) -> None:
        self.reached.release()
        assert self.open.wait(20)
        if self.error is not None:
            raise self.error

    def shut(self) -> None:
        self.open.clear()

    def wait_for_one(self) -> None:
        assert self.reached.acquire(timeout=20)


class Shop:
    """A table ``items(id, name unique, stock)`` and sinks that write to it."""

    def sink(self, *, hold: Hold | None = None, **options: Any) -> Any:
        raise NotImplementedError

    def unfenced(self) -> Any:
        """The same sink, but for a fence that lets everything pass."""
        raise NotImplementedError

    def execute(self, sql: str) -> list[Any]:
        raise NotImplementedError

    def someone_waits(self) -> bool:
        """Whether a writer is waiting for another's lock (False: not known)."""
        return False

    def rows(self) -> list[tuple[Any, ...]]:
        return [tuple(r) for r in self.execute("SELECT id, name, stock FROM items ORDER BY id")]

    def epochs(self) -> dict[str, int]:
        return dict(self.execute("SELECT lane, epoch FROM cachekit_fence"))


class Aside(threading.Thread):
    """Runs something beside the test; ``result()`` is what it gave or raised."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._answer: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._answer = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(20)
        assert not self.is_alive(), "it hangs"
        if self._error is not None:
            raise self._error
        return self._answer


def until(seen: Callable[[], bool], most: float) -> None:
    end = time.monotonic() + most
    while not seen() and time.monotonic() < end:
        time.sleep(0.01)


def in_a_child(work: Callable[[], Any]) -> None:
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            gc.collect()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def lost(error: BaseException) -> bool:
    return outcome_unknown(error)
