"""Contract of one slot: every step on every state, leases, ttls.

``TRANSITIONS`` is the table of the protocols, section 1, spelled out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from ..protocols import Grant, Item, Slot, Slots, SlotState
from .lab import Lab, Suite, in_both_worlds

LONG = 60.0
OLD, NEW = b"old", b"new"
YEAR = 365 * 24 * 3600.0


class Who(NamedTuple):
    """The tokens of one test. ``own`` is the token, stamp or writer id the state was made with."""

    own: bytes
    stamp: bytes  # of the old entry
    rival: bytes  # the second writer of a shared block
    new: bytes
    stranger: bytes


def _state_of(where: str) -> SlotState:
    return {
        "nothing": SlotState.NOTHING,
        "token": SlotState.TOKEN,
        "entry": SlotState.ENTRY,
        "refreshing": SlotState.REFRESHING,
    }.get(where, SlotState.BLOCK)


async def _stand(lab: Lab, slots: Slots, key: str, where: str, who: Who) -> None:
    """Bring a fresh key into the state ``where``."""
    late = lab.deadline()
    if where == "token":
        assert (await slots.acquire(key, who.own, LONG, late)).granted
    elif where == "entry":
        assert await slots.put(key, who.own, OLD, LONG, late)
    elif where == "refreshing":
        assert await slots.put(key, who.stamp, OLD, LONG, late)
        got = await slots.acquire(key, who.own, LONG, late, over=who.stamp, keep=True)
        assert got.granted
    elif where in ("block", "contested", "shared"):
        await slots.seize([key], who.own, LONG, late)
        if where == "contested":
            await slots.void([key], late)
        if where == "shared":
            await slots.seize([key], who.rival, LONG, late)


Step = Callable[[Slots, str, Who, Any], Any]

STEPS: dict[str, Step] = {
    "acquire": lambda s, k, w, d: s.acquire(k, w.new, LONG, d),
    "acquire keep": lambda s, k, w, d: s.acquire(k, w.new, LONG, d, keep=True),
    "acquire over": lambda s, k, w, d: s.acquire(k, w.new, LONG, d, over=w.stamp),
    "acquire over keep": lambda s, k, w, d: s.acquire(k, w.new, LONG, d, over=w.stamp, keep=True),
    "acquire over another": lambda s, k, w, d: s.acquire(k, w.new, LONG, d, over=w.stranger),
    "acquire over another keep": lambda s, k, w, d: s.acquire(
        k, w.new, LONG, d, over=w.stranger, keep=True
    ),
    "renew own": lambda s, k, w, d: s.renew(k, w.own, LONG, d),
    "renew another": lambda s, k, w, d: s.renew(k, w.stranger, LONG, d),
    "fill own": lambda s, k, w, d: s.fill(k, w.own, NEW, LONG, d),
    "fill another": lambda s, k, w, d: s.fill(k, w.stranger, NEW, LONG, d),
    "fill with nothing": lambda s, k, w, d: s.fill(k, b"\0" * 16, NEW, LONG, d),
    "release own": lambda s, k, w, d: s.release(k, w.own, d),
    "release another": lambda s, k, w, d: s.release(k, w.stranger, d),
    "put": lambda s, k, w, d: s.put(k, w.new, NEW, LONG, d),
    "void": lambda s, k, w, d: s.void([k], d),
    "seize": lambda s, k, w, d: s.seize([k], w.new, LONG, d),
    "commit own": lambda s, k, w, d: s.commit(k, w.own, NEW, LONG, d),
    "commit another": lambda s, k, w, d: s.commit(k, w.stranger, NEW, LONG, d),
    "end own": lambda s, k, w, d: s.end([k], w.own, d),
    "end another": lambda s, k, w, d: s.end([k], w.stranger, d),
}


# What _stand makes, as _assert_stands proves it: "x of own": a fill or commit by `own` is
# accepted and nobody else's; "entry old", "entry new": its data; "contested": no commit is.
STATES = {
    "nothing": "nothing",
    "token": "token of own",
    "entry": "entry old",
    "refreshing": "refreshing of own",
    "block": "block of own",
    "contested": "contested",
    "shared": "contested",
}
# step: {state: (answer, state after)}; where left out the step is refused and changes nothing.
Row = dict[str, tuple[bool | None, str]]

_UNBLOCKED = ("nothing", "token", "entry", "refreshing")
_GRANT_NOTHING: Row = {"nothing": (True, "token of new")}
_CONTESTS: Row = {"block": (False, "contested")}
_TAKEN: Row = dict.fromkeys(_UNBLOCKED, (False, "nothing"))

TRANSITIONS: dict[str, Row] = {
    "acquire": _GRANT_NOTHING,
    "acquire keep": _GRANT_NOTHING,
    "acquire over": {
        **_GRANT_NOTHING,
        "entry": (True, "token of new"),
        "refreshing": (True, "token of new"),
    },
    "acquire over keep": {**_GRANT_NOTHING, "entry": (True, "refreshing of new")},
    "acquire over another": _GRANT_NOTHING,
    "acquire over another keep": _GRANT_NOTHING,
    "renew own": {"token": (True, "token of own"), "refreshing": (True, "refreshing of own")},
    "renew another": {},
    "fill own": {"token": (True, "entry new"), "refreshing": (True, "entry new")},
    "fill another": {},
    "fill with nothing": {},
    "release own": {"token": (None, "nothing"), "refreshing": (None, "entry old")},
    "release another": {},
    "put": {
        **dict.fromkeys(_UNBLOCKED, (True, "entry new")),
        **_CONTESTS,
    },
    "void": {**_TAKEN, **_CONTESTS},
    "seize": {
        **dict.fromkeys(_UNBLOCKED, (None, "block of new")),
        **_CONTESTS,
    },
    "commit own": {**_TAKEN, "block": (True, "entry new"), "contested": (False, "nothing")},
    "commit another": {**_TAKEN, **_CONTESTS},
    "end own": {**_TAKEN, "block": (None, "nothing"), "contested": (None, "nothing")},
    "end another": {**_TAKEN, **_CONTESTS},
}


class SlotsContract(Suite):
    @pytest.mark.parametrize("where", STATES)
    @pytest.mark.parametrize("step", STEPS)
    @in_both_worlds
    async def test_step_on_state(self, lab: Lab, step: str, where: str) -> None:
        slots = lab.open().slots
        expected, after = TRANSITIONS[step].get(where, (False, STATES[where]))
        # Who asks a contested block in vain contests it: each would-be writer gets his own key.
        for asks in ("own", "rival", "new") if after == "contested" else ("own",):
            own, key = lab.token(), f"k-{asks}"
            stamp = own if where == "entry" else lab.token()
            who = Who(own, stamp, *(lab.token() for _ in range(3)))
            await _stand(lab, slots, key, where, who)
            before = await lab.slot(slots, key)
            assert before.state is _state_of(where)

            answer = await STEPS[step](slots, key, who, lab.deadline())

            if isinstance(answer, Grant):
                assert answer.granted is expected
                if not answer.granted:  # the slot as it stands: the loser need not read
                    assert answer.slot.state is before.state
                    assert answer.slot.data == before.data
            elif step.startswith(("renew", "fill", "put", "commit")):
                assert answer is expected
            filler = who.new if step in ("put", "seize") else own
            await _assert_stands(lab, slots, key, after, who, filler, getattr(who, asks))

    @in_both_worlds
    async def test_leaving_a_shared_block_leaves_it_contested(self, lab: Lab) -> None:
        slots = lab.open().slots
        first, second, third = lab.token(), lab.token(), lab.token()
        for writer in (first, second, third):
            await slots.seize(["k"], writer, LONG, lab.deadline())
        await slots.end(["k"], first, lab.deadline())
        assert not await slots.commit("k", second, NEW, None, lab.deadline())
        assert (await lab.slot(slots, "k")).state is SlotState.BLOCK
        assert not await slots.commit("k", third, NEW, None, lab.deadline())
        assert (await lab.slot(slots, "k")).state is SlotState.NOTHING

    @in_both_worlds
    async def test_a_step_on_many_keys_is_done_on_each_by_its_state(self, lab: Lab) -> None:
        slots = lab.open().slots
        who = Who(*(lab.token() for _ in range(5)))
        keys = {where: f"many-{where}" for where in STATES}
        for where, key in keys.items():
            await _stand(lab, slots, key, where, who)
        untouched = lab.token()
        await slots.put("other", untouched, OLD, None, lab.deadline())
        await slots.void(list(keys.values()), lab.deadline())
        reading = await slots.read([*keys.values(), "other"], [], lab.deadline())
        found = dict(zip(keys, (slot.state for slot in reading.slots), strict=False))
        assert found == {
            where: SlotState.BLOCK if STATES[where][0] in "bc" else SlotState.NOTHING
            for where in STATES
        }
        assert reading.slots[-1] == Slot(SlotState.ENTRY, untouched, OLD)
        await slots.seize(list(keys.values()), who.new, LONG, lab.deadline())
        await slots.end(list(keys.values()), who.own, lab.deadline())
        await slots.end(list(keys.values()), who.new, lab.deadline())
        reading = await slots.read(list(keys.values()), [], lab.deadline())
        states = [slot.state for slot in reading.slots]
        assert states == [SlotState.NOTHING] * (len(keys) - 1) + [SlotState.BLOCK]

    @in_both_worlds
    async def test_entries_of_every_byte_and_size_come_back_with_their_stamp(
        self, lab: Lab
    ) -> None:
        slots = lab.open().slots
        large = bytes(range(256)) * (self.max_value // 256)
        values = [b"", b"\0", bytes(range(256)), b"T" * 17, b"B" * 40, large]
        for data in values:
            token, writer = lab.token(), lab.token()
            assert (await slots.acquire("f", token, LONG, lab.deadline())).granted
            assert await slots.fill("f", token, data, LONG, lab.deadline())
            assert await lab.slot(slots, "f") == Slot(SlotState.ENTRY, token, data)
            refresh = lab.token()
            got = await slots.acquire("f", refresh, LONG, lab.deadline(), over=token, keep=True)
            assert got.granted
            assert await lab.slot(slots, "f") == Slot(SlotState.REFRESHING, token, data)
            await slots.seize(["f"], writer, LONG, lab.deadline())
            assert await slots.commit("f", writer, data, None, lab.deadline())
            assert await lab.slot(slots, "f") == Slot(SlotState.ENTRY, writer, data)
            await slots.void(["f"], lab.deadline())

    @in_both_worlds
    async def test_a_ttl_of_a_year_and_none_hold_now(self, lab: Lab) -> None:
        store = lab.open()
        slots = store.slots
        for number, ttl in enumerate((YEAR, 31 * 24 * 3600.0, 30 * 24 * 3600.0, None)):
            key, token, writer = f"long{number}", lab.token(), lab.token()
            await store.set_many([Item(key, b"1", ttl)], lab.deadline())
            assert await store.get_many([key], lab.deadline()) == [b"1"]
            await slots.put(key, lab.token(), OLD, ttl, lab.deadline())
            assert (await lab.slot(slots, key)).data == OLD
            await slots.void([key], lab.deadline())
            assert (await slots.acquire(key, token, LONG, lab.deadline())).granted
            assert await slots.fill(key, token, NEW, ttl, lab.deadline())
            assert (await lab.slot(slots, key)).data == NEW
            await slots.seize([key], writer, LONG, lab.deadline())
            assert await slots.commit(key, writer, OLD, ttl, lab.deadline())
            assert (await lab.slot(slots, key)).data == OLD
            nonces = await slots.nonces([key], [key], lab.token, ttl, lab.deadline())
            reading = await slots.read([key], [key], lab.deadline())
            assert (reading.spaces, reading.nonces) == (nonces.spaces, nonces.tags)

    @in_both_worlds
    async def test_what_has_a_ttl_is_gone_after_it_and_nothing_else(self, lab: Lab) -> None:
        """One wait for all that expires, because a real server's seconds are real."""
        store = lab.open()
        slots = store.slots
        late = lab.deadline
        brief, tiny = max(0.3, self.ttl_granularity), 0.001
        stamp, token = lab.token(), lab.token()

        await store.set_many(
            [Item("r", b"1", brief), Item("tiny", b"1", tiny), Item("stays", b"1", None)], late()
        )
        await slots.put("entry", lab.token(), OLD, brief, late())
        await slots.put("tiny", lab.token(), OLD, tiny, late())
        await slots.put("stays", lab.token(), OLD, None, late())
        assert (await slots.acquire("filled", token, LONG, late())).granted
        assert await slots.fill("filled", token, NEW, None, late())  # not the token's lease
        assert (await slots.acquire("token", token, brief, late())).granted
        await slots.put("refresh", stamp, OLD, LONG, late())
        got = await slots.acquire("refresh", token, brief, late(), over=stamp, keep=True)
        assert got.granted
        await slots.seize(["block", "longer"], token, brief, late())
        await slots.seize(["longer"], stamp, LONG, late())
        await slots.seize(["longer"], lab.token(), brief, late())  # keeps the longer
        assert await slots.renew("token", token, brief, late())
        keys = ["entry", "tiny", "stays", "filled", "token", "refresh", "block", "longer"]
        kept = await slots.nonces(keys, ["stays"], lab.token, None, late())
        await slots.nonces([], ["tag"], lab.token, brief, late())

        await lab.advance(brief + self.ttl_granularity * 1.2 + 0.1)

        assert await store.get_many(["r", "tiny", "stays"], late()) == [None, None, b"1"]
        reading = await slots.read(keys, ["tag", "stays"], late())
        assert {k: s.state.name for k, s in zip(keys, reading.slots, strict=True)} == {
            "entry": "NOTHING",
            "tiny": "NOTHING",
            "stays": "ENTRY",
            "filled": "ENTRY",
            "token": "NOTHING",
            "refresh": "ENTRY",
            "block": "NOTHING",
            "longer": "BLOCK",
        }
        assert reading.slots[5] == Slot(SlotState.ENTRY, stamp, OLD)
        assert reading.nonces == [None, kept.tags[0]]
        assert reading.spaces == kept.spaces
        for key in ("token", "refresh"):
            assert not await slots.renew(key, token, LONG, late()), key
            assert not await slots.fill(key, token, NEW, None, late()), key
        assert (await lab.slot(slots, "refresh")).data == OLD
        again = lab.token()
        got = await slots.acquire("refresh", again, LONG, late(), over=stamp, keep=True)
        assert got.granted, "a refresh token's lease ended, the next may refresh"
        assert not await slots.commit("block", token, NEW, None, late())
        assert (await lab.slot(slots, "block")).state is SlotState.NOTHING

    @in_both_worlds
    async def test_a_renewed_lease_outlives_the_first_one(self, lab: Lab) -> None:
        store = lab.open()
        slots = store.slots
        late = lab.deadline
        lease = max(0.4, 1.5 * self.ttl_granularity)
        token, stamp = lab.token(), lab.token()
        assert (await slots.acquire("token", token, lease, late())).granted
        await slots.put("refresh", stamp, OLD, LONG, late())
        got = await slots.acquire("refresh", token, lease, late(), over=stamp, keep=True)
        assert got.granted
        await slots.seize(["block"], token, lease, late())
        await store.set_many([Item("half", b"1", lease)], late())

        await lab.advance(lease * 0.4)
        assert await slots.renew("token", token, LONG, late())
        assert await slots.renew("refresh", token, LONG, late())
        await slots.seize(["block"], stamp, LONG, late())
        assert await store.get_many(["half"], late()) == [b"1"], "a ttl is never cut short"

        await lab.advance(lease * 0.7 + self.ttl_granularity)
        assert (await lab.slot(slots, "block")).state is SlotState.BLOCK
        assert (await lab.slot(slots, "refresh")) == Slot(SlotState.REFRESHING, stamp, OLD)
        assert await slots.fill("token", token, NEW, None, late())
        assert await slots.fill("refresh", token, NEW, None, late())


async def _assert_stands(
    lab: Lab, slots: Slots, key: str, after: str, who: Who, filler: bytes, asks: bytes
) -> None:
    """The slot reads as ``after`` says, and gives rights to whom it says, to nobody else."""
    where, _, whose = after.partition(" of ")
    where, _, data = where.partition(" ")
    slot = await lab.slot(slots, key)
    assert slot.state is _state_of(where)
    if where == "entry":
        stamps = {"old": who.stamp, "new": filler}
        assert slot == Slot(SlotState.ENTRY, stamps[data], data.encode())
    elif where == "refreshing":
        assert slot == Slot(SlotState.REFRESHING, who.stamp, OLD)
    else:
        assert slot.data is None
    late = lab.deadline()
    if where in ("token", "refreshing"):
        holder = getattr(who, whose)
        for other in {who.own, who.new, who.stranger} - {holder}:
            assert not await slots.fill(key, other, b"wrong", None, late)
        assert await slots.fill(key, holder, b"right", None, late)
        assert await lab.slot(slots, key) == Slot(SlotState.ENTRY, holder, b"right")
        return
    for other in (who.own, who.new, who.stranger):
        assert not await slots.fill(key, other, b"wrong", None, late)
    if where == "block":
        assert await slots.commit(key, getattr(who, whose), b"right", None, late)
    elif where == "contested":
        assert not await slots.commit(key, asks, b"wrong", None, late)
    elif where == "entry":
        assert await lab.slot(slots, key) == slot
