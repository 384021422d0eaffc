from __future__ import annotations

import random
from collections import Counter

import pytest

from cachekit.bench.workloads import (
    INSERT,
    MODIFY,
    READ,
    THETA,
    UPDATE,
    WORKLOADS,
    Zipfian,
    draw,
    replay,
)


def probabilities(n: int) -> list[float]:
    weights = [1.0 / (rank**THETA) for rank in range(1, n + 1)]
    return [w / sum(weights) for w in weights]


def test_zipfian_ranks_have_the_frequencies_of_the_formula():
    n, draws = 1000, 200_000
    zipf = Zipfian(n, random.Random(7))
    seen = Counter(zipf.draw() for _ in range(draws))
    expected = probabilities(n)
    assert set(seen) <= set(range(n))
    for rank in (0, 1):  # exact in the method of Gray et al.
        assert seen[rank] / draws == pytest.approx(expected[rank], rel=0.03)
    for low, high in ((0, 10), (10, 100), (100, 1000)):  # approximated
        share = sum(seen[rank] for rank in range(low, high)) / draws
        assert share == pytest.approx(sum(expected[low:high]), rel=0.06)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_zipfian_over_very_few_ranks_stays_inside_them(n):
    zipf = Zipfian(n, random.Random(1))
    assert {zipf.draw() for _ in range(500)} == set(range(n))


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("a", {READ: 0.5, UPDATE: 0.5}),
        ("b", {READ: 0.95, UPDATE: 0.05}),
        ("c", {READ: 1.0}),
        ("d", {READ: 0.95, INSERT: 0.05}),
        ("f", {READ: 0.5, MODIFY: 0.5}),
    ],
)
def test_a_workload_mixes_its_operations_as_the_paper_says(name, shares):
    workload = WORKLOADS[name]
    plan = draw(workload, keys=workload.keys, records=100, count=20_000, seed=3)
    seen = Counter(plan.kinds)
    assert set(seen) == set(shares)
    for kind, share in shares.items():
        assert seen[kind] / len(plan) == pytest.approx(share, abs=0.015)


def test_popular_records_are_scattered_and_keep_their_frequency():
    plan = draw(WORKLOADS["c"], keys="zipfian", records=1000, count=100_000, seed=5)
    popular = [key for key, _ in Counter(plan.keys).most_common(10)]
    assert sorted(popular) != list(range(10))
    assert max(popular) > 500
    most = Counter(plan.keys).most_common(1)[0][1] / len(plan)
    assert most == pytest.approx(probabilities(1000)[0], rel=0.05)


def test_uniform_keys_are_all_alike():
    plan = draw(WORKLOADS["c"], keys="uniform", records=50, count=50_000, seed=5)
    seen = Counter(plan.keys)
    assert len(seen) == 50
    assert min(seen.values()) > 800
    assert max(seen.values()) < 1200


def test_latest_counts_back_from_the_newest_record():
    plan = draw(WORKLOADS["d"], keys="latest", records=1000, count=50_000, seed=5)
    assert plan.latest
    assert Counter(plan.keys).most_common(1)[0][0] == 0


def test_the_seed_decides_the_operations():
    def plan(seed):
        return draw(WORKLOADS["a"], keys="zipfian", records=100, count=1000, seed=seed)

    assert plan(1) == plan(1)
    assert plan(1).keys != plan(2).keys
    assert plan(1).kinds != plan(2).kinds


def test_a_plan_without_a_count_goes_round():
    assert draw(WORKLOADS["c"], keys="uniform", records=10, count=None, seed=1).repeats
    assert not draw(WORKLOADS["c"], keys="uniform", records=10, count=5, seed=1).repeats


def test_a_trace_is_numbered_as_met_and_read_only():
    plan = replay(iter("abcab"), name="t", limit=100, write_ratio=0.0, seed=1)
    assert list(plan.keys) == [0, 1, 2, 0, 1]
    assert plan.records == 3
    assert set(plan.kinds) == {READ}
    assert not plan.repeats


def test_a_trace_stops_at_its_limit_without_reading_on():
    source = iter(range(100))
    plan = replay(source, name="t", limit=10, write_ratio=0.0, seed=1)
    assert len(plan) == 10
    assert next(source) == 10


def test_a_write_ratio_turns_that_share_of_a_trace_into_updates():
    plan = replay(iter(range(10_000)), name="t", limit=10_000, write_ratio=0.2, seed=1)
    assert Counter(plan.kinds)[UPDATE] / len(plan) == pytest.approx(0.2, abs=0.02)
