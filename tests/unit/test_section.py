"""A section that its holder never leaves in order: interrupts, and other threads that wait."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from cachekit.core import section as module
from cachekit.core.section import Section
from cachekit.testing.interrupts import interrupt_after

LONG = 10.0


def entered(section: Section, seconds: float = LONG) -> bool:
    """Whether another thread gets in."""
    found: list[bool] = []

    def enter() -> None:
        with section as free:
            found.append(free)

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    thread.join(seconds)
    return found == [True]


def test_other_threads_get_in_wherever_their_predecessor_was_interrupted() -> None:
    """At every place of entering and leaving where a signal handler may raise."""
    section, steps, done = Section(), 0, False

    def work() -> None:
        with section:
            pass

    while not done:
        steps += 1
        done = not interrupt_after(steps, work, within=module.__file__)
        assert entered(section), f"after {steps} places"
    assert steps > 5


def test_one_that_nobody_will_leave_is_given_up_by_those_who_wait() -> None:
    section = Section()

    def lost() -> None:
        section.__enter__()

    thread = threading.Thread(target=lost)
    thread.start()
    thread.join()
    waiting = [threading.Thread(target=entered, args=(section,), daemon=True) for _ in range(4)]
    for one in waiting:
        one.start()
    for one in waiting:
        one.join(LONG)
    assert entered(section, 0.4)  # at once: it is whole again
    assert section.idle


def test_nobody_gets_in_while_another_works_however_long() -> None:
    section, inside, log = Section(), threading.Event(), []

    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        else:
            inside.set()
            time.sleep(2.5 * module.PATIENCE)
            log.append("left")

    def work() -> None:
        with section:
            deep(20)

    def next_one() -> None:
        with section as free:
            log.append(f"next {free}")

    threads = [threading.Thread(target=work)]
    threads[0].start()
    assert inside.wait(LONG)
    threads += [threading.Thread(target=next_one) for _ in range(3)]
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert log == ["left", "next True", "next True", "next True"]


@pytest.mark.parametrize("depth", [1, 3])
def test_its_own_thread_is_told_that_it_is_inside_and_what_it_defers_is_done_after(
    depth: int,
) -> None:
    section, done = Section(), []

    def again(left: int) -> None:
        with section as free:
            assert not free
            section.defer(lambda: done.append(left))
            if left > 1:
                again(left - 1)
        assert done == []

    with section as free:
        assert free
        again(depth)
    assert done == list(range(depth, 0, -1))
    assert entered(section, 0.4)


def test_an_interrupt_while_it_waits_takes_nothing_with_it() -> None:
    section, held, go = Section(), threading.Event(), threading.Event()

    def hold() -> None:
        with section:
            held.set()
            go.wait(LONG)

    for steps in range(1, 12):
        held.clear(), go.clear()
        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(LONG)
        threading.Timer(0.02, go.set).start()

        def work() -> Any:
            with section:
                pass

        interrupt_after(steps, work, within=module.__file__)
        go.set()
        holder.join(LONG)
        assert entered(section)
