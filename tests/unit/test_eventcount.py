"""Waiting for other threads: nothing missed, nobody left behind, whatever is interrupted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from cachekit.core import eventcount as module
from cachekit.core import threads
from cachekit.core.eventcount import EventCount, Flag
from cachekit.core.threads import begin
from cachekit.testing.interrupts import interrupt_after

LONG = 20.0
PLACES = (module.__file__, threads.__file__, threading.__file__)


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not there():
        assert time.monotonic() < end
        time.sleep(0.0005)


def test_a_change_between_the_look_and_the_wait_is_not_missed() -> None:
    changed = EventCount()
    seen = changed.now
    changed.advance()
    began = time.monotonic()
    assert changed.wait(seen, LONG)
    assert not changed.wait(changed.now, 0.02)
    assert not changed.wait(changed.now, 0.0)
    assert not changed.wait(changed.now, -1.0)
    assert time.monotonic() - began < LONG / 2


def test_two_threads_that_hand_a_number_to_and_fro_never_miss_each_other() -> None:
    changed, rounds, turn = EventCount(), 4000, [0]

    def play(mine: int) -> None:
        for n in range(mine, 2 * rounds, 2):
            while True:
                seen = changed.now
                if turn[0] == n:
                    break
                assert changed.wait(seen, LONG)
            turn[0] = n + 1
            changed.advance()

    players = [started(lambda mine=mine: play(mine)) for mine in (0, 1)]
    for player in players:
        player.join(2 * LONG)
    assert turn == [2 * rounds]
    assert not changed._waiting


def test_all_are_woken_or_the_one_that_waits_longest() -> None:
    changed, woken = EventCount(), []

    def wait(name: int) -> None:
        assert changed.wait(changed.now, LONG)
        woken.append(name)

    for name in range(4):
        started(lambda name=name: wait(name))
        until(lambda name=name: len(changed._waiting) == name + 1)
    changed.advance_one()
    until(lambda: woken == [0])
    time.sleep(0.05)
    changed.advance_one()
    until(lambda: woken == [0, 1])
    time.sleep(0.05)
    assert woken == [0, 1]
    changed.advance()
    until(lambda: sorted(woken) == [0, 1, 2, 3])


def test_who_is_interrupted_leaves_its_turn_to_the_next() -> None:
    """At every place of the wait where a signal handler may raise."""
    for steps in range(1, 1000):
        changed, over, woken = EventCount(), Flag(), Flag()

        def next_one(changed: EventCount = changed, woken: Flag = woken) -> None:
            if changed.wait(changed.now, LONG):
                woken.set()

        def turn(changed: EventCount = changed, over: Flag = over, work: object = next_one) -> None:
            until(lambda: bool(changed._waiting) or over.is_set)
            first = len(changed._waiting)
            started(next_one)
            until(lambda: len(changed._waiting) > first or over.is_set)
            changed.advance_one()

        helper = started(turn)
        broken = interrupt_after(
            steps, lambda changed=changed: changed.wait(changed.now, LONG), within=PLACES
        )
        over.set()
        helper.join(LONG)
        if not broken:
            assert steps > 6
            changed.advance()
            return
        assert woken.wait(LONG), f"after {steps} places"
        until(lambda changed=changed: not changed._waiting)
    raise AssertionError("it never ended")


def test_a_flag_is_set_once_and_for_all() -> None:
    flag = Flag()
    assert not flag.wait(0.01)
    assert not flag.wait(0)
    setter = started(lambda: (time.sleep(0.05), flag.set()))
    assert flag.wait(LONG)
    assert flag.wait(0)
    assert flag.wait()
    setter.join()


def test_a_flag_whose_wait_or_setting_was_interrupted_is_as_good_as_new() -> None:
    for verb in (lambda flag: flag.wait(0.01), lambda flag: flag.set()):
        for steps in range(1, 1000):
            flag = Flag()
            waiting = started(lambda flag=flag: flag.wait(LONG))
            until(lambda flag=flag: len(flag._changed._waiting) == 1)
            broken = interrupt_after(
                steps, lambda flag=flag, verb=verb: verb(flag), within=module.__file__
            )
            flag.set()
            waiting.join(LONG / 2)
            assert not waiting.is_alive(), f"after {steps} places"
            assert flag.wait(0)
            if not broken:
                assert steps > 3
                break


def test_a_thread_begins_or_says_that_none_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = Flag()
    assert begin(threading.Thread(target=ran.set, daemon=True))
    assert ran.wait(LONG)

    def none(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    thread = threading.Thread(target=ran.set)
    monkeypatch.setattr(thread, "start", none)
    undone: list[bool] = []
    assert not begin(thread, lambda: undone.append(True))
    assert undone == [True]
    try:
        raise KeyError("what the caller is at")
    except KeyError:
        assert not begin(thread)


def test_an_interrupt_of_a_thread_s_beginning_comes_out_as_itself_and_is_undone() -> None:
    """Where ``Thread.start`` waits for the first step it can turn into a RuntimeError."""
    undone: list[bool] = []
    for steps in range(1, 1000):
        done: list[bool] = []

        def work(done: list[bool] = done) -> None:
            thread = threading.Thread(target=lambda: None, daemon=True)
            done.append(begin(thread, lambda: undone.append(True)))

        if not interrupt_after(steps, work, within=PLACES):
            assert done == [True]
            assert steps > 20
            assert len(undone) > 10
            return
        assert not done
    raise AssertionError("it never ended")
