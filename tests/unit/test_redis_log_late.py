"""The write-back queue in Redis: an append that failed without an answer, and arrives later."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import redis
from redis_listening import eventually
from redis_log_hand import BOTH, Hand, log_at, put

from cachekit.backends.redis.log_memory import MOST_FAILED, Writer
from cachekit.errors import BackendTimeout
from cachekit.testing.servers import RedisServer

FENCES = "{ns:wb:q:0}:fences"


class Holding:
    """A network that brings what it holds late: also what its sender has given up."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._ways: list[threading.Event] = []
        self.late = 0  # pieces that were brought late
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        """What is sent on the connections there are now waits for ``release``."""
        for way in self._ways:
            way.clear()

    def release(self) -> None:
        for way in self._ways:
            way.set()

    def close(self) -> None:
        self.release()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                way = threading.Event()
                way.set()
                self._ways.append(way)
                for pair in ((near, far, way), (far, near, None)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, way: threading.Event | None
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                late = way is not None and not way.is_set()
                if way is not None:
                    way.wait()
                sink.sendall(data)
                self.late += late
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
        yield client


def appends(client: redis.Redis) -> int:
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


@pytest.mark.server
@BOTH
@pytest.mark.parametrize("parts", [1, 3])
def test_what_arrives_after_a_newer_put_of_its_writer_is_refused(
    redis_server: RedisServer, client: redis.Redis, kind: str, parts: int
) -> None:
    network = Holding(redis_server.port)
    with Hand(log_at(network.url, parts=parts), kind) as log:
        log.append(*(put(f"k{n}", b"old") for n in range(9)))
        network.hold()
        with pytest.raises(BackendTimeout):
            log.append(*(put(f"k{n}", b"late") for n in range(9)), timeout=0.3)
        newer = log.append(*(put(f"k{n}", b"new") for n in range(9)))
        assert None not in newer
        for part in range(parts):
            assert log.settle(log.own(part=part), log.read(part=part), (), part)
        before = appends(client)
        network.release()
        eventually(lambda: network.late and appends(client) >= before + parts)
        assert log.pending(*(f"k{n}" for n in range(9))) == [None] * 9
        assert log("standing").depth == 0
        log.append(put("k0", b"newest"))
        assert log.pending("k0") == [b"newest"]
    network.close()


@pytest.mark.server
def test_a_living_attempt_that_a_dead_one_overtook_is_made_again(
    redis_server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hand(log_at(redis_server.url)) as log:
        log.append(put("k", b"1"))
        verbs, accept, tried = log.log, log.log._accept, []

        async def overtaken(world: Any, steps: Sequence[Any], until: float) -> Any:
            tried.append(steps)
            if len(tried) == 1:  # another thread's attempt fails, and its next one comes first
                verbs._writer.failed(verbs._writer.attempt()[1])
                log.append(put("k", b"other"))
            return await accept(world, steps, until)

        monkeypatch.setattr(verbs, "_accept", overtaken)
        [version] = log.append(put("k", b"living"))
        assert len(tried) == 3
        records = log.read()
        assert [record.data for record in records] == [b"1", b"other", b"living"]
        assert records[-1].version == version


@pytest.mark.server
def test_the_server_remembers_so_many_writers(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    with Hand(log_at(redis_server.url)) as log:
        log.log._writer = Writer()  # as in a new process
        log.append(put("k"))
        assert not client.exists(FENCES)  # nothing failed
        client.zadd(FENCES, {f"writer{n}": n for n in range(1500)})
        log.log._writer.failed(log.log._writer.attempt()[1])
        log.append(put("k"))
        assert client.zcard(FENCES) == 1000
        assert client.zscore(FENCES, log.log._writer.name) == log.log._writer.attempt()[2]
        assert client.zscore(FENCES, "writer1499") == 1499


def test_what_has_failed_stays_dead_whoever_fails_beside_it() -> None:
    writer = Writer()
    start = threading.Barrier(4)

    def fail(_: int) -> bool:
        start.wait()
        right = True
        for _ in range(5 * MOST_FAILED):
            _, number, dead = writer.attempt()
            right &= number > dead or number <= writer.attempt()[2]
            writer.failed(number)
            right &= writer.attempt()[2] >= number
        return right

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(fail, range(4)))
    _, number, dead = writer.attempt()
    assert number > dead > 0
    assert len(writer._failed) <= MOST_FAILED + 1


def test_a_forked_child_is_another_writer() -> None:
    writer = Writer()
    name = writer.attempt()[0]
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if writer.attempt()[0] not in (name, b"") else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert writer.attempt()[0] == name
