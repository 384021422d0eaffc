"""The write-back queue in Redis: who waits is told when the server has lost what it accepted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import redis
from redis_listening import eventually
from redis_log_hand import BOTH, STATE, B, Hand, log_at, put

import cachekit
from cachekit.backends.redis.log_memory import Memory
from cachekit.errors import BackendRefused, BackendUnavailable
from cachekit.protocols import Letter
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
LOST = "has lost operations"


@contextmanager
def hands(server: RedisServer, kind: str, count: int = 2) -> Iterator[list[Hand]]:
    """Logs of one queue, as of so many processes."""
    with ExitStack() as stack:
        yield [stack.enter_context(Hand(log_at(server.url), kind)) for _ in range(count)]


def again(server: RedisServer, *logs: Hand) -> None:
    def answer() -> bool:
        try:
            for log in logs:
                log.pending("k")
        except BackendUnavailable:
            return False
        return True

    server.kill()
    server.start()
    eventually(answer)


def drain(log: Hand) -> None:
    epoch = log("claim", 0, B, 1.0)
    assert epoch
    assert log.settle(epoch, log.read())
    log("release", 0, B, epoch)


@BOTH
def test_who_waits_for_what_was_lost_is_told_until_newer_ones_are_waited_for(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer() as server, hands(server, kind, 1) as [log]:
        log.append(put("k"), put("l"))
        marks = log("standing").newest
        assert log("left", marks) == 2
        with caplog.at_level(logging.ERROR, "cachekit"):
            again(server, log)
            for _ in range(2):
                with pytest.raises(BackendRefused, match=LOST):
                    log("left", marks)
        assert LOST in caplog.text
        with pytest.raises(BackendRefused, match=LOST):
            log("left", log("standing").newest)
        [version] = log.append(put("k"))
        assert version > marks[0]
        marks = log("standing").newest
        assert log("left", marks) == 1
        drain(log)
        assert log("left", marks) == 0
        assert log.log.went_back == 1


@BOTH
def test_a_put_between_the_loss_and_the_flush_hides_nothing(kind: str) -> None:
    with RedisServer() as server, hands(server, kind, 1) as [log]:
        log.append(put("lost"))
        again(server, log)
        log.append(put("k"))
        marks = log("standing").newest
        assert log("left", marks) == 1
        drain(log)
        with pytest.raises(BackendRefused, match=LOST):
            log("left", marks)


@BOTH
def test_a_server_that_kept_everything_is_believed_whatever_others_did_since(kind: str) -> None:
    with RedisServer(DURABLE) as server, hands(server, kind) as [log, other]:
        other.append(put("first"))
        log.append(put("k"), put("l"))
        marks = log("standing").newest
        for n in range(3):
            again(server, log, other)
            other.append(put("k"), put(f"m{n}"))
            assert log("left", marks) == (0 if n else 3)
            drain(other)
            assert log("left", marks) == 0
        log.append(put("k"))
        drain(log)
        assert log("left", log("standing").newest) == 0
        assert (log.log.went_back, other.log.went_back) == (0, 0)


@BOTH
@pytest.mark.parametrize("known", [False, True])
def test_older_data_is_noticed_though_others_have_written_since(kind: str, known: bool) -> None:
    with (
        RedisServer() as server,
        redis.Redis(port=server.port) as client,
        hands(server, kind) as [log, other],
    ):
        log.append(put("kept"))
        if known:  # the other one has met this memory too, and writes before it hears of the next
            other.append(put("kept"))
        client.save()
        log.append(put("lost"))
        marks = log("standing").newest
        again(server, log, other)
        for n in range(3):
            other.append(put(f"new{n}"))
        assert log("left", marks) > 0  # what was kept
        drain(other)
        with pytest.raises(BackendRefused, match=LOST):
            log("left", marks)
        assert other("left", other("standing").newest) == 0
        assert (log.log.went_back, other.log.went_back) == (1, 0)


@BOTH
def test_a_flush_of_the_server_is_noticed_though_the_queue_is_there_again(kind: str) -> None:
    with (
        RedisServer() as server,
        redis.Redis(port=server.port) as client,
        hands(server, kind, 3) as [log, other, third],
    ):
        log.append(put("lost"))
        marks = log("standing").newest
        other("standing")
        client.flushall()
        third.append(put("k"))
        with pytest.raises(BackendRefused, match=LOST):
            other.append(put("k"))
            drain(third)
            other("left", marks)
        with pytest.raises(BackendRefused, match=LOST):
            log("left", marks)


@BOTH
def test_who_only_waits_notices_too(kind: str) -> None:
    with RedisServer() as server, hands(server, kind) as [log, other]:
        other.append(put("k"))
        marks = log("standing").newest
        again(server, log, other)
        with pytest.raises(BackendRefused, match=LOST):
            log("left", marks)
        assert log.log.went_back == 1


def test_a_loss_in_one_partition_is_told_until_any_has_something_newer() -> None:
    alarms: list[int] = []
    memory = Memory(alarms.append)
    old, new = b"0" * 17 + b"1", b"0" * 17 + b"2"
    for part in (0, 1):
        assert memory.witness(part, None, (old, b"of", b"run", b"m", b" m:" + old), b"of", b"run")
    marks = [(0, old), (1, old)]
    assert not memory.owes(marks)
    asked = memory.known(1)
    for _ in range(2):  # two threads asked at once
        told = (b"", b"of", b"run2", b"n", b" m:" + old + b" n:" + b"0" * 18)
        assert not memory.witness(1, asked, told, b"of", b"run2")
    assert alarms == [1]
    assert memory.owes(marks)
    assert memory.owes(marks)
    assert not memory.owes([(0, new), (1, old)])


def test_who_was_told_too_early_with_what_a_memory_began_finds_out_later() -> None:
    memory = Memory(lambda part: None)
    first, lost, later = (b"%018d" % n for n in (1, 5, 9))
    assert memory.witness(0, None, (first, b"of", b"1", b"m", b" m:" + first), b"of", b"1")
    memory.saw(0, b"m", lost)
    past = b" m:" + first + b" n:"
    told = (later, b"of", b"2", b"n", past + b"%018d" % 7)  # somebody's second append
    assert memory.witness(0, memory.known(0), told, b"of", b"2")
    assert not memory.owes([(0, lost)])
    told = (later, b"of", b"2", b"n", past + first)
    assert not memory.witness(0, memory.known(0), told, b"of", b"2")
    assert memory.owes([(0, lost)])


def test_sixteen_runs_of_the_server_are_remembered() -> None:
    with RedisServer(DURABLE) as server, hands(server, "threads") as [log, other]:
        log.append(put("k"))
        marks = log("standing").newest
        with redis.Redis(port=server.port) as client:
            for n in range(15):
                client.hset(STATE, "run", f"run{n}")  # as if it was another one
                assert other("claim", 0, B, 60.0)
            assert len(client.hget(STATE, "past").split()) == 16
            assert log("left", marks) == 1
            assert log.log.went_back == 0


def test_a_flush_says_that_it_is_not_complete() -> None:
    rows: dict[int, int] = {}
    away = [True]

    def store(batch: dict[int, int]) -> None:
        if away:
            raise ConnectionError("away")
        rows.update(batch)

    with RedisServer() as server, cachekit.Cache() as cache:
        strategy = cachekit.WriteBack(
            cache,
            key="i:{id}",
            name="i",
            load=rows.get,
            store_many=store,
            log=server.url,
            delay=0.05,
        )
        strategy.put_many({n: n for n in range(20)})
        server.kill()
        server.start()
        away.clear()
        told = strategy.flush(20)
        assert not told.complete
        assert told.applied == 0
        assert any(LOST in error for error in told.errors)
        strategy.put(1, 1)
        assert strategy.flush(20).complete
        assert rows == {1: 1}


# -- letters that a write past the log outdates ----------------------------------------------------


@BOTH
def test_letters_of_keys_that_were_written_past_the_log_are_outdated(
    redis_server: RedisServer, kind: str
) -> None:
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
        with Hand(log_at(redis_server.url, parts=3), kind) as log:
            log("outdate", ["none"])  # no queue yet
            assert not client.exists("{ns:wb:q}:about")
            keys = [f"k{n}" for n in range(600)]
            log.append(*(put(key) for key in keys), put("k"), put("k1\xff"))
            for part in range(3):
                letters = [Letter(record, "no") for record in log.read(part=part)]
                assert log.settle(log.own(part=part), [], letters, part)
            log("outdate", [])
            log("outdate", ["other", *keys])
            found = log("letters", 0, 1000)
            live = [letter for letter in found if not letter.outdated]
            assert sorted(letter.record.key for letter in live) == ["k", "k1\xff"]
            versions = [letter.record.version for letter in found]
            assert log("revive", versions, False) == [one.record.version for one in live]
            forced = log("revive", versions, True)
            assert len(forced) == 600
            assert log("standing").dead == 0
