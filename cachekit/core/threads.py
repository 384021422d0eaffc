"""Threads: to begin them, and to have their answers."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from .eventcount import Flag

T = TypeVar("T")


def begin(thread: threading.Thread, undo: Callable[[], object] | None = None) -> bool:
    """Start it. False: none starts any more, for the interpreter ends or there are too many.

    ``Thread.start`` waits for the thread's first step, and an exception out of a signal handler
    that comes there can turn into a RuntimeError, which looks like those two: it is raised. The
    thread may then run, or hang before its first step for ever. ``undo`` is called before anything
    else than True comes out: what says that the thread runs must not stay."""
    outer, began = sys.exception(), False
    try:
        thread.start()
        began = True
    except RuntimeError as error:
        if (cause := error.__context__) is not None and cause is not outer:
            raise cause from None
    finally:
        if not began and undo is not None:
            undo()
    return began


class Errand(Generic[T]):
    """An answer that others wait for. Not a Future: what its callers hold while they
    begin to wait, an exception out of a signal handler could leave held."""

    def __init__(self) -> None:
        self._landed = Flag()
        self._answer: T | None = None
        self._error: BaseException | None = None

    def run(self, work: Callable[[], T]) -> None:
        try:
            self._answer = work()
        except BaseException as error:  # belongs to whoever waits
            self._error = error
        finally:
            self._landed.set()

    def wait(self, seconds: float) -> None:
        self._landed.wait(seconds)

    def done(self) -> bool:
        return self._landed.is_set

    def cancelled(self) -> bool:
        return False

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return cast(T, self._answer)
