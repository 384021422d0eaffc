"""Invalidations that could not reach the far tier yet: the last one per name, bounded."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from .backends.files import make_private_file, make_private_folder
from .backends.sqlite_gate import gate
from .errors import ConfigurationError
from .observe import Meter

MAX_PENDING = 10_000
PATIENCE = 0.01  # seconds to wait for another writer of the file
Name = tuple[str, Any]  # "key", "tag" and its text; "space"; "event" and its bytes
SPACE: Name = ("space", "")


class Pending:
    """While one is pending its key, or every entry with its tag, counts as missing in this
    process. Overflow becomes one invalidation of the whole namespace.

    Looking takes no lock: ``owed`` sees every name that was added before and is not yet done.
    ``settled`` moves when a tag or the namespace is done, before the name goes: who read an entry
    in the meantime can not tell by the names alone that its tag was pending when the read began.

    With ``file`` what is pending survives the process (kill -9 too, not a power loss): whoever
    opens that file next replays it. A few microseconds an invalidation more, while the far tier
    is away."""

    def __init__(self, meter: Meter, file: str | None = None) -> None:
        self._names: dict[Name, int] = {}
        self._events = 0
        self._serial = 0
        self.settled = 0
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
            return self._load(journal)

    def _load(self, journal: Journal) -> bool:
        if journal.loaded:
            return False
        left = journal.load()
        self._merge(left or ())
        journal.loaded = left is not None  # last: who sees it sees the names
        return bool(left)

    def _merge(self, names: Iterable[Name]) -> None:
        for name in names:
            self._events += name[0] == "event" and name not in self._names
            self._names.setdefault(name, 0)

    @property
    def blocking(self) -> bool:
        """Whether any key, tag or namespace is pending."""
        return len(self) > self._events

    def owed(self, keys: Iterable[str], tags: Iterable[str]) -> dict[Name, int]:
        """What must be told before these can be read: of the keys, of the tags, the namespace."""
        names = self._names  # one look: overflow puts another in its place
        wanted = chain([SPACE], (("key", k) for k in keys), (("tag", t) for t in tags))
        return {name: serial for name in wanted if (serial := names.get(name)) is not None}

    def add(self, names: Iterable[Name]) -> None:
        added, gone = list(names), []
        with self._lock:
            if self._journal is not None:
                self._load(self._journal)
            for name in added:
                self._serial += 1
                self._events += name[0] == "event" and name not in self._names
                self._names[name] = self._serial
            if len(self._names) > MAX_PENDING:
                added, gone = [SPACE], [name for name in self._names if name != SPACE]
                self._names = {SPACE: self._serial}
                self._events = 0
            if self._journal is not None:
                self._journal.change(added, gone)

    def sync(self) -> None:
        """Write to the file what it could not take before."""
        journal = self._journal
        if journal is None:
            return
        with self._lock:
            self._load(journal)
            if journal.untaken:
                self._merge(journal.take_over())
            if journal.behind:
                journal.rewrite(self._names)

    @property
    def lagging(self) -> bool:
        """Whether the file is not yet what it should be."""
        return self._journal is not None and (self._journal.untaken or self._journal.behind)

    def take(self) -> dict[Name, int]:
        with self._lock:
            return dict(self._names)

    def done(self, taken: dict[Name, int]) -> None:
        with self._lock:
            gone = [name for name, serial in taken.items() if self._names.get(name) == serial]
            self.settled += any(kind in ("tag", "space") for kind, _ in gone)
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
    not be written at once (another process writes for long, the disk is full) is counted
    (``replay_log_errors``) and warned of; it is tried again, and the queue goes on in memory."""

    def __init__(self, file: str, meter: Meter) -> None:
        self.path = os.path.abspath(file)
        self.loaded = False
        self.behind = False  # the file lacks something, or holds something that is done
        self.untaken = False  # its rows are replayed from here, and still another's
        self._meter = meter
        # What one process has replayed is not yet done for another that added the same later.
        self._owner = os.urandom(8)
        self._db: sqlite3.Connection | None = None
        self._kept: sqlite3.Connection | None = None
        gate.enlist(self)
        if os.path.islink(self.path):
            raise ConfigurationError("replay_log is a symbolic link; give the file itself")

    def load(self) -> list[Name] | None:
        """What was left there, by the living or the dead: it is replayed from here now. None: the
        file can not be read yet."""
        if not os.path.exists(self.path):
            return []
        try:
            with gate:
                found = self._read(self._open())
        except (OSError, sqlite3.Error) as error:
            self._failed(error)
            return None if _is_locked(error) else []
        self.untaken = True
        self.take_over()
        return found

    def take_over(self) -> list[Name]:
        """Make the rows this process's own; the rows. Tried again where others write just now."""
        try:
            with gate, self._open() as db:
                db.execute("UPDATE OR REPLACE pending SET owner = ?", (self._owner,))
                found = self._read(db)
        except (OSError, sqlite3.Error) as error:
            self._failed(error)
            return []
        self.untaken = False
        return found

    def _read(self, db: sqlite3.Connection) -> list[Name]:
        rows = db.execute("SELECT kind, name FROM pending").fetchall()
        found = [(kind, name) for kind, name in rows if _is_name(kind, name)]
        if len(found) < len(rows):
            self._failed(ValueError("rows that are none of ours"))
            found.append(SPACE)  # whatever they meant
            self.behind = True
        return found

    def change(self, added: Sequence[Name], gone: Sequence[Name]) -> None:
        if not added and not gone:
            return
        try:
            with gate, self._open() as db:
                self._add(db, added)
                db.executemany(
                    "DELETE FROM pending WHERE kind = ? AND name = ? AND owner = ?",
                    [(*name, self._owner) for name in gone],
                )
        except (OSError, sqlite3.Error) as error:
            self.behind = True
            self._failed(error)

    def rewrite(self, names: Iterable[Name]) -> None:
        """Make the file hold these and nothing else of this process's."""
        try:
            with gate, self._open() as db:
                db.execute("DELETE FROM pending WHERE owner = ?", (self._owner,))
                self._add(db, names)
            self.behind = False
        except (OSError, sqlite3.Error) as error:
            self._failed(error)

    def _add(self, db: sqlite3.Connection, names: Iterable[Name]) -> None:
        db.executemany(
            "INSERT OR IGNORE INTO pending (kind, name, owner) VALUES (?, ?, ?)",
            [(*name, self._owner) for name in names],
        )

    def _open(self) -> sqlite3.Connection:
        if gate.cut:
            raise OSError("the file was in use when this process was forked")
        if self._db is None:
            make_private_folder(self.path)
            make_private_file(self.path)
            # Who calls may be an event loop: it does not wait for other writers.
            db = sqlite3.connect(self.path, check_same_thread=False, timeout=PATIENCE)
            try:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=NORMAL")
                db.execute(
                    "CREATE TABLE IF NOT EXISTS pending"
                    " (kind, name, owner, PRIMARY KEY (kind, name, owner))"
                )
                db.commit()
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def _failed(self, error: Exception) -> None:
        self._meter.event("replay_log_errors", error=type(error).__name__)
        self._meter.warn_once(
            "replay log",
            "the replay log can not be used now (%s): until it can, what is pending would die "
            "with this process",
            type(error).__name__,
        )

    def close(self) -> None:
        with gate:
            self.close_idle()

    def close_idle(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def reset_after_fork(self) -> None:
        # Closed before the fork, unless it was in use then: closing it here would not do.
        self._kept, self._db = self._db, None
        self._owner = os.urandom(8)


def _is_name(kind: object, name: object) -> bool:
    if kind == "event":
        return isinstance(name, bytes)
    return (
        kind in ("key", "tag", "space") and isinstance(name, str) and bool(name or kind == "space")
    )


def _is_locked(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
