"""Contract of a log as all see it: overlay, counts, what was settled, other worlds, late calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from ..core.ops import OpKind
from ..errors import BackendError
from ..protocols import Letter, Record, Standing
from ..runtime import drive
from .log_lab import NOON, Desk, Hand, LogSuite, new_owner, with_a_desk


class LogViewsContract(LogSuite):
    @with_a_desk
    async def test_a_look_gives_the_newest_operation_of_each_key(self, desk: Desk) -> None:
        log, other = desk.open(), desk.open()
        for key, data in [("a", b"1"), ("b", b"1"), ("a", b"2"), ("b", None), ("c", None)]:
            await log.put(key, data)
        await log.put("c", b"again")
        wanted = {
            "a": (OpKind.PUT, b"2"),
            "b": (OpKind.DELETE, b""),
            "c": (OpKind.PUT, b"again"),
            "none": None,
        }
        for reader in (log, other):
            for keys in (["a", "b", "c", "none"], ["none", "c", "a", "c"], ["b"], []):
                seen = (await reader.look(*keys)).pending
                assert [r and (r.kind, r.data) for r in seen] == [wanted[key] for key in keys]
                assert all(r is None or r.key == key for r, key in zip(seen, keys, strict=True))

    @with_a_desk
    async def test_reading_goes_on_after_a_version(self, desk: Desk) -> None:
        log = desk.open()
        for number in range(7):
            await log.puts("a", f"k{number}", "b")
        total = 0
        for part in range(log.parts):
            whole = await log.read(part=part)
            total += len(whole)
            for limit in (1, 2, 5):
                pages: list[Record] = []
                while page := await log.read(pages[-1].version if pages else 0, limit, part):
                    assert len(page) == min(limit, len(whole) - len(pages))
                    pages += page
                assert pages == whole
        assert total == 21

    @with_a_desk
    async def test_the_standing_counts_what_waits(self, desk: Desk) -> None:
        log = desk.open()
        empty = await log.standing()
        assert empty == Standing(newest=(0,) * log.parts)
        versions = await log.puts("a", "bb", "a", "é")
        size = 4 * len(b"v") + 1 + 2 + 1 + 2
        newest = [0] * log.parts
        for part in range(log.parts):
            for record in await log.read(part=part):
                newest[part] = record.version
        assert await log.standing() == Standing(4, size, NOON, tuple(newest), 0)
        await log.finish([("a", versions[0])])
        await log.park("bb", versions[1])
        assert await log.standing() == Standing(2, size - 5, NOON + 2, tuple(newest), 1)
        await log.finish([("a", versions[2]), ("é", versions[3])])
        assert await log.standing() == Standing(0, 0, None, tuple(newest), 1)
        await log.drop(versions[1])
        assert (await desk.open().standing()) == Standing(0, 0, None, tuple(newest), 0)

    @with_a_desk
    async def test_what_is_left_of_a_moment_counts_down_and_not_what_came_later(
        self, desk: Desk
    ) -> None:
        log = desk.open()
        nothing = (await log.standing()).newest
        first = await log.puts("a", "b", "a")
        upto = (await log.standing()).newest
        later = await log.puts("b", "c")
        assert await log.left(nothing) == 0
        assert await log.left(upto) == 3
        await log.finish([("a", first[0])])
        assert await log.left(upto) == 2
        await log.finish([("c", later[1])])
        assert await log.left(upto) == 2
        await log.park("b", first[1])
        assert await log.left(upto) == 1
        await log.finish([("a", first[2])])
        assert await log.left(upto) == 0
        assert await log.left((await log.standing()).newest) == 1

    @with_a_desk
    async def test_what_was_settled_is_told_since_a_mark(self, desk: Desk) -> None:
        log, other = desk.open(), desk.open()
        if not log.log.tells:
            version = await log.put("k")
            await log.finish([("k", version)])
            assert tuple((await log.look("k", since=5))[1:]) == ((), 5)
            return
        before = (await other.look()).mark
        versions = await log.puts("a", "b", "c", "d", "a")
        assert list((await other.look("a", since=before)).settled or ["?"]) == ["?"]
        await log.finish([("a", versions[4])])
        seen = await other.look("a", "b", since=before)
        assert seen.pending[0] is None
        assert set(seen.settled or ()) == {"a"}
        await log.finish([("b", versions[1])])
        await log.park("c", versions[2])
        then = await other.look("d", since=seen.mark)
        assert set(then.settled or ()) == {"b", "c"}
        assert set((await other.look(since=before)).settled or ()) == {"a", "b", "c"}
        now = await other.look(since=then.mark)
        assert list(now.settled or ()) == []
        await log.close()
        await desk.open().finish([("d", versions[3])])
        assert set((await desk.open().look(since=now.mark)).settled or ()) == {"d"}

    @with_a_desk
    async def test_too_many_settled_keys_are_not_told_in_part(self, desk: Desk) -> None:
        log = desk.open()
        version = await log.put("first")
        await log.finish([("first", version)])
        before = (await log.look()).mark
        owner = new_owner()
        epochs = [await log.own(owner, part) for part in range(log.parts)]
        for start in range(0, self.many_settled, 500):
            await log.puts(*(f"k{start + number}" for number in range(500)))
            for part, epoch in enumerate(epochs):
                there = [(r.key, r.version) for r in await log.read(part=part)]
                assert await log.settle(epoch, there, part=part)
        seen = await log.look(since=before)
        if seen.settled is not None and log.log.tells:
            assert set(seen.settled) >= {f"k{number}" for number in range(self.many_settled)}
        for part, epoch in enumerate(epochs):
            await log.release(owner, epoch, part)
        version = await log.put("last")
        await log.finish([("last", version)])
        if log.log.tells:
            assert set((await log.look(since=seen.mark)).settled or ()) == {"last"}
        assert (await log.standing()).depth == 0

    @with_a_desk
    async def test_a_queue_opened_again_is_as_it_was(self, desk: Desk) -> None:
        log = desk.open()
        versions = await log.puts("a", "b", "c", "a")
        await log.park("b", versions[1], "no", attempts=3, parked=NOON)
        owner = new_owner()
        epochs = [await log.own(owner, part) for part in range(log.parts)]
        before = [await log.read_all(), await log.letters(), await log.standing()]
        for _ in range(2):
            await log.close()  # twice is fine
        for again in (desk.open(), log):  # and it may be used again
            assert [await again.read_all(), await again.letters(), await again.standing()] == before
            assert before[1] == [
                Letter(Record("b", OpKind.PUT, b"v", versions[1], NOON + 1), "no", 3, NOON)
            ]
            for part in range(log.parts):
                assert await again.claim(new_owner(), part=part) is None
                assert await again.renew(owner, epochs[part], part=part)
        unused = desk.open("unused")
        await unused.close()

    @with_a_desk
    async def test_a_queue_has_one_identity_for_all_who_open_it(self, desk: Desk) -> None:
        log = desk.open()
        drawn = await desk.lab.together(*(desk.open().identity() for _ in range(6)))
        assert len(set(drawn)) == 1
        assert len(drawn[0]) == 16
        assert set(drawn[0]) <= set("0123456789abcdef")
        version = await log.put("k")
        await log.finish([("k", version)])
        await log.close()
        assert await desk.open().identity() == drawn[0]
        strangers = [desk.open("q2"), desk.open(place=desk.place + "x")]
        await strangers[0].put("k")
        others = [await log.identity() for log in strangers]
        assert len({drawn[0], *others}) == 3
        assert await desk.open("q2").identity() == others[0]

    @with_a_desk
    async def test_the_other_world_sees_the_same_queue(self, desk: Desk) -> None:
        log = desk.open()
        await log.put("mine")
        lab = desk.lab

        async def other() -> None:
            threads = desk.lab.world.name == "asyncio"
            world: Any = lab.runtime.threads if threads else lab.runtime.asyncio()
            for each in (desk.open().log, log.log):  # the very same object, too
                hand = Hand(each, world, lambda: world.deadline(10.0))
                assert await hand.pending("mine") is not None
                await hand.put("theirs")
                await hand.close()

        if lab.world.name == "asyncio":
            await asyncio.to_thread(drive, other())
        else:
            asyncio.run(other())
        assert [r.key for r in await log.read_all()].count("theirs") == 2

    @with_a_desk
    async def test_a_deadline_that_passed_is_a_backend_error_at_once(self, desk: Desk) -> None:
        log = desk.open()
        await log.put("warm")
        late = Hand(log.log, desk.lab.world, lambda: desk.lab.deadline(-1.0))
        verbs: dict[str, Callable[[], Any]] = {
            "append": lambda: late.append(late.record("k")),
            "look": lambda: late.look("k"),
            "claim": lambda: late.claim(new_owner()),
            "renew": lambda: late.renew(new_owner(), 1),
            "release": lambda: late.release(new_owner(), 1),
            "read": lambda: late.read(),
            "settle": lambda: late.settle(1, [("k", 1)]),
            "standing": lambda: late.standing(),
            "left": lambda: late.left((1,) * log.parts),
            "letters": lambda: late.letters(),
            "revive": lambda: late.revive(1),
            "outdate": lambda: late.outdate("k"),
            "drop": lambda: late.drop(1),
            "queues": lambda: late.queues(),
            "identity": lambda: late.identity(),
        }
        for name, verb in verbs.items():
            begun = time.monotonic()
            with pytest.raises(BackendError):
                await verb()
                pytest.fail(f"{name} did its work although its deadline had passed")
            assert time.monotonic() - begun < 2.0, name

    @with_a_desk
    async def test_empty_lists_are_fine(self, desk: Desk) -> None:
        log = desk.open()
        assert await log.append() == []
        assert (await log.look()).pending == []
        epoch = await log.own(new_owner())
        assert await log.settle(epoch)
        assert [await log.letters(), await log.revive(), await log.drop(), await log.read()] == [
            [] for _ in range(4)
        ]
        await log.outdate()
        assert await log.standing() == Standing(newest=(0,) * log.parts)
