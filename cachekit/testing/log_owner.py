"""Contract of a log's owner: leases, epochs, and what settling takes out of the log."""

from __future__ import annotations

from ..protocols import Letter
from .log_lab import Desk, LogSuite, new_owner, with_a_desk


class LogOwnerContract(LogSuite):
    @with_a_desk
    async def test_one_owner_at_a_time_and_epochs_only_grow(self, desk: Desk) -> None:
        first, second = desk.open(), desk.open()
        mine, yours = new_owner(), new_owner()
        epoch = await first.own(mine)
        assert epoch > 0
        assert await second.claim(yours) is None
        again = await first.own(mine)  # one's own claim is taken over anew
        assert again > epoch
        assert await second.claim(yours) is None
        await second.release(yours, again)
        await second.release(mine, epoch)
        assert await second.claim(yours) is None  # neither released anything
        await first.release(mine, again)
        theirs = await second.own(yours)
        assert theirs > again
        assert await first.claim(mine) is None
        await first.release(mine, again)
        assert await first.claim(mine) is None
        for part in range(1, first.parts):  # another partition is free
            assert await first.claim(mine, part=part) is not None

    @with_a_desk
    async def test_a_lease_ends_and_can_be_renewed_until_somebody_else_claims(
        self, desk: Desk
    ) -> None:
        log, other = desk.open(), desk.open()
        mine, yours = new_owner(), new_owner()
        epoch = await log.claim(mine, desk.brief)
        assert epoch is not None
        await desk.outlast()
        assert await log.renew(mine, epoch)  # it ran out, and nobody has claimed since
        assert await other.claim(yours) is None
        assert not await other.renew(yours, epoch)
        assert await log.renew(mine, epoch, desk.brief)  # shorter than what was left
        await desk.outlast()
        theirs = await other.own(yours)
        assert theirs > epoch
        assert not await log.renew(mine, epoch)
        assert await log.claim(mine) is None
        assert await other.renew(yours, theirs, desk.brief)
        await desk.outlast()  # theirs ran out as well: mine is lost all the same
        assert not await log.renew(mine, epoch)
        assert await other.renew(yours, theirs)
        await other.release(yours, theirs)
        assert not await log.renew(mine, epoch)
        assert await log.own(mine) > theirs

    @with_a_desk
    async def test_a_renewed_lease_outlives_the_first_one(self, desk: Desk) -> None:
        log = desk.open()
        owner = new_owner()
        epoch = await log.claim(owner, desk.brief)
        assert epoch is not None
        assert await log.renew(owner, epoch)
        await desk.outlast()
        assert await desk.open().claim(new_owner()) is None
        assert await log.settle(epoch)

    @with_a_desk
    async def test_an_epoch_lies_beyond_what_it_is_asked_to(self, desk: Desk) -> None:
        log = desk.open()
        owner, far = new_owner(), 2**45
        epoch = await log.claim(owner, beyond=1000)
        assert epoch is not None
        assert epoch > 1000
        later = await log.claim(owner, beyond=5)  # no step back
        assert later is not None
        assert later > epoch
        last = await log.claim(owner, beyond=far)
        assert last is not None
        assert last > far
        assert await log.claim(new_owner(), beyond=2 * far) is None
        await log.release(owner, last)
        log = desk.open()
        following = await log.own(new_owner())
        assert following > last
        assert not await log.settle(last)
        assert await log.settle(following)

    @with_a_desk
    async def test_an_old_epoch_settles_nothing(self, desk: Desk) -> None:
        log = desk.open()
        parked, waiting = await log.puts("k", "k")
        await log.park("k", parked)
        part = await log.part_of("k")
        mine, yours = new_owner(), new_owner()
        old = await log.claim(mine, desk.brief, part=part)
        assert old is not None
        await desk.outlast()
        new = await log.own(yours, part)
        records, dead = await log.read_all(), await log.letters()
        letters = [Letter(records[0], "late")]
        for epoch in (old, new + 1, 0):
            for done, more in (([("k", waiting)], []), ([], letters), ([("k", waiting)], letters)):
                assert await log.settle(epoch, done, more, part) is False
        assert (await log.read_all(), await log.letters()) == (records, dead)
        assert (await log.standing()).depth == 1
        assert not dead[0].outdated
        assert await log.settle(new, [("k", waiting)], part=part) is True
        assert await log.read_all() == []

    @with_a_desk
    async def test_an_owner_whose_lease_ran_out_settles_until_somebody_else_claims(
        self, desk: Desk
    ) -> None:
        log = desk.open()
        version = await log.put("k")
        part = await log.part_of("k")
        epoch = await log.claim(new_owner(), desk.brief, part=part)
        assert epoch is not None
        await desk.outlast()
        assert await log.settle(epoch, [("k", version)], part=part)
        assert await log.read_all() == []

    @with_a_desk
    async def test_settling_takes_the_key_up_to_the_version_and_nothing_newer(
        self, desk: Desk
    ) -> None:
        log = desk.open()
        keys = ["a", "b", "a", "c", "a", "b"]
        versions = await log.puts(*keys)
        await log.finish([("a", versions[2])])

        async def left() -> list[tuple[str, int]]:
            return sorted((r.key, r.version) for r in await log.read_all())

        wanted = sorted((keys[n], versions[n]) for n in (1, 3, 4, 5))
        assert await left() == wanted
        newest = await log.pending("a")
        assert newest is not None
        assert newest.version == versions[4]
        await log.finish([("a", versions[2]), ("a", versions[0])])  # twice is fine
        await log.finish([("b", versions[1] - 1), ("c", versions[3] - 1)])  # nothing is that old
        assert await left() == wanted
        assert (await log.standing()).depth == 4
        await log.finish([("b", versions[5] - 1), ("c", versions[3] + 1)])  # between is fine
        assert await left() == sorted((keys[n], versions[n]) for n in (4, 5))
        again = await log.put("c")
        await log.finish([("c", versions[3]), ("a", versions[4]), ("b", versions[5])])
        assert await left() == [("c", again)]
        assert (await log.standing()).depth == 1
        assert (await log.standing()).size == 2

    @with_a_desk
    async def test_a_parked_operation_takes_what_is_older_along_and_nothing_newer(
        self, desk: Desk
    ) -> None:
        log = desk.open()
        versions = await log.puts("k", "k", "other", "k")
        part, owner = await log.part_of("k"), new_owner()
        records = await log.read_all()
        second = next(record for record in records if record.version == versions[1])
        epoch = await log.own(owner, part)
        for _ in range(2):  # twice is fine
            dead = Letter(second, "bad value", 2, second.at)
            assert await log.settle(epoch, [], [dead], part)
            assert await log.letters() == [dead]
            assert sorted(r.version for r in await log.read_all()) == sorted(versions[2:])
        newest = await log.pending("k")
        assert newest is not None
        assert newest.version == versions[3]
        assert (await log.standing()).depth == 2
        assert (await log.standing()).dead == 1

    @with_a_desk
    async def test_a_great_many_are_settled_in_one_step(self, desk: Desk) -> None:
        """Half of them are of one hot key."""
        log = desk.open()
        await log.put("bystander")
        versions: dict[str, int] = {}
        for start in range(0, 2000, 500):
            keys = ["hot" if n % 2 else f"k{n}" for n in range(start, start + 500)]
            versions.update(zip(keys, await log.puts(*keys), strict=True))
        for key in list(versions):
            await log.part_of(key)
        await log.finish(list(versions.items()))
        assert [record.key for record in await log.read_all()] == ["bystander"]
        assert (await log.standing()).depth == 1
        assert await log.pending("hot") is None
