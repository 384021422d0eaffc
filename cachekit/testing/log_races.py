"""Contract of a log under rivals and at random: nothing lost, nothing twice, one instant."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ..core.ops import OpKind
from ..protocols import Bounds, Letter, Record
from .log_lab import Desk, Hand, LogSuite, new_owner, with_a_desk
from .log_model import LogModel

WRITERS = 6
CALLS = 15
STEPS = 60
KEYS = ("a", "b", "c", "d")


class LogRacesContract(LogSuite):
    @with_a_desk
    async def test_writers_at_once_lose_nothing_while_one_settles(self, desk: Desk) -> None:
        """Who reads on after the last version it saw meets every operation, once."""
        logs = [desk.open() for _ in range(3)]
        owner, parts = new_owner(), range(logs[0].parts)
        epochs = [await logs[0].own(owner, part) for part in parts]
        accepted: list[tuple[str, int]] = []
        met: list[tuple[str, int]] = []
        ended: list[int] = []

        async def write(writer: int) -> None:
            log = logs[writer % 3]
            last: dict[str, int] = {}
            try:
                for number in range(CALLS):
                    keys = [f"w{writer}", "shared", f"k{writer}-{number}"]
                    versions = await log.puts(*keys)
                    for key, version in zip(keys, versions, strict=True):
                        assert version > last.get(key, 0)
                        last[key] = version
                        accepted.append((key, version))
                    await desk.lab.world.sleep(0.0005)
            finally:
                ended.append(writer)

        async def settle() -> None:
            cursors = dict.fromkeys(parts, 0)
            while True:
                ending = len(ended) == WRITERS
                for part in parts:
                    records = await logs[0].read(cursors[part], 7, part)
                    done = [(record.key, record.version) for record in records]
                    assert await logs[0].settle(epochs[part], done, part=part)
                    cursors[part] = records[-1].version if records else cursors[part]
                    met.extend(done)
                    ending = ending and not records
                if ending:
                    return
                await desk.lab.world.sleep(0.0005)

        await desk.lab.together(*(write(number) for number in range(WRITERS)), settle())
        assert len(accepted) == WRITERS * CALLS * 3
        assert sorted(met) == sorted(accepted)
        standing = await logs[1].standing()
        assert (standing.depth, standing.size, standing.oldest) == (0, 0, None)

    @with_a_desk
    async def test_writers_at_once_do_not_pass_the_bound(self, desk: Desk) -> None:
        ((*keys,), *_) = await desk.open().keys_of_parts(3)
        bounds = Bounds(operations=20)
        logs = [desk.open(bounds=bounds) for _ in range(3)]

        async def write(log: Hand) -> int:
            count = 0
            for _ in range(4):
                answer = await log.append(*(log.record(key) for key in keys))
                count += sum(version is not None for version in answer)
            return count

        counts = await desk.lab.together(*(write(logs[number % 3]) for number in range(6)))
        assert sum(counts) == 20
        assert (await logs[0].standing()).depth == 20
        assert len(await logs[0].read_all()) == 20

    @with_a_desk
    async def test_claimants_at_once_are_one_owner(self, desk: Desk) -> None:
        logs = [desk.open() for _ in range(3)]
        last = 0
        for _ in range(8):
            owners = [new_owner() for _ in range(9)]
            epochs = await desk.lab.together(
                *(logs[number % 3].claim(owner) for number, owner in enumerate(owners))
            )
            granted = [
                (epoch, who) for epoch, who in zip(epochs, owners, strict=True) if epoch is not None
            ]
            assert len(granted) == 1
            epoch, winner = granted[0]
            assert epoch > last
            last = epoch
            await logs[0].release(winner, epoch)

    @with_a_desk
    async def test_no_look_misses_both_an_operation_and_its_settling(self, desk: Desk) -> None:
        """What was pending at one look is pending at the next, or is told to have left."""
        writer, reader = desk.open(), desk.open()
        rounds, keys = 40, ["x", "y"]
        ended = [False]
        for key in keys:
            await writer.put(key)
        epochs = {part: await writer.own(new_owner(), part) for part in range(writer.parts)}
        homes = {key: await writer.part_of(key) for key in keys}

        async def work() -> None:
            try:
                for number in range(rounds):
                    key = keys[number % 2]
                    version = await writer.put(key)
                    part = homes[key]
                    await desk.lab.world.sleep(0.0002)
                    assert await writer.settle(epochs[part], [(key, version)], part=part)
            finally:
                ended[0] = True

        async def look() -> None:
            seen = await reader.look(*keys)
            while True:
                last = ended[0]
                now = await reader.look(*keys, since=seen.mark)
                for key, before, after in zip(keys, seen.pending, now.pending, strict=True):
                    if before is None or not reader.log.tells or now.settled is None:
                        continue
                    gone = after is None or after.version > before.version
                    assert not gone or after is not None or key in now.settled, (
                        f"{key!r} left the log untold"
                    )
                seen = now
                await desk.lab.world.sleep(0)  # a look may be done in place, with no pause
                if last:
                    assert now.pending == [None, None]
                    return

        await desk.lab.together(work(), look(), look())

    @with_a_desk
    async def test_what_was_acknowledged_is_seen_by_every_later_look(self, desk: Desk) -> None:
        logs = [desk.open() for _ in range(3)]

        async def write_and_look(number: int) -> None:
            mine, others = logs[number % 3], logs[(number + 1) % 3]
            for _ in range(12):
                version = await mine.put("k")
                seen = await others.pending("k")
                assert seen is not None
                assert seen.version >= version

        await desk.lab.together(*(write_and_look(number) for number in range(5)))

    @with_a_desk
    async def test_settlers_of_two_epochs_at_once_are_one_owner(self, desk: Desk) -> None:
        """From the claim on, the owner before settles nothing."""
        first, second = desk.open(), desk.open()
        await first.put("k")
        part = await first.part_of("k")
        for number in range(15):
            mine, yours = new_owner(), new_owner()
            old = await first.own(mine, part)
            version = await first.put("k")
            await first.release(mine, old, part)

            async def settle_late(
                epoch: int = old, version: int = version, wait: bool = number % 2 == 0
            ) -> bool:
                if wait:
                    await desk.lab.world.sleep(0.0003)
                return await first.settle(epoch, [("k", version)], part=part)

            async def take_over(owner: bytes = yours) -> tuple[int, list[int]]:
                epoch = await second.own(owner, part)
                return epoch, [r.version for r in await second.read(part=part) if r.key == "k"]

            settled, (epoch, found) = await desk.lab.together(settle_late(), take_over())
            there = [r.version for r in await second.read(part=part) if r.key == "k"]
            assert settled or version in there
            assert there == found, "what a new owner had read was settled by the one before"
            assert await second.settle(epoch, [("k", version)], part=part)
            await second.release(yours, epoch, part)

    @pytest.mark.parametrize("seed", range(6))
    @with_a_desk
    async def test_a_random_run_does_what_the_model_does(self, desk: Desk, seed: int) -> None:
        rng = random.Random(seed)
        bounds = Bounds(operations=8, size=60)
        probe = desk.open()
        for key in KEYS:
            await probe.put(key)
        homes = {key: await probe.part_of(key) for key in KEYS}
        for part in range(probe.parts):
            await probe.finish([(r.key, r.version) for r in await probe.read(part=part)])
        follower = Follower([desk.open(bounds=bounds) for _ in range(2)], rng, homes, bounds)
        await follower.begin()
        story: list[str] = []
        for _ in range(STEPS):
            verb = rng.choice(VERBS)
            story.append(verb)
            try:
                story[-1] += f" {await getattr(follower, verb)()}"
                await follower.compare()
            except AssertionError as error:
                steps = "\n".join(story[-15:])
                raise AssertionError(f"seed {seed}, the last steps:\n{steps}\n{error}") from error


VERBS = ("append", "append", "append", "settle", "settle", "settle", "claim", "release",
         "renew", "revive", "outdate", "drop")  # fmt: skip


class Follower:
    """Does random steps on a log by two of its objects, and the same on the model."""

    def __init__(
        self, logs: list[Hand], rng: random.Random, homes: dict[str, int], bounds: Bounds
    ) -> None:
        self.logs = logs
        self.rng = rng
        self.homes = homes
        self.model = LogModel(logs[0].parts, bounds)
        self.owners = [new_owner(), new_owner()]
        self.epochs = [[0] for _ in range(logs[0].parts)]  # all that were given
        self.seen: list[Record] = []  # all that was ever in the log
        self.number = 0

    async def begin(self) -> None:
        self.model.newest = list((await self.logs[0].standing()).newest)
        for part, owner in enumerate(self.model.owners):
            epoch = await self.logs[0].own(self.owners[0], part)
            owner.claim(self.owners[0], 60.0, epoch - 1, 0.0)
            self.epochs[part].append(epoch)

    @property
    def log(self) -> Hand:
        return self.rng.choice(self.logs)

    async def append(self) -> Any:
        rng, log = self.rng, self.log
        records = []
        for _ in range(rng.randint(1, 4)):
            self.number += 1
            data = rng.choice([b"", b"x" * 5, b"y" * 30, None])
            records.append(log.record(rng.choice(KEYS), data)._replace(at=1e9 + self.number))
        versions = await log.append(*records)
        given = iter([version for version in versions if version is not None])
        # Where the model accepts more than the log did there is no version left to give.
        expected = self.model.admit(
            records, self.homes.__getitem__, lambda: next(given, 2**62 + self.number)
        )
        assert versions == expected
        self.seen += [
            record._replace(version=version)
            for record, version in zip(records, versions, strict=True)
            if version is not None
        ]
        return records, versions

    async def settle(self) -> Any:
        rng, part = self.rng, self.rng.randrange(len(self.epochs))
        epoch = rng.choice([*self.epochs[part][-1:] * 6, *self.epochs[part]])
        there = [r for r in self.seen if self.homes[r.key] == part] or [
            Record("a", OpKind.PUT, b"", 1)
        ]
        chosen = rng.sample(there, min(len(there), rng.randint(0, 3)))
        done = [(r.key, r.version) for r in chosen]
        waiting = list(self.model.ops[part].values())
        parked = rng.sample(waiting, min(len(waiting), rng.randint(0, 1)))
        letters = [Letter(r, f"no {r.version}", 1, 5.0) for r in parked]
        answer = await self.log.settle(epoch, done, letters, part)
        assert answer == self.model.settle(part, epoch, done, letters)
        return part, epoch, done, letters, answer

    async def claim(self) -> Any:
        part, owner = self.rng.randrange(len(self.epochs)), self.rng.choice(self.owners)
        beyond = self.rng.choice([0, 0, 3, self.epochs[part][-1] + 7])
        epoch = await self.log.claim(owner, part=part, beyond=beyond)
        expected = self.model.owners[part].claim(owner, 60.0, beyond, 0.0)
        assert (epoch is None) == (expected is None)
        if epoch is not None:
            assert epoch > max(beyond, *self.epochs[part])
            self.epochs[part].append(epoch)
            self.model.owners[part].epoch = epoch
        return part, owner, beyond, epoch

    async def renew(self) -> Any:
        part, who = self.rng.randrange(len(self.epochs)), self.rng.randrange(2)
        mine = self.model.owners[part]
        if mine.owner == b"" or (mine.owner == self.owners[who]) != (who == 0):
            return "nobody's, or not asked"
        epoch = mine.epoch
        answer = await self.log.renew(self.owners[who], epoch, part=part)
        assert answer == mine.renew(self.owners[who], epoch, 60.0, 0.0)
        return part, self.owners[who], epoch, answer

    async def release(self) -> Any:
        part, owner = self.rng.randrange(len(self.epochs)), self.rng.choice(self.owners)
        epoch = self.rng.choice(self.epochs[part][-2:])
        await self.log.release(owner, epoch, part=part)
        self.model.owners[part].release(owner, epoch)
        return part, owner, epoch

    async def revive(self) -> Any:
        rng = self.rng
        versions = [rng.choice([*self.model.dead, 3]) for _ in range(rng.randint(0, 2))]
        force = rng.random() < 0.3
        before, answer = self.model.newest[:], await self.log.revive(*versions, force=force)
        new = [
            iter([r.version for r in await self.log.read(before[part], part=part)])
            for part in range(len(before))
        ]
        parts = [self.homes[self.model.dead[v].record.key] for v in answer if v in self.model.dead]
        given = iter([next(new[part], 2**62) for part in parts])
        expected = self.model.revive(
            versions, force, self.homes.__getitem__, lambda: next(given, 2**62)
        )
        assert answer == expected
        for part, newest in enumerate(before):
            self.seen += self.model.read(part, newest, 1000)
        return versions, force, answer

    async def outdate(self) -> Any:
        keys = self.rng.sample(KEYS, self.rng.randint(0, 2))
        await self.log.outdate(*keys)
        self.model.outdate(keys)
        return keys

    async def drop(self) -> Any:
        versions = [self.rng.choice([*self.model.dead, 3])]
        answer = await self.log.drop(*versions)
        assert answer == self.model.drop(versions)
        return versions, answer

    async def compare(self) -> None:
        log = self.log
        standing = await log.standing()
        assert standing == self.model.standing()
        for part in range(log.parts):
            assert await log.read(part=part) == self.model.read(part, 0, 1000)
        assert (await log.look(*KEYS)).pending == [self.model.pending(key) for key in KEYS]
        assert await log.letters() == self.model.letters(0, 1000)
        upto = [self.rng.randint(0, newest) for newest in standing.newest]
        assert await log.left(upto) == self.model.left(upto)
