"""Contract of a bus, for backends that have one: what invalidates is heard, nothing else is."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from ..core.notes import SENDER_BYTES
from ..protocols import Asking, Bus, Filling, Item, Note, NoteKind, Store
from .lab import Lab, Suite, in_both_worlds

LONG = 60.0
SLACK = 10.0  # seconds beyond the bus's bound before a note counts as lost
PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))

Told = tuple[NoteKind, str, bytes]


class Recorder:
    """Ears that write down who called what."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls: list[str] = []
        self.notes: list[Note] = []
        self.lags: list[float] = []

    def joined(self) -> None:
        self._add("joined")

    def heard(self, notes: Sequence[Note]) -> None:
        self._add("heard", notes)

    def lost(self) -> None:
        self._add("lost")

    def lag(self, seconds: float) -> None:
        with self._lock:
            self.lags.append(seconds)

    def foreign(self, count: int) -> None:
        self._add("foreign")

    def told(self) -> list[Told]:
        """The notes heard; the same one several times in a row counts once."""
        with self._lock:
            plain = [(note.kind, note.name, note.sender) for note in self.notes]
        return [note for note, _ in itertools.groupby(plain)]

    def has_heard(self, number: int) -> bool:
        return len(self.notes) >= number

    def has_told(self, number: int) -> bool:
        return len(self.told()) >= number

    def _add(self, call: str, notes: Sequence[Note] = ()) -> None:
        with self._lock:
            self.calls.append(call)
            self.notes += notes


class BusContract(Suite):
    @in_both_worlds
    async def test_the_first_that_a_listener_is_told_is_that_it_joined(self, lab: Lab) -> None:
        bus, slots = _bus_of(lab), lab.open().slots
        await slots.void(["before"], lab.deadline())
        ears = Recorder()
        stop = bus.listen(ears)
        try:
            for _ in range(5):
                await slots.void(["meanwhile"], lab.deadline())
            await _until(lab, bus, lambda: "joined" in ears.calls)
            await slots.void(["after"], lab.deadline())
            await _until(lab, bus, lambda: _has(bus, ears, "after"))
            assert ears.calls[0] == "joined"
            assert "before" not in {note.name for note in ears.notes}
            assert all(seconds >= 0.0 for seconds in ears.lags)
            assert "foreign" not in ears.calls
        finally:
            stop()

    @in_both_worlds
    async def test_what_invalidates_is_heard_in_order_with_its_sender(self, lab: Lab) -> None:
        bus, stores = _bus_of(lab), [lab.open(), lab.open()]
        late, token = lab.deadline, lab.token
        keys, tags = ["a", "{a}b", "k" * 230], ["t", PRINTABLE]
        steps: list[tuple[NoteKind, list[str], Callable[[Any], Any]]] = [
            (NoteKind.KEY, keys, lambda s: s.void(keys, late())),
            (NoteKind.KEY, ["a"], lambda s: s.put("a", token(), b"1", None, late())),
            (NoteKind.KEY, keys, lambda s: s.seize(keys, token(), LONG, late())),
            (NoteKind.TAG, tags, lambda s: s.drop_tags(tags, late())),
            (NoteKind.TAG, tags, lambda s: s.seize_tags(tags, token(), LONG, late())),
            (NoteKind.SPACE, [""], lambda s: s.drop_space(late())),
            (NoteKind.KEY, ["a"], lambda s: s.void(["a"], late())),  # a block stands
            (NoteKind.TAG, ["t"], lambda s: s.drop_tags(["t"], late())),
        ]
        async with _listening(lab, bus) as ears:
            for number, (kind, names, step) in enumerate(steps):
                store = stores[number % 2]
                before, seen = len(ears.told()), len(ears.notes)
                await step(store.slots)
                expected = {(kind, name, _sender(store)) for name in names}
                if bus.coarse:
                    await _until(lab, bus, functools.partial(ears.has_heard, seen + 1))
                    assert {note.kind for note in ears.notes} == {NoteKind.SPACE}
                else:
                    wanted = before + len(expected)
                    await _until(lab, bus, functools.partial(ears.has_told, wanted))
                    assert set(ears.told()[before:]) == expected
            assert set(ears.calls) == {"joined", "heard"}
        assert _sender(stores[0]) != _sender(stores[1])

    @in_both_worlds
    async def test_a_burst_is_heard_whole_and_in_order(self, lab: Lab) -> None:
        bus, stores = _bus_of(lab), [lab.open(), lab.open()]
        names = [f"k{number}" for number in range(40)]
        async with _listening(lab, bus) as ears:
            for number, name in enumerate(names):
                await stores[number % 2].slots.void([name], lab.deadline())
            await _until(lab, bus, lambda: _has(bus, ears, names[-1]))
            if not bus.coarse:
                assert [name for _, name, _ in ears.told()] == names

    @in_both_worlds
    async def test_what_invalidates_nothing_is_not_heard(self, lab: Lab) -> None:
        bus, store = _bus_of(lab), lab.open()
        slots, writer, token = store.slots, lab.token(), lab.token()
        await slots.seize(["mine", "ended"], writer, LONG, lab.deadline())
        await slots.seize_tags(["t"], writer, LONG, lab.deadline())
        async with _listening(lab, bus) as ears:
            await store.set_many([Item("r", b"1", None)], lab.deadline())
            await store.get_many(["r"], lab.deadline())
            await store.delete_many(["r"], lab.deadline())
            assert (await slots.acquire("k", token, LONG, lab.deadline())).granted
            assert await slots.renew("k", token, LONG, lab.deadline())
            assert await slots.fill("k", token, b"1", None, lab.deadline())
            await slots.acquire("free", token, LONG, lab.deadline())
            await slots.release("free", token, lab.deadline())
            await slots.acquire_many([Asking("n", token)], LONG, lab.deadline())
            await slots.fill_many([Filling("n", token, b"1", None)], lab.deadline())
            await slots.nonces(["k"], ["t", "u"], lab.token, None, lab.deadline())
            await slots.read(["k", "mine"], ["t", "u"], lab.deadline())
            assert await slots.commit("mine", writer, b"1", None, lab.deadline())
            await slots.end(["ended"], writer, lab.deadline())
            await slots.end_tags(["t"], writer, lab.deadline())
            await _nothing_before_the_next(lab, bus, ears, store)

    @in_both_worlds
    @pytest.mark.parametrize("there", [True, False], ids=["something", "nothing"])
    async def test_who_ends_where_his_block_stands_no_longer_is_heard(
        self, lab: Lab, there: bool
    ) -> None:
        bus, store = _bus_of(lab), lab.open()
        slots, late = store.slots, lab.token()
        for key in ("ended", "committed"):
            if there:
                await slots.put(key, lab.token(), b"1", None, lab.deadline())
        if there:
            await slots.nonces([], ["t"], lab.token, None, lab.deadline())
        async with _listening(lab, bus) as ears:
            await slots.end(["ended"], late, lab.deadline())
            await _until(lab, bus, lambda: _has(bus, ears, "ended"))
            seen = len(ears.notes)
            assert not await slots.commit("committed", late, b"2", None, lab.deadline())
            await _until(lab, bus, lambda: _has(bus, ears, "committed", seen))
            seen = len(ears.notes)
            await slots.end_tags(["t"], late, lab.deadline())
            await _until(lab, bus, lambda: _has(bus, ears, "t", seen))
            if not bus.coarse:
                told = [(NoteKind.KEY, "ended"), (NoteKind.KEY, "committed"), (NoteKind.TAG, "t")]
                assert ears.told() == [(*note, _sender(store)) for note in told]

    @in_both_worlds
    async def test_a_listener_that_was_stopped_hears_no_more_and_others_do(self, lab: Lab) -> None:
        bus, slots = _bus_of(lab), lab.open().slots
        gone = Recorder()
        stop = bus.listen(gone)
        try:
            async with _listening(lab, bus) as ears:
                await _until(lab, bus, lambda: "joined" in gone.calls)
                await slots.void(["first"], lab.deadline())
                await _until(lab, bus, lambda: _has(bus, gone, "first") and bool(ears.notes))
                stop()
                seen, heard = len(gone.calls), len(ears.notes)
                await slots.void(["second"], lab.deadline())
                await _until(lab, bus, lambda: _has(bus, ears, "second", heard))
                assert len(gone.calls) == seen
        finally:
            stop()  # twice is fine

    @in_both_worlds
    async def test_other_namespaces_are_not_heard(self, lab: Lab) -> None:
        bus, store = _bus_of(lab), lab.open()
        async with _listening(lab, bus) as ears:
            for name in (lab.namespace + "x", lab.namespace[:-1] + "_", lab.namespace.upper()):
                other = lab.open(name).slots
                await other.void(["k"], lab.deadline())
                await other.drop_tags(["t"], lab.deadline())
                await other.drop_space(lab.deadline())
            await _nothing_before_the_next(lab, bus, ears, store)

    @in_both_worlds
    async def test_a_shared_backend_made_twice_is_heard_by_the_other(self, lab: Lab) -> None:
        bus = _bus_of(lab)
        again = self.make_backend(lab.namespace)
        if not again.shared:
            pytest.skip("not shared")
        theirs = lab.adopt(again.open(lab.world))
        async with _listening(lab, bus) as ears:
            await theirs.slots.void(["theirs"], lab.deadline())
            await _until(lab, bus, lambda: _has(bus, ears, "theirs"))
            if not bus.coarse:
                assert ears.told() == [(NoteKind.KEY, "theirs", _sender(theirs))]


def _bus_of(lab: Lab) -> Bus:
    bus = lab.backend().bus
    if bus is None:
        pytest.skip("no bus")
    return bus


def _sender(store: Store) -> bytes:
    sender = getattr(store, "sender", None)
    assert isinstance(sender, bytes)
    assert len(sender) == SENDER_BYTES
    return sender


@contextlib.asynccontextmanager
async def _listening(lab: Lab, bus: Bus) -> AsyncIterator[Recorder]:
    ears = Recorder()
    stop = bus.listen(ears)
    try:
        await _until(lab, bus, lambda: "joined" in ears.calls)
        yield ears
    finally:
        stop()


async def _until(lab: Lab, bus: Bus, fact: Callable[[], bool]) -> None:
    end = time.monotonic() + bus.bound + SLACK
    while not fact():
        assert time.monotonic() < end, "the bus did not tell it in time"
        await lab.world.sleep(0.01)


def _has(bus: Bus, ears: Recorder, name: str, since: int = 0) -> bool:
    return any(note.name == name or bus.coarse for note in ears.notes[since:])


async def _nothing_before_the_next(lab: Lab, bus: Bus, ears: Recorder, store: Store) -> None:
    """What is heard after one invalidation more is that one alone."""
    if bus.coarse:  # its notes can not be told apart: so nothing for as long as one may take
        await lab.world.sleep(min(bus.bound, 2.0))
        assert ears.notes == []
    await store.slots.void(["sentinel"], lab.deadline())
    await _until(lab, bus, lambda: _has(bus, ears, "sentinel"))
    if not bus.coarse:
        assert ears.told() == [(NoteKind.KEY, "sentinel", _sender(store))]
