"""The tables of a cache file: slots, plain records, nonces, notes; and what keeps them bounded."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl

from ..core.notes import SENDER_BYTES, Note, NoteKind, pack
from ..errors import ConfigurationError
from ..protocols import TOKEN_BYTES, Item, Slot, SlotState
from .sqlite_file import Connection

MARK = 0x63616B74  # application_id: "cakt"
VERSION = 1
TABLES = """
CREATE TABLE IF NOT EXISTS slots (
  space TEXT NOT NULL, key TEXT NOT NULL, kind INTEGER NOT NULL, stamp BLOB NOT NULL,
  holders BLOB NOT NULL, until REAL NOT NULL, made REAL NOT NULL, expires REAL, data BLOB,
  PRIMARY KEY (space, key));
CREATE INDEX IF NOT EXISTS slots_expire ON slots (expires);
CREATE TABLE IF NOT EXISTS records (
  space TEXT NOT NULL, key TEXT NOT NULL, made REAL NOT NULL, expires REAL, data BLOB NOT NULL,
  PRIMARY KEY (space, key));
CREATE INDEX IF NOT EXISTS records_expire ON records (expires);
CREATE TABLE IF NOT EXISTS nonces (
  space TEXT NOT NULL, tag TEXT NOT NULL, expires REAL, nonce BLOB NOT NULL,
  PRIMARY KEY (space, tag));
CREATE INDEX IF NOT EXISTS nonces_expire ON nonces (expires);
CREATE TABLE IF NOT EXISTS notes (
  id INTEGER PRIMARY KEY AUTOINCREMENT, space TEXT NOT NULL, note BLOB NOT NULL)
"""
NEWEST_TABLE = "notes"  # files of before have all but this
TOKEN, ENTRY, BLOCK, CONTESTED = range(4)
WHOLE_SPACE = ""  # the namespace's own nonce; a tag is never empty

MAX_WRITERS = 64
_CROWD = bytes(TOKEN_BYTES)
_TAG_BLOCK = b"B"  # before the writers' ids: so a block is longer than any nonce

MAX_BYTES = 2**30
NOTES = 10_000  # the newest are kept; fewer in a small file
NOTE_SHARE = 4096  # one note for so many bytes of the file's bound
TRIM_EVERY = 256

TEND_EVERY = 16
TEND_BYTES = 2**20
TEND_ROWS = 64
TEND_ROUNDS = 16

BACKWARDS = 1.0
"""Seconds the wall clock may step back before what was stored "later" counts as expired."""


class Row(NamedTuple):
    """A slot that is not nothing. ``holders`` is a token, a refresh token, or writers' ids."""

    kind: int
    stamp: bytes = b""
    holders: bytes = b""
    until: float = 0.0  # the end of the refresh token's lease
    made: float = 0.0  # when it was stored, or last held
    expires: float | None = None
    data: bytes | None = None

    def slot(self, now: float) -> Slot:
        if self.kind == TOKEN:
            return Slot(SlotState.TOKEN)
        if self.kind != ENTRY:
            return Slot(SlotState.BLOCK)
        state = SlotState.REFRESHING if self.refreshing(now) else SlotState.ENTRY
        return Slot(state, self.stamp, self.data)

    def refreshing(self, now: float) -> bool:
        return self.kind == ENTRY and bool(self.holders) and _standing(self.made, self.until, now)

    def held_by(self, token: bytes, now: float) -> bool:
        return self.holders == token and (self.kind == TOKEN or self.refreshing(now))

    def writers(self) -> list[bytes]:
        return _apart(self.holders)

    def standing(self, now: float) -> bool:
        """Not expired. A clock that went back ends all but blocks: they end by time alone, for a
        write whose outcome is unknown may still land."""
        if self.kind >= BLOCK:
            return self.expires is None or now < self.expires
        return _standing(self.made, self.expires, now)


def block(writers: Sequence[bytes], expires: float | None, *, contested: bool) -> Row:
    return Row(CONTESTED if contested else BLOCK, holders=_together(writers), expires=expires)


def _together(writers: Sequence[bytes]) -> bytes:
    if len(writers) > MAX_WRITERS:
        # Ids of writers that never ended pile up only while others keep the block alive. Those
        # left out are stood for by an id nobody ends: then only time ends the block.
        writers = [_CROWD, *writers[-MAX_WRITERS + 1 :]]
    return b"".join(writers)


def _apart(ids: bytes) -> list[bytes]:
    return [ids[i : i + TOKEN_BYTES] for i in range(0, len(ids), TOKEN_BYTES)]


def _standing(made: float, expires: float | None, now: float) -> bool:
    return expires is None or made - BACKWARDS <= now < expires


def space_of(namespace: str) -> str:
    """Printable, for SQLite can not bind surrogates and its tools end a text at NUL."""
    return namespace.encode("unicode_escape").decode("ascii")


class Rows:
    """The rows of one namespace. Its methods run inside a transaction of the caller's."""

    def __init__(self, space: str, max_bytes: int) -> None:
        self._space = space
        self._max_bytes = max_bytes
        self._notes = min(NOTES, max(TRIM_EVERY, max_bytes // NOTE_SHARE))
        self._sender = os.urandom(SENDER_BYTES)
        self._process = os.getpid()

    # -- slots

    def load(self, db: sqlite3.Connection, key: str, now: float) -> Row | None:
        """The slot's row; None where there is nothing."""
        found = db.execute(
            "SELECT kind, stamp, holders, until, made, expires, data FROM slots"
            " WHERE space = ? AND key = ?",
            (self._space, key),
        ).fetchone()
        row = None if found is None else Row._make(found)
        return row if row is not None and row.standing(now) else None

    def store(self, db: sqlite3.Connection, key: str, row: Row) -> None:
        db.execute(
            "INSERT OR REPLACE INTO slots"
            " (space, key, kind, stamp, holders, until, made, expires, data)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self._space, key, *row),
        )

    def hold(self, db: sqlite3.Connection, key: str, row: Row) -> None:
        """Store all of the row but its data."""
        db.execute(
            "UPDATE slots SET kind = ?, holders = ?, until = ?, made = ?, expires = ?"
            " WHERE space = ? AND key = ?",
            (row.kind, row.holders, row.until, row.made, row.expires, self._space, key),
        )

    def clear(self, db: sqlite3.Connection, key: str) -> None:
        db.execute("DELETE FROM slots WHERE space = ? AND key = ?", (self._space, key))

    # -- plain records

    def record(self, db: sqlite3.Connection, key: str, now: float) -> bytes | None:
        found = db.execute(
            "SELECT made, expires, data FROM records WHERE space = ? AND key = ?",
            (self._space, key),
        ).fetchone()
        if found is None or not _standing(found[0], found[1], now):
            return None
        return found[2]  # type: ignore[no-any-return]  # a column's type is unknown to sqlite3

    def set_records(self, db: sqlite3.Connection, items: Sequence[Item], now: float) -> None:
        db.executemany(
            "INSERT OR REPLACE INTO records (space, key, made, expires, data)"
            " VALUES (?, ?, ?, ?, ?)",
            [(self._space, item.key, now, end(now, item.ttl), item.data) for item in items],
        )

    def delete_records(self, db: sqlite3.Connection, keys: Sequence[str]) -> None:
        db.executemany(
            "DELETE FROM records WHERE space = ? AND key = ?", [(self._space, key) for key in keys]
        )

    # -- nonces

    def nonce(self, db: sqlite3.Connection, tag: str, now: float) -> bytes | None:
        found = self._label(db, tag, now)
        return None if found is None or _is_block(found[1]) else found[1]

    def make_nonce(
        self,
        db: sqlite3.Connection,
        tag: str,
        fresh: Callable[[], bytes],
        ttl: float | None,
        now: float,
    ) -> bytes | None:
        """The present nonce, else a new one; None under a block."""
        found = self._label(db, tag, now)
        if found is not None:
            return None if _is_block(found[1]) else found[1]
        nonce = fresh()
        self._set_label(db, tag, nonce, end(now, ttl))
        return nonce

    def drop_nonces(self, db: sqlite3.Connection, tags: Sequence[str]) -> None:
        db.executemany(
            f"DELETE FROM nonces WHERE space = ? AND tag = ? AND length(nonce) <= {TOKEN_BYTES}",
            [(self._space, tag) for tag in tags],
        )

    def seize_tag(
        self, db: sqlite3.Connection, tag: str, writer: bytes, lease: float, now: float
    ) -> None:
        found, writers, expires = self._label(db, tag, now), [writer], now + lease
        if found is not None and _is_block(found[1]):
            writers = [other for other in _apart(found[1][1:]) if other != writer] + writers
            expires = max(expires, found[0] or 0.0)
        self._set_label(db, tag, _TAG_BLOCK + _together(writers), expires)

    def end_tag(self, db: sqlite3.Connection, tag: str, writer: bytes, now: float) -> bool:
        """Whether no block stood: the writer's own had run out."""
        found = self._label(db, tag, now)
        blocked = found is not None and _is_block(found[1])
        if found is not None and blocked:
            left = [other for other in _apart(found[1][1:]) if other != writer]
            if left:
                self._set_label(db, tag, _TAG_BLOCK + _together(left), found[0])
                return False
        db.execute("DELETE FROM nonces WHERE space = ? AND tag = ?", (self._space, tag))
        return not blocked

    def _label(
        self, db: sqlite3.Connection, tag: str, now: float
    ) -> tuple[float | None, bytes] | None:
        """A tag's nonce or block, and when it ends."""
        found: tuple[float | None, bytes] | None = db.execute(
            "SELECT expires, nonce FROM nonces WHERE space = ? AND tag = ?", (self._space, tag)
        ).fetchone()
        if found is None or (found[0] is not None and now >= found[0]):
            return None
        return found if _is_label(found[1]) else None

    def _set_label(
        self, db: sqlite3.Connection, tag: str, label: bytes, expires: float | None
    ) -> None:
        db.execute(
            "INSERT OR REPLACE INTO nonces (space, tag, expires, nonce) VALUES (?, ?, ?, ?)",
            (self._space, tag, expires, label),
        )

    # -- notes

    @property
    def sender(self) -> bytes:
        """Who the notes say they are from: another in a forked child."""
        if self._process != os.getpid():
            self._sender, self._process = os.urandom(SENDER_BYTES), os.getpid()
        return self._sender

    def tell(self, db: sqlite3.Connection, kind: NoteKind, names: Sequence[str]) -> None:
        """Note for the bus what this transaction invalidates; now and then forget the oldest."""
        sender, now = self.sender, time.monotonic()
        for name in names:
            note = pack(Note(kind, name, sender, now))
            newest = db.execute(
                "INSERT INTO notes (space, note) VALUES (?, ?)", (self._space, note)
            ).lastrowid
            if newest is not None and newest % TRIM_EVERY == 0:
                db.execute("DELETE FROM notes WHERE id <= ?", (newest - self._notes,))

    # -- bounds

    def tend(self, connection: Connection, now: float, weight: int) -> None:
        """After a write of ``weight`` bytes: now and then, and in small steps, take out what has
        expired and, above the bound, what expires first. Blocks and nonces are never evicted."""
        connection.writes += 1
        connection.weight += weight
        if connection.writes < TEND_EVERY and connection.weight < TEND_BYTES:
            return
        connection.writes = connection.weight = 0
        db = connection.db
        for table in ("slots", "records", "nonces"):
            db.execute(
                f"DELETE FROM {table} WHERE rowid IN"
                f" (SELECT rowid FROM {table} WHERE expires <= ? LIMIT {TEND_ROWS})",
                (now,),
            )
        for _ in range(TEND_ROUNDS):
            if _used(db) <= self._max_bytes or not _evict(db):
                return


def _is_label(found: object) -> bool:
    """Whether it is a nonce or a block, and not what damage or another program left there."""
    if not isinstance(found, bytes) or len(found) < TOKEN_BYTES:
        return False
    ids, rest = divmod(len(found) - len(_TAG_BLOCK), TOKEN_BYTES)
    return len(found) == TOKEN_BYTES or (found.startswith(_TAG_BLOCK) and ids > 0 and not rest)


def _is_block(label: bytes) -> bool:
    return len(label) > TOKEN_BYTES


def end(now: float, ttl: float | None) -> float | None:
    return None if ttl is None else now + ttl


def _used(db: sqlite3.Connection) -> int:
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)


def _evict(db: sqlite3.Connection) -> int:
    """Take out some rows of any namespace, those that expire first; how many."""
    gone = 0
    for table, unless in (("slots", f"AND kind < {BLOCK}"), ("records", "")):
        for which in ("expires IS NOT NULL", "expires IS NULL"):
            if gone < TEND_ROWS:
                gone += db.execute(
                    f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table}"
                    f" WHERE {which} {unless} ORDER BY expires LIMIT {TEND_ROWS - gone})"
                ).rowcount
    return gone


def max_bytes_of(query: str) -> int:
    """The bound that a URL's query asks for."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    text = options.pop("max_bytes", str(MAX_BYTES))
    if options:
        raise ConfigurationError(
            f"sqlite URL: unknown option {min(options)!r}; there is only 'max_bytes'"
        )
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"sqlite URL: max_bytes={text!r}; write a number of bytes from 1")
    return int(text)
