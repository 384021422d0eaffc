"""When and how long: every duration and option means one thing, or is refused at birth."""

from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cachekit
from cachekit.core.policy import FOREVER, Batching, Policy, Retrying, Span, seconds

ok = pytest.mark.parametrize(
    ("given_", "want"),
    [
        (0, 0.0),
        (1.5, 1.5),
        ("250ms", 0.25),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        (" 2d ", 172_800.0),
        ("1w", 604_800.0),
        ("0.5s", 0.5),
        (timedelta(minutes=2), 120.0),
        (timedelta(microseconds=1), 1e-6),
        (3_000_000_000, 3e9),
    ],
)
BAD = [
    (-1, ValueError),
    (-0.001, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
    (-math.inf, ValueError),
    (10**400, ValueError),
    (timedelta(-1), ValueError),
    ("", ValueError),
    ("10", ValueError),
    ("10x", ValueError),
    ("-5s", ValueError),
    ("5 minutes", ValueError),
    ("1e3s", ValueError),
    ("9" * 400 + "s", ValueError),
    (True, TypeError),
    (b"10s", TypeError),
    ([], TypeError),
    (Decimal(1), TypeError),
    (1j, TypeError),
]


@ok
def test_a_duration_is_read_in_seconds(given_: Any, want: float) -> None:
    assert seconds(given_) == want
    assert Policy.make(ttl=given_).ttl == want


@pytest.mark.parametrize(("value", "error"), BAD, ids=[repr(v)[:12] for v, _ in BAD])
def test_an_invalid_ttl_is_refused_alike_everywhere(value: Any, error: type[Exception]) -> None:
    cache = cachekit.Cache()
    doors = [
        lambda: seconds(value, "ttl"),
        lambda: Policy.make(ttl=value),
        lambda: cachekit.Cache(ttl=value),
        lambda: cache.cached(ttl=value),
        lambda: cache.cached_many(key="{i}", ttl=value),
        lambda: cache.set("k", 1, ttl=value),
        lambda: cache.touch("k", ttl=value),
        lambda: cache.get_or_set("k", lambda: 1, ttl=value),
    ]
    for door in doors:
        with pytest.raises(error, match="ttl"):
            door()


@given(st.floats(0, 1e9))
def test_any_finite_number_of_seconds_is_itself(value: float) -> None:
    assert seconds(value) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("early", 1),
        ("early", -0.1),
        ("early", math.nan),
        ("early", "x"),
        ("jitter", 1.0),
        ("jitter", True),
        ("beta", 0),
        ("beta", -1),
        ("beta", math.nan),
        ("beta", math.inf),
        ("beta", True),
        ("beta", "1"),
        ("grace", -1),
        ("lease", 0),
        ("write_lease", 0),
        ("negative_ttl", math.nan),
        ("load_timeout", -1),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Policy.make(**{name: value})


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match="unknown option 'tll'; known: beta, early"):
        Policy.make(tll=5)
    with pytest.raises(TypeError, match="unknown option 'tll'"):
        cachekit.Cache().cached(tll=5)


def test_ttl_none_is_for_ever_and_ttl_nought_is_not_kept() -> None:
    assert Policy.make().spans("v", 0.0, lambda: 0.5) == Span(FOREVER, FOREVER)
    assert Policy.make(ttl=0).spans("v", 0.0, lambda: 0.5) is None


def test_the_ttl_may_be_a_function_of_the_value() -> None:
    policy = Policy.make(ttl=lambda v: v, grace=5)
    assert policy.spans("10m", 0.0, lambda: 0.5) == Span(600.0, 605.0)
    assert policy.spans(None, 0.0, lambda: 0.5) == Span(FOREVER, FOREVER)
    assert policy.spans(0, 0.0, lambda: 0.5) is None
    with pytest.raises(ValueError, match="ttl"):
        policy.spans(-1, 0.0, lambda: 0.5)


def test_a_loaded_none_has_its_own_ttl() -> None:
    policy = Policy.make(ttl=10, negative_ttl=1)
    assert policy.spans(None, 0.0, lambda: 0.5) == Span(1.0, 1.0)
    assert policy.spans(0, 0.0, lambda: 0.5) == Span(10.0, 10.0)
    assert Policy.make(ttl=10, negative_ttl=0).spans(None, 0.0, lambda: 0.5) is None


def test_jitter_only_shortens() -> None:
    policy = Policy.make(ttl=100, jitter=0.2)
    assert policy.spans("v", 0.0, lambda: 0.0) == Span(100.0, 100.0)
    assert policy.spans("v", 0.0, lambda: 0.5) == Span(90.0, 90.0)


def test_early_refresh_shortens_what_is_fresh_and_not_what_is_kept() -> None:
    assert Policy.make(ttl=10, early=0.8).spans("v", 0.0, lambda: 0.0) == Span(8.0, 10.0)
    policy = Policy.make(ttl=10, beta=1.0)
    assert policy.spans("v", 2.0, lambda: 0.0) == Span(10.0, 10.0)
    span = policy.spans("v", 2.0, lambda: 1 - math.exp(-1))
    assert span is not None
    assert span.fresh == pytest.approx(8.0)
    assert span.kept == 10.0
    assert policy.spans("v", 1e9, lambda: 0.5) == Span(0.0, 10.0)


@pytest.mark.parametrize("bad", [{"size": 0}, {"max_pending": 0}])
def test_a_batch_of_nothing_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Batching(**bad)


@pytest.mark.parametrize("bad", [{"attempts": 0}, {"base": -1}, {"base": 2, "cap": 1}])
def test_impossible_retries_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="retry"):
        Retrying(**bad)
