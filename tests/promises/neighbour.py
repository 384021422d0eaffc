"""Another process that uses a write-back strategy, and evaluates what it is asked.

``Neighbour(setup)`` starts it: ``ask`` gives the value of an expression there, with the names
``cache``, ``books``, ``rows``, ``watch``, ``seen``, ``attempt`` and ``run`` (a coroutine, on its
event loop).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shared_rows import SharedRows

from cachekit import Cache, WriteBack

HERE = Path(__file__).parent
PATIENCE = 30.0

# Per book: the life of its values.
LIVES: dict[str, dict[str, Any]] = {
    "row": {"ttl": 600},
    "brief": {"ttl": 0.15, "grace": 600},
}


def open_books(setup: dict[str, Any], rows: SharedRows) -> tuple[Cache, dict[str, WriteBack]]:
    """A cache and its strategies, as each process of a test has them."""
    cache = Cache(setup["url"], **setup["cache"])
    books = {
        name: WriteBack(
            cache,
            key=name + ":{id}",
            log=setup["log"],
            load=rows.load,
            load_many=rows.load_many,
            store_many=rows.store_many,
            delete_many=rows.delete_many,
            tags=["all"],
            **LIVES[name],
            **setup["book"],
        )
        for name in LIVES
    }
    return cache, books


class Neighbour:
    def __init__(self, setup: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", "import neighbour; neighbour.main()",
             json.dumps(setup)],
            cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.pid = self._process.pid

    def ask(self, expression: str) -> Any:
        """The value, by way of JSON. What it raises is raised here as AssertionError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(expression) + "\n")
        told = json.loads(self._process.stdout.readline() or '{"error": "it died"}')
        assert "error" not in told, f"{expression}: {told['error']}"
        return told["value"]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Watch:
    """Reads a key without pause, in three ways; keeps each value that differs from the last."""

    def __init__(self, book: WriteBack, id: Any, run: Callable[..., Any]) -> None:
        self.seen: dict[str, list[Any]] = {}
        self.reads: dict[str, int] = {}
        self._over = threading.Event()
        ways: dict[str, Callable[[], Any]] = {
            "get": lambda: book.get(id),
            "get_many": lambda: book.get_many([id]).get(id),
            "aio.get": lambda: run(book.aio.get(id)),
        }
        self._threads = [
            threading.Thread(target=self._read, args=way, daemon=True) for way in ways.items()
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, name: str, read: Callable[[], Any]) -> None:
        seen = self.seen[name] = []
        self.reads[name] = 0
        while not self._over.is_set():
            try:
                value = read()
            except Exception as error:
                value = f"raised {error!r}"
            self.reads[name] += 1
            if not seen or seen[-1] != value:
                seen.append(value)
            time.sleep(0.002)

    def stop(self) -> dict[str, list[Any]]:
        """What was seen; each way has read again after this was called."""
        before = dict(self.reads)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and any(
            self.reads[name] < count + 2 for name, count in before.items()
        ):
            time.sleep(0.002)
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        return self.seen


def main() -> None:
    setup = json.loads(sys.argv[1])
    rows = SharedRows(setup["rows"])
    cache, books = open_books(setup, rows)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    watches: dict[int, Watch] = {}
    numbers = itertools.count()
    background: list[threading.Thread] = []

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(PATIENCE)

    def watch(book: str, id: Any) -> int:
        number = next(numbers)
        watches[number] = Watch(books[book], id, run)
        while len(watches[number].reads) < 3 or not all(watches[number].reads.values()):
            time.sleep(0.001)
        return number

    def seen(number: int) -> dict[str, list[Any]]:
        return watches.pop(number).stop()

    def begin(work: Callable[[], Any]) -> None:
        background.append(threading.Thread(target=work, daemon=True))
        background[-1].start()

    def until(holds: Callable[[], bool]) -> bool:
        end = time.monotonic() + PATIENCE
        while not holds() and time.monotonic() < end:
            time.sleep(0.002)
        return holds()

    def attempt(work: Callable[[], Any]) -> str | None:
        """The name of what it raised."""
        try:
            work()
        except Exception as error:
            return type(error).__name__
        return None

    names = {
        "attempt": attempt, "cache": cache, "books": books, "rows": rows, "run": run,
        "watch": watch, "seen": seen, "begin": begin, "until": until,
    }  # fmt: skip
    for line in sys.stdin:
        try:
            answer = {"value": eval(json.loads(line), names)}
        except BaseException as error:
            answer = {"error": repr(error)}
        print(json.dumps(answer, default=repr), flush=True)
    run(cache.aio.close())
    cache.close(timeout=1.0)
