"""Contract of nonces: created once, never overwritten, dropped for good, per namespace."""

from __future__ import annotations

from ..protocols import TOKEN_BYTES, SlotState
from .lab import Lab, Suite, in_both_worlds

ROUNDS = 20


class NoncesContract(Suite):
    @in_both_worlds
    async def test_reading_creates_no_nonce(self, lab: Lab) -> None:
        slots = lab.open().slots
        for _ in range(2):
            reading = await slots.read(["a", "b"], ["t", "u"], lab.deadline())
            assert reading.spaces == [None, None]
            assert reading.nonces == [None, None]

    @in_both_worlds
    async def test_a_created_nonce_is_the_one_read(self, lab: Lab) -> None:
        slots = lab.open().slots
        made: list[bytes] = []

        def fresh() -> bytes:
            made.append(lab.token())
            return made[-1]

        keys, tags = ["a", "b", "a"], ["t", "u", "t"]
        nonces = await slots.nonces(keys, tags, fresh, None, lab.deadline())
        assert set(nonces.spaces) | set(nonces.tags) <= set(made)
        assert all(nonce is not None and len(nonce) == TOKEN_BYTES for nonce in nonces.tags)
        assert nonces.tags[0] == nonces.tags[2] != nonces.tags[1]
        assert nonces.spaces[0] == nonces.spaces[2] is not None
        reading = await slots.read(keys, tags, lab.deadline())
        assert reading.spaces == nonces.spaces
        assert reading.nonces == nonces.tags
        assert [slot.state for slot in reading.slots] == [SlotState.NOTHING] * 3

    @in_both_worlds
    async def test_nonces_come_in_the_order_asked(self, lab: Lab) -> None:
        slots = lab.open().slots
        tags = [f"t{n}" for n in range(40)]
        keys = [f"k{n}" for n in range(40)]
        nonces = await slots.nonces(keys, tags, lab.token, None, lab.deadline())
        assert len(set(nonces.tags)) == len(tags)
        reading = await slots.read(keys[::-1], tags[::-1], lab.deadline())
        assert reading.nonces == nonces.tags[::-1]
        assert reading.spaces == nonces.spaces[::-1]
        assert (await slots.read([], tags[5:7], lab.deadline())).nonces == nonces.tags[5:7]

    @in_both_worlds
    async def test_a_nonce_is_never_overwritten(self, lab: Lab) -> None:
        slots = lab.open().slots
        first = await slots.nonces(["a"], ["t"], lab.token, 3600.0, lab.deadline())
        for ttl in (None, 60.0, 3600.0):
            again = await slots.nonces(["a"], ["u", "t"], lab.token, ttl, lab.deadline())
            assert (again.spaces, again.tags[1:]) == (first.spaces, first.tags)

    @in_both_worlds
    async def test_creators_at_once_agree_on_one(self, lab: Lab) -> None:
        stores = [lab.open(), lab.open()]
        for number in range(ROUNDS):
            tag, key = f"t{number}", f"k{number}"
            found = await lab.together(
                *(
                    stores[n % 2].slots.nonces([key], [tag], lab.token, 60.0, lab.deadline())
                    for n in range(6)
                )
            )
            reading = await stores[0].slots.read([key], [tag], lab.deadline())
            assert {answer.tags[0] for answer in found} == {reading.nonces[0]}
            assert {answer.spaces[0] for answer in found} == {reading.spaces[0]}
            assert reading.nonces[0] is not None
            await stores[0].slots.drop_space(lab.deadline())

    @in_both_worlds
    async def test_a_dropped_tag_gets_another_nonce_and_its_neighbour_keeps_its_own(
        self, lab: Lab
    ) -> None:
        slots = lab.open().slots
        tags = ["t", "u", "v"]
        before = (await slots.nonces(["a"], tags, lab.token, None, lab.deadline())).tags
        await slots.drop_tags(["t", "v", "never-made"], lab.deadline())
        reading = await slots.read(["a"], tags, lab.deadline())
        assert reading.nonces == [None, before[1], None]
        assert reading.spaces[0] is not None
        after = (await slots.nonces([], tags, lab.token, None, lab.deadline())).tags
        assert after[1] == before[1]
        assert not {after[0], after[2]} & set(before)

    @in_both_worlds
    async def test_dropping_the_space_changes_it_for_every_key(self, lab: Lab) -> None:
        slots = lab.open().slots
        keys = [f"k{n}" for n in range(300)]  # enough to meet every partition there may be
        before = (await slots.nonces(keys, [], lab.token, None, lab.deadline())).spaces
        assert None not in before
        await slots.drop_space(lab.deadline())
        assert (await slots.read(keys, [], lab.deadline())).spaces == [None] * len(keys)
        after = (await slots.nonces(keys, [], lab.token, None, lab.deadline())).spaces
        assert None not in after
        assert not set(after) & set(before)

    @in_both_worlds
    async def test_drops_touch_one_namespace_only(self, lab: Lab) -> None:
        mine = lab.open(lab.namespace)
        for other in (lab.namespace + "x", lab.namespace[:-1] + "_", lab.namespace.upper()):
            theirs = lab.open(other)
            kept = await theirs.slots.nonces(["a"], ["t"], lab.token, None, lab.deadline())
            made = await mine.slots.nonces(["a"], ["t"], lab.token, None, lab.deadline())
            assert {*kept.tags, *kept.spaces}.isdisjoint({*made.tags, *made.spaces})
            await mine.slots.drop_tags(["t"], lab.deadline())
            await mine.slots.drop_space(lab.deadline())
            reading = await theirs.slots.read(["a"], ["t"], lab.deadline())
            assert (reading.spaces, reading.nonces) == (kept.spaces, kept.tags)
            assert (await mine.slots.read(["a"], ["t"], lab.deadline()))[1:] == ([None], [None])

    @in_both_worlds
    async def test_a_nonce_made_before_a_drop_is_gone_after_it_whoever_creates(
        self, lab: Lab
    ) -> None:
        first, second = lab.open().slots, lab.open().slots
        for number in range(ROUNDS):
            tag = f"t{number % 3}"
            old = await first.nonces(["a"], [tag], lab.token, None, lab.deadline())
            await lab.together(
                first.nonces(["a"], [tag], lab.token, None, lab.deadline()),
                second.drop_tags([tag], lab.deadline()),
                second.drop_space(lab.deadline()),
                second.nonces(["a"], [tag], lab.token, None, lab.deadline()),
            )
            reading = await first.read(["a"], [tag], lab.deadline())
            assert reading.nonces[0] != old.tags[0]
            assert reading.spaces[0] != old.spaces[0]
