"""An exception at each place where a signal handler may raise one.

CPython runs handlers in the main thread, after calls and jumps back. A trace function raises in
their place after the given number of them, so that a test meets every single one in turn.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

_PACKAGE: Final = str(Path(__file__).parent.parent)
_HANDLERS_RUN_AFTER: Final = frozenset({
    "CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME", "RESUME_CHECK",
    "POP_JUMP_BACKWARD_IF_FALSE", "POP_JUMP_BACKWARD_IF_TRUE", "POP_JUMP_BACKWARD_IF_NONE",
    "POP_JUMP_BACKWARD_IF_NOT_NONE",
})  # fmt: skip


class Interrupted(BaseException):
    """What is raised."""


def interrupt_after(steps: int, call: Callable[[], Any], *, within: str = _PACKAGE) -> bool:
    """Raise in ``call`` after so many places within a folder's code (default: this package's).
    Whether it was interrupted; False: it was over before."""
    left = steps

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(within):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        code, last = frame.f_code.co_code, "RESUME"

        def step(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal left, last
            if event == "opcode":
                ran, last = last, dis.opname[code[frame.f_lasti]]
                left -= ran in _HANDLERS_RUN_AFTER
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
