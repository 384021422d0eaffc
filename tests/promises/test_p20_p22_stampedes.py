"""P20 and P22: a cold key is loaded once, however many ask; cancelling one harms no other."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cachekit
from cachekit.testing.servers import RedisServer

LOADER = 0.2


@pytest.fixture(params=["embedded", "redis"])
def cache(request: pytest.FixtureRequest) -> Iterator[cachekit.Cache]:
    url = None
    if request.param == "redis":
        url = request.getfixturevalue("redis_server").url
    with cachekit.Cache(url, namespace=f"p20-{time.monotonic_ns()}", timeout=2.0) as made:
        yield made


@pytest.mark.parametrize("callers", [64, 200])
def test_p20_threads_on_a_cold_key_load_once(cache: cachekit.Cache, callers: int) -> None:
    loads: list[int] = []
    answers: list[tuple[int, float]] = []
    gate = threading.Barrier(callers)

    @cache.cached(name="cold", ttl=60)
    def cold(n: int) -> int:
        loads.append(n)
        time.sleep(LOADER)
        return n + 1

    def call() -> None:
        gate.wait(20)
        started = time.perf_counter()
        value = cold(1)
        answers.append((value, time.perf_counter() - started))

    threads = [threading.Thread(target=call, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert loads == [1]
    assert [value for value, _ in answers] == [2] * callers
    assert max(took for _, took in answers) < LOADER + 0.5


@pytest.mark.parametrize("callers", [500, 1000])
def test_p20_tasks_on_a_cold_key_load_once(cache: cachekit.Cache, callers: int) -> None:
    loads: list[int] = []

    @cache.cached(name="cold", ttl=60)
    async def cold(n: int) -> int:
        loads.append(n)
        await asyncio.sleep(LOADER)
        return n + 1

    async def run() -> float:
        started = time.perf_counter()
        assert await asyncio.gather(*(cold(1) for _ in range(callers))) == [2] * callers
        took = time.perf_counter() - started
        await cache.aio.close()
        return took

    assert asyncio.run(run()) < LOADER + 0.5
    assert loads == [1]


_PROCESS = """
import sys, threading, time, pathlib
import cachekit

url, folder, start = sys.argv[1], pathlib.Path(sys.argv[2]), float(sys.argv[3])
cache = cachekit.Cache(url, namespace="fleet", timeout=2.0)

@cache.cached(name="cold", ttl=60)
def cold(n: int) -> int:
    (folder / f"load-{time.monotonic_ns()}-{threading.get_ident()}").touch()
    time.sleep(0.5)
    return n + 1

slowest = []
def call():
    time.sleep(max(0.0, start - time.time()))
    began = time.perf_counter()
    assert cold(1) == 2
    slowest.append(time.perf_counter() - began)

threads = [threading.Thread(target=call) for _ in range(20)]
for t in threads: t.start()
for t in threads: t.join()
print(max(slowest), len(slowest))
cache.close()
"""


def test_p20_six_processes_on_a_cold_key_load_once_and_do_not_poll_hot(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    with RedisServer() as server:
        start = time.time() + 3.0
        fleet = [
            subprocess.Popen(
                [sys.executable, "-c", _PROCESS, server.url, str(tmp_path), str(start)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(6)
        ]
        outputs = [process.communicate(timeout=60)[0].split() for process in fleet]
        assert [process.returncode for process in fleet] == [0] * 6
        assert len(list(tmp_path.glob("load-*"))) == 1
        assert sum(int(count) for _, count in outputs) == 120
        assert max(float(slow) for slow, _ in outputs) < 0.5 + 0.5
        with Connection(server) as send:
            stats = send(b"INFO commandstats\r\n").decode()
        calls = sum(
            int(line.split("calls=")[1].split(",")[0])
            for line in stats.splitlines()
            if line.startswith("cmdstat_")
        )
        assert calls < 1000


class Connection:
    """A bare connection to a server, for a question the client under test must not ask."""

    def __init__(self, server: RedisServer) -> None:
        self.connection = socket.create_connection(("127.0.0.1", server.port), 5)

    def __enter__(self):  # type: ignore[no-untyped-def]
        def send(command: bytes) -> bytes:
            self.connection.sendall(command)
            head = b""
            while b"\r\n" not in head:
                head += self.connection.recv(65536)
            size, _, body = head[1:].partition(b"\r\n")
            while len(body) < int(size):
                body += self.connection.recv(65536)
            return body

        return send

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def test_p22_a_cancelled_waiter_does_not_cancel_the_load(cache: cachekit.Cache) -> None:
    loads: list[int] = []
    entered = asyncio.Event()
    go = asyncio.Event()

    @cache.cached(name="slow", ttl=60)
    async def slow(n: int) -> int:
        loads.append(n)
        entered.set()
        await go.wait()
        return n + 1

    async def run() -> None:
        leader = asyncio.create_task(slow(1))
        await entered.wait()
        waiters = [asyncio.create_task(slow(1)) for _ in range(5)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        await asyncio.sleep(0)
        go.set()
        assert await leader == 2
        assert await asyncio.gather(*waiters[1:]) == [2] * 4
        assert waiters[0].cancelled()
        await cache.aio.close()

    asyncio.run(run())
    assert loads == [1]


def test_p22_a_cancelled_leader_hands_over(cache: cachekit.Cache) -> None:
    loads: list[int] = []
    begun, go = asyncio.Semaphore(0), asyncio.Event()

    @cache.cached(name="slow", ttl=60)
    async def slow(n: int) -> int:
        loads.append(n)
        begun.release()
        await go.wait()
        return n + 1

    async def run() -> float:
        leader = asyncio.create_task(slow(1))
        await begun.acquire()
        waiters = [asyncio.create_task(slow(1)) for _ in range(5)]
        await asyncio.sleep(0.01)
        leader.cancel()
        started = time.perf_counter()
        await begun.acquire()
        go.set()
        assert await asyncio.gather(*waiters) == [2] * 5
        took = time.perf_counter() - started
        assert leader.cancelled()
        await cache.aio.close()
        return took

    # The lease is given back with the cancellation: nobody waits for it to end.
    assert asyncio.run(run()) < 1.0
    assert len(loads) == 2
