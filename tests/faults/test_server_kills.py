"""redis-server killed with SIGKILL under load and started on its data again."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from fault_app import App
from fault_sources import Doom, SQLiteSource
from server_kills import ServerCampaign

from cachekit.errors import BackendError
from cachekit.testing.servers import RedisServer, ServerMissing, redis_program


@pytest.fixture(autouse=True)
def _server() -> None:
    try:
        redis_program()
    except ServerMissing as missing:
        if os.environ.get("CACHEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.mark.parametrize(("drained", "level"), [(True, "host"), (False, "process")])
def test_a_server_that_syncs_always_loses_nothing(
    drained: bool, level: str, tmp_path: Path
) -> None:
    seed = random.randrange(10**9)
    campaign = ServerCampaign(tmp_path, seed, fsync="always", drained=drained, level=level)
    campaign.run(2)
    assert not campaign.violations(), (seed, str(campaign), campaign.violations()[:10])
    assert campaign.verdict.acknowledged > 20, str(campaign)
    assert campaign.verdict.raised > 0, str(campaign)  # while it was away


def test_a_server_that_keeps_nothing_is_caught(tmp_path: Path) -> None:
    campaign = ServerCampaign(tmp_path, seed=1, fsync="never", drained=False)
    campaign.run(1)
    assert campaign.violations()
    assert campaign.lost_per_kill()[0] > 0
    assert campaign.window() > 0


def test_a_put_is_not_acknowledged_while_the_server_is_down(tmp_path: Path) -> None:
    source = SQLiteSource.made(tmp_path)
    with RedisServer(("--appendonly", "yes", "--appendfsync", "always")) as server:
        given = {"log": server.url, "source": source.spec, "batch": 5, "delay": 0.01, "lease": 1}
        app = App(given, Doom())
        app.strategy.put("before", {"value": "1"})
        server.kill()
        with pytest.raises(BackendError):
            app.strategy.put("while", {"value": "2"})
        with pytest.raises(BackendError):
            app.strategy.delete("before")
        server.start()
        _until_accepted(app, "after", "3")
        assert app.strategy.flush(20).complete
        assert source.rows() == {"before": "1", "after": "3"}
        app.cache.close()


def test_what_is_acknowledged_after_a_server_lost_its_data_is_there_for_all(
    tmp_path: Path,
) -> None:
    """By a process that had known the log before; seen by one that has not."""
    source = SQLiteSource.made(tmp_path)
    with RedisServer() as server:
        given = {"log": server.url, "source": source.spec, "batch": 5, "delay": 0.01, "lease": 1}
        writer, other = (App({**given, "worker": False}, Doom()) for _ in range(2))
        writer.strategy.put("a", {"value": "1"})
        server.kill()
        server.start()
        _until_accepted(writer, "a", "2")
        assert other.strategy.get("a") == {"value": "2"}
        assert other.strategy.depth() == 1
        worker = App(given, Doom())
        assert worker.strategy.flush(20).complete
        assert source.rows() == {"a": "2"}
        for app in (writer, other, worker):
            app.cache.close()


def _until_accepted(app: App, key: str, value: str) -> None:
    """The connection comes back by itself."""
    end = time.monotonic() + 20
    while True:
        try:
            app.strategy.put(key, {"value": value})
            return
        except BackendError:
            assert time.monotonic() < end
            time.sleep(0.05)
