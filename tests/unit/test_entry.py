"""One value and its verdict."""

from __future__ import annotations

import pickle

from cachekit import MISSING
from cachekit.core.entry import INF, Entry, Extra, Verdict, judge


def _entry(deadline: float, expires: float | None = None) -> Entry:
    entry = Entry("v", deadline, 1, int, None, None)
    if expires is not None:
        entry.extra = Extra(expires, (), 0, 0.0, None)
    return entry


def test_an_entry_is_fresh_until_just_before_its_deadline() -> None:
    assert judge(_entry(10.0), 9.999) is Verdict.FRESH
    assert judge(_entry(10.0), 10.0) is Verdict.MISS
    assert judge(_entry(INF), 1e300) is Verdict.FRESH


def test_an_entry_is_stale_until_its_grace_ends() -> None:
    assert judge(_entry(10.0, 15.0), 10.0) is Verdict.STALE
    assert judge(_entry(10.0, 15.0), 15.0) is Verdict.MISS


def test_a_killed_entry_is_a_miss_however_long_its_grace() -> None:
    assert judge(_entry(-INF, INF), 0.0) is Verdict.MISS


def test_missing_is_false_and_itself_after_a_round_trip() -> None:
    assert not MISSING
    assert repr(MISSING) == "cachekit.MISSING"
    assert pickle.loads(pickle.dumps(MISSING)) is MISSING
