"""Starting threads."""

from __future__ import annotations

import sys
import threading


def begin(thread: threading.Thread) -> bool:
    """Start it. False: none starts any more, for the interpreter ends or there are too many.

    ``Thread.start`` waits for the thread's first step, and an exception out of a signal handler
    that comes there can turn into a RuntimeError, which looks like those two: it is raised."""
    outer = sys.exception()
    try:
        thread.start()
    except RuntimeError as error:
        if (cause := error.__context__) is not None and cause is not outer:
            raise cause from None
        return False
    return True
