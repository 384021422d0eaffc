"""Opening a log file, one transaction on it, and what its errors mean.

A log file is private (0600), never reached through a symbolic link, and never moved aside or
emptied: one that is damaged is refused, and left for somebody to look at.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from urllib.parse import quote

from ..backends.files import make_private_file, make_private_folder
from ..errors import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
)
from . import sqlite_tables as tables

# Bytes. A commit writes the pages it has touched, a new operation two or three of them.
PAGE = 2048
# Pages in the journal before a commit also copies them into the file and waits for the disk:
# few where the owner of a queue settles, so that a put seldom has to.
SETTLING_PAGES, APPENDING_PAGES = 8000, 16_000

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_UNAVAILABLE = {
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOMEM,
}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

Identity = tuple[int, int]


class Open:
    """An open connection, the file it was opened on, and what its writer knows by heart."""

    def __init__(self, db: sqlite3.Connection, identity: Identity) -> None:
        self.db = db
        self.identity = identity
        self.checked = 0.0  # monotonic seconds: when it was last seen that the file lies there
        self.totals: dict[str, tables.Totals] = {}

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.db.close()


def identity_of(path: str) -> Identity | None:
    """Which file lies there now."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def connect(path: str, durable: bool) -> Open:
    """Open it, made first if it is missing."""
    if os.path.islink(path):
        raise ConfigurationError(f"{path} is a symbolic link; give the file itself")
    make_private_folder(path)
    found = make_private_file(path)
    uri = f"file:{quote(path)}?mode=rw"  # never one that others may read
    db = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        _prepare(db, path, durable)
    except BaseException:
        db.close()
        raise
    return Open(db, (found.st_dev, found.st_ino))


def _prepare(db: sqlite3.Connection, path: str, durable: bool) -> None:
    if _marks(db, path) != (tables.MARK, tables.VERSION):
        db.execute(f"PRAGMA page_size={PAGE}")
        db.execute("PRAGMA journal_mode=WAL")
        with Transaction(db):
            _found(db, path, durable)
    db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
    db.execute(f"PRAGMA wal_autocheckpoint={APPENDING_PAGES}")
    if durable and sys.platform == "darwin":
        db.execute("PRAGMA fullfsync=ON")


def _marks(db: sqlite3.Connection, path: str) -> tuple[int, int]:
    # First: tables that another process makes meanwhile come together with their mark.
    empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    mark = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if mark == tables.MARK and version > tables.VERSION:
        raise ConfigurationError(
            f"{path} was written by a newer cachekit (tables of version {version}); "
            "upgrade this one, or give another path"
        )
    if mark != tables.MARK and not empty:
        raise ConfigurationError(f"{path} is another application's database; give another path")
    return mark, version


def _found(db: sqlite3.Connection, path: str, durable: bool) -> None:
    """Make the tables, unless another process was faster."""
    if _marks(db, path) == (tables.MARK, tables.VERSION):
        return
    for statement in tables.TABLES.split(";"):
        db.execute(statement)
    db.execute(f"PRAGMA application_id={tables.MARK}")
    db.execute(f"PRAGMA user_version={tables.VERSION}")
    if durable:
        _sync_folder(os.path.dirname(path))


def translated(error: Exception, path: str, operation: str) -> BackendError:
    """What an error means to the caller. One that is not SQLite's, the system's or the arguments'
    came out of a signal handler: it is raised as it is."""
    if not isinstance(error, (sqlite3.Error, OSError, ValueError, TypeError, OverflowError)):
        raise error
    kind: type[BackendError] = BackendRefused
    if isinstance(error, TimeoutError):
        kind, what = BackendTimeout, f"gave no turn within the deadline: {error}"
    elif isinstance(error, sqlite3.Error):
        code = _code(error)
        kind = BackendUnavailable if code in _UNAVAILABLE else BackendRefused
        what = f"failed: {error}"
        if code in _DAMAGED:
            what += "; it is left as it is: move it and its -wal away to begin anew"
    elif isinstance(error, OSError):
        what = f"can not be used: {error.strerror}"
    else:
        what = f"refused the arguments ({type(error).__name__})"
    return kind(
        f"write-back log {path} {what} ({operation})",
        backend="sqlite",
        operation=operation,
    )


class Transaction:
    """``BEGIN IMMEDIATE`` to ``COMMIT``, or ``ROLLBACK`` after whatever is raised."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


def _sync_folder(folder: str) -> None:
    """A new file's name must survive power loss too."""
    with contextlib.suppress(OSError):  # not every system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and _code(error) in _BUSY
