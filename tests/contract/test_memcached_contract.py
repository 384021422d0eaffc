"""The Memcached backend under the contract: on one real server, on two, and over a socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cachekit.backends.memcached import MemcachedBackend
from cachekit.protocols import Backend
from cachekit.testing import BackendContract, MemcachedServer


@pytest.mark.server
class TestMemcached(BackendContract):
    ttl_granularity = 1.0

    @pytest.fixture(autouse=True)
    def _server(self, memcached_server: MemcachedServer) -> None:
        self.url = memcached_server.url

    def make_backend(self, namespace: str) -> Backend:
        return MemcachedBackend(self.url, namespace=namespace)


@pytest.mark.server
class TestMemcachedOnTwoNodes(TestMemcached):
    other: MemcachedServer

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _second(cls) -> Iterator[None]:
        with MemcachedServer() as server:
            cls.other = server
            yield

    def make_backend(self, namespace: str) -> Backend:
        return MemcachedBackend(f"{self.url},127.0.0.1:{self.other.port}", namespace=namespace)
