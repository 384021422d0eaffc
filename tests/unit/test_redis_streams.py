"""The Redis event stream: everything in order, and a gap told wherever there is one."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from redis_faults import FaultServer, never_connects, scripted
from redis_listening import Proxy, descriptors, eventually, small_cluster, threads_called

from cachekit.backends.redis import RedisBackend, streams
from cachekit.backends.redis.options import parse_url
from cachekit.backends.redis.streams import RedisStream
from cachekit.errors import BackendTimeout, BackendUnavailable, ConfigurationError
from cachekit.runtime import Runtime, drive
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
KEY = "{ns}:events"


def stream_of(url: str, **options: Any) -> RedisStream:
    backend = RedisBackend(url, namespace="ns")
    return RedisStream(parse_url(url), "ns", backend._route, **options)


class Appender:
    """Appends from the thread world, over connections of its own."""

    def __init__(self, url: str, **options: Any) -> None:
        self.world = Runtime().threads
        self.stream = stream_of(url, **options)

    def __call__(self, *payloads: str, timeout: float = 2.0) -> None:
        for payload in payloads:
            deadline = self.world.deadline(timeout)
            drive(self.stream.append(self.world, payload.encode(), deadline))

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        drive(self.stream.close(self.world))
        drive(self.stream.close(self.world))


class Following:
    """What one follower got, gaps as ``GAP``, once it has looked up where to begin."""

    def __init__(self, url: str, client: redis.Redis | None = None) -> None:
        self.got: list[str] = []
        self.others = threads_called("cachekit-stream")
        self.stop = stream_of(url).follow(self.receive, lambda: self.got.append("GAP"))
        if client is not None:
            eventually(lambda: is_waiting(client))

    def receive(self, payload: bytes) -> None:
        self.got.append(payload.decode())

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        eventually(lambda: threads_called("cachekit-stream") <= self.others, 5)


def is_waiting(client: redis.Redis) -> bool:
    return bool(client.info("clients")["blocked_clients"])


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
        yield client


@pytest.fixture
def append(redis_server: RedisServer, client: redis.Redis) -> Iterator[Appender]:
    with Appender(redis_server.url) as appender:
        yield appender


# -- what arrives --------------------------------------------------------------------------


def test_events_arrive_in_order_from_where_the_follower_came_in(
    redis_server: RedisServer, client: redis.Redis, append: Appender
) -> None:
    append("before")
    with Following(redis_server.url, client) as first:
        names = [str(i) for i in range(300)]
        append(*names)
        eventually(lambda: len(first.got) == 300)
        with Following(redis_server.url) as second:
            eventually(lambda: client.info("clients")["blocked_clients"] == 2)
            append("last")
            eventually(lambda: second.got and len(first.got) == 301)
            assert first.got == [*names, "last"]
            assert second.got == ["last"]


def test_events_arrive_from_an_event_loop_and_from_another_process(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    with Following(redis_server.url, client) as follower:

        async def main() -> None:
            world = Runtime().asyncio()
            stream = stream_of(redis_server.url)
            for i in range(3):
                await stream.append(world, b"%d" % i, world.deadline(2))
            await stream.close(world)

        asyncio.run(main())
        code = (
            "import sys; from test_redis_streams import Appender\n"
            "with Appender(sys.argv[1]) as append: append('theirs')"
        )
        path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
        subprocess.run(
            [sys.executable, "-c", code, redis_server.url],
            check=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        eventually(lambda: follower.got == ["0", "1", "2", "theirs"])


def test_any_bytes_up_to_the_limit_arrive_and_more_are_refused_before_the_network(
    redis_server: RedisServer, client: redis.Redis, append: Appender
) -> None:
    got: list[bytes] = []
    stop = stream_of(redis_server.url).follow(got.append, lambda: got.append(b"GAP"))
    eventually(lambda: is_waiting(client))
    assert streams.BATCH * (streams.MOST_PAYLOAD + 200) < streams.LONGEST_REPLY
    payloads = [b"", b"\0\r\n\xff", os.urandom(65536), *[b"x" * 65536] * 70]
    world = append.world
    for payload in payloads:
        drive(append.stream.append(world, payload, world.deadline(2)))
    eventually(lambda: len(got) == len(payloads))
    assert got == payloads
    with pytest.raises(ValueError, match="65536"):
        drive(append.stream.append(world, b"x" * 65537, world.deadline(2)))
    stop()


def test_the_stream_is_kept_short(redis_server: RedisServer, client: redis.Redis) -> None:
    with Appender(redis_server.url, kept=100) as append:
        append(*["x" * 100] * 500)
        assert 100 <= client.xlen(KEY) < 300
    with pytest.raises(ConfigurationError):
        stream_of(redis_server.url, kept=0)


def test_an_append_that_can_not_be_is_an_error_within_its_deadline() -> None:
    with never_connects() as url, Appender(url) as append:
        begin = time.monotonic()
        with pytest.raises(BackendTimeout):
            append("x", timeout=0.2)
        assert time.monotonic() - begin < 0.4
    with RedisServer() as server, Appender(server.url) as append:
        append("x")
        server.kill()
        with pytest.raises(BackendUnavailable):
            append("y")
        server.start()
        append("z")


# -- cuts and gaps -------------------------------------------------------------------------


def test_a_cut_line_goes_on_where_it_was(
    redis_server: RedisServer, client: redis.Redis, append: Appender
) -> None:
    with Proxy(redis_server.port) as proxy, Following(proxy.url, client) as follower:
        names = [str(i) for i in range(60)]
        for i, name in enumerate(names):
            append(name)
            if i % 10 == 5:
                proxy.reset()
                time.sleep(0.02)
        eventually(lambda: len(follower.got) == 60)
        proxy.mode = "hole"
        append("in the dark")
        time.sleep(1)
        proxy.mode = "pass"
        assert eventually(lambda: len(follower.got) == 61) < 3
        assert follower.got == [*names, "in the dark"]


def test_what_was_trimmed_meanwhile_is_a_gap_and_the_rest_arrives(
    redis_server: RedisServer, client: redis.Redis, append: Appender
) -> None:
    with Proxy(redis_server.port) as proxy, Following(proxy.url, client) as follower:
        append("a")
        eventually(lambda: follower.got)
        proxy.mode = "hole"
        proxy.reset()
        append("b", "c", "d")
        client.xtrim(KEY, maxlen=2, approximate=False)
        proxy.mode = "pass"
        eventually(lambda: len(follower.got) == 4)
        assert follower.got == ["a", "GAP", "c", "d"]
        client.xtrim(KEY, maxlen=1, approximate=False)  # seen already: no gap
        append("e")
        eventually(lambda: len(follower.got) == 5)
        assert follower.got[4:] == ["e"]


def test_a_follower_that_is_too_slow_is_told_what_it_missed(
    redis_server: RedisServer, client: redis.Redis, append: Appender
) -> None:
    held = threading.Event()

    class Slow(Following):
        def receive(self, payload: bytes) -> None:
            super().receive(payload)
            assert held.wait(10)

    with Slow(redis_server.url, client) as follower:
        append("a")
        eventually(lambda: follower.got)
        append("b", "c")
        client.xtrim(KEY, maxlen=1, approximate=False)
        held.set()
        eventually(lambda: len(follower.got) == 3)
        assert follower.got == ["a", "GAP", "c"]


def test_a_flushed_stream_is_a_gap_though_nothing_follows(
    redis_server: RedisServer, client: redis.Redis, append: Appender
) -> None:
    with Following(redis_server.url, client) as follower:
        append("a")
        eventually(lambda: follower.got)
        client.flushall()
        assert eventually(lambda: len(follower.got) == 2) < 2
        append("b")
        eventually(lambda: len(follower.got) == 3)
        expected = ["a", "GAP", "b"]
        for name in "cdefgh":  # anew at once: the ids may be the same
            client.flushall()
            append(name)
            expected += ["GAP", name]
            eventually(lambda: follower.got[-1] == name, 2)  # noqa: B023
        assert follower.got == expected


def test_a_server_that_returns_with_older_memory_is_a_gap() -> None:
    with (
        RedisServer() as server,
        redis.Redis(port=server.port) as client,
        Appender(server.url) as append,
        Following(server.url, client) as follower,
    ):
        append("a", "b")
        client.save()
        append("c")
        eventually(lambda: len(follower.got) == 3)
        server.kill()
        server.start()
        append("d")
        eventually(lambda: "d" in follower.got)
        append("e")
        eventually(lambda: "e" in follower.got)
        assert follower.got == ["a", "b", "c", "GAP", "d", "e"]


def test_ids_that_went_backwards_are_a_gap(
    redis_server: RedisServer, client: redis.Redis, append: Appender
) -> None:
    client.xadd(KEY, {"p": "from the future", "l": "0-0", "e": "e"}, id="99999999999999-0")
    with Following(redis_server.url, client) as follower:
        client.delete(KEY)
        append("a", "b")
        eventually(lambda: follower.got == ["GAP", "a", "b"], 2)


def test_a_server_that_was_away_at_the_start_is_one_gap() -> None:
    with RedisServer() as server:
        server.stop()
        with Following(server.url) as follower:
            time.sleep(0.3)
            assert follower.got == []
            server.start()
            with redis.Redis(port=server.port) as client, Appender(server.url) as append:
                eventually(lambda: is_waiting(client))
                append("a")
                eventually(lambda: len(follower.got) == 2)
                assert follower.got == ["GAP", "a"]
                server.kill()
                server.start()
                eventually(lambda: is_waiting(client))
                append("b")
                eventually(lambda: follower.got[-1] == "b")
                assert follower.got == ["GAP", "a", "GAP", "b"]


# -- others --------------------------------------------------------------------------------


def test_entries_of_others_are_passed_over(
    redis_server: RedisServer, client: redis.Redis, append: Appender
) -> None:
    with Following(redis_server.url, client) as follower:
        client.xadd(KEY, {"x": "y"})
        append("a")
        client.xadd(KEY, {"p": "x" * 70_000})
        append("b")
        eventually(lambda: "b" in follower.got)
        follower.got.remove("GAP")  # no entry of ours to go on from
        client.xadd(KEY, {"p": b"x" * (12 << 20)})  # longer than an answer may be
        append("c")
        eventually(lambda: "GAP" in follower.got)
        eventually(lambda: is_waiting(client))
        append("d")
        eventually(lambda: "d" in follower.got)
        assert [event for event in follower.got if event != "c"] == ["a", "b", "GAP", "d"]


def test_a_key_of_another_type_warns_once(
    redis_server: RedisServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client.set(KEY, "not a stream")
    with caplog.at_level(logging.WARNING, "cachekit"), Following(redis_server.url) as follower:
        eventually(lambda: caplog.records)
        time.sleep(0.3)
        assert len(caplog.records) == 1
        assert follower.got == []


def test_what_receive_raises_is_its_own_affair(
    redis_server: RedisServer,
    client: redis.Redis,
    append: Appender,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Raising(Following):
        def receive(self, payload: bytes) -> None:
            super().receive(payload)
            raise RuntimeError("s3cret")

    with (
        caplog.at_level(logging.WARNING, "cachekit"),
        Raising(redis_server.url, client) as follower,
    ):
        append("a", "b", "c")
        eventually(lambda: follower.got == ["a", "b", "c"])
        [record] = caplog.records
        assert "s3cret" not in record.getMessage()


# -- life ----------------------------------------------------------------------------------


def test_follow_returns_at_once_and_stop_ends_the_thread_wherever_it_is(
    redis_server: RedisServer, client: redis.Redis, append: Appender
) -> None:
    before = descriptors()
    with never_connects() as url:
        begin = time.monotonic()
        follower = Following(url)
        assert time.monotonic() - begin < 0.2
        time.sleep(0.1)
        begin = time.monotonic()
        with follower:
            pass
        assert time.monotonic() - begin < 0.5
    follower = Following(redis_server.url, client)
    stops: list[Any] = []
    got: list[bytes] = []
    batch = threading.Event()

    def receive(payload: bytes) -> None:
        got.append(payload)
        if payload == b"b":
            stops[0]()
        assert batch.wait(10)

    stops.append(stream_of(redis_server.url).follow(receive, lambda: None))
    eventually(lambda: client.info("clients")["blocked_clients"] == 2)
    assert all(t.daemon for t in threading.enumerate() if t.name == "cachekit-stream")
    append("a")
    eventually(lambda: got)
    append("b", "c")  # read at once
    batch.set()
    eventually(lambda: threads_called("cachekit-stream") == 1, 2)
    assert got == [b"a", b"b"]
    begin = time.monotonic()
    with follower:
        pass
    assert time.monotonic() - begin < 0.5
    drive(append.stream.close(append.world))
    assert descriptors() <= before + 1


def test_a_forked_child_follows_on_its_own(
    redis_server: RedisServer, client: redis.Redis, append: Appender
) -> None:
    with Following(redis_server.url, client) as follower:
        append("parent")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                assert not threads_called("cachekit-stream")
                mine = Following(redis_server.url)
                eventually(lambda: client.info("clients")["blocked_clients"] == 2)
                append("child")
                eventually(lambda: mine.got == ["child"])
                os.write(writing, b"done")
            finally:
                os._exit(0)
        os.close(writing)
        assert os.read(reading, 10) == b"done"
        os.close(reading)
        os.waitpid(child, 0)
        append("parent again")
        eventually(lambda: follower.got == ["parent", "child", "parent again"])


# -- topologies ----------------------------------------------------------------------------


def test_a_cluster_is_followed_at_the_node_that_has_the_stream() -> None:
    with small_cluster() as nodes, ExitStack() as stack:
        clients = [stack.enter_context(redis.Redis(port=node.port)) for node in nodes]
        urls = [f"redis+cluster://127.0.0.1:{node.port}" for node in nodes]
        followers = [stack.enter_context(Following(url)) for url in urls]
        waiting = [0, 0, 3]  # the slot of {ns} is the owner's only
        eventually(lambda: sorted(c.info("clients")["blocked_clients"] for c in clients) == waiting)
        append = stack.enter_context(Appender(urls[0]))
        append("a", "b")
        for follower in followers:
            eventually(lambda follower=follower: follower.got == ["a", "b"])


def test_the_master_that_sentinel_names_is_followed() -> None:
    with ExitStack() as stack:
        first = stack.enter_context(RedisServer(["--repl-diskless-sync-delay", "0"]))
        second = stack.enter_context(RedisServer(["--replicaof", "127.0.0.1", str(first.port)]))
        named = [first.port]

        def answer(command: list[bytes]) -> bytes:
            port = b"%d" % named[0]
            return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(port), port)

        sentinel = stack.enter_context(FaultServer(scripted(answer)))
        clients = [stack.enter_context(redis.Redis(port=s.port)) for s in (first, second)]
        eventually(lambda: clients[1].info("replication")["master_link_status"] == "up", 20)
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        held = threading.Event()

        class Slow(Following):
            def receive(self, payload: bytes) -> None:
                super().receive(payload)
                assert held.wait(10)

        follower = stack.enter_context(Slow(url, clients[0]))
        append = stack.enter_context(Appender(url))
        append("a")
        eventually(lambda: follower.got and clients[1].exists(KEY))
        clients[1].execute_command("REPLICAOF NO ONE")
        clients[0].execute_command(f"REPLICAOF 127.0.0.1 {second.port}")
        named[0] = second.port
        held.set()  # it was not waiting at the demoted one, which so did not send it away
        eventually(lambda: is_waiting(clients[1]), 5)
        clients[1].xadd(KEY, {"p": "b", "l": clients[1].xrevrange(KEY, count=1)[0][0]})
        eventually(lambda: follower.got == ["a", "b"])
