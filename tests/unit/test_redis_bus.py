"""The Redis bus: what reaches the ears, and what they are told when something may not have."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
import redis
from redis_faults import FaultServer, never_connects, resetting, scripted
from redis_listening import (
    CHANNEL,
    SENDER,
    Listening,
    Proxy,
    Recorder,
    descriptors,
    eventually,
    note,
    threads_called,
)

from cachekit.backends.redis.bus import RedisBus
from cachekit.backends.redis.options import parse_url
from cachekit.core.notes import MAX_NOTE, Note, NoteKind
from cachekit.errors import ConfigurationError
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
SLACK = 0.5


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=redis_server.port) as client:
        yield client


# -- what arrives --------------------------------------------------------------------------


def test_notes_arrive_in_order_with_who_sent_them_and_the_lag_is_measured(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    with Listening(redis_server.url) as ears:
        eventually(lambda: ears.is_joined)
        pipeline = client.pipeline(transaction=False)
        names = [f"k{i}" for i in range(5000)]
        for name in names:
            pipeline.publish(CHANNEL, note(name))
        pipeline.publish(CHANNEL, note("t", NoteKind.TAG))
        pipeline.publish(CHANNEL, note("", NoteKind.SPACE))
        pipeline.publish(b"{other}:bus", note("not ours"))
        assert set(pipeline.execute()) == {1, 0}
        eventually(lambda: len(ears.notes) == 5002)
        assert ears.names()[:5000] == names
        assert ears.notes[0] == Note(NoteKind.KEY, "k0", SENDER, 1.5)
        assert [n.kind for n in ears.notes[5000:]] == [NoteKind.TAG, NoteKind.SPACE]
        assert max(ears.batches) <= 65536 // (len(note("k0")) + len(CHANNEL))
        eventually(lambda: len(ears.lags) >= 3)
        assert all(0 <= lag < 1 for lag in ears.lags)
        assert (ears.states, ears.others) == (["joined"], 0)


def test_nothing_is_joined_before_it_is_confirmed_and_no_lag_is_told_before_its_notes() -> None:
    asked, confirm = threading.Event(), threading.Event()
    head = b"$%d\r\n%s\r\n" % (len(CHANNEL), CHANNEL)

    class Ordered(Recorder):
        def lag(self, seconds: float) -> None:
            super().lag(seconds)
            self.states.append(f"lag after {len(self.notes)}")

    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"HELLO":
            return b"%1\r\n$5\r\nproto\r\n:3\r\n"
        if command[0] == b"SUBSCRIBE":
            asked.set()
            assert confirm.wait(5)
            return b">3\r\n$9\r\nsubscribe\r\n" + head + b":1\r\n"
        data = note("k")
        push = b">3\r\n$7\r\nmessage\r\n" + head + b"$%d\r\n%s\r\n" % (len(data), data)
        return push + b"+PONG\r\n"

    with FaultServer(scripted(answer)) as server, Listening(server.url, Ordered()) as ears:
        assert asked.wait(5)
        time.sleep(0.2)
        assert ears.states == []
        confirm.set()
        eventually(lambda: len(ears.states) > 2)
        assert ears.states[:3] == ["joined", "lag after 1", "lag after 2"]


def test_what_is_no_note_of_ours_is_counted_and_nothing_else(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    good = note("k")
    forged = [
        b"",
        b"k",
        b"\0" * 21,
        good[:-2],  # no name
        b"ck\x02" + good[3:],  # another version
        good[:19] + b"x" + good[20:],  # another kind
        note("", NoteKind.SPACE) + b"name",
        good + b"\n",
        good + b"\xff",
        good + b"x" * MAX_NOTE,
        b'{"json": true}',
        b"*3\r\n$7\r\nmessage\r\n",
        os.urandom(64),
        good + b"x" * 900_000,
    ]
    with Listening(redis_server.url) as ears:
        eventually(lambda: ears.is_joined)
        for message in forged:
            client.publish(CHANNEL, message)
        client.publish(CHANNEL, good)
        eventually(lambda: ears.notes)
        assert (ears.names(), ears.others) == (["k"], len(forged))
        assert ears.states == ["joined"]


def test_huge_messages_cost_the_connection_but_no_memory_and_no_hot_loop(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    huge = b"x" * (8 << 20)
    with Listening(redis_server.url) as ears:
        eventually(lambda: ears.is_joined)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            client.publish(CHANNEL, huge)
            time.sleep(0.01)
        assert 1 <= ears.states.count("lost") <= 20
        assert ears.others == ears.states.count("lost")
        eventually(lambda: ears.is_joined, 3)
        client.publish(CHANNEL, note("after"))
        eventually(lambda: "after" in ears.names())
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 40_000  # KiB; redis-py's own copies of what we send included


# -- cuts ----------------------------------------------------------------------------------


def test_a_black_hole_is_noticed_within_the_bound_and_left_within_two_seconds(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    with Proxy(redis_server.port) as proxy, Listening(proxy.url) as ears:
        eventually(lambda: len(ears.lags) > 1)
        proxy.mode = "hole"
        cut = time.monotonic()
        client.publish(CHANNEL, note("unheard"))
        eventually(lambda: ears.states == ["joined", "lost"])
        assert ears.times[-1] - cut < 1.0 + SLACK
        time.sleep(max(0.0, 3 - (time.monotonic() - cut)))
        assert ears.states == ["joined", "lost"]
        assert 2 <= proxy.accepted <= 6  # tries, but no hot loop
        proxy.mode = "pass"
        healed = time.monotonic()
        eventually(lambda: ears.is_joined)
        assert ears.times[-1] - healed < 2
        client.publish(CHANNEL, note("heard"))
        eventually(lambda: ears.names() == ["heard"])


def test_a_reset_is_a_loss_at_once_and_repaired_at_once(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy, Listening(proxy.url) as ears:
        eventually(lambda: ears.is_joined)
        for _ in range(3):
            count = len(ears.states)
            proxy.reset()
            eventually(lambda count=count: len(ears.states) == count + 2, 2)
        assert ears.states == ["joined", *["lost", "joined"] * 3]


def test_a_slow_line_stays_joined_and_says_how_slow_it_is(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy:
        proxy.mode, proxy.delay = "slow", 0.1
        with Listening(proxy.url) as ears:
            eventually(lambda: len(ears.lags) > 1)
            assert min(ears.lags) >= 0.2
            assert ears.states == ["joined"]


def test_a_proof_is_as_old_as_its_question(redis_server: RedisServer) -> None:
    """Answers that take 0.2 s can not keep a bound of 0.3 s: the next comes 0.2 s later."""
    with Proxy(redis_server.port) as proxy, Listening(proxy.url, bound=0.3) as ears:
        eventually(lambda: len(ears.lags) > 1)
        proxy.mode, proxy.delay = "slow", 0.1
        time.sleep(1)
        assert "lost" in ears.states


def test_a_server_that_hangs_up_is_tried_a_few_times_a_second() -> None:
    with FaultServer(resetting) as server, Listening(server.url) as ears:
        time.sleep(1)
        assert 2 <= server.connections <= 15
        assert ears.states == []


def test_a_killed_server_is_joined_again_when_it_is_back() -> None:
    with RedisServer() as server, Listening(server.url) as ears:
        eventually(lambda: ears.is_joined)
        server.kill()
        eventually(lambda: ears.states == ["joined", "lost"], 1)
        time.sleep(0.3)
        server.start()
        assert eventually(lambda: ears.is_joined) < 2
        server.pause()
        assert eventually(lambda: not ears.is_joined) < 1 + SLACK
        server.resume()
        assert eventually(lambda: ears.is_joined) < 2


def test_nobody_there_at_first_is_no_loss(redis_server: RedisServer) -> None:
    with RedisServer() as server:
        server.stop()
        with Listening(server.url) as ears:
            time.sleep(0.5)
            assert ears.states == []
            server.start()
            eventually(lambda: ears.is_joined, 3)
            assert ears.states == ["joined"]


def test_ears_that_take_too_long_are_lost_and_joined_again(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    class Slow(Recorder):
        def heard(self, notes: Any) -> None:
            super().heard(notes)
            time.sleep(0.5)

    with Listening(redis_server.url, Slow(), bound=0.3) as ears:
        eventually(lambda: ears.is_joined)
        client.publish(CHANNEL, note("k"))
        eventually(lambda: ears.states == ["joined", "lost", "joined"])


def test_ears_that_raise_are_lost_not_deaf(redis_server: RedisServer, client: redis.Redis) -> None:
    class Raising(Recorder):
        def heard(self, notes: Any) -> None:
            super().heard(notes)
            if len(self.notes) == 1:
                raise RuntimeError

        def lost(self) -> None:
            super().lost()
            raise RuntimeError

    with Listening(redis_server.url, Raising()) as ears:
        eventually(lambda: ears.is_joined)
        client.publish(CHANNEL, note("a"))
        eventually(lambda: ears.states == ["joined", "lost", "joined"])
        client.publish(CHANNEL, note("b"))
        eventually(lambda: ears.names() == ["a", "b"])


LISTENER = """
import sys, time
from redis_listening import Recorder
from cachekit.backends.redis.bus import RedisBus
from cachekit.backends.redis.options import parse_url

class Ears(Recorder):
    def _state(self, state):
        print(state, flush=True)

RedisBus(parse_url(sys.argv[1]), "ns").listen(Ears())
time.sleep(60)
"""


def test_a_frozen_listener_holds_up_no_publisher_and_knows_it_when_it_wakes() -> None:
    """300 000 notes of 230 bytes: far more than the server keeps for one listener."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with (
        RedisServer() as server,
        redis.Redis(port=server.port) as client,
        subprocess.Popen(
            [sys.executable, "-c", LISTENER, server.url],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        ) as child,
    ):
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == b"joined\n"
            child.send_signal(signal.SIGSTOP)
            commands = hiredis.pack_command((b"PUBLISH", CHANNEL, note("k" * 200))) * 1000
            slowest, used = 0.0, 0
            with socket.create_connection(("127.0.0.1", server.port)) as publisher:
                for i in range(300):
                    begin = time.monotonic()
                    publisher.sendall(commands)
                    left = 4000  # bytes of ":0\r\n" or ":1\r\n"
                    while left:
                        left -= len(publisher.recv(left))
                    slowest = max(slowest, time.monotonic() - begin)
                    if i % 10 == 0:
                        used = max(used, client.info("memory")["used_memory"])
            assert slowest < 1  # for a thousand of them
            assert used < 80 << 20
            assert client.client_list(_type="pubsub") == []  # the server gave it up
            child.send_signal(signal.SIGCONT)
            woken = time.monotonic()
            assert child.stdout.readline() == b"lost\n"
            assert child.stdout.readline() == b"joined\n"
            assert time.monotonic() - woken < 2
        finally:
            child.kill()


# -- life ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"bound": 0.0}, {"bound": -1.0}, {"bound": float("nan")}, {"bound": 0.01}]
)
def test_a_bound_that_can_not_be_kept_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        RedisBus(parse_url("redis://localhost"), "ns", **options)


def test_construction_and_listening_do_no_input_or_output() -> None:
    with never_connects() as url:
        begin = time.monotonic()
        listening = Listening(url)
        assert time.monotonic() - begin < 0.2
        time.sleep(0.2)  # now it hangs in connect()
        begin = time.monotonic()
        listening.stop()
        eventually(lambda: not threads_called("cachekit-bus"))
        assert time.monotonic() - begin < 0.5
        assert listening.ears.states == []


def test_stop_ends_the_thread_at_once_from_anywhere_and_tells_nothing_more(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    class Ending(Recorder):
        def heard(self, notes: Any) -> None:
            super().heard(notes)
            listening.stop()
            listening.stop()

    listening = Listening(redis_server.url, Ending())
    ears = listening.ears
    eventually(lambda: ears.is_joined)
    [thread] = [t for t in threading.enumerate() if t.name == "cachekit-bus"]
    assert thread.daemon
    client.publish(CHANNEL, note("k"))
    thread.join(0.5)
    assert not thread.is_alive()
    listening.stop()
    assert ears.states == ["joined"]
    before = descriptors()
    for _ in range(30):
        with Listening(redis_server.url) as ears:
            eventually(lambda ears=ears: ears.is_joined)
    assert descriptors() <= before


def test_several_listeners_of_one_bus_hear_the_same(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    with Listening(redis_server.url) as first:
        second = Recorder()
        bus = RedisBus(parse_url(redis_server.url), "ns")
        stops = [bus.listen(second), bus.listen(Recorder())]
        eventually(lambda: first.is_joined and second.is_joined)
        stops[1]()
        client.publish(CHANNEL, note("k"))
        eventually(lambda: first.names() == second.names() == ["k"])
        stops[0]()


def test_a_forked_child_leaves_the_parents_line_alone_and_can_listen_anew(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    with Listening(redis_server.url) as ears:
        eventually(lambda: ears.is_joined)
        sockets = len(client.client_list(_type="pubsub"))
        reading, writing = os.pipe()
        before = len(inherited())
        child = os.fork()
        if child == 0:
            try:
                assert not threads_called("cachekit-bus")
                links = [os.readlink(f"/proc/self/fd/{fd}") for fd in inherited()]
                mine = Recorder()
                bus = RedisBus(parse_url(redis_server.url), "ns")
                bus.listen(mine)
                eventually(lambda: mine.is_joined)
                os.write(writing, b"%d;" % len(links))
                eventually(lambda: mine.names() == ["k"])
                os.write(writing, b"heard")
            finally:
                os._exit(0)
        os.close(writing)
        told = os.read(reading, 100)
        assert len(client.client_list(_type="pubsub")) == sockets + 1
        client.publish(CHANNEL, note("k"))
        assert os.read(reading, 100) == b"heard"
        os.close(reading)
        os.waitpid(child, 0)
        eventually(lambda: ears.names() == ["k"])
        count = len(ears.lags)
        eventually(lambda: len(ears.lags) > count + 1)
        assert ears.states == ["joined"]
        # Without the line and the wake-up pair; other tests may have left what goes too.
        assert told.endswith(b";")
        assert int(told[:-1]) <= before - 3


def inherited() -> list[str]:
    """This process's sockets."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                found.append(fd)
        except OSError:
            continue
    return found
