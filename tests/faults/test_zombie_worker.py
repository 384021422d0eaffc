"""A worker frozen beyond its lease in the middle of a batch, and resumed: its batch is fenced out,
what is newer stays, and what was deleted stays deleted."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fault_sources import PostgreSQLSource, SQLiteSource
from worker_stage import Stage, eventually, log_url

sys.path.append(str(Path(__file__).parents[1] / "unit"))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@pytest.mark.parametrize("place", ["sqlite", "redis"])
def test_a_worker_that_slept_beyond_its_lease_is_fenced_out(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, stack: ExitStack
) -> None:
    url = log_url(place, tmp_path, request)
    stage = Stage(tmp_path, url, source := SQLiteSource.made(tmp_path))
    stack.callback(stage.close)
    stage.put(changed="old", deleted="old", alone="only")
    zombie = stage.frozen_in_its_batch("called")
    heir = stage.worker("heir")
    eventually("the heir has delivered the old batch", lambda: len(source.rows()) == 3)
    stage.put(changed="new")
    stage.app.strategy.delete("deleted")
    newest = {"changed": "new", "alone": "only"}
    eventually("the newer writes are in the source", lambda: source.rows() == newest)
    zombie.send_signal(signal.SIGCONT)
    eventually("it is fenced", lambda: stage.counts("zombie").get("fenced_writes", 0) > 0)
    assert stage.counts("zombie").get("writes_applied", 0) == 0
    assert stage.counts("heir").get("fenced_writes", 0) == 0
    assert source.rows() == newest
    # It is of use again: once the heir is gone, it takes over.
    heir.kill()
    stage.put(later="came")
    eventually("it took over", lambda: source.rows() == {**newest, "later": "came"})
    assert stage.counts("heir").get("fenced_writes", 0) == 0


@pytest.mark.parametrize("place", ["sqlite", "redis"])
def test_without_a_fence_the_old_batch_undoes_what_is_newer(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, stack: ExitStack
) -> None:
    """What the fence is for, and that the test above would see it missing."""
    url = log_url(place, tmp_path, request)
    stage = Stage(tmp_path, url, source := SQLiteSource.made(tmp_path), fenced=False)
    stack.callback(stage.close)
    stage.put(changed="old", deleted="old", alone="only")
    zombie = stage.frozen_in_its_batch("called")
    stage.worker("heir")
    eventually("the heir has delivered the old batch", lambda: len(source.rows()) == 3)
    stage.put(changed="new")
    stage.app.strategy.delete("deleted")
    newest = {"changed": "new", "alone": "only"}
    eventually("the newer writes are in the source", lambda: source.rows() == newest)
    zombie.send_signal(signal.SIGCONT)
    undone = {"changed": "old", "deleted": "old", "alone": "only"}
    eventually("the damage is done", lambda: source.rows() == undone)
    assert stage.counts("zombie").get("fenced_writes", 0) == 0


@pytest.mark.parametrize("point", ["written", "sink"])
def test_a_transaction_of_a_frozen_worker_is_ended_by_postgresql(
    point: str, tmp_path: Path, stack: ExitStack
) -> None:
    """It holds the fence's row, so its heir can only wait until the server gives up on it."""
    from sink_sources import postgresql_cluster

    source = PostgreSQLSource.made(postgresql_cluster().url)
    stage = Stage(tmp_path, f"sqlite:///{tmp_path}/log.db", source)
    stack.callback(stage.close)
    stage.put(changed="old", deleted="old", alone="only")
    zombie = stage.frozen_in_its_batch(point)
    stage.worker("heir")
    eventually("the heir has delivered the old batch", lambda: len(source.rows()) == 3)
    stage.put(changed="new")
    stage.app.strategy.delete("deleted")
    newest = {"changed": "new", "alone": "only"}
    eventually("the newer writes are in the source", lambda: source.rows() == newest)
    zombie.send_signal(signal.SIGCONT)
    eventually("it knows", lambda: stage.counts("zombie").get("log_lost", 0) > 0)
    assert stage.counts("zombie").get("writes_applied", 0) == 0
    assert source.rows() == newest
    epochs = [delivery.epoch for delivery in source.deliveries()]
    assert epochs == sorted(epochs)
