"""The bus of a cache file: its table of notes, looked at every 50 ms by who listens.

What changed nothing costs one ``PRAGMA data_version``: SQLite's count of what other connections
committed. Notes are read in the order in which their transactions committed.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from ..core.deadline import Deadline
from ..core.eventcount import Flag
from ..core.notes import unpack
from ..errors import BackendError
from ..protocols import Ears
from .local_bus import SafeEars, log
from .sqlite_file import Connection, SQLiteFile
from .sqlite_rows import MARK, NEWEST_TABLE, TABLES, VERSION, space_of

INTERVAL = 0.05
PATIENCE = 0.4  # seconds for one look; two that fail fit into the bound
STOPPING = 0.4


class SQLiteBus:
    """Tells what any process invalidates in the file and namespace. Listening creates the file
    if it is not there. ``interval`` is the seconds between looks, at most 0.1."""

    bound = 1.0
    coarse = False

    def __init__(
        self, path: str, namespace: str, *, interval: float = INTERVAL, name: str = "sqlite"
    ) -> None:
        self._path = path
        self._space = space_of(namespace)
        self._interval = interval
        self._name = name

    def listen(self, ears: Ears) -> Callable[[], None]:
        file = SQLiteFile(
            self._path,
            tables=TABLES,
            newest=NEWEST_TABLE,
            mark=MARK,
            version=VERSION,
            name=self._name,
            connections=1,
        )
        listener = _Listener(file, self._space, SafeEars(ears, self._name), self._interval)
        listener.start()
        return listener.stop


class _Look(NamedTuple):
    """What one look at a file that had changed found: the ids it keeps, the notes since."""

    connection: Connection
    version: int
    first: int
    last: int
    notes: list[bytes]


class _Listener:
    """One pair of ears and the thread that looks for it."""

    def __init__(self, file: SQLiteFile, space: str, ears: SafeEars, interval: float) -> None:
        self._file = file
        self._space = space
        self._ears = ears
        self._interval = interval
        self._joined = False
        self._position = 0  # the newest note that was told
        self._looked = 0.0  # when the last look began that succeeded
        self._connection: Connection | None = None
        self._version = -1
        # Held here too, for a fork may come while the thread uses it.
        self._using: Connection | None = None

    def start(self) -> None:
        self._stopped = Flag()
        self._looked = time.monotonic()
        self.pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="cachekit-sqlite-bus", daemon=True)
        _listening.add(self)
        self._thread.start()

    def stop(self) -> None:
        """Takes at most 0.4 seconds. Twice is fine."""
        self._ears.stopped = True
        self._stopped.set()
        _listening.discard(self)
        if self._thread is not threading.current_thread():
            self._thread.join(STOPPING)

    def _run(self) -> None:
        try:
            while not self._ears.stopped:
                try:
                    self._turn()
                except Exception:  # such as no memory: what was told is uncertain
                    log.exception("listening to the bus of a SQLite file failed; it goes on")
                    self._lose()
                self._stopped.wait(self._interval)
        finally:
            self._ears.lost()  # says nothing where it was stopped
            self._file.close()

    def _turn(self) -> None:
        began = time.monotonic()
        try:
            look = self._file.look("listen", Deadline(PATIENCE, time.monotonic), self._look)
        except BackendError:
            # Now, if another failure would be known only after the bound.
            next_known = time.monotonic() + self._interval + PATIENCE
            if self._joined and next_known - self._looked > SQLiteBus.bound:
                self._lose()
            return
        if look is not None:
            self._take(look)
        self._ears.lag(time.monotonic() - self._looked)
        self._looked = began

    def _look(self, connection: Connection) -> _Look | None:
        """None: nothing was committed since the last look."""
        self._using = connection
        db = connection.db
        # Before the rest: what is committed in between is looked at once more.
        version: int = db.execute("PRAGMA data_version").fetchone()[0]
        known = self._joined and connection is self._connection
        if known and version == self._version:
            return None
        db.execute("BEGIN")
        try:
            first, last = db.execute(
                "SELECT coalesce((SELECT min(id) FROM notes), 1),"
                " coalesce((SELECT max(id) FROM notes), 0)"
            ).fetchone()
            notes = self._since(db) if known else []
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
        return _Look(connection, version, first, last, notes)

    def _since(self, db: sqlite3.Connection) -> list[bytes]:
        rows = db.execute(
            "SELECT note FROM notes WHERE id > ? AND space = ? ORDER BY id",
            (self._position, self._space),
        )
        return [note for (note,) in rows]

    def _take(self, look: _Look) -> None:
        # Of the time between two connections nobody knows: the file may be another one.
        same = self._joined and look.connection is self._connection
        whole = look.first <= self._position + 1 and self._position <= look.last
        self._connection, self._version = look.connection, look.version
        self._position = look.last
        if not same or not whole:
            self._lose()
            self._joined = True
            self._ears.joined()
            return
        found = [unpack(note) for note in look.notes]
        notes = [note for note in found if note is not None]
        if notes:
            self._ears.heard(notes)
        if len(notes) < len(found):
            self._ears.foreign(len(found) - len(notes))

    def _lose(self) -> None:
        if self._joined:
            self._joined = False
            self._ears.lost()

    def _abandon(self) -> None:
        """In a forked child: the thread is the parent's; who wants to hear listens again."""
        if self._using is not None:
            # SQLite forbids even closing a parent's connection in the child.
            _inherited.append(self._using)


_listening: set[_Listener] = set()
_inherited: list[Connection] = []


def _child() -> None:
    for listener in list(_listening):
        if listener.pid != os.getpid():  # one that another hook has just started is ours
            listener._abandon()
            _listening.discard(listener)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_child)
