"""Puts from where nobody expects them: signal handlers and finalisers, while others put too."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from cachekit import Cache, WriteBack
from cachekit.protocols import Op

SCRIPT = """
import faulthandler, gc, signal, sys, threading, time
from cachekit import Cache, WriteBack

how = sys.argv[1]
rows, last, mine = {}, {}, threading.get_ident()
wb = WriteBack(
    Cache(max_entries=20), key="p:{id}", log="memory", delay=0.01, max_pending=100_000,
    load=lambda id: rows.get(id, 0), sink=lambda ops: rows.update({op.id: op.value for op in ops}),
)
count = 0

def put():
    # Ids that nobody else has; what is accepted last of each must be what is written last.
    global count
    count += 1
    wb.put(-1 - count % 50, count)
    last[-1 - count % 50] = count

inside = False

def handler(*_):
    global inside
    if not inside:
        inside = True
        try:
            put()
        finally:
            inside = False

class Cycle:
    def __init__(self):
        self.me = self
    def __del__(self):
        if threading.get_ident() == mine:
            put()

stop = False

def other():
    n = 0
    while not stop:
        n += 1
        wb.put(n % 50, n)

threading.Thread(target=other, daemon=True).start()
faulthandler.dump_traceback_later(20, exit=True)
if how == "handler":
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
else:
    gc.set_threshold(5, 2, 2)
end, n = time.monotonic() + 1.5, 0
while time.monotonic() < end:
    n += 1
    if how == "finaliser":
        Cycle()
    wb.get(n % 50)
    wb.invalidate(n % 50)
if how == "handler":
    signal.setitimer(signal.ITIMER_REAL, 0)
gc.set_threshold(700, 10, 10)
stop = True
assert count > 100, count
flushed = wb.flush(10)
assert flushed.complete, flushed
wrong = {id: (value, rows.get(id), wb.get(id)) for id, value in last.items()
         if not rows.get(id) == wb.get(id) == value}
assert not wrong, wrong
"""


@pytest.mark.parametrize("how", ["handler", "finaliser"])
def test_a_put_from_inside_the_cache_waits_for_nobody_and_is_written(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", ["put", "put_many", "delete"])
def test_what_was_accepted_inside_the_near_tier_is_written_though_the_queue_is_full(
    verb: str,
) -> None:
    rows: dict[int, Any] = {1: "old"}
    may = threading.Event()

    def sink(ops: Sequence[Op]) -> None:
        may.wait(20)
        rows.update({op.id: op.value for op in ops})

    cache = Cache()
    strategy = WriteBack(
        cache, key="p:{id}", log="memory", sink=sink, load=rows.get, max_pending=2, block=0.0
    )
    calls = {
        "put": lambda: strategy.put(1, "new"),
        "put_many": lambda: strategy.put_many({1: "new"}),
        "delete": lambda: strategy.delete(1),
    }
    strategy.put(2, "a")
    strategy.put(3, "b")
    with cache.parts.near.section:  # as a finaliser that runs there
        calls[verb]()
    expected = None if verb == "delete" else "new"
    assert strategy.get(1) == expected
    may.set()
    flushed = strategy.flush(10)
    assert flushed.complete, flushed
    assert rows == {1: expected, 2: "a", 3: "b"}
    strategy.close()
