"""The Redis wires against peers that hang, drip, reset, refuse and lie."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
import time
from typing import Any

import pytest
import redis
from redis_faults import (
    BUDGET,
    SLACK,
    WORLDS,
    FaultServer,
    assert_all_raise,
    black_hole,
    dripping,
    every_verb_at_once,
    free_port,
    in_world,
    never_connects,
    resetting,
    scripted,
)

from cachekit.backends.redis import RedisBackend
from cachekit.backends.redis.wire import TLS
from cachekit.errors import BackendTimeout, BackendUnavailable
from cachekit.protocols import Item
from cachekit.runtime import Runtime, drive
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
BOTH = pytest.mark.parametrize("world", WORLDS)


# -- hangs ---------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("peer", [black_hole, dripping])
def test_a_peer_that_never_finishes_its_reply_costs_one_deadline(world: str, peer: Any) -> None:
    with FaultServer(peer) as server:
        assert_all_raise(every_verb_at_once(world, RedisBackend(server.url)), BackendTimeout)


@BOTH
@pytest.mark.parametrize("user", ["", ":pw@"])
def test_a_connect_or_login_that_never_completes_costs_one_deadline(world: str, user: str) -> None:
    with never_connects() as url:
        outcomes = every_verb_at_once(world, RedisBackend(url.replace("//", f"//{user}")))
    assert_all_raise(outcomes, BackendTimeout)
    with FaultServer(dripping) as server:
        outcomes = every_verb_at_once(world, RedisBackend(server.url.replace("//", f"//{user}")))
    assert_all_raise(outcomes, BackendTimeout)


@BOTH
def test_a_tls_handshake_that_never_completes_costs_one_deadline(world: str) -> None:
    with FaultServer(black_hole) as server:
        url = server.url.replace("redis:", "rediss:")
        assert_all_raise(every_verb_at_once(world, RedisBackend(url)), BackendTimeout)


@BOTH
def test_a_learned_store_is_as_bounded_when_the_server_freezes_later(world: str) -> None:
    hang = threading.Event()

    def answer(command: list[bytes]) -> bytes:
        return b"" if hang.is_set() else b"*1\r\n$-1\r\n"

    with FaultServer(scripted(answer)) as server:

        async def body(store: Any, w: Any) -> None:
            await store.get_many(["k"], w.deadline(2))
            hang.set()
            for _ in range(3):
                start = time.monotonic()
                with pytest.raises(BackendTimeout):
                    await store.get_many(["k"], w.deadline(BUDGET))
                assert time.monotonic() - start < BUDGET + SLACK

        in_world(world, RedisBackend(server.url), body)
        assert server.connections == 3  # a connection left in time-out is not used again


@pytest.mark.server
@BOTH
def test_a_stopped_server_costs_one_deadline_and_is_back_when_it_continues(world: str) -> None:
    with RedisServer() as server:

        async def body(store: Any, w: Any) -> None:
            await store.set_many([Item("k", b"v", None)], w.deadline(2))
            server.pause()
            start = time.monotonic()
            with pytest.raises(BackendTimeout):
                await store.get_many(["k"], w.deadline(BUDGET))
            assert time.monotonic() - start < BUDGET + SLACK
            server.resume()
            assert await store.get_many(["k"], w.deadline(2)) == [b"v"]

        in_world(world, RedisBackend(server.url), body)


def test_threads_that_wait_for_a_full_pool_end_with_their_deadline() -> None:
    outcomes: list[tuple[float, float]] = []
    together = threading.Barrier(48)
    both_taken = threading.Semaphore(0)

    def hole(sock: socket.socket, server: FaultServer) -> None:
        sock.recv(65536)
        both_taken.release()
        black_hole(sock, server)

    with FaultServer(hole) as server:
        runtime = Runtime()
        store = RedisBackend(server.url, max_connections=2).open(runtime.threads)

        def call(budget: float) -> None:
            if budget == BUDGET:
                together.wait()
            start = time.monotonic()
            with pytest.raises(BackendTimeout):
                drive(store.get_many(["k"], runtime.threads.deadline(budget)))
            outcomes.append((budget, time.monotonic() - start))

        threads = [threading.Thread(target=call, args=(4 * BUDGET,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert both_taken.acquire(timeout=2)
        assert both_taken.acquire(timeout=2)
        threads += [threading.Thread(target=call, args=(BUDGET,)) for _ in range(48)]
        for thread in threads[2:]:
            thread.start()
        for thread in threads[2:]:
            thread.join()
        assert server.connections == 2
        for thread in threads:
            thread.join()
        drive(store.close())
    assert len(outcomes) == 50
    assert all(took < budget + SLACK for budget, took in outcomes)


def test_the_loop_runs_on_while_two_hundred_tasks_wait_for_a_black_hole() -> None:
    async def main() -> tuple[float, list[Any]]:
        runtime = Runtime()
        world = runtime.asyncio()
        store = RedisBackend(server.url).open(world)
        lags = []

        async def tick() -> None:
            while True:
                start = time.monotonic()
                await asyncio.sleep(0.005)
                lags.append(time.monotonic() - start - 0.005)

        ticking = asyncio.create_task(tick())
        outcomes = await asyncio.gather(
            *(store.get_many(["k"], world.deadline(BUDGET)) for _ in range(200)),
            return_exceptions=True,
        )
        ticking.cancel()
        await store.close()
        return sorted(lags)[int(len(lags) * 0.9)], outcomes

    with FaultServer(black_hole) as server:
        lag, outcomes = asyncio.run(main())
    assert all(isinstance(outcome, BackendTimeout) for outcome in outcomes)
    assert lag < 0.05


# -- cuts ----------------------------------------------------------------------------------


@BOTH
def test_a_reset_and_a_refused_connection_are_unavailable(world: str) -> None:
    with FaultServer(resetting) as server:
        assert_all_raise(every_verb_at_once(world, RedisBackend(server.url)), BackendUnavailable)
    url = f"redis://127.0.0.1:{free_port()}/0"
    assert_all_raise(every_verb_at_once(world, RedisBackend(url)), BackendUnavailable)
    with FaultServer(resetting) as server:
        url = server.url.replace("redis:", "rediss:")
        assert_all_raise(every_verb_at_once(world, RedisBackend(url)), BackendUnavailable)


@BOTH
@pytest.mark.parametrize(
    "reply",
    [
        b"?nonsense\r\n",
        b"*1\r\n" * 200 + b":1\r\n",
        b"*1000\r\n",
        b":7\r\n",
        b"$3\r\nab",
        b"+OK\r\n+OK\r\n",
        b"*1\r\n$-1\r\n*1\r\n$1\r\nx\r\n",
        b"$99999999999999999999\r\n",
        b"",
    ],
)
def test_a_reply_that_makes_no_sense_is_an_error_and_ends_the_connection(
    world: str, reply: bytes
) -> None:
    sent = threading.Event()

    def answer(command: list[bytes]) -> bytes | None:
        if sent.is_set():
            return b"*1\r\n$4\r\ngood\r\n"
        sent.set()
        return reply or None

    with FaultServer(scripted(answer)) as server:

        async def body(store: Any, w: Any) -> None:
            try:
                assert await store.get_many(["k"], w.deadline(BUDGET)) == [None]  # not the stray
            except (BackendTimeout, BackendUnavailable):
                pass
            for _ in range(3):
                assert await store.get_many(["k"], w.deadline(2)) == [b"good"]

        in_world(world, RedisBackend(server.url), body)
        in_step = reply.startswith(b"*1\r\n*1")  # odd, but one whole reply of one value
        assert server.connections == (1 if in_step else 2)


@pytest.mark.server
@BOTH
def test_killed_connections_and_a_restarted_server_are_not_noticed_by_the_next_call(
    world: str,
) -> None:
    with RedisServer() as server:

        async def body(store: Any, w: Any) -> None:
            for _ in range(3):
                await store.set_many([Item("k", b"v", None)], w.deadline(2))
                with socket.create_connection(("127.0.0.1", server.port), 2) as control:
                    control.sendall(b"CLIENT KILL TYPE normal SKIPME yes\r\n")
                    assert control.recv(100) == b":1\r\n"
                assert await store.get_many(["k"], w.deadline(2)) == [b"v"]
            server.stop()
            with pytest.raises(BackendUnavailable):
                await store.get_many(["k"], w.deadline(2))
            server.start()
            assert await store.get_many(["k"], w.deadline(2)) == [None]

        in_world(world, RedisBackend(server.url), body)


# -- strays --------------------------------------------------------------------------------------


@BOTH
def test_the_loop_hears_of_no_error_that_nobody_waits_for(
    world: str, caplog: pytest.LogCaptureFixture
) -> None:
    for peer in (black_hole, resetting, dripping):
        with FaultServer(peer) as server:
            every_verb_at_once(world, RedisBackend(server.url.replace("//", "//:pw@")))
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


def test_a_resolver_that_hangs_costs_one_deadline_and_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookups = []
    release = threading.Event()
    real = socket.getaddrinfo

    def hanging(host: str, *args: Any, **kwargs: Any) -> Any:
        if kwargs["flags"]:
            return real(host, *args, **kwargs)
        lookups.append(host)
        release.wait(5)
        raise socket.gaierror(socket.EAI_NONAME, "no such host")

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    backend = RedisBackend("redis://no.such.host/0")
    try:
        assert_all_raise(every_verb_at_once("threads", backend), BackendTimeout)
        assert lookups == ["no.such.host"]
    finally:
        release.set()
    outcomes = every_verb_at_once("threads", backend, 2)
    assert_all_raise(outcomes, BackendUnavailable, 2)


# -- order ---------------------------------------------------------------------------------


@pytest.mark.server
def test_cancelled_reads_never_give_their_answer_to_the_next(redis_server: RedisServer) -> None:
    async def main() -> int:
        world = Runtime().asyncio()
        store = RedisBackend(redis_server.url, namespace="cancel").open(world)
        names = [f"k{i}" for i in range(8)]
        for name in names:
            await store.set_many([Item(name, name.encode() * 500, None)], world.deadline(2))
        checked = 0
        for turn in range(200):
            doomed = asyncio.create_task(store.get_many([names[turn % 8]], world.deadline(2)))
            for _ in range(turn % 7):  # at another point of its way each time
                await asyncio.sleep(0)
            doomed.cancel()
            after = [names[(turn + 1 + i) % 8] for i in range(3)]
            got = await asyncio.gather(*(store.get_many([n], world.deadline(2)) for n in after))
            assert got == [[n.encode() * 500] for n in after]
            checked += 1
            await asyncio.gather(doomed, return_exceptions=True)
        await store.close()
        return checked

    assert asyncio.run(main()) == 200


@BOTH
def test_a_late_answer_reaches_nobody(world: str) -> None:
    release = threading.Event()

    def answer(command: list[bytes]) -> bytes:
        if command[1].endswith(b"=slow"):
            release.wait(5)
            return b"*1\r\n$4\r\nslow\r\n"
        return b"*1\r\n$4\r\nfast\r\n"

    with FaultServer(scripted(answer)) as server:

        async def body(store: Any, w: Any) -> None:
            await store.get_many(["fast"], w.deadline(2))
            with pytest.raises(BackendTimeout):
                await store.get_many(["slow"], w.deadline(BUDGET))
            release.set()
            for _ in range(5):
                assert await store.get_many(["fast"], w.deadline(2)) == [b"fast"]

        in_world(world, RedisBackend(server.url), body)


@pytest.mark.server
def test_the_tasks_of_a_loop_share_one_connection(
    redis_server: RedisServer,
) -> None:
    async def main() -> None:
        world = Runtime().asyncio()
        url = f"{redis_server.url}?client_name=shared"
        store = RedisBackend(url, namespace="many").open(world)
        await store.set_many(
            [Item(f"k{i}", b"%d" % i, None) for i in range(100)], world.deadline(2)
        )
        got = await asyncio.gather(
            *(store.get_many([f"k{i}"], world.deadline(2)) for i in range(100))
        )
        assert got == [[b"%d" % i] for i in range(100)]
        with redis.Redis(port=redis_server.port) as control:
            mine = [c for c in control.client_list() if c["name"] == "shared"]
        await store.close()
        assert len(mine) == 1

    asyncio.run(main())


def test_nothing_is_left_open_after_close() -> None:
    with FaultServer(scripted(lambda command: b"*1\r\n$-1\r\n")) as server:
        for world in WORLDS:

            async def body(store: Any, w: Any) -> None:
                await store.get_many(["k"], w.deadline(2))
                await store.close()
                await store.close()

            in_world(world, RedisBackend(server.url), body)
        gc.collect()
        left = [s for s in server._open if s.recv(1) != b""]
        assert left == []
        assert server.connections == 2


def test_threads_that_connect_at_once_read_the_authorities_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[ssl.SSLContext] = []
    real = ssl.create_default_context

    def slowly(**options: Any) -> ssl.SSLContext:
        time.sleep(0.05)
        made.append(real(**options))
        return made[-1]

    monkeypatch.setattr(ssl, "create_default_context", slowly)
    tls, together = TLS(), threading.Barrier(8)
    found: list[ssl.SSLContext] = []

    def connect() -> None:
        together.wait()
        found.append(tls.context)

    threads = [threading.Thread(target=connect) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert found == made * 8
