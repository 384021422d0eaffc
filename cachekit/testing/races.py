"""Contract under rivals and at random: one winner, and no invalidation undone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from ..protocols import Grant, Slot, Slots, SlotState
from .lab import Lab, Suite, in_both_worlds
from .model import Model

ROUNDS = 20
RIVALS = 12
LEASE = 60.0
SEQUENTIAL_STEPS = 80
TIMED_STEPS = 500  # with a clock moved by hand: leases end too, and no step costs a round trip
CLIENT_STEPS = 5

VERBS = (
    "acquire", "acquire", "acquire", "fill", "fill", "put", "void", "seize", "seize",
    "commit", "commit", "end", "renew", "release", "read",
)  # fmt: skip
HOLDERS_VERBS = ("renew", "renew", "fill", "commit", "end", "release", "acquire", "read")

Step = tuple[Any, ...]  # the verb, then what the model's step of that name takes


class Call(NamedTuple):
    """One step a client made: when it began and ended, counted over all clients."""

    step: Step
    began: int
    ended: int
    answer: Any


class RacesContract(Suite):
    @in_both_worlds
    async def test_of_many_at_once_exactly_one_is_granted(self, lab: Lab) -> None:
        stores = [lab.open() for _ in range(3)]
        for number in range(5):
            key, stamp = f"k{number}", lab.token()
            if number % 2:
                await stores[0].slots.put(key, stamp, b"1", None, lab.deadline())
            grants: list[Grant] = await lab.together(
                *(
                    stores[n % 3].slots.acquire(
                        key, lab.token(), LEASE, lab.deadline(), over=stamp, keep=True
                    )
                    for n in range(RIVALS)
                )
            )
            assert [g.granted for g in grants].count(True) == 1

    @pytest.mark.parametrize("refresh", [False, True])
    @in_both_worlds
    async def test_a_fill_racing_a_void_never_outlives_it(self, lab: Lab, refresh: bool) -> None:
        first, second = lab.open().slots, lab.open().slots
        for _ in range(ROUNDS):
            token = await _granted(lab, first, refresh)
            await lab.together(
                first.fill("k", token, b"old", None, lab.deadline()),
                second.void(["k"], lab.deadline()),
            )
            assert (await lab.slot(first, "k")).state is SlotState.NOTHING
            assert not await first.fill("k", token, b"old", None, lab.deadline())

    @pytest.mark.parametrize("refresh", [False, True])
    @in_both_worlds
    async def test_a_fill_racing_a_put_leaves_what_was_put(self, lab: Lab, refresh: bool) -> None:
        first, second = lab.open().slots, lab.open().slots
        for _ in range(ROUNDS):
            token, stamp = await _granted(lab, first, refresh), lab.token()
            answers = await lab.together(
                first.fill("k", token, b"old", None, lab.deadline()),
                second.put("k", stamp, b"new", None, lab.deadline()),
            )
            assert answers[1] is True
            slot = await lab.slot(first, "k")
            if self.exact or slot.state is not SlotState.NOTHING:
                assert slot == Slot(SlotState.ENTRY, stamp, b"new")
            await first.void(["k"], lab.deadline())

    @pytest.mark.parametrize("refresh", [False, True])
    @in_both_worlds
    async def test_a_fill_racing_a_writer_leaves_its_block(self, lab: Lab, refresh: bool) -> None:
        first, second = lab.open().slots, lab.open().slots
        for _ in range(ROUNDS):
            token, writer = await _granted(lab, first, refresh), lab.token()
            await lab.together(
                first.fill("k", token, b"old", None, lab.deadline()),
                second.seize(["k"], writer, LEASE, lab.deadline()),
            )
            assert (await lab.slot(first, "k")).state is SlotState.BLOCK
            await second.end(["k"], writer, lab.deadline())
            assert (await lab.slot(first, "k")).state is SlotState.NOTHING

    @in_both_worlds
    async def test_writers_that_met_leave_no_entry(self, lab: Lab) -> None:
        first, second = lab.open().slots, lab.open().slots
        for number in range(ROUNDS):
            one, two = lab.token(), lab.token()
            await lab.together(
                first.seize(["k"], one, LEASE, lab.deadline()),
                second.seize(["k"], two, LEASE, lab.deadline()),
            )
            commits = [
                first.commit("k", one, b"1", None, lab.deadline()),
                second.commit("k", two, b"2", None, lab.deadline()),
            ]
            answers = await lab.together(*commits[:: 1 if number % 2 else -1])
            assert answers == [False, False]
            assert (await lab.slot(first, "k")).state is SlotState.NOTHING

    @in_both_worlds
    async def test_a_commit_racing_an_invalidation_leaves_nothing(self, lab: Lab) -> None:
        first, second = lab.open().slots, lab.open().slots
        for _ in range(ROUNDS):
            writer = lab.token()
            await first.seize(["k"], writer, LEASE, lab.deadline())
            await lab.together(
                first.commit("k", writer, b"1", None, lab.deadline()),
                second.void(["k"], lab.deadline()),
            )
            assert (await lab.slot(first, "k")).state is SlotState.NOTHING

    @pytest.mark.parametrize("seed", range(12))
    @in_both_worlds
    async def test_a_random_run_does_what_the_model_does(self, lab: Lab, seed: int) -> None:
        clients = [lab.open().slots, lab.open().slots]
        rng = random.Random(seed)
        model = Model()
        known = [lab.token() for _ in range(2)]
        done: list[str] = []
        for _ in range(TIMED_STEPS if self.manual_time else SEQUENTIAL_STEPS):
            if self.manual_time and rng.random() < 0.3:
                seconds = rng.choice([1.0, 5.0, 30.0, 90.0])
                await lab.advance(seconds)
                refreshed = model.stamp is not None and model.token is not None
                model = model.at(model.now + seconds)
                done.append(f"{seconds} s later")
                if refreshed and model.token is not None and model.stamp is None:
                    # An entry that ends under its refresh token: its token may go with it.
                    await clients[0].void(["k"], lab.deadline())
                    model = Model(model.now)
            holders = [*model.writers, *filter(None, (model.token, model.stamp))]
            step = _choose(rng, lab, known, self.manual_time, holders)
            client = rng.randrange(2)
            done.append(f"client {client}: {step}")
            answer = await _carry_out(lab, clients[client], step)
            expected, model = model.step(*step)
            story = "\n".join(done[-12:])
            assert answer == expected, f"seed {seed}, the last steps:\n{story}"
            seen = await lab.slot(clients[1 - client], "k")
            assert _plain(seen) == model.slot(), f"seed {seed}, after:\n{story}"

    @pytest.mark.parametrize("seed", range(25))
    @in_both_worlds
    async def test_some_order_explains_what_two_clients_at_once_saw(
        self, lab: Lab, seed: int
    ) -> None:
        rng = random.Random(seed)
        known = [lab.token() for _ in range(3)]
        plans = [[_choose(rng, lab, known, False) for _ in range(CLIENT_STEPS)] for _ in range(2)]
        slots = [lab.open().slots for _ in plans]
        count = itertools.count()

        async def follow(client: int) -> list[Call]:
            calls = []
            for step in plans[client]:
                began = next(count)
                answer = await _carry_out(lab, slots[client], step)
                calls.append(Call(step, began, next(count), answer))
            return calls

        histories = await lab.together(*(follow(c) for c in range(2)))
        final = _plain(await lab.slot(slots[0], "k"))
        last = next(count)
        histories.append([Call(("read",), last, last, final)])
        assert _explained(histories, self.exact), (
            f"seed {seed}: no order of these steps gives these answers:\n"
            + "\n".join(f"{n}: {call}" for n, calls in enumerate(histories) for call in calls)
        )


async def _granted(lab: Lab, slots: Slots, refresh: bool) -> bytes:
    """A token on "k", over nothing or over an entry that stays readable."""
    token, stamp = lab.token(), lab.token()
    if refresh:
        assert await slots.put("k", stamp, b"older", None, lab.deadline())
    got = await slots.acquire("k", token, LEASE, lab.deadline(), over=stamp, keep=refresh)
    assert got.granted
    return token


def _choose(
    rng: random.Random, lab: Lab, known: list[bytes], brief: bool, holders: Sequence[bytes] = ()
) -> Step:
    """A random step, mostly by one of the ``holders``, if there are any; else
    ``known`` ids are used again, right or wrong, as late callers would."""
    lease = rng.choice([3.0, 20.0]) if brief else LEASE
    ttl = rng.choice([None, 10.0, 100.0]) if brief else None
    data = b"v%d" % rng.randrange(1000)
    # The newest ids are the likely holders; older ones are the late callers.
    old = known[-1 - min(int(rng.expovariate(0.9)), len(known) - 1)]
    verb = rng.choice(VERBS)
    if holders and rng.random() < 0.6:
        old = rng.choice(sorted(holders))
        verb = rng.choice(HOLDERS_VERBS)
    if verb in ("acquire", "put", "seize"):  # these bring a new id, never one used before
        known.append(lab.token())
        new = known[-1]
        return {
            "acquire": (verb, new, lease, old, rng.random() < 0.5),
            "put": (verb, new, data, ttl),
            "seize": (verb, new, lease),
        }[verb]
    return {
        "fill": (verb, old, data, ttl),
        "commit": (verb, old, data, ttl),
        "renew": (verb, old, lease),
        "release": (verb, old),
        "end": (verb, old),
        "void": (verb,),
        "read": (verb,),
    }[verb]


async def _carry_out(lab: Lab, slots: Slots, step: Step) -> Any:
    verb, *given = step
    late = lab.deadline()
    if verb == "read":
        return _plain(await lab.slot(slots, "k"))
    if verb == "acquire":
        token, lease, over, keep = given
        return (await slots.acquire("k", token, lease, late, over=over, keep=keep)).granted
    if verb == "void":
        return await slots.void(["k"], late)
    if verb in ("seize", "end"):
        return await getattr(slots, verb)(["k"], *given, late)
    return await getattr(slots, verb)("k", *given, late)


def _plain(slot: Slot) -> Slot:
    """Without the stamp of what has no entry: a backend may tell it or not."""
    return slot if slot.data is not None else Slot(slot.state)


def _explained(histories: list[list[Call]], exact: bool) -> bool:
    """Whether the calls are linearizable: Wing and Gong's search (JPDC 1993), with memory.

    Not ``exact``: a read may miss an entry that stands, an acquire may be refused."""
    seen: set[tuple[tuple[int, ...], Model]] = set()

    def search(done: tuple[int, ...], model: Model) -> bool:
        if (done, model) in seen:
            return False
        seen.add((done, model))
        pending = [calls[n] for calls, n in zip(histories, done, strict=True) if n < len(calls)]
        if not pending:
            return True
        first_end = min(call.ended for call in pending)
        for client, (calls, n) in enumerate(zip(histories, done, strict=True)):
            if n == len(calls) or calls[n].began > first_end:
                continue  # another call was over before this one began
            call = calls[n]
            expected, after = model.step(*call.step)
            further = (*done[:client], n + 1, *done[client + 1 :])
            if call.answer == expected and search(further, after):
                return True
            if not exact and _is_a_miss(call) and search(further, model):
                return True
        return False

    return search((0,) * len(histories), Model())


def _is_a_miss(call: Call) -> bool:
    if call.step[0] == "read":
        return call.answer.data is None
    return call.step[0] == "acquire" and call.answer is False
