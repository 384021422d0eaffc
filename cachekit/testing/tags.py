"""Contract of a tag's block: nobody has or gets a nonce while a writer may be in flight."""

from __future__ import annotations

import itertools
import random

import pytest

from ..protocols import Slots, SlotState
from .lab import Lab, Suite, in_both_worlds
from .model import TagModel

ROUNDS = 20
STEPS = 60
LONG = 60.0
VERBS = ("read", "nonces", "nonces", "drop", "seize", "seize", "end", "end")


class TagBlocksContract(Suite):
    @in_both_worlds
    async def test_a_blocked_tag_has_no_nonce_and_gets_none(self, lab: Lab) -> None:
        slots = lab.open().slots
        made = await slots.nonces(["k"], ["t", "u"], lab.token, None, lab.deadline())
        await slots.seize_tags(["t", "new"], lab.token(), LONG, lab.deadline())
        for _ in range(2):
            reading = await slots.read(["k"], ["t", "new", "u"], lab.deadline())
            assert reading.nonces == [None, None, made.tags[1]]
            assert reading.spaces == made.spaces
            got = await slots.nonces(["k"], ["new", "u", "t"], lab.token, None, lab.deadline())
            assert got.tags == [None, made.tags[1], None]
            assert got.spaces == made.spaces

    @in_both_worlds
    async def test_a_tags_block_stands_until_its_last_writer_ends(self, lab: Lab) -> None:
        first, second = lab.open().slots, lab.open().slots
        one, two = lab.token(), lab.token()
        await first.seize_tags(["t"], one, LONG, lab.deadline())
        await second.seize_tags(["t"], two, LONG, lab.deadline())
        await first.seize_tags(["t"], one, LONG, lab.deadline())  # again: still one id
        await first.end_tags(["t"], lab.token(), lab.deadline())  # a stranger's
        await first.end_tags(["t"], one, lab.deadline())
        assert not await _gets_a_nonce(lab, first, "t")
        await second.end_tags(["t"], two, lab.deadline())
        assert await _gets_a_nonce(lab, first, "t")

    @pytest.mark.parametrize("number", [1, 2])
    @in_both_worlds
    async def test_nonces_before_and_after_a_block_differ(self, lab: Lab, number: int) -> None:
        slots = lab.open().slots
        tags = ["t", "u"]
        before = (await slots.nonces([], tags, lab.token, None, lab.deadline())).tags
        writers = [lab.token() for _ in range(number)]
        for writer in writers:
            await slots.seize_tags(tags, writer, LONG, lab.deadline())
        for writer in writers:
            await slots.end_tags(tags, writer, lab.deadline())
        assert (await slots.read([], tags, lab.deadline())).nonces == [None, None]
        after = (await slots.nonces([], tags, lab.token, None, lab.deadline())).tags
        assert None not in after
        assert not set(after) & set(before)

    @in_both_worlds
    async def test_dropping_a_blocked_tag_leaves_its_block(self, lab: Lab) -> None:
        slots = lab.open().slots
        writer = lab.token()
        await slots.seize_tags(["t"], writer, LONG, lab.deadline())
        await slots.drop_tags(["t", "u"], lab.deadline())
        await slots.drop_space(lab.deadline())
        assert not await _gets_a_nonce(lab, slots, "t")
        await slots.end_tags(["t"], writer, lab.deadline())
        assert await _gets_a_nonce(lab, slots, "t")

    @in_both_worlds
    async def test_ending_where_no_block_is_left_deletes_the_nonce(self, lab: Lab) -> None:
        slots = lab.open().slots
        made = (await slots.nonces([], ["t", "u"], lab.token, None, lab.deadline())).tags
        await slots.end_tags(["t", "never-made"], lab.token(), lab.deadline())
        reading = await slots.read([], ["t", "u", "never-made"], lab.deadline())
        assert reading.nonces == [None, made[1], None]

    @in_both_worlds
    async def test_a_tags_block_ends_with_its_longest_lease(self, lab: Lab) -> None:
        slots = lab.open().slots
        brief = max(0.3, self.ttl_granularity)
        tags = ["brief", "shorter", "longer"]
        before = (await slots.nonces([], tags, lab.token, None, lab.deadline())).tags
        writer, rival = lab.token(), lab.token()
        await slots.seize_tags(["brief", "longer"], writer, brief, lab.deadline())
        await slots.seize_tags(["longer", "shorter"], rival, LONG, lab.deadline())
        await slots.seize_tags(["shorter"], writer, brief, lab.deadline())

        await lab.advance(brief + self.ttl_granularity * 1.2 + 0.1)

        assert (await slots.read([], tags, lab.deadline())).nonces == [None, None, None]
        after = (await slots.nonces([], tags, lab.token, None, lab.deadline())).tags
        assert after[1:] == [None, None]
        assert after[0] not in (None, before[0])
        # Whose block ran out may have written in between: what was stored under it goes.
        await slots.end_tags(["brief"], writer, lab.deadline())
        assert (await slots.read([], ["brief"], lab.deadline())).nonces == [None]

    @in_both_worlds
    async def test_a_tags_block_is_no_keys_block_and_no_neighbours(self, lab: Lab) -> None:
        slots, writer = lab.open().slots, lab.token()
        neighbour = lab.open(lab.namespace + "x").slots
        kept = await neighbour.nonces([], ["x"], lab.token, None, lab.deadline())
        await slots.seize_tags(["x"], writer, LONG, lab.deadline())
        assert (await lab.slot(slots, "x")).state is SlotState.NOTHING
        assert await slots.put("x", lab.token(), b"1", None, lab.deadline())
        assert (await neighbour.read([], ["x"], lab.deadline())).nonces == kept.tags
        await slots.seize(["y"], writer, LONG, lab.deadline())
        assert await _gets_a_nonce(lab, slots, "y")
        await slots.end(["x"], writer, lab.deadline())
        assert not await _gets_a_nonce(lab, slots, "x")
        await slots.end_tags(["x", "y"], writer, lab.deadline())
        assert (await lab.slot(slots, "y")).state is SlotState.BLOCK

    @in_both_worlds
    async def test_writers_of_a_tag_that_met_both_count(self, lab: Lab) -> None:
        first, second = lab.open().slots, lab.open().slots
        for number in range(ROUNDS):
            tag, one, two = f"t{number}", lab.token(), lab.token()
            await lab.together(
                first.seize_tags([tag], one, LONG, lab.deadline()),
                second.seize_tags([tag], two, LONG, lab.deadline()),
            )
            await first.end_tags([tag], one if number % 2 else two, lab.deadline())
            assert not await _gets_a_nonce(lab, first, tag)
            await second.end_tags([tag], two if number % 2 else one, lab.deadline())
            assert await _gets_a_nonce(lab, first, tag)

    @in_both_worlds
    async def test_no_nonce_outlives_a_block_that_it_met(self, lab: Lab) -> None:
        first, second = lab.open().slots, lab.open().slots
        for number in range(ROUNDS):
            tag, writer = f"t{number % 3}", lab.token()
            made = await lab.together(
                first.nonces([], [tag], lab.token, None, lab.deadline()),
                second.seize_tags([tag], writer, LONG, lab.deadline()),
                first.nonces([], [tag], lab.token, None, lab.deadline()),
            )
            assert (await first.read([], [tag], lab.deadline())).nonces == [None]
            assert not await _gets_a_nonce(lab, first, tag)
            await lab.together(
                first.nonces([], [tag], lab.token, None, lab.deadline()),
                second.end_tags([tag], writer, lab.deadline()),
            )
            after = (await second.nonces([], [tag], lab.token, None, lab.deadline())).tags
            assert after[0] is not None
            assert after[0] not in {*made[0].tags, *made[2].tags}

    @pytest.mark.parametrize("seed", range(8))
    @in_both_worlds
    async def test_a_random_run_on_a_tag_does_what_the_model_does(
        self, lab: Lab, seed: int
    ) -> None:
        clients = [lab.open().slots, lab.open().slots]
        rng = random.Random(seed)
        model = TagModel()
        known = [lab.token()]
        done: list[str] = []
        for _ in range(STEPS):
            if self.manual_time and rng.random() < 0.2:
                seconds = rng.choice([1.0, 5.0, 30.0])
                await lab.advance(seconds)
                model = model.at(model.now + seconds)
                done.append(f"{seconds} s later")
            verb = rng.choice(VERBS)
            new = lab.token()
            lease = rng.choice([3.0, 20.0]) if self.manual_time else LONG
            me = rng.choice([*sorted(model.writers), rng.choice(known)])
            if verb == "seize" and rng.random() < 0.8:
                me = new
                known.append(new)
            slots, late = clients[rng.randrange(2)], lab.deadline()
            done.append(f"{verb} by {me[-4:].hex()}, lease {lease}")
            story = "\n".join(done[-12:])
            if verb == "seize":
                await slots.seize_tags(["t"], me, lease, late)
            elif verb == "end":
                await slots.end_tags(["t"], me, late)
            elif verb == "drop":
                await slots.drop_tags(["t"], late)
            elif verb == "nonces":
                answer = await slots.nonces([], ["t"], itertools.repeat(new).__next__, None, late)
                expected = model.nonces(new)
                assert answer.tags == [expected], f"seed {seed}, the last steps:\n{story}"
            model = model.step(verb, me, lease, new)
            seen = (await clients[rng.randrange(2)].read([], ["t"], lab.deadline())).nonces
            assert seen == [model.nonce], f"seed {seed}, after:\n{story}"


async def _gets_a_nonce(lab: Lab, slots: Slots, tag: str) -> bool:
    """Whether a nonce can be made; what reads as one, and what ``nonces`` answers, agree."""
    (made,) = (await slots.nonces([], [tag], lab.token, None, lab.deadline())).tags
    assert (await slots.read([], [tag], lab.deadline())).nonces == [made]
    return made is not None
