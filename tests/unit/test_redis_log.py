"""The write-back queue in Redis: places and versions, what a server may do to it, its levels."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis_faults import WORLDS, never_connects

from cachekit.backends.redis import RedisBackend
from cachekit.backends.redis.log import RedisLog
from cachekit.backends.redis.log_safety import send_and_wait
from cachekit.backends.redis.log_scripts import id_after, place_of, version_of, version_of_id
from cachekit.backends.redis.wire import ErrorReply, Replies
from cachekit.errors import (
    BackendRefused,
    BackendTimeout,
    ConfigurationError,
)
from cachekit.protocols import Bounds, Letter, OpKind, Record
from cachekit.runtime import Runtime, drive
from cachekit.testing.servers import RedisServer

BOTH = pytest.mark.parametrize("kind", WORLDS)
A, B = b"a" * 16, b"b" * 16
STREAM, INDEX, STATE = (f"{{ns:wb:q:0}}:{name}" for name in ("log", "index", "state"))


def put(key: str, data: bytes = b"v", at: float = 1.0) -> Record:
    return Record(key, OpKind.PUT, data, 0, at)


class Hand:
    """One log, used from one world; its verbs as plain functions."""

    def __init__(self, log: Any, kind: str = "threads") -> None:
        self.log = log
        self._runner = asyncio.Runner() if kind == "asyncio" else None
        runtime = Runtime()

        async def open_world() -> Any:
            return runtime.asyncio()

        self.world = self._runner.run(open_world()) if self._runner else runtime.threads

    def __call__(self, verb: str, *args: Any, timeout: float = 5.0, **more: Any) -> Any:
        async def call() -> Any:
            deadline = self.world.deadline(timeout)
            return await getattr(self.log, verb)(self.world, *args, deadline, **more)

        return self._runner.run(call()) if self._runner else drive(call())

    def append(self, *records: Record, timeout: float = 5.0) -> list[Any]:
        found: list[Any] = self("append", records, timeout=timeout)
        return found

    def pending(self, *keys: str) -> list[bytes | None]:
        seen = self("look", keys, 0).pending
        return [record and record.data for record in seen]

    def read(self, after: int = 0, part: int = 0) -> list[Record]:
        found: list[Record] = self("read", part, after, 1_000_000)
        return found

    def own(self, owner: bytes = A, part: int = 0) -> int:
        epoch = self("claim", part, owner, 60.0)
        assert isinstance(epoch, int)
        return epoch

    def settle(
        self, epoch: int, records: Sequence[Record], letters: Sequence[Letter] = (), part: int = 0
    ) -> bool:
        done = [(record.key, record.version) for record in records]
        settled: bool = self("settle", part, epoch, done, letters, timeout=20.0)
        return settled

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._close()
        if self._runner:
            self._runner.close()

    def _close(self) -> None:
        if self._runner:
            self._runner.run(self.log.close(self.world))
        else:
            drive(self.log.close(self.world))


def log_at(url: str, queue: str = "q", namespace: str = "ns", **options: Any) -> RedisLog:
    opened = RedisBackend(url, namespace=namespace).log
    assert opened is not None
    log: Any = opened(queue, **options)
    return log


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
        yield client


# -- places and versions -------------------------------------------------------------------


@given(st.integers(1, 10**13 - 2), st.integers(0, 2**14 - 1), st.integers(0, 63))
def test_a_version_tells_its_place_and_its_partition(ms: int, seq: int, part: int) -> None:
    id = b"%d-%d" % (ms, seq)
    version = version_of_id(id, part)
    assert 0 < version < 2**63 or ms >= 2**43
    assert version_of(place_of(version, part), part) == version
    before = id_after(version - 1, part)
    assert before == id if seq else before == b"%d-16384" % (ms - 1)
    assert id_after(version, part) == b"%d-%d" % (ms, seq + 1)
    for other in (version + 1, version + 63):
        assert place_of(other, part) == place_of(version, part)
    assert place_of(version + 64, part) > place_of(version, part) > place_of(version - 1, part)


@given(st.lists(st.integers(-(2**70), 2**70), min_size=2, max_size=2), st.integers(0, 63))
def test_any_number_has_a_place_and_they_keep_their_order(numbers: list[int], part: int) -> None:
    low, high = sorted(numbers)
    assert len(place_of(low, part)) == 18
    assert place_of(low, part) <= place_of(high, part)


@pytest.mark.server
@BOTH
def test_versions_grow_though_the_clock_of_the_server_went_back(
    redis_server: RedisServer, client: redis.Redis, kind: str
) -> None:
    future = 4_000_000_000_000
    last = f"{future}-16382" if kind == "threads" else f"{future - 1}-9999999"
    client.xadd(STREAM, {"x": ""}, last)
    client.xdel(STREAM, last)
    with Hand(log_at(redis_server.url), kind) as log:
        versions = [log.append(put("k"))[0] for _ in range(3)] + log.append(put("k"), put("k"))
        ids = [id.decode() for id, _ in client.xrange(STREAM)]
        begin = [f"{future}-16383"] if kind == "threads" else [f"{future}-0"]
        later = future + 1 if kind == "threads" else future
        assert ids == begin + [f"{later}-{n + (kind == 'asyncio')}" for n in range(4)]
        assert [r.version for r in log.read()] == versions == sorted(set(versions))
        assert all(version < 2**63 for version in versions)


@pytest.mark.server
def test_versions_grow_though_the_stream_is_lost_or_everything(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    client.xadd(STREAM, {"x": ""}, "4000000000000-0")
    client.xdel(STREAM, "4000000000000-0")
    with Hand(log_at(redis_server.url)) as log, Hand(log_at(redis_server.url)) as other:
        first = log.append(put("k"))
        client.delete(STREAM)
        second = other.append(put("k"))
        third = other.append(put("k"))
        client.flushall()
        fourth = other.append(put("k"), put("l"))
        versions = [*first, *second, *third, *fourth]
        assert versions == sorted(set(versions))
        assert [r.version for r in other.read()] == fourth
        assert other("standing").newest == (fourth[1],)


@pytest.mark.server
def test_any_text_is_a_key_and_an_operation_without_a_time_gets_one(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    keys = ["\ud800", "\udfff", "\ud83d\udd11", "\U0001f511", "?", ""]
    before = time.time()
    with Hand(log_at(redis_server.url, parts=2)) as log:
        log.append(*(put(key, repr(key).encode(), at=0.0) for key in keys))
        assert log.pending(*keys) == [repr(key).encode() for key in keys]
        records = [record for part in (0, 1) for record in log.read(part=part)]
        assert sorted(record.key for record in records) == sorted(keys)
        assert all(before <= record.at <= time.time() for record in records)
        for part in (0, 1):
            there = log.read(part=part)
            letters = [Letter(record, record.key) for record in there]
            assert log.settle(log.own(part=part), [], letters, part)
        assert sorted(x.record.key for x in log("letters", 0, 9)) == sorted(keys)


# -- names and numbers of partitions ---------------------------------------------------------


@pytest.mark.server
def test_no_name_reaches_beyond_its_own_keys(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    names = ["q", "q:0", "{q}", "}:log", "a b", "*", "ü\ud800", "%71", "0", "#", "..\n"]
    for number, name in enumerate(names):
        with Hand(log_at(redis_server.url, name, "n:{s}")) as log:
            log.append(put("k", b"%d" % number))
            log.own()
    for number, name in enumerate(names):
        with Hand(log_at(redis_server.url, name, "n:{s}")) as log:
            assert log.pending("k") == [b"%d" % number]
            assert log("queues") == sorted(names)
    with Hand(log_at(redis_server.url, "q", "n")) as log:
        assert log("queues") == []
    for key in client.scan_iter():
        assert key.startswith(b"{n%3A%7Bs%7D:wb"), key
        assert key.count(b"{") == key.count(b"}") == 1
        assert client.ttl(key) == -1 or key.endswith(b":own")
    for bad in ("", "x" * 201, "é" * 34):
        with pytest.raises(ConfigurationError, match="queue"):
            log_at(redis_server.url, bad)


@pytest.mark.server
@BOTH
def test_the_partitions_that_were_recorded_first_are_everybodys(
    redis_server: RedisServer, client: redis.Redis, kind: str
) -> None:
    keys = [f"k{n}" for n in range(40)]
    with (
        Hand(log_at(redis_server.url, parts=4), kind) as log,
        Hand(log_at(redis_server.url, parts=7), kind) as other,
    ):
        versions = log.append(*(put(key) for key in keys))
        assert other.pending(*keys, "x") == [b"v"] * 40 + [None]
        assert other.log.parts == 4
        assert other("identity") == log("identity")
        assert len(other("identity")) == 16
        found = [other.read(part=part) for part in range(4)]
        assert sorted(r.key for part in found for r in part) == sorted(keys)
        assert all(found)
        assert len(set(versions)) == 40  # over all partitions, though ids repeat
        assert {version % 64 for version in versions} == {0, 1, 2, 3}
        with pytest.raises(ConfigurationError, match="partition 4"):
            other.read(part=4)
        client.flushall()
        with Hand(log_at(redis_server.url, parts=2), kind) as third:
            third.append(put("k"))
        with pytest.raises(ConfigurationError, match="2 partitions"):
            log.own()
    for parts in (0, 65, -1):
        with pytest.raises(ConfigurationError, match="partitions"):
            log_at(redis_server.url, parts=parts)


@pytest.mark.server
def test_dead_letters_of_all_partitions_are_paged_through(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    with Hand(log_at(redis_server.url, parts=3)) as log:
        log.append(*(put(f"k{n}", b"%d" % n) for n in range(30)))
        for part in range(3):
            letters = [Letter(record, f"no {record.key}") for record in log.read(part=part)]
            assert log.settle(log.own(part=part), [], letters, part)
        seen: list[Letter] = []
        while page := log("letters", seen[-1].record.version if seen else 0, 4):
            seen += page
        assert [x.record.version for x in seen] == sorted({x.record.version for x in seen})
        assert sorted(x.error for x in seen) == sorted(f"no k{n}" for n in range(30))
        versions = [x.record.version for x in seen]
        odd = [versions[0] ^ 32, 1, 0, -5, 2**80, versions[0] | 63]  # none that was ever given
        assert log("drop", [*odd, *versions[:10]]) == versions[:10]
        assert log("revive", [*odd, *versions], False) == versions[10:]
        assert log("standing")[0] == 20
        assert log("standing").dead == 0
        assert not client.exists(
            *(f"{{ns:wb:q:{p}}}:{n}" for p in range(3) for n in ("dead", "graves"))
        )


# -- settling ----------------------------------------------------------------------------------


@pytest.mark.server
@BOTH
def test_a_hot_key_is_settled_in_bounded_steps(
    redis_server: RedisServer, client: redis.Redis, kind: str
) -> None:
    with Hand(log_at(redis_server.url, bounds=Bounds(operations=12_000)), kind) as log:
        for start in range(0, 10_000, 2_500):
            log.append(*(put("hot", b"%d" % n) for n in range(start, start + 2_500)))
        log.append(put("cold"), put("hot", b"last"))
        records = log.read()
        assert len(records) == 10_002
        epoch = log.own()
        for done, steps in ((0, 1), (4_999, 1), (9_999, 2), (9_999, 1)):
            client.config_resetstat()
            assert log.settle(epoch, [records[done]])
            stats = client.info("commandstats")
            assert stats["cmdstat_evalsha"]["calls"] == steps
            # what waits is neither read nor walked through
            assert stats.get("cmdstat_zrangebylex", {}).get("calls", 0) < 25
            assert stats.get("cmdstat_xrange", {}).get("calls", 0) == 0
        assert log.pending("hot", "cold") == [b"last", b"v"]
        assert log.read() == records[10_000:]
        assert log("standing")[:2] == (2, len("coldvhotlast"))
        assert log.settle(epoch, records)
        assert log("standing")[:2] == (0, 0)
        assert client.exists(INDEX) == 0
        assert client.hget(STATE, "size") == b"0"


@pytest.mark.server
def test_many_keys_and_letters_are_settled_in_several_steps(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    with Hand(log_at(redis_server.url)) as log:
        log.append(*(put(f"k{n % 3_000}") for n in range(6_000)))
        newest = {record.key: record for record in log.read()}
        client.config_resetstat()
        assert log("look", list(newest), 0).pending == list(newest.values())
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == 6
        epoch = log.own()
        letters = [Letter(newest[f"k{n}"], "no") for n in range(1_200)]
        rest = [newest[f"k{n}"] for n in range(1_200, 3_000)]
        client.config_resetstat()
        assert log.settle(epoch, rest, letters)
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == 6
        assert log("standing")[:2] == (0, 0)
        assert log("standing").dead == 1_200
        assert not log.settle(epoch - 1, rest)


@pytest.mark.server
def test_a_letter_is_not_brought_back_by_a_step_that_is_done_twice(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    with Hand(log_at(redis_server.url)) as log:
        log.append(put("a"), put("b"))
        epoch = log.own()
        letters = [Letter(record, "no") for record in log.read()]
        assert log.settle(epoch, [], letters[::-1])
        versions = [letter.record.version for letter in letters]
        assert log("revive", versions[:1], False) == versions[:1]
        assert log("drop", versions[1:]) == versions[1:]
        assert log.settle(epoch, [], letters)
        assert log("letters", 0, 10) == []
        assert [record.key for record in log.read()] == ["a"]


@pytest.mark.server
def test_only_the_newest_letter_of_a_key_is_revived_and_keeps_its_age(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    with Hand(log_at(redis_server.url)) as log:
        log.append(put("a", at=1.0), put("a", at=2.0), put("aa", at=3.0))
        records = log.read()
        epoch = log.own()
        letters = [Letter(record, "no", parked=5.0) for record in records]
        assert log.settle(epoch, [], letters[::-1])
        old = letters[0]._replace(outdated=True)
        assert log("letters", 0, 9) == [old, *letters[1:]]
        log.append(put("later", at=10.0))
        versions = [record.version for record in records]
        assert log("revive", versions[:2], False) == versions[1:2]
        assert log("standing").oldest == 2.0
        assert log.settle(epoch, log.read()[1:])
        assert log("standing").oldest == 10.0
        assert not client.exists("{ns:wb:q:0}:ages")
        assert log("letters", 0, 9) == [old, letters[2]]
        assert log("revive", versions, True) == [versions[0], versions[2]]
        assert [(r.key, r.at) for r in log.read()] == [("later", 10.0), ("a", 1.0), ("aa", 3.0)]
        assert log("standing")[:3] == (3, len("latervavaav"), 1.0)
        assert not client.exists("{ns:wb:q:0}:graves", "{ns:wb:q:0}:dead")


@pytest.mark.server
@BOTH
def test_a_server_that_forgot_the_scripts_is_told_again(
    redis_server: RedisServer, client: redis.Redis, kind: str
) -> None:
    with Hand(log_at(redis_server.url, parts=3), kind) as log:
        steps = {
            "append": lambda: log.append(*(put(f"k{n}") for n in range(9))),
            "look": lambda: log.pending("k1"),
            "claim": lambda: log.own(),
            "renew": lambda: log("renew", 0, A, 1, 60.0),
            "settle": lambda: log.settle(1, log.read()),
            "standing": lambda: log("standing"),
            "letters": lambda: log("letters", 0, 5),
            "release": lambda: log("release", 0, A, 1),
        }
        for step in steps.values():
            client.script_flush()
            step()
        assert 0 < log("standing").depth < 9


@pytest.mark.server
def test_what_can_not_be_read_stops_the_owner_and_is_not_lost(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    with Hand(log_at(redis_server.url)) as log:
        (first,) = log.append(put("a"))
        client.xadd(STREAM, {"k": "b", "o": "2p1.0", "d": ""})
        log.append(put("c"))
        assert [record.key for record in log.read()] == ["a"]
        with pytest.raises(BackendRefused, match="UNREADABLE"):
            log.read(first)
        client.xadd(STREAM, {"x": "y"})
        assert client.xlen(STREAM) == 4


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
