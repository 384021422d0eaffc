"""The checker of the crash tests sees what it is there for: campaigns of kills over logs that do
one thing wrong each, and histories made by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from checks import Delivery, Verdict, judge
from fault_sources import SQLiteSource
from history import Call
from kills import Campaign


def _verdict(folder: Path, given: dict[str, Any], points: tuple[str, ...]) -> Verdict:
    """Kills until the checker says no, but not for ever."""
    source = SQLiteSource.made(folder)
    campaign = Campaign(
        folder / "trails",
        {"log": f"sqlite:///{folder}/log.db", **given},
        source,
        seed=1,
        points=points,
        styles=("sync",),
        threads=1,
    )
    campaign.run(3)
    campaign.drain(patience=0.5)
    return campaign.verdict()


@pytest.mark.parametrize(
    ("given", "points"),
    [
        ({"log": "memory"}, ("called",)),
        ({"naive": "acknowledges early"}, ("acknowledged",)),
        ({"naive": "settles first"}, ("called", "sink")),
        ({"naive": "starts at the newest"}, ("called", "sink")),
    ],
    ids=lambda value: str(value.get("naive", "memory")) if isinstance(value, dict) else "",
)
def test_a_naive_log_loses_what_was_acknowledged(
    given: dict[str, Any], points: tuple[str, ...], tmp_path: Path
) -> None:
    assert _verdict(tmp_path, given, points).lost > 0


def test_a_worker_that_settles_rarely_delivers_too_much_again(tmp_path: Path) -> None:
    given = {"naive": "settles rarely", "batch": 5}
    found = _verdict(tmp_path, given, ("committed",)).violations
    assert any("again" in sentence for sentence in found), found


def put(n: int, key: str = "k", *, at: float, lasts: float = 1.0, writer: str = "w") -> Call:
    return Call(writer, n, "put", (key,), at, at + lasts, at + lasts)


def unanswered(n: int, *, at: float, died: float) -> Call:
    return Call("w", n, "put", ("k",), at, None, died)


def gone(n: int, *, at: float) -> Call:
    return Call("w", n, "delete", ("k",), at, at + 1, at + 1)


def delivered(version: int, value: str | None, *, owner: int = 1, nth: int = 1) -> Delivery:
    return Delivery("lane", owner << 32 | nth, "k", version, value)


def _judged(calls: list[Call], row: str | None, *deliveries: Delivery) -> Verdict:
    return judge(calls, {} if row is None else {"k": row}, deliveries, batch=2, kills=9)


@pytest.mark.parametrize(
    ("calls", "row"),
    [
        ([put(1, at=0)], "w:1"),
        ([put(1, at=0), put(2, at=2)], "w:2"),
        ([put(1, at=0, lasts=5), put(2, at=2)], "w:1"),  # at the same time: either may be last
        ([put(1, at=0), gone(2, at=2)], None),
        ([put(1, at=0), gone(2, at=2), put(3, at=4)], "w:3"),
        ([put(1, at=0), unanswered(2, at=2, died=3)], "w:1"),
        ([put(1, at=0), unanswered(2, at=2, died=3)], "w:2"),
        ([unanswered(1, at=0, died=3)], None),
    ],
)
def test_states_that_may_be(calls: list[Call], row: str | None) -> None:
    assert _judged(calls, row).violations == []


@pytest.mark.parametrize(
    ("calls", "row"),
    [
        ([put(1, at=0)], None),
        ([put(1, at=0), put(2, at=2)], "w:1"),
        ([put(1, at=0), put(2, at=2)], None),
        ([put(1, at=0), gone(2, at=2)], "w:1"),
        ([put(1, at=0), gone(2, at=2), put(3, at=4)], None),
        ([put(1, at=0), gone(2, at=2), put(3, at=4)], "w:1"),
        ([unanswered(1, at=0, died=2), put(2, at=3)], "w:1"),  # it was dead by then
        ([put(1, at=0)], "x:1"),
        ([], "w:1"),
    ],
)
def test_states_that_may_not_be(calls: list[Call], row: str | None) -> None:
    assert len(_judged(calls, row).violations) == 1


CALLS = [put(n, at=2.0 * n, lasts=math.inf if n == 4 else 1.0) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("deliveries", "sentence"),
    [
        ([delivered(7, "w:3"), delivered(6, "w:2")], "first after a newer"),
        ([delivered(7, "w:2"), delivered(8, "w:1")], "before an earlier began"),
        ([delivered(7, "w:3", owner=2), delivered(8, "w:4")], "after a later one"),
        ([delivered(7, "w:3"), delivered(7, "w:2")], "two values"),
        ([delivered(7, "w:9")], "never asked for"),
        ([*[delivered(7, "w:3")] * 2, *[delivered(7, "w:3", owner=2)] * 3], "again"),
    ],
)
def test_deliveries_that_may_not_be(deliveries: list[Delivery], sentence: str) -> None:
    found = _judged(CALLS, "w:4", *deliveries).violations
    assert len(found) == 1
    assert sentence in found[0]


def test_one_batch_of_a_predecessor_may_come_again() -> None:
    history = [delivered(6, "w:2"), delivered(7, "w:3")]
    again = [delivered(6, "w:2", owner=2), delivered(7, "w:3", owner=2)]
    last = delivered(8, "w:4", owner=2, nth=2)
    verdict = _judged(CALLS, "w:4", *history, *again, last)
    assert verdict.violations == []
    assert (verdict.delivered, verdict.replayed, verdict.most_replayed) == (5, 2, 2)


def test_replays_are_bounded_by_the_kills_as_a_whole() -> None:
    again = [delivered(7, "w:3", owner=owner) for owner in range(1, 6)]
    assert judge(CALLS, {"k": "w:4"}, again, batch=2, kills=2).violations == []
    assert len(judge(CALLS, {"k": "w:4"}, again, batch=2, kills=1).violations) == 1
