"""cachekit dlq and worker: queues of other namespaces, of logs made by hand, and lost ones."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import redis

from cachekit import Cache, Retrying, WriteBack, cli
from cachekit.backends.redis import RedisBackend
from cachekit.testing.servers import RedisServer

Told = pytest.CaptureFixture[str]


def refuse(rows: dict[str, Any]) -> dict[str, Exception]:
    return {id: ValueError(f"no {id}") for id in rows}


def made(
    log: Any, namespace: str = "", name: str = "items", store: Callable[..., Any] = refuse
) -> tuple[Cache, WriteBack]:
    cache = Cache(namespace=namespace)
    return cache, WriteBack(
        cache,
        key=name + ":{id}",
        name=name,
        load=lambda id: None,
        store_many=store,
        log=log,
        retry=Retrying(attempts=1),
    )


def park(log: Any, *ids: str, **more: Any) -> None:
    cache, one = made(log, **more)
    with cache:
        one.put_many({id: id for id in ids})
        assert one.flush(20).parked == len(ids)


def run(told: Told, *arguments: str) -> tuple[int, str, str]:
    told.readouterr()
    code = cli.main(list(arguments))
    return code, *told.readouterr()


def test_a_file_without_a_namespace_shows_the_letters_of_all(tmp_path: Path, capsys: Told) -> None:
    url = f"sqlite:///{tmp_path}/a%20b.log"
    spaces = ("shop", "", "a/b \u202e")
    for space in spaces:
        park(url, f"x{len(space)}", namespace=space)
    park(url, "y", namespace="shop", name="users")
    code, out, _ = run(capsys, "dlq", "list", "--log", url)
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split()[:3] == ["namespace", "queue", "version"]
    assert sorted(line.split()[0] for line in lines) == ["-", "a/b", "shop", "shop"]
    assert "\u202e" not in out
    found = json.loads(run(capsys, "dlq", "list", "--log", url, "--json")[1])
    assert sorted((one.get("namespace", ""), one["queue"]) for one in found) == sorted(
        [("shop", "users"), *((space, "items") for space in spaces)]
    )
    for space in spaces:
        code, out, _ = run(capsys, "dlq", "list", "--log", url, "--namespace", space)
        assert code == 0
        assert "namespace" not in out
        assert f"items:x{len(space)}" in out
        assert out.count("items:") == 1
    assert run(capsys, "dlq", "list", "--log", url, "--namespace", "none")[1] == "no queues there\n"


def test_one_of_several_namespaces_has_to_be_named_and_is_what_is_changed(
    tmp_path: Path, capsys: Told
) -> None:
    url = f"sqlite:///{tmp_path}/a.log"
    park(url, "a", namespace="shop")
    at = ("--log", url, "--queue", "items")
    assert "items:a" in run(capsys, "dlq", "show", *at, "--version", "1", "--values")[1]
    park(url, "b")
    for verb in (["show", "--version", "1"], ["replay", "--all"], ["drop", "--all", "--yes"]):
        code, _, err = run(capsys, "dlq", *verb, *at)
        assert code == 2
        assert "items, items (--namespace shop)" in err
    assert run(capsys, "dlq", "drop", "--all", "--yes", *at, "--namespace", "")[0] == 0
    left = json.loads(run(capsys, "dlq", "list", "--log", url, "--json")[1])
    assert [(one["namespace"], one["key"]) for one in left] == [("shop", "items:a")]


@pytest.mark.server
def test_a_redis_without_a_namespace_says_that_others_were_not_looked_at(
    redis_server: RedisServer, capsys: Told
) -> None:
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
    park(redis_server.url, "a", namespace="shop")
    for more in ((), ("--json",)):
        code, out, err = run(capsys, "dlq", "list", "--log", redis_server.url, *more)
        assert code == 1
        assert out == ("[]\n" if more else "no queues there\n")
        assert "--namespace" in err
    at = ("--log", redis_server.url, "--namespace")
    assert run(capsys, "dlq", "list", *at, "") == (0, "no queues there\n", "")
    assert "items:a" in run(capsys, "dlq", "list", *at, "shop")[1]


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("an_app_of_places")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.server
def test_a_log_made_by_hand_goes_by_its_own_name_too(
    redis_server: RedisServer, app: ModuleType, capsys: Told
) -> None:
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
    opened = RedisBackend(redis_server.url, namespace="shop").log
    assert opened is not None
    park(opened("orders"), "a")
    at = ("dlq", "list", "--app", "an_app_of_places:cache", "--queue")
    for name in ("orders", "items"):
        app.cache = made(opened("orders"))[0]  # type: ignore[attr-defined]
        code, out, _ = run(capsys, *at, name)
        assert code == 0
        assert "items:a" in out
    app.cache = made(opened("orders"))[0]  # type: ignore[attr-defined]
    assert "known: items, orders" in run(capsys, *at, "nobody")[2]


@pytest.mark.server
def test_a_worker_does_not_wait_for_what_the_server_has_lost(app: ModuleType, capsys: Told) -> None:
    def away(rows: dict[str, Any]) -> None:
        raise ConnectionError("away")

    with RedisServer() as server:
        app.cache, one = made(server.url, store=away)  # type: ignore[attr-defined]
        one.rest(0.0)
        one.put_many({"a": 1, "b": 2})

        def lose() -> None:
            server.kill()
            server.start()

        timer = threading.Timer(1.0, lose)
        timer.start()
        at = ("worker", "--app", "an_app_of_places:cache", "--once", "--timeout", "30s")
        begin = time.monotonic()
        code, _, err = run(capsys, *at)
        timer.join()
        assert time.monotonic() - begin < 29
        assert code == 1
        assert "has lost operations that were accepted" in err
