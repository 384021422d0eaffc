"""An exception at each place where a signal handler may raise one.

CPython runs handlers in the main thread, after calls and jumps back. A trace function raises in
their place after the given number of them, so that a test meets every single one in turn. It
raises one instruction later than a handler does, so those places are left out where another handler
of exceptions, or none, has the next instruction: the end of a ``with`` body by ``return``, say.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

_PACKAGE: Final = str(Path(__file__).parent.parent)
_HANDLERS_RUN_AFTER: Final = frozenset({
    "CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME", "RESUME_CHECK",
    "POP_JUMP_BACKWARD_IF_FALSE", "POP_JUMP_BACKWARD_IF_TRUE", "POP_JUMP_BACKWARD_IF_NONE",
    "POP_JUMP_BACKWARD_IF_NOT_NONE",
})  # fmt: skip


class Interrupted(BaseException):
    """What is raised."""


def interrupt_after(
    steps: int, call: Callable[[], Any], *, within: str | tuple[str, ...] = _PACKAGE
) -> bool:
    """Raise in ``call`` after so many places within the code of files and folders (default: this
    package's). Whether it was interrupted; False: it was over before."""
    left = steps

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(within):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        code, last, before = frame.f_code.co_code, "RESUME", 0

        def step(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal left, last, before
            if event == "opcode":
                at = frame.f_lasti
                ran, last = last, dis.opname[code[at]]
                if ran in _HANDLERS_RUN_AFTER and _caught(frame, before) == _caught(frame, at):
                    left -= 1
                before = at
                if left == 0:
                    sys.settrace(None)
                    raise Interrupted
            return step

        return step

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    except Interrupted:
        return True
    finally:
        sys.settrace(before)
    return False


def _caught(frame: FrameType, at: int) -> int | None:
    """Where the exception of an instruction is handled within its frame."""
    for start, end, target, *_ in _table(frame.f_code):
        if start <= at < end:
            return target
    return None


@functools.cache
def _table(code: CodeType) -> Sequence[tuple[int, ...]]:
    return dis._parse_exception_table(code)  # type: ignore[attr-defined, no-any-return]  # private
