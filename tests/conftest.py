"""Fixtures every test may ask for: real servers, one per session.

A test that kills or freezes its server starts its own from ``cachekit.testing.servers``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TypeVar

import pytest

from cachekit.testing.servers import MemcachedServer, RedisServer, Server, ServerMissing

S = TypeVar("S", bound=Server)


def _running(server: S) -> Iterator[S]:
    try:
        server.start()
    except ServerMissing as missing:
        if os.environ.get("CACHEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    yield from _running(RedisServer())


@pytest.fixture(scope="session")
def memcached_server() -> Iterator[MemcachedServer]:
    yield from _running(MemcachedServer())
