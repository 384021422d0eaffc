"""One SQLite file as several processes share it: opening, waiting, damage.

A cache file is private (0600, in a folder 0700 if it is made here), never reached through a
symbolic link, and worth nothing: one that SQLite can not read is moved aside and a new one begun.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

from ..core.deadline import Deadline
from ..errors import BackendError, BackendRefused, BackendTimeout, BackendUnavailable
from .files import make_private_file, make_private_folder
from .pool import Pool
from .sqlite_gate import gate

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; SQLite's own still hold
    fcntl = None  # type: ignore[assignment]  # the module is absent there

P = ParamSpec("P")
T = TypeVar("T")

_NAP, _LONGEST_NAP = 0.0005, 0.01
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_OFF_SCHEMA = ("no such", "malformed", "table ", "near ", "unrecognized", "error in")
_REFUSED = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}

Identity = tuple[int, int]


class FileRefused(Exception):
    """The file must not be used; the message says why and what to do."""


class Connection:
    """An open connection and the file it was opened on."""

    def __init__(self, db: sqlite3.Connection, identity: Identity) -> None:
        self.db = db
        self.identity = identity
        self.writes = 0  # since the file was last tended, and their bytes
        self.weight = 0

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.db.close()


_inherited: list[Connection] = []


class SQLiteFile:
    """Transactions on one file, each within a deadline.

    ``tables`` is the SQL that creates the tables that are not there; a file without the table
    ``newest`` is given it. ``mark`` is the ``application_id`` that tells our file from another
    application's, which is refused and left alone."""

    def __init__(
        self,
        path: str,
        *,
        tables: str,
        newest: str,
        mark: int,
        version: int,
        name: str,
        connections: int = 16,
    ) -> None:
        self.path = path
        self.name = name
        self._tables = tables
        self._newest = newest
        self._mark = mark
        self._version = version
        self._pool: Pool[Connection] = Pool(
            self._connect,
            Connection.close,
            limit=connections,
            ready=self._ready,
            # SQLite forbids even closing a parent's connection in the child.
            abandon=_inherited.append,
        )
        gate.enlist(self._pool)

    def close(self) -> None:
        with gate:
            self._pool.close()

    def look(
        self,
        operation: str,
        deadline: Deadline,
        step: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """What ``step`` answers, run again as long as the file is locked and there is time."""
        return self._run(operation, deadline, lambda c: step(c, *args, **kwargs))

    def change(
        self,
        operation: str,
        deadline: Deadline,
        step: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """The same in one write transaction: all of the step happens or nothing."""

        def transaction(connection: Connection) -> T:
            db = connection.db
            db.execute("BEGIN IMMEDIATE")
            try:
                answer = step(connection, *args, **kwargs)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            return answer

        return self._run(operation, deadline, transaction)

    # -- waiting and errors

    def _run(self, operation: str, deadline: Deadline, step: Callable[[Connection], T]) -> T:
        try:
            if gate.cut:
                raise FileRefused("was in use when this process was forked; open it in a new one")
            with gate:
                try:
                    return self._pool.use(deadline, self._waiting, deadline, step)
                except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                    if not _is_damage(error):
                        raise
                    return self._pool.use(deadline, self._waiting, deadline, step)
        except Exception as error:
            raise self._translated(error, operation) from error

    def _waiting(
        self, connection: Connection, deadline: Deadline, step: Callable[[Connection], T]
    ) -> T:
        nap = _NAP
        while True:
            if deadline.passed():
                raise TimeoutError("the deadline passed")
            try:
                return step(connection)
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if _is_damage(error):
                    self._set_aside(connection.identity, deadline)
                if not _is_locked(error):
                    raise
                nap = self._nap(deadline, nap)

    def _nap(self, deadline: Deadline, nap: float) -> float:
        """Sleep a little for a lock; the next nap. SQLite's own waiting (``busy_timeout``) is
        set when a connection opens and can not follow each call's deadline."""
        left = deadline.left()
        if not left:
            raise TimeoutError("the file stayed locked")
        time.sleep(min(nap, left))
        return min(nap * 2, _LONGEST_NAP)

    def _translated(self, error: Exception, operation: str) -> BackendError:
        kind: type[BackendError] = BackendUnavailable
        if isinstance(error, TimeoutError):
            kind, what = BackendTimeout, "gave no turn within the deadline"
        elif isinstance(error, FileRefused):
            kind, what = BackendRefused, str(error)
        elif isinstance(error, sqlite3.Error):
            kind = BackendRefused if _code(error) in _REFUSED else BackendUnavailable
            what = f"failed: {error}"
        elif isinstance(error, OSError):
            what = f"can not be opened ({error.strerror})"
        else:
            # A value or key that sqlite3 will not bind.
            kind, what = BackendRefused, f"refused the arguments ({type(error).__name__})"
        return kind(
            f"{self.name}: {self.path} {what} ({operation})", backend=self.name, operation=operation
        )

    # -- opening

    def _ready(self, connection: Connection, deadline: Deadline) -> bool:
        # Moved aside or deleted by somebody: what is written to the old file nobody else sees.
        return connection.identity == self._identity()

    def _identity(self) -> Identity | None:
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _connect(self, deadline: Deadline) -> Connection:
        make_private_folder(self.path)
        for _ in range(2):
            with self._alone(deadline):
                identity = self._make_file()
                db = sqlite3.connect(
                    self.path, timeout=0, isolation_level=None, check_same_thread=False
                )
                connection = Connection(db, identity)
                try:
                    return self._prepared(connection, deadline)
                except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                    connection.close()
                    if not _is_damage(error):
                        raise
                    self._move(identity)
                except BaseException:
                    connection.close()
                    raise
        raise FileRefused("is damaged and a new one is too")

    def _prepared(self, connection: Connection, deadline: Deadline) -> Connection:
        db, nap = connection.db, _NAP
        while True:
            try:
                ours = (self._mark, self._version)
                mark, version = self._marks(db)
                if (mark, version) != ours:
                    empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
                    if not empty and mark != self._mark:
                        raise FileRefused("is another application's database; give another path")
                    if not empty:
                        raise FileRefused("was written by another version; give another path")
                    db.execute("PRAGMA journal_mode=WAL")
                if (mark, version) != ours or not self._is_complete(db):
                    db.executescript(
                        f"BEGIN IMMEDIATE; {self._tables}; PRAGMA application_id={ours[0]};"
                        f" PRAGMA user_version={ours[1]}; COMMIT"
                    )
                db.execute("PRAGMA synchronous=NORMAL")
                db.execute("PRAGMA journal_size_limit=4194304")
                return connection
            except sqlite3.OperationalError as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                if not _is_locked(error):
                    raise
                nap = self._nap(deadline, nap)

    @staticmethod
    def _marks(db: sqlite3.Connection) -> tuple[int, int]:
        mark = db.execute("PRAGMA application_id").fetchone()[0]
        return mark, db.execute("PRAGMA user_version").fetchone()[0]

    def _is_complete(self, db: sqlite3.Connection) -> bool:
        named = db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (self._newest,))
        return named.fetchone() is not None

    def _make_file(self) -> Identity:
        if os.path.islink(self.path):
            raise FileRefused("is a symbolic link; give the path of the file itself")
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise FileRefused("is no regular file")
        make_private_folder(self.path)
        found = make_private_file(self.path)
        return found.st_dev, found.st_ino

    # -- damage

    def _set_aside(self, identity: Identity, deadline: Deadline) -> None:
        with self._alone(deadline):
            self._move(identity)

    def _move(self, identity: Identity) -> None:
        """Move the damaged file away, unless another process has done so already."""
        if self._identity() != identity:
            return
        aside = f"{self.path}.corrupt-{time.time_ns()}"
        # The journal first: replayed into a new file it would damage that one too.
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path + suffix, aside + suffix)

    @contextlib.contextmanager
    def _alone(self, deadline: Deadline) -> Iterator[None]:
        """No other process opens the file or moves it aside meanwhile."""
        if fcntl is None:
            yield
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(self.path + ".lock", flags, 0o600)
        try:
            nap = _NAP
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    nap = self._nap(deadline, nap)
            yield
        finally:
            os.close(lock)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_locked(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and _code(error) in _LOCKED


def _is_damage(error: Exception) -> bool:
    """The file is not what it was; also where a flipped bit made its schema another one: our
    statements are fixed, so one that does not fit says so."""
    if isinstance(error, UnicodeDecodeError):
        return True
    if not isinstance(error, sqlite3.Error):
        return False
    return _code(error) in _DAMAGED or (
        _code(error) == sqlite3.SQLITE_ERROR and str(error).startswith(_OFF_SCHEMA)
    )
