"""P54: a batch that fails half way converges on replay; coalescing keeps a key's last operation.

``CACHEKIT_NIGHTLY=1`` runs each machine 10 000 times.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from coalescing_machines import BufferMachine, LogMachine, Source
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from cachekit.core.buffer import Buffer
from cachekit.core.ops import Op
from cachekit.errors import FencedOut

NIGHTLY = os.environ.get("CACHEKIT_NIGHTLY") == "1"
CHECKS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.timeout(3600 if NIGHTLY else 120)
@pytest.mark.parametrize(("machine", "steps"), [(BufferMachine, 40), (LogMachine, 50)])
def test_whatever_happens_on_the_way_the_source_ends_as_the_dict(machine: Any, steps: int) -> None:
    runs = 10_000 if NIGHTLY else 80
    run_state_machine_as_test(
        machine, settings=settings(max_examples=runs, stateful_step_count=steps, **CHECKS)
    )


class LosesTheNewer(Buffer):
    """A nack puts back what failed, over what was offered meanwhile."""

    def nack(self, ops: Any) -> None:
        for op in ops:
            self._waiting.pop(op.key, None)
        super().nack(ops)


class TwoBatchesOfAKey(Buffer):
    def take(self, limit: int) -> list[Op]:
        self._out.clear()
        return super().take(limit)


class AcksTakeTheKey(Buffer):
    def ack(self, ops: Any) -> None:
        for op in ops:
            self._out.pop(op.key, None)
            self._waiting.pop(op.key, None)


class TheAgeIsTheNewests(Buffer):
    def oldest(self) -> float | None:
        return max((op.at for op in (*self._waiting.values(), *self._out.values())), default=None)


class NoFence(Source):
    def refuse(self, epoch: int) -> None:
        pass


class AFenceOfOwnersOnly(Source):
    """It lets a later landing older delivery of the same owner in."""

    def refuse(self, epoch: int) -> None:
        if epoch >> 32 < self.epoch >> 32:
            raise FencedOut("an owner of before")
        self.epoch = max(epoch, self.epoch)


class Forgetful(LogMachine):
    """Owners begin with what comes next, as if the last one had settled all it read."""

    def _read(self, owner: Any, limit: int) -> int:
        if not owner.cursor:
            owner.cursor = self.__dict__.get("farthest", 0)
        count = super()._read(owner, limit)
        self.farthest = owner.cursor
        return count


class ReadsAFew(LogMachine):
    reads_all_at_first = False


class Unfenced(LogMachine):
    source_kind = NoFence


class FencedByOwner(LogMachine):
    source_kind = AFenceOfOwnersOnly


def over(buffer: type[Buffer]) -> type[BufferMachine]:
    class Machine(BufferMachine):
        def __init__(self) -> None:
            super().__init__()
            self.buffer = buffer()

    return Machine


@pytest.mark.parametrize(
    "broken",
    [
        over(LosesTheNewer),
        over(TwoBatchesOfAKey),
        over(AcksTakeTheKey),
        over(TheAgeIsTheNewests),
        Unfenced,
        Forgetful,
        ReadsAFew,
    ],
)
def test_the_machines_find_what_is_broken(broken: Any) -> None:
    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(
            broken,
            settings=settings(
                max_examples=3000,
                stateful_step_count=50,
                phases=[Phase.generate],
                derandomize=True,
                database=None,
                **CHECKS,
            ),
        )


@pytest.mark.parametrize("machine", [LogMachine, FencedByOwner])
def test_a_batch_that_lands_late_is_refused_if_its_owner_has_sent_another(machine: Any) -> None:
    run, pick = machine(), random.Random(0)
    run.write(["a"], False)
    run._send(0, 5, 5, "late", pick)
    run.write(["a", "b"], False)
    run._send(0, 5, 5, "applied", pick)
    ((late, epoch),) = run.late
    with pytest.raises(FencedOut if machine is LogMachine else AssertionError):
        run.source.write(late, epoch, 1)
    run.a_reader_sees_the_dict()
    run.late.clear()
    run.teardown()
