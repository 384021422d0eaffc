"""An exception out of a signal handler, wherever it comes, leaves no flight that others wait for.

Handlers run in the main thread, after calls and jumps back. Here a trace function raises in their
place, after every single one in turn, so that each place is met once.
"""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import cachekit
from cachekit import Cache, ReadThrough, WriteBack

PACKAGE = str(Path(cachekit.__file__).parent)
STEPS = 20_000
# Where the interpreter looks for signals.
HANDLERS_RUN_AFTER = {
    "CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME", "RESUME_CHECK",
    "POP_JUMP_BACKWARD_IF_FALSE", "POP_JUMP_BACKWARD_IF_TRUE", "POP_JUMP_BACKWARD_IF_NONE",
    "POP_JUMP_BACKWARD_IF_NOT_NONE",
}  # fmt: skip


class Interrupted(BaseException):
    pass


def interrupt_after(steps: int, call: Callable[[], Any]) -> bool:
    """Whether ``call`` was interrupted; False: it was over before."""
    left = steps

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        code, last = frame.f_code.co_code, "RESUME"

        def step(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal left, last
            if event == "opcode":
                ran, last = last, dis.opname[code[frame.f_lasti]]
                left -= ran in HANDLERS_RUN_AFTER
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


def reads_of(cache: Cache) -> dict[str, tuple[Callable[[int], Any], Callable[[int], Any]]]:
    """The call that is interrupted, and the read that must still answer, by name."""
    through = ReadThrough(cache, key="through:{id}", load=lambda id: f"row {id}")
    many = ReadThrough(
        cache, key="many:{id}", load_many=lambda ids: {id: f"row {id}" for id in ids}
    )
    back = WriteBack(
        cache, key="back:{id}", load=lambda id: f"row {id}", sink=lambda ops: None, log="memory"
    )

    @cache.cached
    def load(id: int) -> str:
        return f"row {id}"

    def direct(id: int) -> Any:
        return cache.get_or_set(f"direct:{id}", lambda: f"row {id}")

    return {
        "decorated": (load, load),
        "refresh": (load.refresh, load),
        "strategy": (through.get, through.get),
        "write-back": (back.get, back.get),
        "batch": (lambda id: many.get_many([id, id + 1]), many.get),
        "get_or_set": (direct, direct),
        "set": (lambda id: cache.set(f"direct:{id}", f"row {id}"), direct),
        "get_many": (lambda id: cache.get_many([f"direct:{id}"]), direct),
    }


NAMES = sorted(reads_of(Cache()))


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_call_leaves_no_flight_behind(name: str) -> None:
    with Cache() as cache:
        call, read = reads_of(cache)[name]
        flights = cache.parts.runtime.threads.flights
        left: list[int] = []
        for steps in range(1, STEPS):
            id = 10 * steps
            if not interrupt_after(steps, lambda id=id: call(id)):
                break
            if len(flights):
                left.append(steps)
                flights._flights.clear()
            else:
                assert read(id) == f"row {id}"  # no reentry, no wait
        else:
            raise AssertionError(f"it takes more than {STEPS} steps")
        assert steps > 10  # it was interrupted somewhere
        assert left == []


def test_whoever_joined_an_interrupted_load_goes_on_alone() -> None:
    with Cache() as cache:
        gate, begun = threading.Event(), threading.Event()
        loads: list[int] = []

        @cache.cached
        def load(id: int) -> str:
            loads.append(id)
            if len(loads) == 1:
                begun.set()
                gate.wait(10)
                raise Interrupted
            return "row"

        def lead() -> None:
            with pytest.raises(Interrupted):
                load(1)

        answers: list[str] = []
        leader = threading.Thread(target=lead)
        joiner = threading.Thread(target=lambda: answers.append(load(1)))
        leader.start()
        assert begun.wait(10)
        joiner.start()
        flights = cache.parts.runtime.threads.flights
        while not next(iter(flights._flights.values()))._wake:
            pass
        gate.set()
        leader.join(10)
        joiner.join(10)
        assert answers == ["row"]
