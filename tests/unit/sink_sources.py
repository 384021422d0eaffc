"""Sources that the sinks write to: a private PostgreSQL cluster, and batches to write."""

from __future__ import annotations

import atexit
import gc
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cachekit.core.ops import Op, OpKind
from cachekit.strategies.intent import outcome_unknown

LANE = "shop/0"
START = 30.0


def put(id: Any, value: Any, *, epoch: int = 1, lane: str = LANE) -> Op:
    return Op(str(id), OpKind.PUT, value, id, version=1, epoch=epoch, lane=lane)


def gone(id: Any, *, epoch: int = 1, lane: str = LANE) -> Op:
    return Op(str(id), OpKind.DELETE, None, id, version=1, epoch=epoch, lane=lane)


def at(epoch: int, ops: Sequence[Op]) -> list[Op]:
    """The same batch, delivered under another epoch."""
    return [replace(op, epoch=epoch) for op in ops]


class Cluster:
    """One PostgreSQL server in a temporary folder, reached by a socket in it."""

    def __init__(self, initdb: str, postgres: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cachekit-pg-"))
        # The server refuses to run as root.
        who: dict[str, Any] = {}
        if os.geteuid() == 0:
            entry = pwd.getpwnam("postgres")
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
            who = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        data = str(self.folder / "data")
        subprocess.run(
            [initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True,
            capture_output=True,
            cwd=self.folder,
            **who,
        )
        command = [postgres, "-D", data, "-k", str(self.folder), "-c", "listen_addresses="]
        with (self.folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "-c", "deadlock_timeout=100ms"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
                **who,
            )
        self.dsn = f"host={self.folder} user=postgres dbname=postgres"
        self.url = f"postgresql+psycopg://postgres@/postgres?host={self.folder}"
        atexit.register(self.close)
        self._wait()

    def connect(self, **options: Any) -> Any:
        import psycopg

        return psycopg.connect(self.dsn, **options)

    def _wait(self) -> None:
        import psycopg

        end = time.monotonic() + START
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > end:
                    self.close()
                    raise
                time.sleep(0.05)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)  # at once; nothing here is to be kept
            self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


def _program(name: str) -> str | None:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(installed[-1]) if installed else None)


@cache
def _cluster() -> Cluster | str:
    initdb, postgres = _program("initdb"), _program("postgres")
    if initdb is None or postgres is None:
        return "no PostgreSQL server: apt-get install postgresql"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "no psycopg: pip install 'psycopg[binary]'"
    return Cluster(initdb, postgres)


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
