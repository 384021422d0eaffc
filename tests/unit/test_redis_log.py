"""The write-back queue in Redis: places and versions, names and partitions, settling."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis_log_hand import BOTH, INDEX, STATE, STREAM, A, Hand, log_at, put

from cachekit.backends.redis.log_scripts import id_after, place_of, version_of, version_of_id
from cachekit.errors import BackendRefused, ConfigurationError
from cachekit.protocols import Bounds, Letter
from cachekit.testing.servers import RedisServer


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
