"""Contract of a log as a queue: what is accepted, in which order, and what a reader sees of it."""

from __future__ import annotations

import time

from ..errors import ConfigurationError
from ..protocols import Bounds, Letter, Record
from .log_lab import Desk, Hand, LogSuite, new_owner, with_a_desk

HOSTILE = (
    "k", "K", " k", "k ", "k:", "k:1", "k\0", "k\0x", "{k}", "}k{", "k*", "[k]", "?", "%", "_",
    "\\", "'", '"', "';DROP TABLE ops;--", "$1", ":a", "\n", "\r\n", "*3\r\n$3\r\nDEL\r\n",
    "redis.call('FLUSHALL')", "]] return 1 --[[", "cjson.null", "nil", "0", "1e3", "1000", "-1",
    "é", "e\u0301", "ß", "SS", "\u202e", "\U0001f511", "日本", "../k", "k/..", "long" * 500,
)  # fmt: skip


class LogQueueContract(LogSuite):
    @with_a_desk
    async def test_versions_grow_in_the_order_of_acceptance(self, desk: Desk) -> None:
        log = desk.open()
        accepted: list[Record] = []
        for keys in (["a"], ["b", "a", "c"], ["a", "a"], ["c"]):
            records = [log.record(key, b"%d" % len(accepted)) for key in keys]
            versions = await log.append(*records)
            assert len(versions) == len(records)
            for record, version in zip(records, versions, strict=True):
                assert version is not None
                assert version > 0
                accepted.append(record._replace(version=version))
        for part in range(log.parts):
            there = await log.read(part=part)
            theirs = {record.key for record in there}
            assert there == [record for record in accepted if record.key in theirs]
            numbers = [record.version for record in there]
            assert numbers == sorted(set(numbers))
        assert len(await log.read_all()) == len(accepted)

    @with_a_desk
    async def test_versions_never_go_back(self, desk: Desk) -> None:
        """Not when the queue is empty, nor when it is opened again."""
        log = desk.open()
        last = 0
        for number in range(6):
            if number % 2:
                await log.close()
                log = desk.open()
            version = await log.put("k")
            assert version > last
            last = version
            if number == 3:
                await log.park("k", version)
                await log.drop(version)
            else:
                await log.finish([("k", version)])
            assert await log.read_all() == []
            assert max((await log.standing()).newest) == last

    @with_a_desk
    async def test_what_comes_without_a_time_was_accepted_now(self, desk: Desk) -> None:
        log = desk.open()
        before = time.time()
        await log.append(log.record("k")._replace(at=0.0))
        (record,) = await log.read_all()
        assert before - 60.0 < record.at < time.time() + 60.0
        assert (await log.standing()).oldest == record.at

    @with_a_desk
    async def test_every_byte_and_size_comes_back(self, desk: Desk) -> None:
        log = desk.open()
        large = bytes(range(256)) * (self.largest // 256)
        values = [b"", b"\0", b"\r\n", bytes(range(256)), b"\xff\xfe", b"1", large, None]
        records = [log.record(f"k{number}", data) for number, data in enumerate(values)]
        versions = await log.append(*records)
        wanted = [
            record._replace(version=version or 0)
            for record, version in zip(records, versions, strict=True)
        ]
        assert (await log.look(*(record.key for record in records))).pending == wanted
        assert sorted(await log.read_all()) == sorted(wanted)
        for record in wanted[-2:]:
            await log.park(record.key, record.version, "é\0'\n" + "x" * 5000, attempts=9)
        for parked in await log.letters():
            assert parked.record in wanted[-2:]
            assert parked.attempts == 9
            assert parked.error.startswith("é\0'\n" + "x" * 100)

    @with_a_desk
    async def test_hostile_keys_stay_apart(self, desk: Desk) -> None:
        log = desk.open()
        versions = dict(zip(HOSTILE, await log.puts(*HOSTILE), strict=True))
        seen = (await log.look(*HOSTILE)).pending
        assert [(r.key, r.version) for r in seen if r is not None] == list(versions.items())
        for key in HOSTILE[::2]:
            await log.finish([(key, versions[key])])
        seen = (await log.look(*HOSTILE)).pending
        assert [record is None for record in seen] == [
            number % 2 == 0 for number in range(len(HOSTILE))
        ]
        await log.finish(
            letters=[
                Letter(record, record.key)
                for record in await log.read_all()
                if record.key in HOSTILE[1::2]
            ]
        )
        assert {parked.error for parked in await log.letters()} == set(HOSTILE[1::2])
        assert await log.read_all() == []

    @with_a_desk
    async def test_queues_of_one_place_do_not_see_each_other(self, desk: Desk) -> None:
        logs: dict[str, Hand] = {}
        for name in HOSTILE:
            try:
                logs[name] = desk.open(name)
            except ConfigurationError:
                continue  # refused where it is wired
        assert {"k", "K", "k:1", "1000"} <= set(logs)
        versions = {name: await log.put("k", name.encode()) for name, log in logs.items()}
        for name, log in logs.items():
            seen = await log.pending("k")
            assert seen is not None
            assert seen.data == name.encode()
            assert len(await log.read_all()) == 1
            assert (await log.standing()).depth == 1
        names = list(logs)
        assert sorted(await logs["k"].queues()) == sorted(names)
        for number, name in enumerate(names):
            log, version = logs[name], versions[name]
            if number % 2:
                await log.park("k", version, name)
            elif number % 4:
                await log.finish([("k", version)])
        for number, name in enumerate(names):
            log = logs[name]
            errors = [name] if number % 2 else []
            assert [parked.error for parked in await log.letters()] == errors
            assert (await log.standing()).depth == (number % 4 == 0)
            assert (await log.standing()).dead == len(errors)
            owner = new_owner()
            for part in range(log.parts):  # still free, though claimed in every other queue
                assert await log.claim(owner, part=part) is not None

    @with_a_desk
    async def test_places_do_not_see_each_other(self, desk: Desk) -> None:
        here, there = desk.open("q"), desk.open("q", place=desk.place + "x")
        await here.put("k")
        await desk.open("more").put("k")
        assert await there.pending("k") is None
        assert await there.queues() in ([], ["q"])
        assert sorted(await here.queues()) == ["more", "q"]

    @with_a_desk
    async def test_the_bound_counts_operations_until_they_are_settled(self, desk: Desk) -> None:
        ((first, second), *others) = await desk.open().keys_of_parts(2)
        log = desk.open(bounds=Bounds(operations=3))
        records = [log.record(key) for key in (first, first, second, first, second)]
        answer = await log.append(*records)
        assert [version is None for version in answer] == [False, False, False, True, True]
        assert await log.append(log.record(first), log.record(second)) == [None, None]
        assert (await log.standing()).depth == 3
        for key in (keys[0] for keys in others):  # another partition has room of its own
            assert None not in await log.append(log.record(key))
        await log.finish([(second, answer[2] or 0)])
        answer = await log.append(log.record(second), log.record(second))
        assert [version is None for version in answer] == [False, True]
        await log.park(second, answer[0] or 0)  # a dead letter takes no room
        assert [await log.append(log.record(first)) == [None] for _ in range(2)] == [False, True]
        roomy = desk.open(bounds=Bounds())
        assert await roomy.put(first) > 0

    @with_a_desk
    async def test_the_bound_counts_bytes_and_nothing_is_accepted_past_what_was_refused(
        self, desk: Desk
    ) -> None:
        ((first, second, third), *others) = await desk.open().keys_of_parts(3)
        log = desk.open(bounds=Bounds(size=1000))
        small, large = b"s" * 10, b"l" * 600
        other = others[0][0] if others else None
        records = [log.record(first, large), log.record(second, large), log.record(second, large)]
        records += [log.record(third, small), *([log.record(other, small)] if other else [])]
        answer = await log.append(*records)
        assert answer[0] is not None
        refused = answer.index(None)
        assert refused in (1, 2)  # at the bound, or with the operation that goes past it
        assert answer[refused:4] == [None] * (4 - refused)
        assert answer[4:] == [] or answer[4] is not None
        held = len(await log.read(part=await log.part_of(first)))
        assert held == refused
        await log.finish([(key, version) for key, version in _accepted(records, answer)])
        assert await log.put(third, large) > 0


def _accepted(records: list[Record], answer: list[int | None]) -> list[tuple[str, int]]:
    pairs = zip(records, answer, strict=True)
    return [(record.key, version) for record, version in pairs if version is not None]
