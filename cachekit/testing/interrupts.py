"""An exception at each place where a signal handler may raise one.

CPython runs handlers in the main thread, after calls and jumps back. A trace function raises in
their place after the given number of them, so that a test meets every single one in turn. It
raises one instruction later than a handler does, so those places are left out where another handler
of exceptions, or none, has the next instruction: the end of a ``with`` body by ``return``, say.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

_PACKAGE: Final = str(Path(__file__).parent.parent)
_HANDLERS_RUN_AFTER: Final = frozenset({
    "CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME", "RESUME_CHECK",
    "POP_JUMP_BACKWARD_IF_FALSE", "POP_JUMP_BACKWARD_IF_TRUE", "POP_JUMP_BACKWARD_IF_NONE",
    "POP_JUMP_BACKWARD_IF_NOT_NONE",
})  # fmt: skip
_BEGINNINGS: Final = frozenset({"RESUME", "COPY_FREE_VARS", "MAKE_CELL", "RETURN_GENERATOR"})
_TOOL: Final = 4  # of sys.monitoring's, which nobody else claims


class Interrupted(BaseException):
    """What is raised."""


def interrupt_after(
    steps: int, call: Callable[[], Any], *, within: str | tuple[str, ...] = _PACKAGE
) -> bool:
    """Raise in ``call`` after so many places within the code of files and folders (default: this
    package's). Whether it was interrupted; False: it was over before."""
    try:
        with _watched(_Watch(steps, within)):
            call()
    except Interrupted:
        return True
    return False


class _Watch:
    """Looks at one instruction after the other, just before it runs."""

    def __init__(self, steps: int, within: str | tuple[str, ...]) -> None:
        self.within = within
        self._left = steps
        self._last: dict[int, tuple[str, int]] = {}  # by frame: what ran, and where

    def begin(self, frame: FrameType) -> None:
        self._last[id(frame)] = "RESUME", 0

    def look(self, frame: FrameType, at: int) -> None:
        name = dis.opname[frame.f_code.co_code[at]]
        ran, before = self._last.get(id(frame), ("", 0))
        self._last[id(frame)] = name, at
        # A frame may have the address of an earlier one.
        if name in _BEGINNINGS or ran not in _HANDLERS_RUN_AFTER:
            return
        if _caught(frame, before) == _caught(frame, at):
            self._left -= 1
            if not self._left:
                raise Interrupted


if sys.version_info >= (3, 12):

    @contextlib.contextmanager
    def _watched(watch: _Watch) -> Iterator[None]:
        """Settrace misses instructions there before 3.13.1."""
        monitoring, thread = sys.monitoring, threading.get_ident()

        def look(code: CodeType, at: int) -> None:
            if threading.get_ident() == thread and code.co_filename.startswith(watch.within):
                try:
                    watch.look(sys._getframe(1), at)
                except Interrupted:
                    monitoring.set_events(_TOOL, 0)
                    raise

        monitoring.use_tool_id(_TOOL, "interrupts")
        try:
            monitoring.register_callback(_TOOL, monitoring.events.INSTRUCTION, look)
            monitoring.set_events(_TOOL, monitoring.events.INSTRUCTION)
            yield
        finally:
            monitoring.set_events(_TOOL, 0)
            monitoring.free_tool_id(_TOOL)

else:

    @contextlib.contextmanager
    def _watched(watch: _Watch) -> Iterator[None]:
        def enter(frame: FrameType, event: str, arg: Any) -> Any:
            if not frame.f_code.co_filename.startswith(watch.within):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            watch.begin(frame)
            return step

        def step(frame: FrameType, event: str, arg: Any) -> Any:
            if event == "opcode":
                try:
                    watch.look(frame, frame.f_lasti)
                except Interrupted:
                    sys.settrace(None)
                    raise
            return step

        before = sys.gettrace()
        sys.settrace(enter)
        try:
            yield
        finally:
            sys.settrace(before)


def _caught(frame: FrameType, at: int) -> int | None:
    """Where the exception of an instruction is handled within its frame."""
    for start, end, target, *_ in _table(frame.f_code):
        if start <= at < end:
            return target
    return None


@functools.cache
def _table(code: CodeType) -> Sequence[tuple[int, ...]]:
    return dis._parse_exception_table(code)  # type: ignore[attr-defined, no-any-return]  # private
