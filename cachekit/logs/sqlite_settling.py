"""The owner of a write-back queue in a SQLite file, what settling takes out, dead letters.

Every function is a step of one transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence

from ..protocols.log import Letter, Record
from .sqlite_tables import BITS, KINDS, LOW, SETTLED, Totals, append, made, number_of, totals

_LEAVING = """
SELECT o.id, o.key, o.size FROM temp.leaving l CROSS JOIN ops o
ON o.queue = ? AND o.key = l.key AND o.id <= l.id
"""
_SEPARATOR = "\0"
_OLDEST = """
SELECT count(*), sum(size), group_concat(key, char(0))
FROM (SELECT id, size, key FROM ops WHERE id > ? AND id <= ? ORDER BY id LIMIT ?)
"""


# -- the owner


def is_taken(db: sqlite3.Connection, queue: str, owner: bytes, now: float, boot: str) -> bool:
    """Whether another's lease runs."""
    row = db.execute(
        "SELECT 1 FROM queues WHERE name = ? AND owner IS NOT NULL AND owner != ?"
        " AND boot = ? AND until > ?",
        (queue, owner, boot, now),
    )
    return bool(row.fetchall())


def claim(
    db: sqlite3.Connection,
    queue: str,
    owner: bytes,
    lease: float,
    beyond: int,
    now: float,
    boot: str,
) -> int | None:
    if is_taken(db, queue, owner, now, boot):
        return None
    at = made(db, queue)
    last = db.execute("SELECT epoch FROM queues WHERE no = ?", (at.no,)).fetchone()[0]
    epoch: int = max(last, beyond) + 1
    db.execute(
        "UPDATE queues SET epoch = ?, owner = ?, until = ?, boot = ? WHERE no = ?",
        (epoch, owner, now + lease, boot, at.no),
    )
    return epoch


def renew(
    db: sqlite3.Connection, queue: str, owner: bytes, epoch: int, until: float, boot: str
) -> bool:
    changed = db.execute(
        "UPDATE queues SET until = ?, boot = ? WHERE name = ? AND owner = ? AND epoch = ?",
        (until, boot, queue, owner, epoch),
    )
    return changed.rowcount > 0


def release(db: sqlite3.Connection, queue: str, owner: bytes, epoch: int) -> None:
    db.execute(
        "UPDATE queues SET owner = NULL, until = 0 WHERE name = ? AND owner = ? AND epoch = ?",
        (queue, owner, epoch),
    )


# -- settling


def settle(
    db: sqlite3.Connection,
    queue: str,
    epoch: int,
    done: Sequence[tuple[str, int]],
    letters: Sequence[Letter],
    now: float,
) -> bool:
    row = db.execute("SELECT epoch, mark, kept FROM queues WHERE name = ?", (queue,)).fetchone()
    at = totals(db, queue)
    if row is None or at is None or row[0] != epoch:
        return False
    base = at.no << BITS
    if not letters and (size := _size_of_oldest(db, base, done)) is not None:
        _outdate(db, at.no, done)
        db.execute("DELETE FROM ops WHERE id > ? AND id <= ?", (base, base | done[-1][1]))
        _count(db, at, row[1:], len(done), size, [key for key, _ in done])
        return True
    upto = [*done, *((letter.record.key, letter.record.version) for letter in letters)]
    db.executemany(
        "INSERT INTO temp.leaving (key, id) VALUES (?, ?)",
        [(key, base | min(version, LOW)) for key, version in upto],
    )
    leaving = {id: (key, size) for id, key, size in db.execute(_LEAVING, (at.no,))}
    db.execute("DELETE FROM temp.leaving")
    _park(db, at.no, [one for one in letters if base | one.record.version in leaving], now)
    _outdate(db, at.no, upto)
    if not leaving:
        return True
    ids = sorted(leaving)
    if ids[-1] - ids[0] == len(ids) - 1:
        db.execute("DELETE FROM ops WHERE id BETWEEN ? AND ?", (ids[0], ids[-1]))
    else:
        db.executemany("DELETE FROM ops WHERE id = ?", [(id,) for id in ids])
    keys = dict.fromkeys(key for key, _ in leaving.values())
    _count(db, at, row[1:], len(ids), sum(size for _, size in leaving.values()), keys)
    return True


def _size_of_oldest(
    db: sqlite3.Connection, base: int, done: Sequence[tuple[str, int]]
) -> int | None:
    """The size of the oldest operations in the log, if these are just those that are done, as
    they are where keys do not repeat: then nothing older of a key can be there."""
    if not done:
        return None
    keys, versions = zip(*done, strict=True)
    first, count = versions[0], len(versions)
    if not 0 < first < LOW - count or versions != tuple(range(first, first + count)):
        return None
    found, size, names = db.execute(_OLDEST, (base, base | versions[-1], count + 1)).fetchone()
    # By key: an owner of a file that was deleted may come late, to one begun anew.
    if found != count or names != _SEPARATOR.join(keys):
        return None
    return int(size)


def _count(
    db: sqlite3.Connection,
    at: Totals,
    told: tuple[int, int],
    count: int,
    size: int,
    keys: Collection[str],
) -> None:
    """Note that so many operations, of so many bytes, have left."""
    mark, kept = _tell(db, at.no, *told, keys)
    db.execute(
        "UPDATE queues SET newest = ?, ops = ?, size = ?, gone = ?, gone_size = ?,"
        " mark = ?, kept = ? WHERE no = ?",
        (at.newest, at.ops, at.size, at.gone + count, at.gone_size + size, mark, kept, at.no),
    )


def _park(db: sqlite3.Connection, no: int, letters: Sequence[Letter], now: float) -> None:
    """Only what is in the log: a step done twice brings no letter back that was revived."""
    db.executemany(
        "INSERT OR REPLACE INTO dead"
        " (id, queue, key, kind, at, error, attempts, parked, outdated, data)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                no << BITS | letter.record.version,
                no,
                letter.record.key,
                number_of(letter.record.kind),
                letter.record.at,
                letter.error,
                letter.attempts,
                letter.parked or now,
                letter.outdated,
                letter.record.data,
            )
            for letter in letters
        ],
    )


def _outdate(db: sqlite3.Connection, no: int, upto: Sequence[tuple[str, int]]) -> None:
    live = "SELECT 1 FROM dead WHERE queue = ? AND outdated = 0 LIMIT 1"
    if db.execute(live, (no,)).fetchall():
        db.executemany(
            "UPDATE dead SET outdated = 1 WHERE queue = ? AND outdated = 0 AND key = ? AND id < ?",
            [(no, key, (no << BITS) + min(version, LOW + 1)) for key, version in upto],
        )


def _tell(
    db: sqlite3.Connection, no: int, mark: int, kept: int, keys: Collection[str]
) -> tuple[int, int]:
    """Note settled keys; the new mark, and the oldest one from which everything is known."""
    base = no << BITS
    mark += len(keys)
    db.execute("INSERT INTO settled (id, keys) VALUES (?, ?)", (base | mark, json.dumps([*keys])))
    # The newest row stays, whatever its length: what is told is at least the last step.
    old = (base, base | max(0, mark - SETTLED), base | mark)
    last = db.execute(
        "SELECT max(id) FROM settled WHERE id > ? AND id <= ? AND id < ?", old
    ).fetchone()[0]
    if last is None:
        return mark, kept
    db.execute("DELETE FROM settled WHERE id > ? AND id <= ?", (base, last))
    return mark, last & LOW


# -- dead letters


def letters(db: sqlite3.Connection, queue: str, after: int, limit: int) -> list[Letter]:
    rows = db.execute(
        "SELECT d.key, d.kind, d.data, d.id, d.at, d.error, d.attempts, d.parked, d.outdated"
        " FROM queues q CROSS JOIN dead d"
        " ON d.id > (q.no << 44 | ?) AND d.id < (q.no + 1) << 44"
        " WHERE q.name = ? ORDER BY d.id LIMIT ?",
        (min(max(after, 0), LOW), queue, limit),
    )
    return [
        Letter(Record(key, KINDS[kind], data, id & LOW, at), error, attempts, parked, bool(old))
        for key, kind, data, id, at, error, attempts, parked, old in rows
    ]


def revive(
    db: sqlite3.Connection, queue: str, versions: Sequence[int], force: bool, now: float
) -> list[int]:
    at = totals(db, queue)
    if at is None:
        return []
    revived = []
    for version in versions:
        row = None
        if 0 < version <= LOW:
            row = db.execute(
                "SELECT key, kind, data, at, outdated FROM dead WHERE id = ?",
                (at.no << BITS | version,),
            ).fetchone()
        if row is None or (not force and (row[4] or _is_waiting(db, at.no, row[0]))):
            continue
        key, kind, data, when, _ = row
        _, at = append(db, at, [Record(key, KINDS[kind], data, at=when)], None, now, revived=True)
        _forget(db, at.no, [version])
        revived.append(version)
    return revived


def _is_waiting(db: sqlite3.Connection, no: int, key: str) -> bool:
    found = db.execute("SELECT 1 FROM ops WHERE queue = ? AND key = ? LIMIT 1", (no, key))
    return bool(found.fetchall())


def letters_of(db: sqlite3.Connection, queue: str, keys: Sequence[str]) -> list[str]:
    """Of these keys those that have a letter that is not outdated."""
    at = totals(db, queue)
    live = "SELECT 1 FROM dead WHERE queue = ? AND outdated = 0 AND key = ? LIMIT 1"
    return [] if at is None else [k for k in keys if db.execute(live, (at.no, k)).fetchall()]


def outdate(db: sqlite3.Connection, queue: str, keys: Sequence[str]) -> None:
    at = totals(db, queue)
    if at is not None:
        _outdate(db, at.no, [(key, LOW + 1) for key in keys])


def drop(db: sqlite3.Connection, queue: str, versions: Sequence[int]) -> list[int]:
    at = totals(db, queue)
    return [] if at is None else _forget(db, at.no, versions)


def _forget(db: sqlite3.Connection, no: int, versions: Sequence[int]) -> list[int]:
    statement = "DELETE FROM dead WHERE id = ?"
    ids = dict.fromkeys(version for version in versions if 0 < version <= LOW)
    return [one for one in ids if db.execute(statement, (no << BITS | one,)).rowcount]
