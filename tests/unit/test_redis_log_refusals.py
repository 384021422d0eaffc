"""The write-back queue in Redis: what a server may do to it, worlds and processes, its levels."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from redis_faults import never_connects
from redis_log_hand import BOTH, STATE, A, B, Hand, log_at, put

from cachekit.backends.redis import RedisBackend
from cachekit.backends.redis.log_safety import send_and_wait
from cachekit.backends.redis.wire import ErrorReply, Replies
from cachekit.errors import BackendRefused, BackendTimeout, ConfigurationError
from cachekit.protocols import Letter
from cachekit.runtime import Runtime, drive
from cachekit.testing.servers import RedisServer


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
        yield client


# -- servers that lose, refuse or may not ------------------------------------------------------


@pytest.mark.server
@BOTH
def test_a_server_that_has_less_than_was_seen_raises_the_alarm(
    redis_server: RedisServer, client: redis.Redis, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Hand(log_at(redis_server.url), kind) as log:
        log.append(put("k"))
        epoch = log.own()
        assert log.own() == epoch + 1
        assert log.log.went_back == 0
        identity = log("identity")
        client.flushall()
        assert not log("renew", 0, A, epoch + 1, 60.0)
        assert not log.settle(epoch + 1, [])
        with caplog.at_level(logging.ERROR, "cachekit"):
            assert log.own() == epoch + 2
        assert log.log.went_back == 1
        assert "redis:q" in caplog.text
        assert (log("identity"), log("queues")) == (identity, ["q"])
        assert log.own() == epoch + 3
        client.hset(STATE, "newest", "0" * 18)  # as a replica that had not heard of the last
        assert log.own() == epoch + 4
        assert log.log.went_back == 2


@pytest.mark.server
@BOTH
def test_a_server_that_may_evict_the_log_is_refused(kind: str) -> None:
    with RedisServer() as server, redis.Redis(port=server.port) as client:
        for policy in ("allkeys-lru", "allkeys-random", "allkeys-lfu"):
            client.config_set("maxmemory-policy", policy)
            with Hand(log_at(server.url), kind) as log:
                client.config_set("maxmemory", "100mb")
                with pytest.raises(ConfigurationError, match=policy):
                    log.append(put("k"))
                with pytest.raises(ConfigurationError, match=policy):
                    log.own()
                assert log.pending("k") == [None]
                assert log("standing").depth == 0
                client.config_set("maxmemory", "0")
                log.append(put("k"))
                client.config_set("maxmemory", "100mb")
                log.append(put("k"))  # looked at once
                with pytest.raises(ConfigurationError, match=policy):
                    log.own()
            client.flushall()
        for policy in ("noeviction", "volatile-lru", "volatile-ttl"):
            client.config_set("maxmemory-policy", policy)
            with Hand(log_at(server.url), kind) as log:
                log.append(put("k"))
                log.own()


@pytest.mark.server
@BOTH
@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru"])
def test_a_full_memory_acknowledges_nothing_and_can_be_emptied(kind: str, policy: str) -> None:
    options = ["--maxmemory", "6mb", "--maxmemory-policy", policy]
    with (
        RedisServer(options) as server,
        redis.Redis(port=server.port) as client,
        Hand(log_at(server.url), kind) as log,
    ):
        accepted = []
        with pytest.raises(BackendRefused, match="OOM"):
            for n in range(1_000):
                accepted += log.append(put(f"k{n}", bytes(50_000)))
        records = log.read()
        assert [record.version for record in records] == accepted
        client.config_set("maxmemory", "4mb")  # no buffer that is freed makes room
        with pytest.raises(BackendRefused, match="OOM"):
            log.append(put("k0", b""))
        assert log("standing").depth == len(accepted)
        assert log.pending("k0") == [bytes(50_000)]
        client.hdel(STATE, "run")  # as if another run had begun
        epoch = log.own()
        assert log("renew", 0, A, epoch, 60.0)
        with pytest.raises(BackendRefused, match="OOM"):
            log.append(put("k0", b""))
        assert log.settle(epoch, records[:1], [Letter(records[1], "no")])
        assert log.settle(epoch, records[2:], [])
        log.append(put("again"))
        assert [record.key for record in log.read()] == ["again"]
        assert [letter.record for letter in log("letters", 0, 9)] == [records[1]]


@pytest.mark.server
def test_a_replica_and_a_disk_that_is_full_acknowledge_nothing() -> None:
    with (
        RedisServer(["--save", "3600 1"]) as server,
        redis.Redis(port=server.port) as client,
        Hand(log_at(server.url)) as log,
    ):
        log.append(put("k"))
        client.replicaof("127.0.0.1", "1")
        with pytest.raises(BackendRefused, match="READONLY"):
            log.append(put("k", b"2"))
        client.replicaof("NO", "ONE")
        assert log.pending("k") == [b"v"]
        (server.folder / "dump.rdb").mkdir()  # no file can take its place
        client.bgsave()
        end = time.monotonic() + 10
        while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
            assert time.monotonic() < end
            time.sleep(0.02)
        with pytest.raises(BackendRefused, match="MISCONF"):
            log.append(put("k", b"3"))
        assert log.pending("k") == [b"v"]
        (server.folder / "dump.rdb").rmdir()  # else it would not stop


LEAST = "+@read +@write +@scripting +@pubsub +@connection -@dangerous +info"


@pytest.mark.server
@BOTH
def test_a_least_privilege_user_is_enough_and_one_who_may_not_ask_is_told(kind: str) -> None:
    users = ["--user", *f"app on >pw ~{{ns:* {LEAST}".split()]
    users += ["--user", *f"blind on >pw ~{{ns:* {LEAST} -info".split()]
    with RedisServer(users) as server:
        url = server.url.replace("//", "//app:pw@")
        for level in (None, "replicated"):
            with Hand(log_at(url, parts=2, level=level), kind) as log:
                if level:
                    for told in ("in time", "replica"):
                        with pytest.raises(BackendTimeout, match=told):
                            log.append(put(told), timeout=0.3)
                else:
                    log.append(*(put(f"k{n}") for n in range(9)))
                records = [log.read(part=part) for part in (0, 1)]
                for part in (0, 1):
                    epoch = log.own(part=part)
                    assert log("renew", part, A, epoch, 60.0)
                    letters = [Letter(record, "no") for record in records[part][:2]]
                    assert log.settle(epoch, records[part][2:], letters, part)
                    log("release", part, A, epoch)
                versions = [letter.record.version for letter in log("letters", 0, 9)]
                assert len(versions) == log("standing").dead > 0
                if level:
                    with pytest.raises(BackendTimeout, match="replica"):
                        log("revive", versions[:1], False, timeout=0.3)
                else:
                    assert log("revive", versions[:1], False) == versions[:1]
                log("outdate", ["k0", "told"])
                assert log("drop", versions) == versions[1:]
                assert log("left", log("standing").newest) == 1
                assert log("queues") == ["q"]
                for part in (0, 1):
                    assert log.settle(log.own(part=part), log.read(part=part), (), part)
        blind = Hand(log_at(server.url.replace("//", "//blind:pw@")), kind)
        with blind, pytest.raises(ConfigurationError, match=r"\+info"):
            blind.append(put("k"))
        with Hand(log_at(url, namespace="other"), kind) as log, pytest.raises(BackendRefused):
            log.append(put("k"))


@BOTH
def test_what_can_not_be_reached_is_an_error_within_the_deadline(kind: str) -> None:
    verbs: dict[str, tuple[Any, ...]] = {
        "append": ([put("k")],),
        "look": (["k"], 0),
        "identity": (),
        "claim": (0, A, 1.0),
        "renew": (0, A, 1, 1.0),
        "release": (0, A, 1),
        "read": (0, 0, 10),
        "settle": (0, 1, [("k", 1)], []),
        "standing": (),
        "left": ([1],),
        "letters": (0, 10),
        "revive": ([64], False),
        "drop": ([64],),
        "outdate": (["k"],),
        "queues": (),
    }
    with never_connects() as url, Hand(log_at(url), kind) as log:
        for verb, args in verbs.items():
            begin = time.monotonic()
            with pytest.raises(BackendTimeout) as raised:
                log(verb, *args, timeout=0.1)
            assert time.monotonic() - begin < 0.6, verb
            assert (raised.value.backend, raised.value.operation) == ("redis", verb)


def test_only_own_connections_have_a_log_and_levels_are_named() -> None:
    assert RedisBackend(clients=(None, None)).log is None
    for level in ("memory", "disk", ""):
        if level:
            with pytest.raises(ConfigurationError, match="process, host, replicated"):
                log_at("redis://localhost:1", level=level)
    log = log_at("redis://user:secret@localhost:1", "orders")
    assert (log.name, log.level, log.parts, log.tells) == ("redis:orders", "process", 1, False)
    assert "secret" not in repr(log)


# -- worlds, threads, processes ------------------------------------------------------------------


@pytest.mark.server
def test_threads_and_tasks_and_a_forked_child_use_one_log(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    log = log_at(redis_server.url, parts=2)
    with Hand(log) as hand, ThreadPoolExecutor(8) as threads:
        hand.append(put("first"))
        list(threads.map(lambda n: hand.append(put(f"t{n}")), range(200)))

        async def tasks() -> None:
            world = Runtime().asyncio()
            await asyncio.gather(
                *(log.append(world, [put(f"a{n}")], world.deadline(10)) for n in range(200))
            )
            await log.close(world)

        asyncio.run(tasks())
        pid = os.fork()
        if not pid:
            try:
                hand.append(put("child"))
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        hand.append(put("last"))
        keys = [record.key for part in (0, 1) for record in hand.read(part=part)]
        wanted = [f"{w}{n}" for w in "at" for n in range(200)] + ["first", "child", "last"]
        assert sorted(keys) == sorted(wanted)


@pytest.mark.server
def test_a_look_never_misses_an_operation_while_owners_come_and_go(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    applied: dict[str, int] = {}
    stop = threading.Event()

    def drain(owner: bytes) -> None:
        with Hand(log_at(redis_server.url)) as log:
            while not stop.is_set():
                epoch = log("claim", 0, owner, 0.01)
                if epoch is None:
                    continue
                records = log.read()
                newest = {record.key: record for record in records}
                for key, record in newest.items():
                    applied[key] = max(applied.get(key, 0), int(record.data))
                log.settle(epoch, list(newest.values()))
                log("release", 0, owner, epoch)

    drains = [threading.Thread(target=drain, args=(owner,)) for owner in (A, B)]
    with Hand(log_at(redis_server.url)) as log:
        for thread in drains:
            thread.start()
        try:
            for n in range(1, 400):
                key = f"k{n % 3}"
                log.append(put(key, b"%d" % n))
                [seen] = log.pending(key)
                assert (int(seen) if seen is not None else applied[key]) == n
        finally:
            stop.set()
            for thread in drains:
                thread.join()


# -- levels ----------------------------------------------------------------------------------------


class Redirecting:
    """A route on which the first write of each call is redirected away from its wait."""

    def __init__(self, confirmed: Any) -> None:
        self.sent: list[Any] = []
        self.confirmed = confirmed

    async def send(self, calls: Sequence[Any], until: float) -> Any:
        self.sent.append([command[0] for _, command in calls])
        replies = Runs([1, 1] * (len(calls) // 2))
        if len(self.sent) > 1:
            replies[1] = self.confirmed
        replies.runs = [b"new", b"old" if len(self.sent) < 3 else b"new"] * (len(calls) // 2)
        return replies


class Runs(Replies):
    runs: list[bytes]
    run = b""

    def run_of(self, i: int) -> bytes:
        return self.runs[i]


@pytest.mark.parametrize("waiting", [b"WAIT", b"WAITAOF"])
def test_a_wait_on_another_server_than_the_write_does_not_count(waiting: bytes) -> None:
    late = time.monotonic() + 5
    calls = [(b"k", (b"EVALSHA",))]
    route: Any = Redirecting([1, 0] if waiting == b"WAITAOF" else 1)
    assert drive(send_and_wait(route, calls, [b"state"], waiting, late)) == [1]
    assert route.sent == [[b"EVALSHA", waiting], [b"HSET", waiting], [b"HSET", waiting]]
    route = Redirecting([0, 0] if waiting == b"WAITAOF" else 0)
    with pytest.raises(TimeoutError, match="confirmed"):
        drive(send_and_wait(route, calls, [b"state"], waiting, late))
    route = Redirecting(ErrorReply("ERR no"))
    with pytest.raises(ErrorReply):
        drive(send_and_wait(route, calls, [b"state"], waiting, late))
