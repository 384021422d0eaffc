"""An orderly end on SIGTERM: opt-in, and after whatever handler there was."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from .errors import ConfigurationError


def install_signal_handlers(signals: Iterable[int] = (signal.SIGTERM,)) -> None:
    """Let these signals end the process as ``sys.exit(128 + number)`` does, so that what was
    acknowledged is flushed at the interpreter's exit.

    A handler that was there is called in place of that: it decides when the process ends, and the
    flush follows it then. A signal that was ignored stays so. Calling it twice is fine. From the
    main thread only (ConfigurationError elsewhere). Nothing is flushed inside a handler: it may
    have interrupted a flush."""
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError("signal handlers can only be installed from the main thread")
    for number in signals:
        before = signal.getsignal(number)
        if before is signal.SIG_IGN or isinstance(before, _Handler):
            continue
        signal.signal(number, _Handler(before))


class _Handler:
    """Called by the interpreter, in the main thread, between two steps of it."""

    def __init__(self, before: Callable[[int, FrameType | None], Any] | int | None) -> None:
        self._before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if callable(self._before):
            self._before(number, frame)
        else:
            sys.exit(128 + number)
