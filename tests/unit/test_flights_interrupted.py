"""An exception out of a signal handler, wherever it comes, leaves no flight that others wait for.

Each place where one may run is met once (``cachekit.testing.interrupts``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from cachekit import Cache, ReadThrough, WriteBack
from cachekit.testing.interrupts import Interrupted, interrupt_after

STEPS = 20_000


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
