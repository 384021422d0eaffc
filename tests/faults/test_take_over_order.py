"""A new owner does not go back behind what the last one delivered."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from fault_sources import SQLiteSource
from worker_stage import PATIENCE, Stage, eventually, log_url


@pytest.mark.parametrize("place", ["sqlite", "redis"])
def test_no_older_version_is_delivered_first_after_a_newer_one(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The dead owner had read, and taken together, more than a new one reads at first."""
    source = SQLiteSource.made(tmp_path)
    stage = Stage(tmp_path, log_url(place, tmp_path, request), source, batch=2)
    try:
        for number, key in enumerate("abcdefgchidc"):
            stage.put(**{key: f"{key}@{number}"})
        dying = stage.worker("dying", point="committed", count=2)
        assert dying.wait(PATIENCE) == -signal.SIGKILL
        stage.worker("heir")
        eventually("all is written", lambda: not stage.app.strategy.depth())
    finally:
        stage.close()
    newest: dict[str, int] = {}
    for delivery in source.deliveries():
        assert delivery.version >= newest.get(delivery.key, 0), (delivery, source.deliveries())
        newest[delivery.key] = delivery.version
    rows = source.rows()
    assert len(rows) == 9
    assert (rows["c"], rows["d"]) == ("c@11", "d@10")
