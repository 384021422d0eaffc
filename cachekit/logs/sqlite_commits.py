"""One log file as this process uses it: its connections, its turns to write, group commit."""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..backends.sqlite_gate import gate
from ..core.deadline import Deadline
from ..errors import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
)
from ..protocols.log import Bounds, Look, Record
from . import sqlite_settling as settling
from . import sqlite_tables as tables
from .sqlite_opening import (
    APPENDING_PAGES,
    SETTLING_PAGES,
    Open,
    Transaction,
    connect,
    identity_of,
    is_busy,
    translated,
)
from .sqlite_turns import Append, Ticket, Turns

P = ParamSpec("P")
T = TypeVar("T")

READERS, RIDERS = 16, 256  # idle connections kept; appends written along at most
CLOSING = 0.1  # seconds to wait for a write in progress: after that, it closes the file
_NAP, _LONGEST_NAP, _MOMENT = 0.00005, 0.005, 0.05  # seconds


class WouldWait(Exception):
    """Not without waiting."""


class LogFile:
    """Steps on one file, each within a deadline; safe for threads and across fork.

    ``durable``: a commit survives power loss (``synchronous=FULL``)."""

    def __init__(self, path: str, durable: bool) -> None:
        self.path = path
        self._durable = durable
        self._turns = Turns(_TAKERS)
        self._writer: Open | None = None
        self._readers: list[Open] = []  # idle; list.pop and list.append are atomic
        gate.enlist(self)
        _files.add(self)

    # -- reading

    def glance(self, deadline: Deadline, *what: *tuple[str, Sequence[str], int]) -> Look:
        """A look that waits for nothing. Raises WouldWait where it had to."""
        if gate.cut or not self._readers or deadline.passed():
            raise WouldWait
        try:
            with gate:
                return self._with_reader(None, tables.look, *what)
        except WouldWait:
            raise
        except Exception as error:
            if is_busy(error):
                raise WouldWait from error
            raise translated(error, self.path, "look") from error

    def look(self, deadline: Deadline, *what: *tuple[str, Sequence[str], int]) -> Look:
        return self._patient(
            "look", deadline, lambda: self._with_reader(deadline, tables.look, *what)
        )

    def read(
        self,
        operation: str,
        deadline: Deadline,
        step: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """What a step answers that sees one instant."""

        def whole(db: sqlite3.Connection) -> T:
            db.execute("BEGIN")
            answer = step(db, *args, **kwargs)
            db.execute("COMMIT")
            return answer

        return self._patient(operation, deadline, lambda: self._with_reader(deadline, whole))

    def _with_reader(self, deadline: Deadline | None, step: Callable[..., T], *args: Any) -> T:
        reader = self._reader(deadline)
        try:
            answer = step(reader.db, *args)
        except BaseException:
            reader.close()
            raise
        if len(self._readers) < READERS:
            self._readers.append(reader)
        else:
            reader.close()
        return answer

    def _reader(self, deadline: Deadline | None) -> Open:
        while self._readers:
            try:
                reader = self._readers.pop()
            except IndexError:
                break  # another thread was faster
            if self._is_there(reader):
                return reader
            reader.close()  # the file was deleted or replaced
        if deadline is None:
            raise WouldWait
        return connect(self.path, self._durable)

    # -- writing

    def change(
        self,
        operation: str,
        deadline: Deadline,
        step: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """What a step answers, in a transaction of its own: all of it happens or nothing."""

        def whole() -> T:
            writer = self._ready()
            writer.totals.clear()
            with Transaction(writer.db):
                return step(writer.db, *args, **kwargs)

        return self._in_turn(operation, deadline, whole)

    def settle(self, deadline: Deadline, *args: Any) -> bool:
        def whole() -> bool:
            writer = self._ready()
            writer.totals.clear()
            writer.db.execute(f"PRAGMA wal_autocheckpoint={SETTLING_PAGES}")
            try:
                with Transaction(writer.db):
                    return settling.settle(writer.db, *args)
            finally:
                writer.db.execute(f"PRAGMA wal_autocheckpoint={APPENDING_PAGES}")

        return self._in_turn("settle", deadline, whole)

    def _in_turn(self, operation: str, deadline: Deadline, whole: Callable[[], T]) -> T:
        try:
            try:
                self._turns.enter(Ticket(), deadline)
            except TimeoutError as error:
                raise translated(error, self.path, operation) from error
            try:
                return self._patient(operation, deadline, whole)
            except BaseException as error:
                self._forget_after(error)
                raise
        finally:
            self._turns.leave()

    def append(
        self, queue: str, records: Sequence[Record], bounds: Bounds, deadline: Deadline
    ) -> list[int | None]:
        """Group commit: who waits for the turn meanwhile is written in the leader's transaction."""
        if len(records) == 1 and not deadline.passed():
            version = self.append_now(queue, records[0], bounds)
            if version is not None:
                return [version]
        call = Append(queue, records, bounds)
        try:
            try:
                if self._turns.enter(call, deadline):
                    self._lead(call, deadline)
            finally:
                self._turns.leave()
            if call.error is not None:
                raise call.error
        except (BackendError, ConfigurationError):
            raise
        except Exception as error:
            raise translated(error, self.path, "append") from error
        return call.versions

    def append_now(self, queue: str, record: Record, bounds: Bounds) -> int | None:
        """One append, if nobody else is at it and all is as usual; else nothing is done."""
        try:
            if not self._turns.enter_now():
                return None
            return self._write_one(queue, record, bounds) or None
        finally:
            self._turns.leave()

    def _lead(self, call: Append, deadline: Deadline) -> None:
        riders = self._turns.riders(RIDERS)
        try:
            self._patient("append", deadline, lambda: self._write([call, *riders]))
        except BackendTimeout:  # nothing was written; each rider has a deadline of its own
            self._turns.back(riders)
            raise
        except Exception as error:
            self._forget_after(error)
            if not riders:
                raise
            self._apart(call, riders, deadline)
        except BaseException as error:
            self._forget_after(error)
            for one in riders:
                one.error = BackendUnavailable("the thread that wrote this was interrupted")
            self._turns.done(riders)
            raise
        else:
            self._turns.done(riders)

    def _apart(self, call: Append, riders: Sequence[Append], deadline: Deadline) -> None:
        """Each by itself: what the file refuses to one must not fail the others."""
        for one in (call, *riders):
            try:
                self._patient("append", deadline, functools.partial(self._write, [one]))
            except Exception as error:
                self._forget_after(error)
                one.error = error
            if one is not call:
                self._turns.done([one])

    def _write(self, group: Sequence[Append]) -> None:
        writer = self._ready()
        first = group[0]
        known = writer.totals.get(first.queue)
        writer.totals.clear()
        if len(group) == 1 and known is not None and not self._has_room(known, first):
            # Who polls a full queue takes no lock for it.
            known = tables.totals(writer.db, first.queue)
            if known is not None and not self._has_room(known, first):
                writer.totals[first.queue] = known
                first.versions = [None] * len(first.records)
                return
        now = time.time()
        after: dict[str, tables.Totals] = {}
        with Transaction(writer.db):
            for call in group:
                at = after.get(call.queue) or tables.made(writer.db, call.queue)
                call.versions, after[call.queue] = tables.append(
                    writer.db, at, call.records, call.bounds, now
                )
        writer.totals.update(after)

    def _write_one(self, queue: str, record: Record, bounds: Bounds) -> int:
        """The usual put, in one statement: its version. 0 where it is not as usual."""
        try:
            with gate:
                writer = self._writer
                if writer is None or gate.cut or not self._is_there(writer):
                    return 0
                at = writer.totals.get(queue)
                if at is None:
                    return 0
                after = tables.append_next(writer.db, at, record, bounds, time.time())
                if after is None:
                    return 0
                writer.totals[queue] = after
                return after.newest
        except Exception:
            return 0  # it was not kept; the long way finds out what is wrong

    @staticmethod
    def _has_room(at: tables.Totals, call: Append) -> bool:
        return at.has_room(tables.size_of(call.records[0]), call.bounds)

    def _is_there(self, connection: Open) -> bool:
        """Whether the file was not deleted or replaced, up to a moment ago: asking the system
        each time would cost a third of a put."""
        now = time.monotonic()
        if now - connection.checked < _MOMENT:
            return True
        if connection.identity != identity_of(self.path):
            return False
        connection.checked = now
        return True

    def _forget_after(self, error: BaseException) -> None:
        """After an error nobody knows what a connection is good for."""
        if not isinstance(error, BackendTimeout):
            with gate:
                self._close_writer()

    def _ready(self) -> Open:
        writer = self._writer
        if writer is not None and not self._is_there(writer):
            self._close_writer()
            writer = None
        if writer is None:
            writer = self._writer = connect(self.path, self._durable)
            writer.db.execute("PRAGMA temp_store=MEMORY")
            writer.db.execute(tables.TEMPORARY)
        return writer

    # -- waiting and errors

    def _patient(self, operation: str, deadline: Deadline, step: Callable[[], T]) -> T:
        """Again as long as another process holds the file's lock. SQLite's own waiting
        (``busy_timeout``) can not follow each call's deadline."""
        nap = _NAP
        try:
            if gate.cut:
                raise BackendRefused(
                    f"{self.path} was in use when this process was forked; open it in a new one",
                    backend="sqlite",
                    operation=operation,
                )
            while rest := deadline.left():
                try:
                    with gate:
                        return step()
                except sqlite3.OperationalError as error:
                    if not is_busy(error):
                        raise
                time.sleep(min(nap, rest))
                nap = min(nap * 2, _LONGEST_NAP)
            raise TimeoutError("the file stayed locked by other processes")
        except (BackendError, ConfigurationError):
            raise
        except Exception as error:
            raise translated(error, self.path, operation) from error

    # -- opening and closing

    def close(self) -> None:
        """Close what is open, after a write in progress; the next step opens it anew."""
        self._turns.parting = self._close_all
        try:
            with contextlib.suppress(TimeoutError):
                self._turns.enter(Ticket(), Deadline(CLOSING, time.monotonic))
        finally:
            self._turns.leave()

    def _close_all(self) -> None:
        with gate:
            self.close_idle()

    def close_idle(self) -> None:  # before a fork: nothing is in use, and nobody comes in
        self._close_writer()
        while self._readers:
            with contextlib.suppress(IndexError):
                self._readers.pop().close()

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def reset_after_fork(self) -> None:
        self._turns = Turns(_TAKERS)
        # Closed before the fork, unless in use then: SQLite forbids even closing those here.
        _inherited.extend(self._readers)
        if self._writer is not None:
            _inherited.append(self._writer)
        self._writer, self._readers = None, []


_TAKERS = [vars(LogFile)[f].__code__ for f in ("append", "append_now", "_in_turn", "close")]
_inherited: list[Open] = []
_files: weakref.WeakSet[LogFile] = weakref.WeakSet()
_by_path: weakref.WeakValueDictionary[tuple[str, bool], LogFile] = weakref.WeakValueDictionary()
_registry = threading.Lock()


def log_file(path: str, durable: bool) -> LogFile:
    """The one of this process: all queues of a file share their commits."""
    with _registry:
        found = _by_path.get((path, durable))
        if found is None:
            found = _by_path[path, durable] = LogFile(path, durable)
        return found


def _child() -> None:
    global _registry
    _registry = threading.Lock()
    for file in list(_files):
        file.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_child)
