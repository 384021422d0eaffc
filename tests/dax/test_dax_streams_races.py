"""A followed table under random schedules and a stream with gaps; weaker following is caught."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
from stream_races import catches, outdated_plays

from cachekit.dax.others import Others
from cachekit.dax.streams import Follower
from cachekit.feeds.stream_reader import ReaderThread

NIGHTLY = os.environ.get("CACHEKIT_NIGHTLY") == "1"
SEEDS = range(2_000 if NIGHTLY else 40)

pytestmark = pytest.mark.timeout(900 if NIGHTLY else 120)


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ReaderThread, "start", lambda self, pause=0.0: None)
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def test_nothing_is_kept_for_longer_than_the_bound_and_nothing_outdated_at_rest() -> None:
    wrong, kept = outdated_plays(SEEDS)
    assert not wrong, wrong[0]
    assert kept > 10 * len(SEEDS), "next to nothing was kept"


def _nothing(self: Any, *_: Any) -> None:
    return None


def test_keeping_before_the_stream_is_read_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Follower, "_lost", _nothing)
    monkeypatch.setattr(Follower, "_shut", _nothing)
    monkeypatch.setattr(Follower, "open", property(lambda self: True, _nothing), raising=False)
    assert catches(SEEDS)


def test_going_on_after_a_gap_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Follower, "_lost", _nothing)
    monkeypatch.setattr(Follower, "_shut", _nothing)
    assert catches(SEEDS)


def test_replicas_that_lag_behind_the_stream_are_caught() -> None:
    assert catches(SEEDS, settle=0, calm=True)
    assert not catches(range(15), calm=True)


def test_evicting_without_moving_the_epoch_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(self: Others, table: bytes, key: Any, image: bytes) -> None:
        self._evict(table, key)

    monkeypatch.setattr(Others, "changed", changed)
    assert catches(SEEDS)
