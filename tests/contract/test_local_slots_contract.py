"""LocalSlots over a store of three verbs: the contract, and the races its store's awaits open."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Sequence

import pytest

from cachekit.backends import holds
from cachekit.backends.local_slots import LocalSlots, Table
from cachekit.core.deadline import Deadline
from cachekit.errors import BackendTimeout, BackendUnavailable
from cachekit.protocols import Backend, Item, Slot, SlotState, World
from cachekit.testing import BackendContract, ManualClock

NEVER = float("inf")


class DictStore:
    """The least a third party's store can do. Every verb dawdles before and after its effect."""

    def __init__(self, backend: DictBackend, world: World) -> None:
        self._backend = backend
        self._world = world
        self.slots = LocalSlots(self, table=backend.table)

    async def _dawdle(self, deadline: Deadline) -> None:
        if deadline.passed():
            raise BackendTimeout("too late")
        for _ in range(self._backend.random.randrange(4)):
            await self._world.sleep(0)

    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        await self._dawdle(deadline)
        now = self._backend.clock()
        found = [self._backend.cells.get(key) for key in keys]
        await self._dawdle(deadline)
        return [None if cell is None or cell[0] <= now else cell[1] for cell in found]

    async def set_many(self, items: Sequence[Item], deadline: Deadline) -> None:
        await self._dawdle(deadline)
        for key, data, ttl in items:
            until = NEVER if ttl is None else self._backend.clock() + ttl
            self._backend.cells[key] = (until, data)
        await self._dawdle(deadline)

    async def delete_many(self, keys: Sequence[str], deadline: Deadline) -> None:
        await self._dawdle(deadline)
        for key in keys:
            self._backend.cells.pop(key, None)
        await self._dawdle(deadline)

    async def close(self) -> None:
        return None


class DictBackend:
    name = "dict"
    shared = False
    bus = None
    log = None

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.table = Table(clock)
        self.cells: dict[str, tuple[float, bytes]] = {}
        self.random = random.Random(7)

    def open(self, world: World) -> DictStore:
        return DictStore(self, world)


class TestLocalSlots(BackendContract):
    manual_time = True
    exact = False

    def make_backend(self, namespace: str) -> Backend:
        return DictBackend(self.clock)


# -- races held open by gates ------------------------------------------------------------


class GatedStore:
    """Sets land only when let; ``lands`` may come after the caller gave up."""

    def __init__(self) -> None:
        self.cells: dict[str, bytes] = {}
        self.arrived = asyncio.Event()
        self.let = asyncio.Event()
        self.let.set()
        self.landed = asyncio.Event()
        self.down = False
        self._landing: set[asyncio.Task[None]] = set()

    def hold(self) -> None:
        self.let.clear()
        self.arrived.clear()

    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        return [self.cells.get(key) for key in keys]

    async def set_many(self, items: Sequence[Item], deadline: Deadline) -> None:
        async def land() -> None:
            await self.let.wait()
            self.cells.update({item.key: item.data for item in items})
            self.landed.set()

        landing = asyncio.ensure_future(land())
        self._landing.add(landing)
        self.arrived.set()
        await asyncio.shield(landing)  # a server does not learn that its client went away

    async def delete_many(self, keys: Sequence[str], deadline: Deadline) -> None:
        if self.down:
            raise BackendUnavailable("down")
        for key in keys:
            self.cells.pop(key, None)

    async def land(self) -> None:
        self.let.set()
        await asyncio.gather(*self._landing)


LATE = Deadline(86_400.0, time.monotonic)  # made at import: must outlive the whole run
TOKEN = b"t" * 16
OTHER = b"o" * 16


async def _state(slots: LocalSlots) -> SlotState:
    return (await slots.read(["k"], [], LATE)).slots[0].state


@pytest.mark.parametrize("verb", ["void", "put", "seize", "lease ends"])
def test_a_fill_overtaken_while_it_is_written_is_never_seen(verb: str) -> None:
    async def run() -> None:
        store, clock = GatedStore(), ManualClock()
        slots = LocalSlots(store, table=Table(clock))
        await slots.acquire("k", TOKEN, 10.0, LATE)
        store.hold()
        fill = asyncio.ensure_future(slots.fill("k", TOKEN, b"old", None, LATE))
        await store.arrived.wait()
        if verb == "void":
            await slots.void(["k"], LATE)
        elif verb == "seize":
            await slots.seize(["k"], OTHER, 1.0, LATE)
            clock.advance(2.0)  # its block is over: only the doubt hides the entry
        elif verb == "put":
            store.arrived.clear()
            put = asyncio.ensure_future(slots.put("k", OTHER, b"new", None, LATE))
            await store.arrived.wait()
        else:
            clock.advance(11.0)
        store.let.set()
        await store.landed.wait()
        seen = (await slots.read(["k"], [], LATE)).slots[0]
        assert seen.data != b"old"
        assert await fill is False
        if verb == "put":
            assert await put is True
        seen = (await slots.read(["k"], [], LATE)).slots[0]
        assert seen.data != b"old"

    asyncio.run(run())


@pytest.mark.parametrize("undo", ["acknowledged", "failed"])
def test_a_cancelled_fill_that_lands_after_an_invalidation_reads_as_absent(undo: str) -> None:
    async def run() -> None:
        store = GatedStore()
        slots = LocalSlots(store)
        await slots.acquire("k", TOKEN, 10.0, LATE)
        store.hold()
        fill = asyncio.ensure_future(slots.fill("k", TOKEN, b"old", None, LATE))
        await store.arrived.wait()
        fill.cancel()
        await slots.void(["k"], LATE)
        store.down = undo == "failed"
        await store.land()
        with pytest.raises(asyncio.CancelledError):
            await fill
        assert "~slot:k" in store.cells
        assert await _state(slots) is SlotState.NOTHING

    asyncio.run(run())


def test_an_overtaken_fill_whose_undoing_fails_answers_false_and_stays_unread() -> None:
    async def run() -> None:
        store = GatedStore()
        slots = LocalSlots(store)
        await slots.acquire("k", TOKEN, 10.0, LATE)
        store.hold()
        fill = asyncio.ensure_future(slots.fill("k", TOKEN, b"old", None, LATE))
        await store.arrived.wait()
        await slots.void(["k"], LATE)
        store.down = True
        await store.land()
        assert await fill is False
        assert "~slot:k" in store.cells
        assert await _state(slots) is SlotState.NOTHING

    asyncio.run(run())


def test_a_reader_that_held_an_overtaken_entry_while_it_was_undone_does_not_return_it() -> None:
    async def run() -> None:
        store = GatedStore()
        slots = LocalSlots(store)
        await slots.acquire("k", TOKEN, 10.0, LATE)
        store.hold()
        fill = asyncio.ensure_future(slots.fill("k", TOKEN, b"old", None, LATE))
        await store.arrived.wait()
        await slots.void(["k"], LATE)
        store.let.set()
        await store.landed.wait()
        asked, answered = asyncio.Event(), asyncio.Event()
        plain = store.get_many

        async def slow(keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
            found = await plain(keys, deadline)
            asked.set()
            await answered.wait()
            return found

        store.get_many = slow  # type: ignore[method-assign]  # one slow reply
        read = asyncio.ensure_future(slots.read(["k"], [], LATE))
        await asked.wait()
        assert await fill is False  # written, found overtaken, deleted again
        answered.set()
        assert (await read).slots[0] == Slot(SlotState.NOTHING)

    asyncio.run(run())


def test_a_nonce_dropped_while_it_is_created_does_not_come_back() -> None:
    async def run() -> None:
        store = GatedStore()
        slots = LocalSlots(store)
        fresh = iter([bytes([n]) * 16 for n in range(1, 9)]).__next__
        store.hold()
        first = asyncio.ensure_future(slots.nonces([], ["t"], fresh, None, LATE))
        second = asyncio.ensure_future(slots.nonces([], ["t"], fresh, None, LATE))
        for _ in range(5):
            await asyncio.sleep(0)
        await slots.drop_tags(["t"], LATE)
        await store.land()
        one, two = await first, await second
        assert one.tags == two.tags != [b"\1" * 16]
        assert (await slots.read([], ["t"], LATE)).nonces == one.tags

    asyncio.run(run())


def test_a_nonce_created_while_its_tag_is_blocked_does_not_come_back_after_the_block() -> None:
    async def run() -> None:
        store = GatedStore()
        slots = LocalSlots(store)
        fresh = iter([bytes([n]) * 16 for n in range(1, 9)]).__next__
        store.hold()
        creation = asyncio.ensure_future(slots.nonces([], ["t"], fresh, None, LATE))
        await store.arrived.wait()
        await slots.seize_tags(["t"], TOKEN, 10.0, LATE)
        await store.land()
        assert (await creation).tags == [None]
        await slots.end_tags(["t"], TOKEN, LATE)
        assert (await slots.read([], ["t"], LATE)).nonces == [None]
        assert (await slots.nonces([], ["t"], fresh, None, LATE)).tags == [b"\2" * 16]

    asyncio.run(run())


def test_a_nonce_that_could_not_be_deleted_is_hidden_by_the_block_until_it_is() -> None:
    async def run() -> None:
        store, clock = GatedStore(), ManualClock()
        slots = LocalSlots(store, table=Table(clock))
        await slots.nonces([], ["t"], lambda: OTHER, None, LATE)
        store.down = True
        with pytest.raises(BackendUnavailable):
            await slots.seize_tags(["t"], TOKEN, 10.0, LATE)
        with pytest.raises(BackendUnavailable):
            await slots.end_tags(["t"], TOKEN, LATE)
        assert (await slots.read([], ["t"], LATE)).nonces == [None]
        assert (await slots.nonces([], ["t"], lambda: TOKEN, None, LATE)).tags == [None]
        store.down = False
        await slots.end_tags(["t"], TOKEN, LATE)
        assert (await slots.read([], ["t"], LATE)).nonces == [None]

    asyncio.run(run())


def test_writes_in_doubt_are_bounded_and_forgetting_one_only_costs_misses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(holds, "DOUBTS", 3)

    async def run() -> None:
        store = GatedStore()
        slots = LocalSlots(store)
        await slots.put("k", OTHER, b"before", None, LATE)
        store.hold()
        fills = []
        for number in range(6):
            key = f"k{number}"
            await slots.acquire(key, TOKEN, 10.0, LATE)
            store.arrived.clear()
            fills.append(asyncio.ensure_future(slots.fill(key, TOKEN, b"old", None, LATE)))
            await store.arrived.wait()
            fills[-1].cancel()
        keys = [f"k{n}" for n in range(6)]
        await slots.void(keys, LATE)
        await store.land()
        reading = await slots.read([*keys, "k"], [], LATE)
        assert {slot.state for slot in reading.slots} == {SlotState.NOTHING}
        await slots.put("k", OTHER, b"after", None, LATE)
        assert (await slots.read(["k"], [], LATE)).slots[0].data == b"after"

    asyncio.run(run())


def test_foreign_bytes_read_as_nothing_and_are_replaced() -> None:
    async def run() -> None:
        store = GatedStore()
        slots = LocalSlots(store)
        for garbage in (b"", b"x", b"x" * 200, b"\xc5LS1", b"\xc5LS1" + b"\xff" * 30):
            store.cells["~slot:k"] = store.cells["~tag:t"] = garbage
            reading = await slots.read(["k"], ["t"], LATE)
            assert reading.slots == [Slot(SlotState.NOTHING)]
            assert reading.nonces == [None]
            await slots.void(["k"], LATE)
        assert (await slots.acquire("k", TOKEN, 10.0, LATE)).granted
        assert await slots.fill("k", TOKEN, b"new", None, LATE)
        assert (await slots.read(["k"], [], LATE)).slots[0].data == b"new"

    asyncio.run(run())


def test_another_process_reads_the_entries_and_nonces_but_not_the_leases() -> None:
    async def run() -> None:
        store = GatedStore()
        here, there = LocalSlots(store), LocalSlots(store)
        made = await here.nonces(["k"], ["t"], lambda: OTHER, None, LATE)
        assert await here.put("k", TOKEN, b"1", None, LATE)
        reading = await there.read(["k"], ["t"], LATE)
        assert reading == ([Slot(SlotState.ENTRY, TOKEN, b"1")], made.spaces, made.tags)
        assert (await here.acquire("x", TOKEN, 10.0, LATE)).granted
        assert (await there.acquire("x", OTHER, 10.0, LATE)).granted

    asyncio.run(run())


def test_leases_nobody_came_back_for_are_reclaimed() -> None:
    async def run() -> None:
        clock = ManualClock()
        table = Table(clock)
        slots = LocalSlots(GatedStore(), table=table)
        for number in range(2000):
            await slots.acquire(f"k{number}", TOKEN, 1.0, LATE)
            clock.advance(0.1)
        assert len(table.holds) < 100

    asyncio.run(run())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_not_stopped_by_a_lock_another_thread_held() -> None:
    table = Table()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with table.lock:
            held.set()
            done.wait(30.0)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30.0)
    child = os.fork()
    if child == 0:
        os._exit(0 if table.lock.acquire(timeout=5.0) else 1)
    done.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0
