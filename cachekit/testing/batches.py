"""Contract of the steps on several keys at once: each key is a step of its own."""

from __future__ import annotations

from ..protocols import Asking, Filling, SlotState
from .lab import Lab, Suite, in_both_worlds

LEASE = 30.0


class BatchesContract(Suite):
    @in_both_worlds
    async def test_acquiring_many_grants_each_key_by_its_own_state(self, lab: Lab) -> None:
        slots = lab.open().slots
        stamp, rival, writer = lab.token(), lab.token(), lab.token()
        await slots.put("entry", stamp, b"old", None, lab.deadline())
        await slots.acquire("taken", rival, LEASE, lab.deadline())
        await slots.seize(["blocked"], writer, LEASE, lab.deadline())
        asked = [
            Asking("free", lab.token()),
            Asking("entry", lab.token(), stamp),
            Asking("taken", lab.token()),
            Asking("blocked", lab.token()),
        ]
        grants = await slots.acquire_many(asked, LEASE, lab.deadline())
        assert [grant.granted for grant in grants] == [True, True, False, False]
        assert [grants[2].slot.state, grants[3].slot.state] == [SlotState.TOKEN, SlotState.BLOCK]
        # "entry" was given up for good: the batch never keeps what it was asked to go over.
        assert (await lab.slot(slots, "entry")).state is SlotState.TOKEN
        assert await slots.acquire_many([], LEASE, lab.deadline()) == []

    @in_both_worlds
    async def test_acquiring_many_tells_what_stands_in_the_way(self, lab: Lab) -> None:
        slots = lab.open().slots
        stamp = lab.token()
        await slots.put("a", stamp, b"value", None, lab.deadline())
        (grant,) = await slots.acquire_many([Asking("a", lab.token())], LEASE, lab.deadline())
        assert not grant.granted
        assert (grant.slot.stamp, grant.slot.data) == (stamp, b"value")

    @in_both_worlds
    async def test_filling_many_stores_only_where_the_token_still_stands(self, lab: Lab) -> None:
        slots = lab.open().slots
        asked = [Asking(key, lab.token()) for key in ("a", "b", "c")]
        await slots.acquire_many(asked, LEASE, lab.deadline())
        await slots.void(["b"], lab.deadline())
        fills = [Filling(ask.key, ask.token, ask.key.encode(), 60.0) for ask in asked]
        assert await slots.fill_many(fills, lab.deadline()) == [True, False, True]
        reading = await slots.read(["a", "b", "c"], [], lab.deadline())
        assert [slot.data for slot in reading.slots] == [b"a", None, b"c"]
        assert [slot.stamp for slot in reading.slots if slot.data] == [
            asked[0].token,
            asked[2].token,
        ]
        assert await slots.fill_many([], lab.deadline()) == []

    @in_both_worlds
    async def test_a_refresh_token_given_back_frees_the_refresh_at_once(self, lab: Lab) -> None:
        slots = lab.open().slots
        stamp, first, second = lab.token(), lab.token(), lab.token()
        await slots.put("a", stamp, b"value", 60.0, lab.deadline())
        assert (
            await slots.acquire("a", first, LEASE, lab.deadline(), over=stamp, keep=True)
        ).granted
        await slots.release("a", first, lab.deadline())
        again = await slots.acquire("a", second, LEASE, lab.deadline(), over=stamp, keep=True)
        assert again.granted
        assert (await lab.slot(slots, "a")).data == b"value"
