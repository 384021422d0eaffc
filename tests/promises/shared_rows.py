"""A system of record that several processes share, in a SQLite file; every delivery is kept."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

PATIENCE = 15.0  # seconds after which a load that is held up is let go

_TABLES = """
CREATE TABLE IF NOT EXISTS rows (id TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS deliveries (n INTEGER PRIMARY KEY, batch TEXT, id TEXT, value TEXT);
"""


class SharedRows:
    """``refuses``: ids whose batch raises ValueError. ``error``: what any write raises.
    ``pause``: seconds that every write takes. ``held``: loads wait, after their read, until
    it is set again."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self.refuses: set[Any] = set()
        self.error: BaseException | None = None
        self.pause = 0.0
        self.held = threading.Event()
        self.held.set()
        self.waiting = 0
        with closing(self._open()) as db:
            db.executescript(_TABLES)

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=20, isolation_level=None)
        db.execute("PRAGMA synchronous=OFF")
        return db

    # -- as the source of a strategy --------------------------------------------------------

    def load(self, id: Any) -> Any:
        return self.load_many([id]).get(id)

    def load_many(self, ids: Sequence[Any]) -> dict[Any, Any]:
        found = {}
        with closing(self._open()) as db:
            for id in ids:
                row = db.execute("SELECT value FROM rows WHERE id = ?", (_name(id),)).fetchone()
                if row is not None:
                    found[id] = json.loads(row[0])
        if not self.held.is_set():
            self.waiting += 1
            self.held.wait(PATIENCE)
        return found

    def store_many(self, values: Mapping[Any, Any]) -> None:
        self._before(values)
        with closing(self._open()) as db:
            db.execute("BEGIN IMMEDIATE")
            batch = time.monotonic_ns()
            for id, value in values.items():
                text = json.dumps(value)
                db.execute("INSERT OR REPLACE INTO rows VALUES (?, ?)", (_name(id), text))
                self._delivered(db, batch, id, text)
            db.execute("COMMIT")

    def delete_many(self, ids: Sequence[Any]) -> None:
        self._before(ids)
        with closing(self._open()) as db:
            db.execute("BEGIN IMMEDIATE")
            batch = time.monotonic_ns()
            for id in ids:
                db.execute("DELETE FROM rows WHERE id = ?", (_name(id),))
                self._delivered(db, batch, id, "null")
            db.execute("COMMIT")

    def _before(self, ids: Any) -> None:
        if self.pause:
            time.sleep(self.pause)
        if self.error is not None:
            raise self.error
        if bad := self.refuses.intersection(ids):
            raise ValueError(f"constraint violated by {sorted(bad)}")

    def _delivered(self, db: sqlite3.Connection, batch: int, id: Any, text: str) -> None:
        row = (str(batch), _name(id), text)
        db.execute("INSERT INTO deliveries (batch, id, value) VALUES (?, ?, ?)", row)

    # -- for the test -----------------------------------------------------------------------

    def all(self) -> dict[Any, Any]:
        with closing(self._open()) as db:
            found = db.execute("SELECT id, value FROM rows").fetchall()
        return {json.loads(id): json.loads(value) for id, value in found}

    def deliveries(self) -> list[tuple[Any, Any]]:
        with closing(self._open()) as db:
            found = db.execute("SELECT id, value FROM deliveries ORDER BY n").fetchall()
        return [(json.loads(id), json.loads(value)) for id, value in found]


def _name(id: Any) -> str:
    return json.dumps(id)
