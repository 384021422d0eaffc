"""Private servers that speak DynamoDB's protocol, and tables of a test's own on them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from dax_desk import Desk
from dax_stand import Make, Stand

from cachekit.testing.dynamodb import (
    DynaliteServer,
    DynamoDBServer,
    MinistackServer,
    MotoServer,
)
from cachekit.testing.servers import ServerMissing

KINDS = {"ministack": MinistackServer, "dynalite": DynaliteServer, "moto": MotoServer}


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
    """The one that knows all operations and needs nothing beside this interpreter's packages."""
    yield from _running("moto")


@pytest.fixture
def desk(server: DynamoDBServer) -> Desk:
    return Desk(server)


@pytest.fixture
def any_desk(any_server: DynamoDBServer) -> Desk:
    return Desk(any_server)


@pytest.fixture
def stand(desk: Desk) -> Iterator[Make]:
    """Makes stands over one table; ``settle=0`` unless asked: most tests are not about windows."""
    made: list[Stand] = []

    def make(**options: object) -> Stand:
        made.append(Stand(desk, **{"settle": 0, **options}))
        return made[-1]

    yield make
    for each in made:
        each.dax.uninstall()
