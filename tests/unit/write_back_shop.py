"""A small application over a write-back log, and the command line beside it in processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cachekit
from cachekit import Cache, WriteBack

ROOT = Path(cachekit.__path__[0]).parent
PATIENT = 30.0  # seconds

APP = """
import asyncio, contextlib, os, sqlite3, time
from pathlib import Path
from cachekit import Cache, Retrying, WriteBack

HERE = Path(__file__).parent

def load(id):
    return None

def write(change, rows):
    (HERE / "busy").touch()
    time.sleep(float(os.environ.get("SLOW", "0")))
    if (HERE / "down").exists():
        raise ConnectionError("the source is down")
    if any(row[0] == "bad" for row in rows) and not (HERE / "fixed").exists():
        raise ValueError("no such customer")
    with contextlib.closing(sqlite3.connect(HERE / "source.db", timeout=20)) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS rows (id PRIMARY KEY, value)")
        db.executemany(change, rows)

def store_many(rows):
    write("INSERT OR REPLACE INTO rows VALUES (?, ?)", [*rows.items()])

def delete_many(ids):
    write("DELETE FROM rows WHERE id = ?", [(id,) for id in ids])

async def store_later(rows):
    asyncio.get_running_loop()
    await asyncio.to_thread(store_many, rows)

async def delete_later(ids):
    await asyncio.to_thread(delete_many, ids)

later = bool(os.environ.get("LATER"))
cache = Cache(os.environ.get("CACHE"), namespace="shop")
orders = WriteBack(
    cache, key="order:{id}", name="orders", load=load,
    store_many=store_later if later else store_many,
    delete_many=delete_later if later else delete_many,
    log=os.environ["LOG"], worker=bool(os.environ.get("WORKS")), batch=5,
    delay=os.environ.get("DELAY", "20ms"),
    lease=float(os.environ.get("LEASE", "60")),
    retry=Retrying(attempts=2, base=0.01, cap=0.05),
)

def make():
    return cache

async def make_later():
    return cache
"""


class Shop:
    """The application's folder. The source is a SQLite file; ``fixed``, ``down`` and ``busy`` are
    files by which the tests and the application tell each other."""

    def __init__(self, folder: Path, log: str, **environment: str) -> None:
        self.folder = folder
        self.log = log
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "200",
            "LOG": log,
            **environment,
        }
        (folder / "shop.py").write_text(APP)
        self.cache = Cache(namespace="shop")
        self.orders = WriteBack(
            self.cache, key="order:{id}", name="orders", store_many=print, delete_many=print,
            load=lambda id: None, log=log, worker=False,
        )  # fmt: skip

    def touch(self, name: str) -> None:
        (self.folder / name).touch()

    def rows(self) -> dict[str, Any]:
        """What the source has."""
        if not (self.folder / "source.db").exists():
            return {}
        with contextlib.closing(sqlite3.connect(self.folder / "source.db", timeout=20)) as db:
            try:
                return dict(db.execute("SELECT id, value FROM rows").fetchall())
            except sqlite3.OperationalError:
                return {}

    def python(self, code: str) -> None:
        """Run code beside the application, in a process."""
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.folder, env=self.environment, timeout=PATIENT, check=True,
        )  # fmt: skip

    def cli(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command line, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "cachekit", *arguments],
            capture_output=True, text=True, timeout=PATIENT, check=False, cwd=self.folder,
            env={**self.environment, **environment}, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    @contextlib.contextmanager
    def worker(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """A worker that has said that it works; killed at the end."""
        process = subprocess.Popen(
            [sys.executable, "-m", "cachekit", "worker", "--app", "shop:cache", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder,
            env={**self.environment, **environment},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("cachekit worker"), process.communicate()
            assert "orders" in line
            yield process
        finally:
            process.kill()
            process.communicate()

    def until(self, true: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENT
        while not true():
            assert time.monotonic() < end, f"never came true; the source has {self.rows()}"
            time.sleep(0.02)

    def until_busy(self) -> None:
        """A batch is with the sink."""
        self.until((self.folder / "busy").exists)

    def close(self) -> None:
        self.orders.rest(0.0)
        self.cache.close(0.0)


def ended(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, Any, Any]:
    """Exit code and output after a signal."""
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENT)
    return process.returncode, out, err
