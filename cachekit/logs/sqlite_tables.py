"""The rows of write-back queues in a SQLite file: every function is a step of one transaction.

A queue has a number; its operations, dead letters and settled keys have the row ids from
``number << BITS`` on, the low bits being the version, or the mark: how many keys were settled
up to then, from 1 on. What one step settled is one row, its keys in JSON. An operation carries the
totals its queue had accepted with it, and the queue's row what had left: their difference is the
depth, read from two rows however long the queue is.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..core.ops import OpKind
from ..protocols.log import Bounds, Look, Record, Standing

MARK = 0x636B6C67  # application_id: "cklg"
VERSION = 1  # of these tables
BITS = 44
LOW = (1 << BITS) - 1
SETTLED = 10_000  # settled keys that stay known, per queue

TABLES = """
CREATE TABLE IF NOT EXISTS queues (
    no INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, identity TEXT NOT NULL,
    newest INTEGER NOT NULL DEFAULT 0,
    ops INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL DEFAULT 0,
    gone INTEGER NOT NULL DEFAULT 0, gone_size INTEGER NOT NULL DEFAULT 0,
    mark INTEGER NOT NULL DEFAULT 1, kept INTEGER NOT NULL DEFAULT 1,
    epoch INTEGER NOT NULL DEFAULT 0, owner BLOB, until REAL NOT NULL DEFAULT 0,
    boot TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS ops (
    id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, key TEXT NOT NULL, kind INTEGER NOT NULL,
    at REAL NOT NULL, size INTEGER NOT NULL, ops INTEGER NOT NULL, total INTEGER NOT NULL,
    revived INTEGER NOT NULL DEFAULT 0, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS ops_by_key ON ops (queue, key);
CREATE INDEX IF NOT EXISTS ops_revived ON ops (queue, at) WHERE revived = 1;
CREATE TABLE IF NOT EXISTS settled (id INTEGER PRIMARY KEY, keys TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS dead (
    id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, key TEXT NOT NULL, kind INTEGER NOT NULL,
    at REAL NOT NULL, error TEXT NOT NULL, attempts INTEGER NOT NULL, parked REAL NOT NULL,
    outdated INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS dead_by_key ON dead (queue, outdated, key)
"""
TEMPORARY = "CREATE TEMP TABLE leaving (key TEXT NOT NULL, id INTEGER NOT NULL)"

_record = tuple.__new__  # what Record itself does, without the call in between
KINDS = (OpKind.PUT, OpKind.DELETE)

# Refuses by itself (no row) where anything has left since the totals were read; where anything
# came, the row id is taken.
_APPEND_NEXT = """
INSERT INTO ops (id, queue, key, kind, at, size, ops, total, data)
SELECT ?, no, ?, ?, ?, ?, ?, ?, ? FROM queues WHERE no = ? AND gone = ?
"""
_APPEND = """
INSERT INTO ops (id, queue, key, kind, at, size, ops, total, revived, data)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_TOTALS = """
SELECT q.no, q.newest, q.ops, q.size, q.gone, q.gone_size, o.id, o.ops, o.total
FROM queues q LEFT JOIN ops o
    ON o.id = (SELECT max(id) FROM ops WHERE id > q.no << 44 AND id < (q.no + 1) << 44)
WHERE q.name = ?
"""
_LOOK_ONE = """
SELECT q.mark, o.id, o.kind, o.data, o.at
FROM queues q LEFT JOIN ops o
    ON o.id = (SELECT max(id) FROM ops WHERE queue = q.no AND key = ?)
WHERE q.name = ?
"""
_NEWEST_OF_KEY = """
SELECT id, kind, data, at FROM ops
WHERE id = (SELECT max(id) FROM ops WHERE queue = ? AND key = ?)
"""


class Totals(NamedTuple):
    """Where a queue stands: what it has accepted ever, and what of it has left."""

    no: int
    newest: int
    ops: int
    size: int
    gone: int
    gone_size: int

    @property
    def depth(self) -> int:
        return self.ops - self.gone

    @property
    def held(self) -> int:
        return self.size - self.gone_size

    def with_one(self, size: int) -> Totals:
        no, newest, ops, total, gone, gone_size = self
        return Totals(no, newest + 1, ops + 1, total + size, gone, gone_size)

    def has_room(self, size: int, bounds: Bounds) -> bool:
        return (
            self.ops - self.gone < bounds.operations
            and self.size - self.gone_size + size <= bounds.size
        )


def number_of(kind: OpKind) -> int:
    return 1 if kind is OpKind.DELETE else 0


def size_of(record: Record) -> int:
    key = record.key
    return (len(key) if key.isascii() else len(key.encode())) + len(record.data)


def totals(db: sqlite3.Connection, queue: str) -> Totals | None:
    for no, newest, ops, size, gone, gone_size, last, last_ops, last_size in db.execute(
        _TOTALS, (queue,)
    ).fetchall():
        if last is not None and last & LOW > newest:
            newest, ops, size = last & LOW, last_ops, last_size
        return Totals(no, newest, ops, size, gone, gone_size)
    return None


def made(db: sqlite3.Connection, queue: str) -> Totals:
    """The same; the queue is begun if it is not there."""
    found = totals(db, queue)
    if found is None:
        row = (queue, os.urandom(8).hex())
        cursor = db.execute("INSERT INTO queues (name, identity) VALUES (?, ?)", row)
        found = Totals(cursor.lastrowid or 0, 0, 0, 0, 0, 0)
    return found


def append_next(
    db: sqlite3.Connection, at: Totals, record: Record, bounds: Bounds, now: float
) -> Totals | None:
    """One operation in a transaction of its own; None: there was no room when the totals were
    read, or they are not the present ones."""
    key, kind, data, _, when = record
    size = (len(key) if key.isascii() else len(key.encode())) + len(data)
    no, newest, ops, total, gone, gone_size = at
    newest, ops, total = newest + 1, ops + 1, total + size
    if ops - gone > bounds.operations or total - gone_size > bounds.size:
        return None
    number = 1 if kind is OpKind.DELETE else 0
    row = (no << BITS | newest, key, number, when or now, size, ops, total, data, no, gone)
    try:
        if db.execute(_APPEND_NEXT, row).rowcount == 1:
            return Totals(no, newest, ops, total, gone, gone_size)
    except sqlite3.IntegrityError:
        pass  # the row id is taken
    return None


def append(
    db: sqlite3.Connection,
    at: Totals,
    records: Sequence[Record],
    bounds: Bounds | None,
    now: float,
    *,
    revived: bool = False,
) -> tuple[list[int | None], Totals]:
    """As many as there is room for; with ``bounds`` None all of them."""
    rows: list[tuple[Any, ...]] = []
    versions: list[int | None] = []
    for record in records:
        size = size_of(record)
        if bounds is not None and not at.has_room(size, bounds):
            break
        at = at.with_one(size)
        rows.append(
            (
                at.no << BITS | at.newest,
                at.no,
                record.key,
                number_of(record.kind),
                record.at or now,
                size,
                at.ops,
                at.size,
                revived,
                record.data,
            )
        )
        versions.append(at.newest)
    db.executemany(_APPEND, rows)
    versions.extend([None] * (len(records) - len(versions)))
    return versions, at


def look(db: sqlite3.Connection, queue: str, keys: Sequence[str], since: int) -> Look:
    if len(keys) == 1:
        (key,) = keys
        # A single statement: a snapshot without a transaction of its own.
        found = db.execute(_LOOK_ONE, (key, queue)).fetchall()
        if not found:
            return Look([None], () if since <= 1 else None, 1)
        mark, id, kind, data, at = found[0]
        if since == mark or not since:
            pending = None if id is None else Record(key, KINDS[kind], data, id & LOW, at)
            return Look([pending], (), mark)
    db.execute("BEGIN")
    answer = _look_many(db, queue, keys, since)
    db.execute("COMMIT")
    return answer


def _look_many(db: sqlite3.Connection, queue: str, keys: Sequence[str], since: int) -> Look:
    row = db.execute("SELECT no, mark, kept FROM queues WHERE name = ?", (queue,)).fetchone()
    if row is None:
        return Look([None] * len(keys), () if since <= 1 else None, 1)
    no, mark, kept = row
    pending: list[Record | None] = []
    for key in keys:
        found = db.execute(_NEWEST_OF_KEY, (no, key)).fetchall()
        if not found:
            pending.append(None)
            continue
        id, kind, data, at = found[0]
        pending.append(Record(key, KINDS[kind], data, id & LOW, at))
    settled: Sequence[str] | None = ()
    if since and not kept <= since <= mark:
        settled = None
    elif since:
        rows = db.execute(
            "SELECT keys FROM settled WHERE id > ? AND id <= ?",
            (no << BITS | since, no << BITS | mark),
        )
        settled = list(dict.fromkeys(key for (keys,) in rows for key in json.loads(keys)))
    return Look(pending, settled, mark)


def read(db: sqlite3.Connection, queue: str, after: int, limit: int) -> list[Record]:
    rows = db.execute(
        "SELECT o.key, o.kind, o.data, o.id, o.at FROM queues q CROSS JOIN ops o"
        " ON o.id > (q.no << 44 | ?) AND o.id < (q.no + 1) << 44"
        " WHERE q.name = ? ORDER BY o.id LIMIT ?",
        (min(max(after, 0), LOW), queue, limit),
    )
    return [
        _record(Record, (key, KINDS[kind], data, id & LOW, at)) for key, kind, data, id, at in rows
    ]


def standing(db: sqlite3.Connection, queue: str) -> Standing:
    at = totals(db, queue)
    if at is None:
        return Standing(newest=(0,))
    first, end = at.no << BITS, (at.no + 1) << BITS
    # The first one is the oldest, but for those that were accepted once before.
    oldest = db.execute(
        "SELECT min(at) FROM (SELECT * FROM"
        " (SELECT at FROM ops WHERE id > ? AND id < ? ORDER BY id LIMIT 1)"
        " UNION ALL SELECT min(at) FROM ops WHERE queue = ? AND revived = 1)",
        (first, end, at.no),
    ).fetchone()[0]
    dead = db.execute("SELECT count(*) FROM dead WHERE queue = ?", (at.no,)).fetchone()[0]
    return Standing(at.depth, at.held, oldest, (at.newest,), dead)


def left(db: sqlite3.Connection, queue: str, upto: int) -> int:
    at = totals(db, queue)
    if at is None:
        return 0
    if at.newest <= upto:
        return at.depth
    count = "SELECT count(*) FROM ops WHERE queue = ? AND id <= ?"
    found: int = db.execute(count, (at.no, at.no << BITS | max(0, upto))).fetchone()[0]
    return found


def identity(db: sqlite3.Connection, queue: str) -> str | None:
    row = db.execute("SELECT identity FROM queues WHERE name = ?", (queue,)).fetchone()
    return row and str(row[0])


def made_identity(db: sqlite3.Connection, queue: str) -> str:
    made(db, queue)
    return identity(db, queue) or ""


def queues(db: sqlite3.Connection) -> list[str]:
    return [name for (name,) in db.execute("SELECT name FROM queues ORDER BY no")]
