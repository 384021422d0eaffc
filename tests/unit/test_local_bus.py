"""The bus within one process: told in the step's own thread, in order, whatever listeners do."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cachekit.backends.local_bus import LocalBus
from cachekit.backends.memory import MemoryBackend
from cachekit.core.deadline import Deadline
from cachekit.protocols import Note, NoteKind
from cachekit.runtime import Runtime, drive


class Ears:
    def __init__(self, on_heard: Callable[[Sequence[Note]], None] = lambda notes: None) -> None:
        self.calls: list[str] = []
        self.names: list[str] = []
        self._on_heard = on_heard

    def joined(self) -> None:
        self.calls.append("joined")

    def heard(self, notes: Sequence[Note]) -> None:
        self._on_heard(notes)
        self.calls.append("heard")
        self.names += [note.name for note in notes]

    def lost(self) -> None:
        self.calls.append("lost")

    def lag(self, seconds: float) -> None:
        assert seconds == 0.0

    def foreign(self, count: int) -> None:
        raise AssertionError("nothing is foreign here")


def opened() -> tuple[MemoryBackend, Any, Callable[[], Deadline]]:
    backend, here = MemoryBackend(), Runtime().threads
    return backend, backend.open(here).slots, lambda: here.deadline(5)


def told(bus: LocalBus, *names: str) -> None:
    bus.post(NoteKind.KEY, names, b"s" * 8)
    bus.deliver()


def test_a_note_is_heard_in_the_steps_thread_after_it_and_outside_the_lock() -> None:
    backend, slots, late = opened()
    seen: list[Any] = []

    def take() -> None:
        if backend._shelf.lock.acquire(timeout=5.0):
            seen.append("free")
            backend._shelf.lock.release()

    def look(notes: Sequence[Note]) -> None:
        free = threading.Thread(target=take, daemon=True)
        free.start()
        free.join(10.0)
        seen.append(threading.current_thread())
        seen.append(drive(slots.read(["k"], [], late())).slots[0].data)

    drive(slots.put("k", b"s" * 16, b"old", None, late()))
    ears = Ears(look)
    backend.bus.listen(ears)  # type: ignore[union-attr]
    drive(slots.put("k", b"t" * 16, b"new", None, late()))
    assert seen == ["free", threading.current_thread(), b"new"]
    assert ears.calls == ["joined", "heard"]


def test_a_listener_that_raises_fails_no_step_and_starts_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(notes: Sequence[Note]) -> None:
        raise ValueError("a mistake of the listener")

    backend, slots, late = opened()
    bad, good = Ears(fail), Ears()
    for ears in (bad, good):
        backend.bus.listen(ears)  # type: ignore[union-attr]
    with caplog.at_level(logging.ERROR, "cachekit"):
        for _ in range(3):
            drive(slots.void(["k"], late()))
    assert bad.calls == ["joined", *["lost", "joined"] * 3]
    assert good.names == ["k"] * 3
    assert len(caplog.records) == 1


def test_what_an_interrupt_cut_off_is_told_again() -> None:
    def interrupt(notes: Sequence[Note]) -> None:
        if not raised:
            raised.append(True)
            raise KeyboardInterrupt

    raised: list[bool] = []
    bus, ears = LocalBus(), Ears(interrupt)
    bus.listen(ears)
    with pytest.raises(KeyboardInterrupt):
        told(bus, "a")
    told(bus, "b")
    assert ears.names == ["a", "b"]


def test_notes_of_many_threads_come_in_the_order_of_their_steps_before_these_return() -> None:
    bus, ears = LocalBus(), Ears(lambda notes: time.sleep(0.0001))  # others run meanwhile
    bus.listen(ears)
    order, barrier = threading.Lock(), threading.Barrier(6)
    count = iter(range(10_000))
    late: list[str] = []

    def work() -> None:
        barrier.wait(10.0)
        for _ in range(100):
            with order:
                name = str(next(count))
                bus.post(NoteKind.KEY, [name], b"s" * 8)
            bus.deliver()
            if name not in ears.names:
                late.append(name)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert ears.names == [str(number) for number in range(600)]
    assert late == []


def test_a_listener_may_itself_invalidate() -> None:
    backend, slots, late = opened()

    def follow(notes: Sequence[Note]) -> None:
        if notes[0].name == "first":
            drive(slots.void(["second"], late()))

    all_ears = [Ears(follow), Ears()]
    for ears in all_ears:
        backend.bus.listen(ears)  # type: ignore[union-attr]
    drive(slots.void(["first"], late()))
    assert [ears.names for ears in all_ears] == [["first", "second"]] * 2


def test_without_listeners_nothing_is_kept_and_who_comes_later_hears_nothing_old() -> None:
    bus = LocalBus()
    told(bus, "before anyone")
    assert not bus._posted
    stop = bus.listen(Ears())
    bus.post(NoteKind.KEY, ["under way"], b"s" * 8)
    stop()
    stop()
    told(bus, "nobody")
    later = Ears()
    bus.listen(later)
    told(bus, "new")
    assert later.names == ["new"]


def test_a_slow_listener_keeps_nobody_from_leaving_and_is_told_nothing_once_stopped() -> None:
    entered, let = threading.Event(), threading.Event()

    def wait(notes: Sequence[Note]) -> None:
        entered.set()
        let.wait(10.0)

    bus, other = LocalBus(), Ears()
    bus.listen(Ears(wait))
    stop = bus.listen(other)
    thread = threading.Thread(target=told, args=(bus, "k"), daemon=True)
    thread.start()
    assert entered.wait(10.0)
    stop()
    let.set()
    thread.join(10.0)
    assert other.calls == ["joined"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_goes_on_though_a_thread_of_the_parent_was_telling() -> None:
    entered, let = threading.Event(), threading.Event()

    def wait(notes: Sequence[Note]) -> None:
        if notes[0].name == "parent":
            entered.set()
            let.wait(20.0)

    bus, other = LocalBus(), Ears()
    bus.listen(Ears(lambda notes: None if os.getpid() != parent else wait(notes)))
    bus.listen(other)
    parent = os.getpid()
    thread = threading.Thread(target=told, args=(bus, "parent"), daemon=True)
    thread.start()
    assert entered.wait(10.0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            threading.Timer(10.0, os._exit, (2,)).start()
            told(bus, "child")
            code = 0 if other.names == ["parent", "child"] else 3
        finally:
            os._exit(code)
    let.set()
    thread.join(10.0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert other.names == ["parent"]
