"""Several steps at once: DynamoDB writes many items in one request only without conditions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from ...core.deadline import Deadline
from ...core.threads import begin
from ...errors import BackendError, BackendTimeout

T = TypeVar("T")

HANDS = 8
FEW = 2
GRACE = 1.0
"""Seconds beyond the deadline for threads that end by it."""


def carry_out(jobs: Sequence[Callable[[], T]], deadline: Deadline) -> list[T]:
    """What the jobs answer, in order. All are carried out, also after one failed; then the first
    BackendError is raised.

    A few are done by the caller alone; of more, it does a share beside up to seven daemon threads.
    Anything else that a job raises is raised at once, and nothing more is begun."""
    done: dict[int, T] = {}
    failed: dict[int, BackendError] = {}
    broken: list[BaseException] = []
    todo = iter(enumerate(jobs))  # next() of it is atomic

    def work() -> None:
        for number, job in todo:
            if broken:
                return
            try:
                done[number] = job()
            except BackendError as error:
                failed[number] = error

    def help_out() -> None:
        try:
            work()
        except BaseException as error:  # the caller's to raise
            broken.append(error)

    hands = [
        threading.Thread(target=help_out, name="cachekit-dynamodb", daemon=True)
        for _ in range(min(HANDS, len(jobs)) - 1 if len(jobs) > FEW else 0)
    ]
    started = []
    for hand in hands:
        if not begin(hand):
            break
        started.append(hand)
    try:
        work()
    except BaseException as error:
        broken.append(error)
        raise
    for hand in started:
        hand.join(deadline.left() + GRACE)
    if broken:
        raise broken[0]
    if failed:
        raise failed[min(failed)]
    if len(done) < len(jobs):
        raise BackendTimeout("dynamodb: a step outlived its deadline", backend="dynamodb")
    return [done[number] for number in range(len(jobs))]
