"""The Redis bus with servers that ask for something: TLS, rights, Sentinel, a cluster, tracking."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from redis_faults import FaultServer, free_port, scripted
from redis_listening import (
    CHANNEL,
    Listening,
    Proxy,
    Recorder,
    descriptors,
    eventually,
    note,
    small_cluster,
)
from test_redis_topologies import certify

from cachekit.backends.redis import RedisBackend, listener
from cachekit.backends.redis.bus import RedisBus
from cachekit.backends.redis.options import parse_url
from cachekit.backends.redis.streams import RedisStream
from cachekit.core.notes import NoteKind
from cachekit.errors import ConfigurationError
from cachekit.runtime import Runtime, drive
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
SLACK = 0.5


def test_a_user_who_may_not_say_hello_listens_in_resp2() -> None:
    rules = "+@pubsub +@connection -hello"
    with RedisServer(["--user", *f"app on >s3cret &{{ns}}:bus {rules}".split()]) as server:
        url = server.url.replace("//", "//app:s3cret@")
        with redis.Redis(port=server.port) as client, Listening(url) as ears:
            eventually(lambda: len(ears.lags) > 2)
            client.publish(CHANNEL, note("k"))
            client.publish(CHANNEL, b"garbage")
            eventually(lambda: ears.notes and ears.others)
            assert (ears.names(), ears.states) == (["k"], ["joined"])


def test_a_socket_a_password_and_a_database_of_the_url_are_used() -> None:
    with RedisServer(["--requirepass", "s3cret"], unix_socket=True) as server:
        url = server.url.replace("//", "//:s3cret@") + "?db=3&client_name=listener"
        with (
            redis.Redis(unix_socket_path=str(server.socket_path), password="s3cret") as client,
            Listening(url) as ears,
        ):
            eventually(lambda: len(ears.lags) > 1)
            [listening] = client.client_list(_type="pubsub")
            assert (listening["name"], listening["resp"]) == ("listener", "3")
            client.publish(CHANNEL, note("k"))
            eventually(lambda: ears.notes)


def test_tls_is_spoken_and_certificates_are_checked() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        certify(folder, "127.0.0.1")
        port = free_port()
        options = ["--tls-port", str(port), "--tls-auth-clients", "no"]
        for option, file in (("cert", "cert"), ("key", "key"), ("ca-cert", "cert")):
            options += [f"--tls-{option}-file", str(folder / f"{file}.pem")]
        url = f"rediss://127.0.0.1:{port}/0"
        with RedisServer(options) as server, redis.Redis(port=server.port) as client:
            with Listening(f"{url}?ssl_ca_certs={folder}/cert.pem") as ears:
                eventually(lambda: len(ears.lags) > 1)
                for i in range(2000):
                    client.publish(CHANNEL, note(f"k{i}"))
                eventually(lambda: len(ears.notes) == 2000)
                assert ears.states == ["joined"]
            with Listening(url) as ears:
                time.sleep(0.5)
                assert ears.states == []
    finally:
        shutil.rmtree(folder)


# -- refusals ------------------------------------------------------------------------------


def test_a_user_without_the_channel_warns_once_and_joins_when_allowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "REFUSED", 0.1)
    user = ["app", "on", ">s3cret", "~*", "resetchannels", "+@all"]
    with RedisServer(["--user", *user]) as server, redis.Redis(port=server.port) as client:
        with (
            caplog.at_level(logging.WARNING, "cachekit"),
            Listening(server.url.replace("//", "//app:s3cret@")) as ears,
        ):
            eventually(lambda: client.info("stats")["total_connections_received"] > 5)
            assert ears.states == []
            client.execute_command("ACL", "SETUSER", "app", "&{ns}:bus")
            eventually(lambda: ears.is_joined, 3)
        [record] = caplog.records
        assert "NOPERM" in record.getMessage()
        assert "s3cret" not in record.getMessage()


def test_a_refused_login_is_not_tried_again_and_again() -> None:
    with (
        RedisServer(["--requirepass", "s3cret"]) as server,
        redis.Redis(port=server.port, password="s3cret") as client,
    ):
        before = client.info("stats")["total_connections_received"]
        with Listening(server.url) as ears:
            time.sleep(0.5)
            assert ears.states == []
            assert client.info("stats")["total_connections_received"] - before <= 2


@pytest.mark.parametrize("tracking", [False, True])
def test_a_least_privilege_user_of_one_namespace_is_enough(tracking: bool) -> None:
    rules = "~{ns:* ~{ns}* &{ns}:bus +@read +@write +@scripting +@pubsub +@connection -@dangerous"
    with RedisServer(["--user", *f"app on >s3cret {rules}".split()]) as server:
        url = server.url.replace("//", "//app:s3cret@")
        got: list[bytes] = []
        stream = RedisStream(parse_url(url), "ns", RedisBackend(url, namespace="ns")._route)
        world = Runtime().threads
        with redis.Redis(port=server.port) as client, Listening(url, tracking=tracking) as ears:
            stop = stream.follow(got.append, lambda: got.append(b"GAP"))
            eventually(lambda: len(ears.lags) > 1 and client.info("clients")["blocked_clients"])
            drive(stream.append(world, b"event", world.deadline(2)))
            client.set("{ns:1}:k", "v")
            client.publish(CHANNEL, note("k"))
            eventually(lambda: ears.names() == ["k"] and got == [b"event"])
            stop()
            drive(stream.close(world))


@pytest.mark.parametrize(
    ("scarce", "error"), [("threading.Thread.start", RuntimeError), ("socket.socketpair", OSError)]
)
def test_without_threads_or_descriptors_nothing_is_heard_and_nothing_raised(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    scarce: str,
    error: type[Exception],
) -> None:
    def fail(*_: object) -> None:
        raise error("no more")

    before = descriptors()
    monkeypatch.setattr(scarce, fail)
    with caplog.at_level(logging.WARNING, "cachekit"), Listening("redis://localhost") as ears:
        assert ears.states == []
    assert len(caplog.records) == 1
    assert descriptors() == before


# -- topologies ----------------------------------------------------------------------------


def test_a_failover_that_sentinel_tells_of_is_followed() -> None:
    with ExitStack() as stack:
        first = stack.enter_context(RedisServer(["--repl-diskless-sync-delay", "0"]))
        second = stack.enter_context(RedisServer(["--replicaof", "127.0.0.1", str(first.port)]))
        named = [first.port]  # what the sentinel says

        def answer(command: list[bytes]) -> bytes:
            port = b"%d" % named[0]
            return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(port), port)

        sentinel = stack.enter_context(FaultServer(scripted(answer)))
        clients = [stack.enter_context(redis.Redis(port=s.port)) for s in (first, second)]
        eventually(lambda: clients[1].info("replication")["master_link_status"] == "up", 20)
        url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/main"
        with Listening(url) as ears:
            eventually(lambda: len(ears.lags) > 1)
            clients[1].execute_command("REPLICAOF NO ONE")
            clients[0].execute_command(f"REPLICAOF 127.0.0.1 {second.port}")
            assert eventually(lambda: not ears.is_joined) < 1 + SLACK
            time.sleep(0.3)
            assert not ears.is_joined  # the demoted one is not listened to
            named[0] = second.port
            assert eventually(lambda: ears.is_joined) < 2
            clients[1].publish(CHANNEL, note("k"))
            eventually(lambda: ears.names() == ["k"])
            assert ears.others == 0


def test_one_node_of_a_cluster_hears_all_and_another_takes_its_place() -> None:
    with small_cluster() as nodes, ExitStack() as stack:
        clients = [stack.enter_context(redis.Redis(port=node.port)) for node in nodes]
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        with Listening(url) as ears:
            eventually(lambda: len(ears.lags) > 2)
            for i, client in enumerate(clients):
                client.publish(CHANNEL, note(f"from{i}"))
            eventually(lambda: sorted(ears.names()) == ["from0", "from1", "from2"])
            nodes[0].kill()
            eventually(lambda: not ears.is_joined, 1)
            eventually(lambda: ears.is_joined, 5)
            clients[2].publish(CHANNEL, note("later"))
            eventually(lambda: "later" in ears.names())
            # A node that sees too few of the others hears nothing of them.
            (nodes[1] if clients[2].client_list(_type="pubsub") else nodes[2]).kill()
            eventually(lambda: not ears.is_joined, 10)
        with pytest.raises(ConfigurationError):
            RedisBus(parse_url(url), "ns", tracking=True)


# -- tracking ------------------------------------------------------------------------------


def test_tracking_hears_foreign_writers_expiry_and_flushes() -> None:
    with (
        RedisServer() as server,
        redis.Redis(port=server.port) as client,
        Listening(server.url, tracking=True) as ears,
    ):
        eventually(lambda: len(ears.lags) > 1)
        client.set("{ns:3}:a:b}c", "v")
        client.delete("{ns:3}:a:b}c")
        client.set("{ns:#tag}2}", "v")
        client.set("{ns:63}!", "v")
        client.set("{ns:3}:soon", "v", px=20)
        for unheard in ("{ns:3}=record", "{ns}:partitions", "{ns2:3}:a", "a"):
            client.set(unheard, "v")
        eventually(lambda: ears.names().count("soon") >= 2)  # written, expired
        kinds = [(n.kind, n.name) for n in ears.notes if n.name != "soon"]
        assert kinds == [
            (NoteKind.KEY, "a:b}c"),
            (NoteKind.KEY, "a:b}c"),
            (NoteKind.TAG, "tag}2"),
            (NoteKind.SPACE, ""),
        ]
        assert {n.sender for n in ears.notes} == {bytes(8)}
        assert ears.others == 0
        client.set("{ns:nobody", "v")
        client.set("{ns:3}:bad name", "v")
        client.set("{ns:3}:" + "k" * 300, "v")
        eventually(lambda: ears.others == 3)
        assert ears.states == ["joined"]
        client.flushall()
        eventually(lambda: ears.states == ["joined", "lost", "joined"])


def test_tracking_survives_a_cut() -> None:
    with (
        RedisServer() as server,
        redis.Redis(port=server.port) as client,
        Proxy(server.port) as proxy,
        Listening(proxy.url, tracking=True) as ears,
    ):
        eventually(lambda: ears.is_joined)
        proxy.reset()
        eventually(lambda: ears.states == ["joined", "lost", "joined"])
        client.set("{ns:1}:k", "v")
        eventually(lambda: ears.names() == ["k"])


def test_tracking_has_told_of_every_write_that_a_lag_covers() -> None:
    with RedisServer() as server, redis.Redis(port=server.port) as client:
        proven: list[int] = []

        class Checking(Recorder):
            def lag(self, seconds: float) -> None:
                begun = time.monotonic() - seconds
                written = [i for i, at in enumerate(done) if at < begun]
                proven.append(len(written))
                assert len(self.notes) >= len(written)

        done: list[float] = []
        with Listening(server.url, Checking(), tracking=True, bound=0.2) as ears:
            eventually(lambda: ears.is_joined)
            end = time.monotonic() + 0.7
            while time.monotonic() < end:
                client.set("{ns:1}:k", "v")
                done.append(time.monotonic())
            assert ears.states == ["joined"]
            assert max(proven) > 100
