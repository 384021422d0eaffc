"""Write-back over a durable log: a writer is killed with -9, and what it acknowledged arrives."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cachekit
from cachekit.sinks import DBAPISink


def orders_of(cache: cachekit.Cache, folder: Path) -> cachekit.WriteBack:
    """What every process of this shop has: the source, the log, and a strategy over both."""
    source = str(folder / "shop.db")

    def load(id: int) -> dict[str, Any] | None:
        with contextlib.closing(sqlite3.connect(source, timeout=5)) as db:
            row = db.execute("SELECT total FROM orders WHERE id = ?", (id,)).fetchone()
        return {"total": row[0]} if row else None

    return cachekit.WriteBack(
        cache,
        key="order:{id}",
        load=load,
        sink=DBAPISink(source, table="orders", key="id", columns=["total"]),
        log=f"sqlite:///{folder}/orders.log",
        batch=10_000,
        delay="1h",  # so that all of it waits when the writer is killed
        lease="1s",  # the next owner waits so long for one that died
    )


def write(folder: Path) -> None:
    """Put until killed; tell each put once it is acknowledged."""
    with cachekit.Cache() as cache:
        orders, id = orders_of(cache, folder), 0
        while True:
            id += 1
            orders.put(id, {"total": id * 10})
            os.write(1, b"%d\n" % id)


def rows(folder: Path) -> int:
    with contextlib.closing(sqlite3.connect(folder / "shop.db", timeout=5)) as db:
        return int(db.execute("SELECT count(*) FROM orders").fetchone()[0])


def main() -> None:
    with tempfile.TemporaryDirectory() as name, cachekit.Cache() as cache:
        folder = Path(name)
        with contextlib.closing(sqlite3.connect(folder / "shop.db")) as db:
            db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, total INTEGER)")
        writer = [sys.executable, __file__, name]
        with subprocess.Popen(writer, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            acknowledged = [int(next(child.stdout)) for _ in range(1000)]
            child.kill()
            acknowledged += [int(line) for line in child.stdout if line.endswith("\n")]
        last = acknowledged[-1]
        orders = orders_of(cache, folder)
        waiting = orders.standing()[0].depth
        print(f"killed after {last} acknowledged puts: {rows(folder)} rows, {waiting} in the log")
        print("the last one, read after the kill:", orders.get(last))
        print("flushed:", orders.flush(timeout=20).complete)
        lost = [id for id in acknowledged if (orders.get(id) or {}).get("total") != id * 10]
        print(f"rows now: {rows(folder)}; acknowledged puts lost: {len(lost)}")


if __name__ == "__main__":
    write(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
