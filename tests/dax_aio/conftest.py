"""Private servers for asyncio clients. What is here runs where aioboto3 is, and moto is not: see
``run.py``; elsewhere every module is skipped."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cachekit.testing.dynamodb import DynaliteServer, DynamoDBServer, MinistackServer
from cachekit.testing.servers import ServerMissing

# Tables, keys and items are those of the tests of plain clients.
sys.path.append(str(Path(__file__).resolve().parent.parent / "dax"))

if TYPE_CHECKING:
    from dax_desk import Desk

KINDS = {"ministack": MinistackServer, "dynalite": DynaliteServer}


def _running(kind: str) -> Iterator[DynamoDBServer]:
    server = KINDS[kind]()
    try:
        server.start()
    except ServerMissing as missing:
        if os.environ.get("CACHEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(scope="session", params=list(KINDS))
def any_server(request: pytest.FixtureRequest) -> Iterator[DynamoDBServer]:
    """Each of the servers in turn."""
    yield from _running(request.param)


@pytest.fixture(scope="session")
def server() -> Iterator[DynamoDBServer]:
    """The one that knows transactions."""
    yield from _running("ministack")


@pytest.fixture
def desk(server: DynamoDBServer) -> Desk:
    from dax_desk import Desk

    return Desk(server)


@pytest.fixture
def any_desk(any_server: DynamoDBServer) -> Desk:
    from dax_desk import Desk

    return Desk(any_server)
