"""What a process holds: threads, descriptors and objects of cachekit."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter


def census() -> Counter[str]:
    gc.collect()
    return Counter(
        f"{type(o).__module__}.{type(o).__qualname__}"
        for o in gc.get_objects()
        if type(o).__module__.partition(".")[0] == "cachekit"
    )


def sizes() -> tuple[int, int]:
    """Threads and descriptors. The backends' pool is bounded by itself, and takes a new thread
    whenever the last one is not idle yet: it is not counted."""
    threads = [t for t in threading.enumerate() if not t.name.startswith("cachekit_")]
    return len(threads), len(os.listdir("/proc/self/fd"))


def settled(threads: int, descriptors: int, seconds: float = 5.0) -> tuple[int, int]:
    """Threads and descriptors once they are no more than these, or after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        gc.collect()
        found = sizes()
        if found[0] <= threads and found[1] <= descriptors:
            break
        time.sleep(0.02)
    return found
