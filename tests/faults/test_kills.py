"""Writers killed with SIGKILL at any moment: nothing that was acknowledged is lost, the source gets
each key's writes in their order, and gets again one batch per take-over at most. More kills:
``python tests/faults/run.py``."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from fault_sources import AsyncSQLiteSource, PostgreSQLSource, SQLiteSource
from kills import Campaign

sys.path.append(str(Path(__file__).parents[1] / "unit"))

KILLS = 4


@pytest.fixture
def given(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    kind: str = request.param
    if kind.startswith("redis"):
        url = request.getfixturevalue("redis_server").url
        cache = url if kind == "redis-cache" else None
        parts = 3 if kind == "redis-parts" else None
        return {"log": url, "namespace": uuid.uuid4().hex[:8], "cache": cache, "parts": parts}
    level = "host" if kind == "sqlite-host" else "process"
    return {"log": f"sqlite:///{tmp_path}/log.db", "level": level}


def _survives(campaign: Campaign, kills: int) -> None:
    campaign.run(kills)
    campaign.drain()
    verdict = campaign.verdict()
    assert not verdict.violations, (campaign.seed, str(verdict), verdict.violations[:10])
    assert campaign.kills >= kills
    assert verdict.acknowledged > kills, str(verdict)
    assert verdict.delivered > kills, str(verdict)


KINDS = ["sqlite", "sqlite-host", "redis", "redis-cache", "redis-parts"]


@pytest.mark.parametrize("given", KINDS, indirect=True)
def test_killed_writers_lose_nothing(given: dict[str, Any], tmp_path: Path) -> None:
    seed = random.randrange(10**9)  # a failure names it
    grace = 1.0 if given["log"].startswith("redis") else 0.0
    source = SQLiteSource.made(tmp_path)
    _survives(Campaign(tmp_path / "trails", given, source, seed, grace=grace), KILLS)


@pytest.mark.parametrize("given", ["sqlite"], indirect=True)
def test_killed_event_loops_with_an_async_sink_lose_nothing(
    given: dict[str, Any], tmp_path: Path
) -> None:
    source = AsyncSQLiteSource.made(tmp_path)
    seed = random.randrange(10**9)
    campaign = Campaign(tmp_path / "trails", given, source, seed, styles=("async",))
    _survives(campaign, KILLS)


@pytest.mark.parametrize("given", ["sqlite"], indirect=True)
def test_killed_writers_lose_nothing_on_their_way_to_postgresql(
    given: dict[str, Any], tmp_path: Path
) -> None:
    from sink_sources import postgresql_cluster

    source = PostgreSQLSource.made(postgresql_cluster().url)
    _survives(Campaign(tmp_path / "trails", given, source, random.randrange(10**9)), KILLS)


def test_processes_killed_while_they_make_the_file_lose_nothing(tmp_path: Path) -> None:
    seed = random.randrange(10**9)
    program = Path(__file__).with_name("opening_race.py")
    command = [sys.executable, str(program), str(tmp_path), "20", str(seed)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=100).stdout)
    assert told["lost"] == [], seed
    assert min(told["acknowledged"]) == 0, seed  # some died before their first put
    assert sum(told["acknowledged"]) > 0, seed
