"""The examples run as programs and print what they show."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def output(name: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_decorated_functions_load_once_until_a_tag_is_invalidated() -> None:
    shown = output("decorate_functions.py")
    assert shown.count("profile(7) reads") == 3
    assert "peek: cachekit.MISSING cachekit.MISSING Grace" in shown.replace(
        "Missing.MISSING", "cachekit.MISSING"
    )
    assert "Ada L." in shown
    assert "in_stock(['gear', 'unknown']) reads" in shown
    assert "{'nut': 3, 'gear': 1}" in shown
    assert "CacheInfo(hits=3, misses=4," in shown


def test_a_crowd_of_coroutines_makes_one_load_and_grace_bridges_an_outage() -> None:
    shown = output("decorate_async.py")
    assert "500 callers at once, 1 load" in shown
    assert "loads now: 2" in shown
    assert "still served: {'EUR': 1.0, 'USD': 1.08}" in shown
    assert "refreshes that failed: 1" in shown


def test_a_table_under_three_strategies_ends_with_the_same_rows_at_different_cost() -> None:
    rows = re.findall(
        r"(\w+) +(\d+) reads +(\d+) write calls, total (\d+)", output("repository_sqlite.py")
    )
    assert rows == [
        ("CacheAside", "100", "100", "100"),
        ("WriteThrough", "10", "100", "100"),
        ("WriteBack", "10", "1", "100"),
    ]


def test_a_writer_that_is_killed_loses_nothing_that_it_acknowledged() -> None:
    shown = output("write_back.py")
    killed = re.search(r"killed after (\d+) acknowledged puts: \d+ rows, (\d+) in the log", shown)
    assert killed
    acknowledged, waiting = int(killed[1]), int(killed[2])
    assert acknowledged >= 1000
    assert waiting > 0, "nothing was left to lose"
    assert f"read after the kill: {{'total': {acknowledged * 10}}}" in shown
    assert "flushed: True" in shown
    rows = re.search(r"rows now: (\d+); acknowledged puts lost: 0$", shown, re.M)
    assert rows
    assert acknowledged <= int(rows[1]) <= acknowledged + 1


def test_the_web_application_runs_as_a_program() -> None:
    pytest.importorskip("fastapi")
    shown = output("fastapi_app.py")
    assert "3 requests, 1 query" in shown
    assert "'price': 6" in shown
    assert "unknown: 404" in shown


def test_the_web_application_serves_hits_and_sees_its_own_writes() -> None:
    testclient = pytest.importorskip("fastapi.testclient")
    app = runpy.run_path(str(EXAMPLES / "fastapi_app.py"), run_name="fastapi_app")["app"]
    with testclient.TestClient(app) as client:
        assert [client.get("/prices/bolt").json()["price"] for _ in range(5)] == [8] * 5
        assert client.get("/queries").json() == 1
        assert client.get("/prices/cog").status_code == 404
        assert client.put("/prices/bolt", params={"cents": 9}).status_code == 200
        assert client.get("/prices/bolt").json() == {"sku": "bolt", "price": 9}
        # A missing product is an error, which is not cached: it was asked for once, as bolt twice.
        assert client.get("/queries").json() == 3
        schema = client.get("/openapi.json").json()
        asked = schema["paths"]["/prices/{sku}"]["get"]["parameters"]
        assert [parameter["name"] for parameter in asked] == ["sku"]


def test_events_transactions_and_planned_times_invalidate() -> None:
    pytest.importorskip("sqlalchemy")
    shown = output("scheduled_and_events.py")
    assert "after the commit that moved a row: ['bolt'] ['nut']" in shown
    assert "after a rollback, still cached: ['bolt'] ['nut']" in shown
    assert "after a planned time: cachekit.MISSING cachekit.MISSING" in shown


def test_an_item_and_query_cache_in_front_of_boto3() -> None:
    pytest.importorskip("moto")
    shown = output("dax_boto3.py")
    for line in (
        "same answers: True (62 of them)",
        "item hits: 40",
        "item misses: 1",
        "query hits: 19",
        "query misses: 2",
        "bypassed and cached are equal: True",
    ):
        assert line in shown


def test_every_example_has_a_test() -> None:
    text = Path(__file__).read_text()
    for file in EXAMPLES.glob("*.py"):
        assert f'"{file.name}"' in text, file.name
