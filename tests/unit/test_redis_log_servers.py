"""The write-back queue in Redis while clients and servers are killed, fail over and move."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import redis
from redis_faults import WORLDS
from redis_listening import Proxy, eventually, small_cluster
from redis_log_hand import A, B, Hand, log_at, put

from cachekit.errors import BackendError, BackendTimeout, BackendUnavailable
from cachekit.protocols import Bounds, Letter
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
NOT_CONFIRMED = r"by a replica|did not answer before"  # on a busy machine its reply is late

BOTH = pytest.mark.parametrize("kind", WORLDS)
ROOMY = Bounds(operations=10**6)
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@contextmanager
def child(work: Callable[[Callable[[str], None]], None]) -> Iterator[tuple[int, list[str]]]:
    """A forked process that tells what it did, one word at a time; killed at the end. The list
    has its words only after that."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(reader)
            work(lambda word: bool(os.write(writer, word.encode() + b"\n")))
        finally:
            os._exit(1)
    os.close(writer)
    words: list[str] = []
    try:
        yield pid, words
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with open(reader, "rb") as pipe:
            words += pipe.read().decode().rpartition("\n")[0].split("\n")


# -- killed clients ----------------------------------------------------------------------------


def test_what_a_killed_client_had_accepted_stays_in_its_order(redis_server: RedisServer) -> None:
    rng = random.Random(7)
    log = log_at(redis_server.url, namespace="killed", bounds=ROOMY)
    told: list[str] = []

    def write(tell: Callable[[str], None], number: int) -> None:
        with Hand(log) as hand:
            for n in range(1_000_000):
                [version] = hand.append(put("hot" if n % 2 else f"c{number}-{n}", b"%d" % n))
                tell(f"{number}-{n}-{version}")

    rounds = 25
    for number in range(rounds):
        with child(lambda tell, n=number: write(tell, n)) as (_, words):
            time.sleep(0.01 + rng.random() * 0.05)
        told += [word for word in words if word]
    assert len(told) > rounds
    with Hand(log) as hand:
        records = hand.read()
        kept = {record.version: record for record in records}
        accepted = [tuple(map(int, word.split("-"))) for word in told]
        for number, n, version in accepted:
            assert kept[version].key == ("hot" if n % 2 else f"c{number}-{n}")
            assert kept[version].data == b"%d" % n
        # told in the order of acceptance; at most one of each client was never told
        versions = [version for _, _, version in accepted]
        assert versions == sorted(versions)
        assert len(records) - len(accepted) <= rounds
        assert hand.settle(hand.own(), records)
        assert hand("standing").depth == 0


def test_what_a_killed_owner_took_is_read_again_and_nothing_else_is_lost(
    redis_server: RedisServer,
) -> None:
    rng = random.Random(11)
    log = log_at(redis_server.url, namespace="owners")
    keys = [f"k{n}" for n in range(20)]
    delivered: list[tuple[int, int]] = []  # epoch, version

    def own(tell: Callable[[str], None]) -> None:
        with Hand(log) as hand:
            epoch = None
            while epoch is None:
                epoch = hand("claim", 0, os.getpid().to_bytes(16, "big"), 0.05)
            while True:
                records = hand("read", 0, 0, 30)
                newest = {record.key: record for record in records}
                for record in newest.values():
                    tell(f"{epoch}-{record.version}")
                if records and not hand.settle(epoch, list(newest.values())):
                    return

    with Hand(log) as writer:
        last: dict[str, int] = {}
        for _ in range(15):
            with child(own) as (_, words):
                end = time.monotonic() + 0.03 + rng.random() * 0.08
                while time.monotonic() < end:
                    key = rng.choice(keys)
                    [last[key]] = writer.append(put(key))
            delivered += [tuple(map(int, w.split("-"))) for w in words if w]  # type: ignore[misc]
        waiting = {record.version for record in writer.read()}
        sent = {version for _, version in delivered}
        assert len(sent) > 50
        assert all(version in sent or version in waiting for version in last.values())
        epochs = [epoch for epoch, _ in delivered]
        assert epochs == sorted(epochs)
        assert len(set(epochs)) > 3


def start(server: RedisServer, log: Hand) -> None:
    """It answers at first that it is loading."""

    def answers() -> bool:
        try:
            log.pending("k")
        except BackendUnavailable:
            return False
        return True

    server.start()
    eventually(answers)


# -- killed servers ----------------------------------------------------------------------------


@BOTH
def test_a_server_that_keeps_every_write_loses_nothing_when_it_is_killed(kind: str) -> None:
    rng = random.Random(5)
    with (
        RedisServer(DURABLE) as server,
        Hand(log_at(server.url, level="host", bounds=ROOMY), kind) as log,
    ):
        accepted: list[tuple[str, int]] = []
        epochs = []
        for number in range(6):
            epochs.append(log.own())
            killer = threading.Timer(0.02 + rng.random() * 0.06, server.kill)
            killer.start()
            for n in range(1_000_000):
                key = "hot" if n % 3 else f"k{number}-{n}"
                try:
                    [version] = log.append(put(key), timeout=1.0)
                except BackendError:
                    break
                accepted.append((key, version))
            killer.join()
            with pytest.raises(BackendUnavailable):
                log.pending("k", "hot")
            start(server, log)
            assert not log("renew", 0, A, epochs[-1], 60.0)  # read everything again
            kept = [(record.key, record.version) for record in log.read()]
            told = set(accepted)
            assert [pair for pair in kept if pair in told] == accepted
            assert len(kept) - len(accepted) <= number + 1
        assert len(accepted) > 50
        assert epochs == list(range(1, 7))
        assert log.own() == 7
        assert log.log.went_back == 0
        assert log.settle(7, log.read())
        server.kill()
        start(server, log)
        assert log("standing")[:2] == (0, 0)
        assert log("standing").newest >= (accepted[-1][1],)


@BOTH
def test_a_log_in_a_loop_comes_back_with_the_server(kind: str) -> None:
    with RedisServer(DURABLE) as server, Hand(log_at(server.url), kind) as log:
        log.append(put("a"))
        server.pause()
        with pytest.raises(BackendTimeout):
            log.append(put("b"), timeout=0.2)
        server.resume()
        eventually(lambda: log.pending("a", "b") == [b"v", b"v"])  # kept, though not acknowledged
        server.stop()
        with pytest.raises(BackendUnavailable):
            log.own()
        start(server, log)
        assert log.pending("a") == [b"v"]
        log.append(put("c"))
        assert [record.key for record in log.read()] == ["a", "b", "c"]


@BOTH
def test_a_replica_that_had_not_heard_of_it_raises_the_alarm(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(RedisServer(["--repl-diskless-sync-delay", "0"]))
        between = stack.enter_context(Proxy(first.port))
        second = stack.enter_context(RedisServer(["--replicaof", "127.0.0.1", str(between.port)]))
        replica = stack.enter_context(redis.Redis(port=second.port))
        proxy = stack.enter_context(Proxy(first.port))
        log = stack.enter_context(Hand(log_at(proxy.url), kind))
        eventually(lambda: replica.info("replication")["master_link_status"] == "up")
        [kept] = log.append(put("kept"))
        epoch = log.own()
        eventually(lambda: replica.hget("{ns:wb:q:0}:state", "epoch") == b"%d" % epoch)
        between.mode = "hole"
        log.append(put("lost"))
        assert log.settle(epoch, log.read()[:1])
        [newest] = log.append(put("lost too"))
        first.kill()
        replica.replicaof("NO", "ONE")
        proxy._target = second.port
        proxy.reset()
        eventually(lambda: log.pending("kept") == [b"v"])  # its settling was lost as well
        assert not log("renew", 0, A, epoch, 60.0)
        assert log.log.went_back == 0
        assert log.own() == epoch + 1
        assert log.log.went_back == 1
        assert "has lost operations" in caplog.text
        assert [record.version for record in log.read()] == [kept]
        assert log.append(put("new"))[0] > newest


# -- clusters --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    with small_cluster() as nodes:
        yield nodes


@BOTH
def test_a_cluster_spreads_the_partitions(kind: str, cluster: list[RedisServer]) -> None:
    url = f"redis+cluster://127.0.0.1:{cluster[1].port},127.0.0.1:{cluster[0].port}"
    queue = f"q-{kind}"
    with Hand(log_at(url, queue, parts=12), kind) as log:
        keys = [f"k{n}" for n in range(120)]
        versions = log.append(*(put(key) for key in keys))
        assert None not in versions
        homes = 0
        for node in cluster:
            with redis.Redis(port=node.port) as client:
                homes += any(client.scan_iter(f"{{ns:wb:{queue}:*:log"))
        assert homes == 3
        assert log.pending(*keys, "x") == [b"v"] * 120 + [None]
        assert log("left", log("standing").newest) == log("standing").depth == 120
        for part in range(12):
            records = log.read(part=part)
            epoch = log.own(part=part)
            assert log("claim", part, B, 60.0) is None
            assert log("renew", part, A, epoch, 60.0)
            letters = [Letter(records[0], "no")]
            assert log.settle(epoch, records[1:], letters, part)
            log("release", part, A, epoch)
        letters = log("letters", 0, 100)
        assert len(letters) == log("standing").dead == 12
        parked = [letter.record.version for letter in letters]
        assert log("revive", parked[:6], False) == parked[:6]
        assert log("drop", parked) == parked[6:]
        assert log("standing").depth == 6
        assert queue in log("queues")
        with redis.Redis(port=cluster[0].port) as client:
            client.script_flush()
        assert len(log.append(*(put(key) for key in keys))) == 120


@BOTH
def test_operations_are_neither_lost_nor_doubled_while_their_slot_moves(
    kind: str, cluster: list[RedisServer]
) -> None:
    url = f"redis+cluster://127.0.0.1:{cluster[0].port}"
    queue = f"moving-{kind}"
    clients = [redis.Redis(port=node.port) for node in cluster]
    slot = clients[0].cluster("keyslot", f"{{ns:wb:{queue}:0}}")
    ids = [client.cluster("myid").decode() for client in clients]
    owns = [any(a <= slot <= b for a, b in _slots(c, i)) for c, i in zip(clients, ids, strict=True)]
    source = owns.index(True)
    target = (source + 1) % 3
    stop = threading.Event()
    accepted: list[tuple[str, int]] = []
    refused: list[BackendError] = []

    def write() -> None:
        with Hand(log_at(url, queue, bounds=ROOMY), kind) as log:
            for n in range(1_000_000):
                if stop.is_set():
                    return
                try:
                    [version] = log.append(put(f"k{n}"), timeout=1.0)
                except BackendError as error:
                    refused.append(error)
                    continue
                accepted.append((f"k{n}", version))

    with Hand(log_at(url, queue), kind) as log:
        log.append(put("first"))
        epoch = log.own()
        writer = threading.Thread(target=write)
        writer.start()
        try:
            eventually(lambda: len(accepted) > 20)
            for giver, taker in ((source, target), (target, source)):
                _move(clients, ids, slot, giver, taker)
                before = len(accepted)
                eventually(lambda n=before: len(accepted) > n + 20)
        finally:
            stop.set()
            writer.join()
        kept = [(record.key, record.version) for record in log.read()]
        assert kept == [kept[0], *accepted]
        assert all(isinstance(error, BackendUnavailable) for error in refused)
        assert log.settle(epoch, log.read())
        assert log("standing")[:2] == (0, 0)
    for client in clients:
        client.close()


def _slots(client: redis.Redis, id: str) -> list[tuple[int, int]]:
    line = next(x for x in client.execute_command("CLUSTER NODES").values() if x["node_id"] == id)
    return [(int(low), int(high)) for low, high in line["slots"]]


def _move(clients: list[redis.Redis], ids: list[str], slot: int, giver: int, taker: int) -> None:
    clients[taker].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[giver])
    clients[giver].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[taker])
    port = clients[taker].connection_pool.connection_kwargs["port"]
    while keys := clients[giver].execute_command("CLUSTER GETKEYSINSLOT", slot, 1):
        moved = ("MIGRATE", "127.0.0.1", port, "", 0, 1000, "KEYS", *keys)
        clients[giver].execute_command(*moved)
        time.sleep(0.01)
    for client in (clients[taker], clients[giver]):
        client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[taker])
