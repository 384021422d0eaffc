"""The DynamoDB backend under the contract, on private servers.

The whole suite on one that brings the item along with a conditional failure (ministack), a slice
on one that does not (dynalite), a smaller one on moto; all of it on all with CACHEKIT_NIGHTLY=1.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cachekit.backends.dynamodb import DynamoDBBackend
from cachekit.backends.dynamodb.items import KEY
from cachekit.backends.dynamodb.sightings import Sightings
from cachekit.protocols import Backend
from cachekit.testing import BackendContract, races
from cachekit.testing.batches import BatchesContract
from cachekit.testing.dynamodb import (
    DynaliteServer,
    DynamoDBServer,
    MinistackServer,
    MotoServer,
)
from cachekit.testing.nonces import NoncesContract
from cachekit.testing.servers import ServerMissing
from cachekit.testing.tags import TagBlocksContract

BEGAN = time.time()
NIGHTLY = os.environ.get("CACHEKIT_NIGHTLY") == "1"


class _On:
    """What all have: a server for the class, its table, and a client for it."""

    max_value = 400 * 1024 - 1024
    manual_time = True  # what has expired is judged by the client
    server_class: type[DynamoDBServer]
    client: Any

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls) -> Iterator[None]:
        server = cls.server_class()
        try:
            server.start()
        except ServerMissing as missing:
            if os.environ.get("CACHEKIT_REQUIRE_SERVERS") == "1":
                pytest.fail(str(missing))
            pytest.skip(str(missing))
        with server, pytest.MonkeyPatch.context() as patch:
            if not NIGHTLY:  # every step is a request over HTTP
                patch.setattr(races, "TIMED_STEPS", 60)
            cls.client = server.client()
            cls.client.create_table(
                TableName="cache",
                KeySchema=[{"AttributeName": KEY, "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": KEY, "AttributeType": "S"}],
                BillingMode="PAY_PER_REQUEST",
            )
            yield
            cls.client.close()

    def make_backend(self, namespace: str) -> Backend:
        # One client for all: to make one takes longer than most of the tests.
        backend = DynamoDBBackend(
            "dynamodb://cache", namespace=namespace, client=lambda config: self.client
        )
        clock = self.clock  # type: ignore[attr-defined]  # of the suite beside this class
        # The server deletes by its own clock what expired: so ours begins where that is.
        backend._sightings = Sightings(lambda: BEGAN + clock(), clock)
        return backend


@pytest.mark.server
class TestDynamoDB(_On, BackendContract):
    server_class = MinistackServer


class _Slice(BatchesContract, NoncesContract, TagBlocksContract):
    pass


@pytest.mark.server
class TestDynamoDBOnDynalite(_On, BackendContract if NIGHTLY else _Slice):  # type: ignore[misc]
    server_class = DynaliteServer


@pytest.mark.server
class TestDynamoDBOnMoto(_On, BackendContract if NIGHTLY else BatchesContract):  # type: ignore[misc]
    server_class = MotoServer
    max_value = 400_000
