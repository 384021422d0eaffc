"""The protocols, model-checked: every interleaving of small casts, and every rule shown needed."""

from __future__ import annotations

from functools import cache
from itertools import combinations_with_replacement
from typing import Any

import far_rules
import near_rules
import pytest
import slot_steps as slots
from explorer import Report, TooManyStates, explore
from far_actors import CAST
from far_model import Far
from near_model import Near
from near_rules import C0, C1, I0, I1, W0, W1

from cachekit.testing.model import Model as Contract

ALONE = ("reader", "writer", "arounder", "asider", "putter", "invalidator")
AGE = far_rules.AGE


@cache
def _near(cast: tuple[tuple[str, int], ...], options: tuple[tuple[str, Any], ...]) -> Report:
    return explore(Near(*cast, **dict(options)))


def _holds(report: Report, *, goal: bool = True) -> None:
    assert not report.wrong, str(report)
    assert report.goal or not goal, f"nothing new was ever served: {report}"


@pytest.mark.parametrize("first", ALONE)
def test_no_three_users_of_a_key_bring_an_old_value_back(first: str) -> None:
    for others in combinations_with_replacement(ALONE[ALONE.index(first) :], 2):
        _holds(explore(Far(first, *others, flush=True)), goal=False)


@pytest.mark.parametrize("first", CAST)
def test_no_two_users_of_a_tag_bring_an_old_value_back(first: str) -> None:
    for second in CAST:
        spaces = {first, second} & {"looker", "clearer"} != set()
        _holds(explore(Far(first, second, tags=True, spaces=spaces, flush=True)), goal=False)


@pytest.mark.parametrize("nodes", [False, True], ids=["one-server", "tags-on-another-node"])
@pytest.mark.parametrize("first", CAST)
def test_a_server_that_returns_with_older_memory_brings_no_old_value_back(
    first: str, nodes: bool
) -> None:
    for second in CAST:
        model = Far(first, second, **{**AGE, "nodes": nodes})
        _holds(explore(model), goal=False)


@pytest.mark.parametrize(
    "cast",
    [
        ("reader", "writer", "dropper"),
        ("reader", "reader", "tag intender"),
        ("reader", "intender", "dropper"),
        ("reader", "arounder", "tag intender"),
        ("discoverer", "reader", "dropper"),
        ("writer", "writer", "dropper"),
    ],
    ids="+".join,
)
def test_no_three_users_of_a_tag_bring_an_old_value_back(cast: tuple[str, ...]) -> None:
    _holds(explore(Far(*cast, tags=True)))


def test_on_one_server_read_in_one_trip_the_run_on_the_namespace_nonce_is_enough() -> None:
    """What the run on tags' nonces is for: a second round trip, or another node."""
    for second in ("dropper", "writer", "tag intender", "clearer"):
        model = Far("reader", second, **AGE, broken="tag nonces carry the run")
        _holds(explore(model))


@pytest.mark.parametrize(
    ("cast", "options"),
    [
        ((C0, C0, I0), {}),
        ((C0, C0, I1), {}),
        ((C0, C0, I0), {"by_tag": True}),
        ((C0, C0, I1), {"by_tag": True}),
        ((C0, C0, I1), {"strict": True}),
        ((C0, C0, I0), {"strict": True, "by_tag": True}),
        ((C0, C1, I1), {}),
        ((C0, C0, W0), {}),
        ((C0, W0, I1), {}),
        ((C0, W1), {}),
        ((W0, W1), {}),
        ((W0, W0), {}),
        ((C0, I1), {"bus": 0, "cuts": 1}),
        ((C0, I1), {"bus": 0, "cuts": 1, "by_tag": True}),
        ((C0, W1), {"bus": 0, "cuts": 1}),
        ((W0, I1), {"bus": 0, "cuts": 1}),
    ],
    ids=lambda given: (
        "+".join(f"{kind}@{process}" for kind, process in given)
        if isinstance(given, tuple)
        else "+".join(given) or "plain"
    ),
)
def test_no_process_serves_what_it_was_told_is_old(
    cast: tuple[tuple[str, int], ...], options: dict[str, Any]
) -> None:
    _holds(_near(cast, tuple(options.items())))


# -- each rule is needed -------------------------------------------------------------------


@pytest.mark.parametrize("rule", far_rules.RULES)
def test_the_far_tier_needs_the_rule(rule: str) -> None:
    cast, options = far_rules.RULES[rule]
    _holds(explore(Far(*cast, **options)))
    report = explore(Far(*cast, **options, broken=rule.partition(",")[0]))
    print(f"without: {rule}\n{report}")
    assert report.wrong
    assert report.trace


@pytest.mark.parametrize("rule", near_rules.RULES)
def test_the_near_tier_needs_the_rule(rule: str) -> None:
    cast, options = near_rules.RULES[rule]
    _holds(_near(cast, tuple(options.items())))
    report = explore(Near(*cast, **options, broken=rule))
    print(f"without: {rule}\n{report}")
    assert report.wrong
    assert report.trace


# -- the model itself ----------------------------------------------------------------------


def test_the_models_slot_does_what_the_contract_of_the_backends_says() -> None:
    """Every slot that two ids can make, and every step on it, against the contract's model."""
    ids = (b"a", b"b")
    steps: list[tuple[str, Any, Any]] = [
        ("void", lambda s: (None, slots.void(s)), lambda c: c.step("void"))
    ]
    for me in ids:
        steps += [
            ("fill", lambda s, i=me: slots.fill(s, i, b"v"), _on_contract("fill", me, b"v", None)),
            ("put", lambda s, i=me: slots.put(s, i, b"v"), _on_contract("put", me, b"v", None)),
            (
                f"seize {me!r}",
                lambda s, i=me: (None, slots.seize(s, i)),
                _on_contract("seize", me, 9.0),
            ),
            ("end", lambda s, i=me: (None, slots.end(s, i)), _on_contract("end", me)),
            (
                "commit",
                lambda s, i=me: slots.commit(s, i, b"v"),
                _on_contract("commit", me, b"v", None),
            ),
            ("release", lambda s, i=me: (None, slots.release(s, i)), _on_contract("release", me)),
        ]
        for over in (b"", *ids):
            for keep in (False, True):
                steps.append(
                    (
                        f"acquire over {over!r}, keep {keep}",
                        lambda s, i=me, o=over, k=keep: slots.acquire(s, i, o, k),
                        _on_contract("acquire", me, 9.0, over, keep),
                    )
                )
    seen = {None: Contract()}
    ahead: list[Any] = [None]
    while ahead:
        slot = ahead.pop()
        for name, ours, theirs in steps:
            if slot is not None and slot[0] == "B" and name in map("seize {!r}".format, slot[1]):
                continue  # a writer seizes a key once
            answer, after = ours(slot)
            expected, contract = theirs(seen[slot])
            assert answer == expected, (slot, name)
            assert after == _as_slot(contract), (slot, name)
            if after not in seen:
                seen[after] = contract
                ahead.append(after)
    assert len(seen) == 1 + 2 + 2 + 4 + 2 * 2 + 1  # nothing, tokens, entries, refreshing, blocks


def _on_contract(verb: str, *given: Any) -> Any:
    return lambda contract: contract.step(verb, *given)


def _as_slot(contract: Contract) -> Any:
    if contract.writers:
        return ("B", tuple(sorted(contract.writers)), contract.contested)
    if contract.stamp is None:
        return None if contract.token is None else ("T", contract.token)
    if contract.token is None:
        return ("E", contract.stamp, contract.data)
    return ("R", contract.stamp, contract.data, contract.token)


class _Counter:
    """Two counters to three; stuck at (3, 3) unless that is an end."""

    def __init__(self, ends: bool, bad: tuple[int, int] = (9, 9)) -> None:
        self.ends, self.bad = ends, bad

    def first(self) -> tuple[int, int]:
        return (0, 0)

    def steps(self, state: tuple[int, int]) -> list[tuple[str, tuple[int, int]]]:
        a, b = state
        return [("a", (min(a + 1, 3), b)), ("b", (a, min(b + 1, 3)))]

    def wrong(self, state: tuple[int, int]) -> str:
        return "bad" if state == self.bad else ""

    def done(self, state: tuple[int, int]) -> bool:
        return self.ends

    def goal(self, state: tuple[int, int]) -> bool:
        return state == (3, 3)


def test_the_explorer_sees_every_state_the_shortest_wrong_run_and_dead_ends() -> None:
    whole = explore(_Counter(ends=True))
    assert (whole.states, whole.wrong, whole.goal) == (16, "", True)
    found = explore(_Counter(ends=True, bad=(2, 1)))
    assert found.wrong == "bad"
    assert sorted(found.trace) == ["a", "a", "b"]
    stuck = explore(_Counter(ends=False))
    assert "nobody can move" in stuck.wrong
    assert len(stuck.trace) == 6
    with pytest.raises(TooManyStates):
        explore(_Counter(ends=True), most=5)
