"""One reads for all: what those who stand by keep, and when; a scripted stream, a manual clock."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_races import Carrier

from cachekit.dax import Dax, notes
from cachekit.dax.settings import Settings
from cachekit.dax.streams import Follower
from cachekit.dax.values import Absent, Image
from cachekit.feeds.seat import Seat
from cachekit.feeds.stream_reader import ReaderThread
from cachekit.runtime import Runtime

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from stream_script import Script

TABLE = "users"
MAX_LAG = 10.0


class One:
    """One process; its thread is turned by hand, and whether it reads is said."""

    def __init__(self, pair: Pair, number: int) -> None:
        self.carrier = Carrier(pair, number)  # type: ignore[arg-type]  # what it needs of a fleet
        streams = {TABLE: {"connect": pair.script.client, "max_lag": MAX_LAG}}
        settings = Settings.make(
            settle=0, quarantine=0, item_ttl=None, negative_ttl=None, streams=streams,
            cache=self.carrier,
        )  # fmt: skip
        self.dax = Dax(settings, runtime=Runtime(clock=pair.clock, wall=pair.clock))
        self.store = self.dax._store
        state = self.store.scope("place", "me").table(TABLE)
        assert state is not None
        assert isinstance(state.follows, Follower)
        self.state, self.follower = state, state.follows
        self.carrier.bus.join()
        self.turn = False
        self.follower._seat.hold = lambda: self.turn  # type: ignore[union-attr,method-assign]  # said

    def keep(self, item: int, v: int | None = None) -> bool:
        key = ("id", "N", str(item))
        row = {"id": {"N": str(item)}, "v": {"N": str(v)}}
        with self.store.gate:
            kept = Absent() if v is None else Image(row)
            self.store.keep_item(self.state, key, kept, self.store.clock())
        return self.holds(item)

    def holds(self, item: int) -> bool:
        return self.store.item(self.state, ("id", "N", str(item))) is not None

    def step(self) -> None:
        self.follower.thread._step()


class Pair:
    """Two processes on one bus, of which the first reads."""

    def __init__(self) -> None:
        self.script = Script()
        self.slow = 0.0
        self.draw: Any = type("", (), {"random": staticmethod(lambda: 0.0)})
        self.carriers: list[Carrier] = []
        self.clock = lambda: self.script.now
        self.reads, self.waits = One(self, 1), One(self, 2)
        self.carriers += [self.reads.carrier, self.waits.carrier]
        self.reads.turn = True
        self.script.now += 1  # what is asked for from now on is after they joined

    def go(self, seconds: float, *, reading: bool = True) -> None:
        end = self.script.now + seconds
        while self.script.now < end:
            self.script.now += 0.5
            if reading:
                self.reads.step()
            for carrier in self.carriers:
                carrier.bus.step()
            self.waits.step()


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(ReaderThread, "start", lambda self, pause=0.0: None)
    monkeypatch.setattr(Seat, "leave", lambda self: None)
    logging.disable()
    made = Pair()
    yield made
    logging.disable(logging.NOTSET)
    made.reads.dax.uninstall()
    made.waits.dax.uninstall()


def test_who_stands_by_keeps_once_it_is_told_that_the_stream_is_read(pair: Pair) -> None:
    pair.go(3, reading=False)
    assert not pair.waits.keep(1)
    pair.go(1)
    assert pair.waits.dax.stats()["streams"] == {TABLE: "standing by"}
    assert pair.waits.keep(1)
    assert pair.reads.keep(1)
    pair.script.put(1)
    pair.go(1)
    assert not pair.waits.holds(1)
    assert not pair.reads.holds(1)


def test_who_hears_nothing_for_max_lag_stops_keeping(pair: Pair) -> None:
    pair.go(2)
    assert pair.waits.keep(1)
    pair.go(MAX_LAG - 3, reading=False)
    assert pair.waits.holds(1)
    pair.go(4, reading=False)
    assert not pair.waits.holds(1)
    assert not pair.waits.keep(2)
    pair.go(2)
    assert pair.waits.keep(2)


def test_a_reader_that_lags_lets_nobody_keep(pair: Pair) -> None:
    pair.go(2)
    assert pair.waits.keep(1)
    pair.script.refusals += ["ThrottlingException"] * 1000
    pair.go(MAX_LAG + 4)
    assert not pair.waits.holds(1)
    assert not pair.reads.keep(1)
    assert not pair.waits.keep(1)
    pair.script.refusals.clear()
    pair.go(8)
    assert pair.reads.keep(1)
    assert pair.waits.keep(1)


def test_who_may_not_read_the_stream_keeps_nothing_and_says_why(pair: Pair) -> None:
    pair.script.refusals += ["AccessDeniedException"] * 1000
    pair.go(4)
    assert not pair.reads.keep(1)
    assert pair.reads.dax.stats()["streams"] == {TABLE: "refused: AccessDeniedException"}
    told = pair.reads.dax.explain("GetItem", TableName=TABLE, Key={"id": {"N": "1"}})
    assert "stream" in told["why"]


def test_a_gap_empties_the_table_everywhere(pair: Pair) -> None:
    pair.go(2)
    assert pair.waits.keep(1)
    assert pair.reads.keep(1)
    pair.script.anew()
    pair.go(12)
    assert not pair.waits.holds(1)
    assert not pair.reads.holds(1)
    assert pair.waits.keep(1)


def test_what_the_fleet_could_not_be_told_is_told_again_and_nobody_is_assured(
    pair: Pair,
) -> None:
    pair.go(2)
    assert pair.waits.keep(1)
    pair.script.put(1)
    pair.reads.carrier.away = True
    pair.go(2)
    assert pair.waits.holds(1)
    pair.reads.carrier.back()
    pair.go(6)
    assert not pair.waits.holds(1), "told again"


def test_the_image_of_a_change_is_compared_by_those_who_stand_by_too(pair: Pair) -> None:
    pair.go(2)
    pair.script.put(1)
    assert pair.waits.keep(1, v=1)
    assert pair.reads.keep(1, v=0)
    pair.go(1)
    assert pair.waits.holds(1)
    assert not pair.reads.holds(1)


def test_a_reader_that_hangs_is_noticed_at_the_next_look(pair: Pair) -> None:
    pair.go(2)
    assert pair.reads.keep(1)
    pair.script.now += MAX_LAG + 1
    with pair.reads.store.gate:
        look = pair.reads.store.look([pair.reads.state.key_spot(("id", "N", "2"))])
        pair.reads.store.protocol.leave(look)
    assert not pair.reads.holds(1)
    pair.go(3)
    assert pair.reads.keep(1), "it has caught up"


def test_word_from_a_reader_that_lags_beyond_max_lag_is_none(pair: Pair) -> None:
    pair.waits.step()
    for lag in (MAX_LAG, float("inf"), float("nan")):
        told = notes.Told(notes.ALIVE, pair.waits.state.mark, None, notes.lag_mark(lag))
        fleet = pair.waits.dax._fleet
        assert fleet is not None
        fleet._follow([told])
        assert not pair.waits.follower.open
