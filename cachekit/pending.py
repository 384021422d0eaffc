"""Invalidations that could not reach the far tier yet: the last one per name, bounded."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigurationError
from .observe import Meter

MAX_PENDING = 10_000
Name = tuple[str, Any]  # "key", "tag" and its text; "space"; "event" and its bytes
SPACE: Name = ("space", "")


class Pending:
    """While one is pending its key, or every entry with its tag, counts as missing in this
    process. Overflow becomes one invalidation of the whole namespace.

    With ``file`` what is pending survives the process (kill -9 too, not a power loss): whoever
    opens that file next replays it. A few microseconds an invalidation more, while the far tier
    is away."""

    def __init__(self, meter: Meter, file: str | None = None) -> None:
        self._names: dict[Name, int] = {}
        self._events = 0
        self._serial = 0
        self._lock = threading.Lock()
        self._journal = Journal(file, meter) if file is not None else None

    def __len__(self) -> int:
        return len(self._names)

    def load(self) -> bool:
        """Read the file, the first time; whether it held anything."""
        journal = self._journal
        if journal is None or journal.loaded:
            return False
        with self._lock:
            left = journal.load() if not journal.loaded else []
            for name in left:
                self._events += name[0] == "event" and name not in self._names
                self._names.setdefault(name, 0)
        return bool(left)

    @property
    def blocking(self) -> bool:
        """Whether any key, tag or namespace is pending: then nothing is read before the replay."""
        return len(self) > self._events

    def add(self, names: Iterable[Name]) -> None:
        added = list(names)
        with self._lock:
            for name in added:
                self._serial += 1
                self._events += name[0] == "event" and name not in self._names
                self._names[name] = self._serial
            if len(self._names) > MAX_PENDING:
                added, gone = [SPACE], [name for name in self._names if name != SPACE]
                self._names.clear()
                self._names[SPACE] = self._serial
                self._events = 0
                if self._journal is not None:
                    self._journal.change(added, gone)
            elif self._journal is not None:
                self._journal.change(added, ())

    def take(self) -> dict[Name, int]:
        with self._lock:
            return dict(self._names)

    def done(self, taken: dict[Name, int]) -> None:
        with self._lock:
            gone = [name for name, serial in taken.items() if self._names.get(name) == serial]
            for name in gone:
                del self._names[name]
                self._events -= name[0] == "event"
            if self._journal is not None:
                self._journal.change((), gone)

    def close(self) -> None:
        with self._lock:
            if self._journal is not None:
                self._journal.close()

    def reset_after_fork(self) -> None:
        """The child goes on with what was pending; the parent's file stays the parent's."""
        self._lock = threading.Lock()
        if self._journal is not None:
            self._journal.reset_after_fork()


class Journal:
    """The file of :class:`Pending`: one row per name. Its owner's lock is held. A file that can
    not be written is counted (``replay_log_errors``) and warned of: the queue goes on in memory."""

    def __init__(self, file: str, meter: Meter) -> None:
        self.path = os.path.abspath(file)
        self.loaded = False
        self._meter = meter
        # What one process has replayed is not yet done for another that added the same later.
        self._owner = os.urandom(8)
        self._db: sqlite3.Connection | None = None
        self._kept: sqlite3.Connection | None = None
        if os.path.islink(self.path):
            raise ConfigurationError("replay_log is a symbolic link; give the file itself")

    def load(self) -> list[Name]:
        self.loaded = True
        if not os.path.exists(self.path):
            return []
        try:
            db = self._open()
            with db:  # whoever left them, living or dead: they are replayed from here now
                db.execute("UPDATE OR REPLACE pending SET owner = ?", (self._owner,))
                rows = db.execute("SELECT kind, name FROM pending").fetchall()
        except (OSError, sqlite3.Error) as error:
            self._failed(error)
            return []
        return [(kind, bytes(name) if kind == "event" else str(name)) for kind, name in rows]

    def change(self, added: Sequence[Name], gone: Sequence[Name]) -> None:
        if not added and not gone:
            return
        try:
            db = self._open()
            with db:
                db.executemany(
                    "INSERT OR IGNORE INTO pending (kind, name, owner) VALUES (?, ?, ?)",
                    [(*name, self._owner) for name in added],
                )
                db.executemany(
                    "DELETE FROM pending WHERE kind = ? AND name = ? AND owner = ?",
                    [(*name, self._owner) for name in gone],
                )
        except (OSError, sqlite3.Error) as error:
            self._failed(error)

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            self.loaded = True
            Path(self.path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            os.close(os.open(self.path, flags, 0o600))
            db = sqlite3.connect(self.path, check_same_thread=False, timeout=1.0)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(
                "CREATE TABLE IF NOT EXISTS pending"
                " (kind, name, owner, PRIMARY KEY (kind, name, owner))"
            )
            db.commit()
            self._db = db
        return self._db

    def _failed(self, error: Exception) -> None:
        self._meter.event("replay_log_errors", error=type(error).__name__)
        self._meter.warn_once(
            "replay log",
            "the replay log can not be used (%s): pending invalidations die with this process",
            type(error).__name__,
        )

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def reset_after_fork(self) -> None:
        # Not closed: SQLite's connection is the parent's, and closing would drop its locks.
        self._kept, self._db = self._db, None
        self._owner = os.urandom(8)
