"""The Redis backend under the contract: on a real server, over its socket, and on the fake."""

from __future__ import annotations

from collections.abc import Iterator

import fakeredis
import pytest

from cachekit.backends.redis import RedisBackend
from cachekit.protocols import Backend
from cachekit.testing import BackendContract, RedisServer


@pytest.mark.server
class TestRedis(BackendContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer) -> None:
        self.url = redis_server.url

    def make_backend(self, namespace: str) -> Backend:
        return RedisBackend(self.url, namespace=namespace)


@pytest.mark.server
class TestRedisOverASocket(BackendContract):
    url: str

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls) -> Iterator[None]:
        with RedisServer(unix_socket=True) as server:
            cls.url = server.url
            yield

    def make_backend(self, namespace: str) -> Backend:
        return RedisBackend(self.url, namespace=namespace, partitions=3)


class TestFakeRedis(BackendContract):
    @pytest.fixture(autouse=True)
    def _server(self) -> None:
        self.fake = fakeredis.FakeServer()
        # Two first connections at once would each make a database of their own.
        fakeredis.FakeRedis(server=self.fake).ping()

    def make_backend(self, namespace: str) -> Backend:
        return RedisBackend(
            namespace=namespace,
            clients=(
                lambda: fakeredis.FakeRedis(server=self.fake),
                lambda: fakeredis.FakeAsyncRedis(server=self.fake),
            ),
        )
