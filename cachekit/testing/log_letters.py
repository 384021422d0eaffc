"""Contract of a log's dead letters: listed, outdated by what came later, revived, dropped."""

from __future__ import annotations

import pytest

from ..core.ops import OpKind
from ..protocols import Bounds, Letter
from .log_lab import NOON, Desk, Hand, LogSuite, new_owner, with_a_desk


class LogLettersContract(LogSuite):
    @with_a_desk
    async def test_letters_are_listed_by_version_page_by_page(self, desk: Desk) -> None:
        log = desk.open()
        keys = [f"k{number}" for number in range(9)]
        versions = await log.puts(*keys)
        for number in (4, 8, 0, 1, 7, 3):
            await log.park(keys[number], versions[number], f"no {number}")
        whole = await desk.open().letters()
        assert sorted((each.record.key, each.error) for each in whole) == [
            (f"k{number}", f"no {number}") for number in (0, 1, 3, 4, 7, 8)
        ]
        numbers = [each.record.version for each in whole]
        assert numbers == sorted(set(numbers)), "a version must name one letter of all partitions"
        for limit in (1, 2, 5):
            pages: list[Letter] = []
            while page := await log.letters(pages[-1].record.version if pages else 0, limit):
                assert len(page) == min(limit, len(whole) - len(pages))
                pages += page
            assert pages == whole

    @with_a_desk
    async def test_a_newer_operation_that_was_applied_or_parked_makes_a_letter_outdated(
        self, desk: Desk
    ) -> None:
        log = desk.open()
        first, second, other, third = await log.puts("k", "k", "other", "k")
        await log.park("k", first)
        await log.park("k", second)
        await log.park("other", other)
        assert await _outdated(log) == {first: True, second: False, other: False}
        await log.finish([("k", second)])  # the letter itself, not what is newer
        assert await _outdated(log) == {first: True, second: False, other: False}
        await log.finish([("k", third)])
        assert await _outdated(log) == {first: True, second: True, other: False}
        later = await log.put("k")
        await log.park("k", later)
        assert await _outdated(log) == {first: True, second: True, other: False, later: False}

    @pytest.mark.parametrize("newer", ["applied", "parked", "parked first"])
    @with_a_desk
    async def test_an_older_letter_of_the_same_step_is_outdated_too(
        self, desk: Desk, newer: str
    ) -> None:
        log = desk.open()
        first, second = await log.puts("k", "k")
        part = await log.part_of("k")
        letters = [Letter(record, "no") for record in await log.read(part=part)]
        epoch = await log.own(new_owner(), part)
        done = [("k", second)] if newer == "applied" else []
        if newer == "parked first":
            letters.reverse()
        for _ in range(2):  # twice is fine
            assert await log.settle(epoch, done, letters[:1] if done else letters, part)
            expected = {first: True} if done else {first: True, second: False}
            assert await _outdated(log) == expected
            assert await log.read_all() == []

    @with_a_desk
    async def test_a_letter_parked_again_is_no_less_outdated(self, desk: Desk) -> None:
        """An owner that got no answer settles once more what was settled."""
        log = desk.open()
        first, second = await log.puts("k", "k")
        part = await log.part_of("k")
        record = (await log.read(part=part))[0]
        epoch = await log.own(new_owner(), part)
        for done in ([], [("k", second)], []):
            assert await log.settle(epoch, done, [] if done else [Letter(record, "no")], part)
        assert await _outdated(log) == {first: True}
        assert (await log.standing()).dead == 1

    @with_a_desk
    async def test_a_letter_that_comes_outdated_stays_so(self, desk: Desk) -> None:
        log = desk.open()
        version = await log.put("k")
        await log.park("k", version, outdated=True)
        assert await _outdated(log) == {version: True}
        assert await log.revive(version) == []

    @with_a_desk
    async def test_a_revived_letter_is_a_new_operation(self, desk: Desk) -> None:
        log = desk.open()
        first = await log.put("k", None)
        newest = await log.put("other")
        await log.park("k", first)
        assert await log.revive(first) == [first]
        assert await log.letters() == []
        assert (await log.standing()).dead == 0
        record = await log.pending("k")
        assert record is not None
        assert (record.key, record.kind, record.data) == ("k", OpKind.DELETE, b"")
        assert record.version > max(first, newest if log.parts == 1 else 0)
        part = await log.part_of("k")
        assert (await log.read(part=part))[-1] == record
        assert (await log.standing()).newest[part] == record.version
        assert (await log.standing()).depth == 2
        assert await log.revive(first) == []
        await log.finish([("k", record.version)])
        assert await log.pending("k") is None
        assert await log.letters() == []

    @with_a_desk
    async def test_letters_are_revived_beyond_the_bound(self, desk: Desk) -> None:
        ((key, other), *_) = await desk.open().keys_of_parts(2)
        log = desk.open(bounds=Bounds(operations=1))
        version = await log.put(key)
        await log.park(key, version)
        await log.put(other)
        assert await log.append(log.record(key)) == [None]
        assert await log.revive(version) == [version]
        assert (await log.standing()).depth == 2

    @with_a_desk
    async def test_an_outdated_letter_is_revived_only_by_force(self, desk: Desk) -> None:
        log = desk.open()
        first, second = await log.puts("k", "k")
        await log.park("k", first)
        await log.finish([("k", second)])
        assert await log.revive(first) == []
        assert await _outdated(log) == {first: True}
        assert await log.pending("k") is None
        assert await log.revive(first, force=True) == [first]
        assert await log.pending("k") is not None
        assert await log.letters() == []

    @with_a_desk
    async def test_a_write_past_the_log_outdates_the_letters_of_its_keys(self, desk: Desk) -> None:
        log = desk.open()
        first, second, longer, other = await log.puts("k", "k", "kk", "other")
        for key, version in (("k", first), ("k", second), ("kk", longer), ("other", other)):
            await log.park(key, version)
        await log.put("other")
        before, seen = await log.standing(), await log.read_all()
        for _ in range(2):  # twice is fine
            await log.outdate("k", "unknown", "other")
            assert await _outdated(log) == {first: True, second: True, longer: False, other: True}
        assert (await log.standing(), await log.read_all()) == (before, seen)
        assert await log.revive(first, second, longer) == [longer]
        later = await log.put("k")
        await log.park("k", later)  # newer than that write
        assert await log.revive(second) == []
        assert await log.revive(later) == [later]
        assert await log.revive(second, force=True) == [second]

    @with_a_desk
    async def test_a_write_past_the_log_of_many_keys_outdates_their_letters(
        self, desk: Desk
    ) -> None:
        log = desk.open()
        keys = [f"k{number}" for number in range(1200)]
        await log.outdate(*keys)  # nothing is there
        marked = {number: await log.put(keys[number]) for number in (0, 599, 1199)}
        for number, version in marked.items():
            await log.park(keys[number], version)
        await log.outdate(*keys[1:])
        assert await _outdated(log) == {v: bool(number) for number, v in marked.items()}

    @with_a_desk
    async def test_a_letter_whose_key_has_an_operation_waits_unless_forced(
        self, desk: Desk
    ) -> None:
        log = desk.open()
        first, second, alone = await log.puts("k", "k", "alone")
        await log.park("k", first)
        await log.park("alone", alone)
        assert await log.revive(first, alone, 10**9, alone) == [alone]
        assert await _outdated(log) == {first: False}
        newest = await log.pending("k")
        assert newest is not None
        assert newest.version == second
        assert await log.revive(first, force=True) == [first]
        newest = await log.pending("k")
        assert newest is not None
        assert newest.version > second

    @with_a_desk
    async def test_of_the_letters_of_a_key_the_newest_is_revived(self, desk: Desk) -> None:
        log = desk.open()
        versions = [await log.put("k", b"%d" % number) for number in range(3)]
        for version in versions:
            await log.park("k", version)
        assert await log.revive(*versions) == versions[2:]
        assert await _outdated(log) == {versions[0]: True, versions[1]: True}
        record = await log.pending("k")
        assert record is not None
        assert record.data == b"2"
        assert await log.revive(*versions[:2]) == []

    @with_a_desk
    async def test_dropped_letters_are_gone_for_good(self, desk: Desk) -> None:
        log = desk.open()
        versions = await log.puts("a", "b", "c", "waits")
        for key, version in zip("abc", versions, strict=False):
            await log.park(key, version, parked=NOON)
        assert await log.drop(versions[1], versions[3], 10**9) == [versions[1]]
        assert list(await _outdated(log)) == sorted([versions[0], versions[2]])
        assert await log.drop(versions[1]) == []
        assert await log.revive(versions[1], force=True) == []
        assert sorted(await log.drop(versions[2], versions[0])) == sorted(versions[0:3:2])
        assert await desk.open().letters() == []
        standing = await log.standing()
        assert (standing.depth, standing.dead) == (1, 0)


async def _outdated(log: Hand) -> dict[int, bool]:
    return {each.record.version: each.outdated for each in await log.letters()}
