"""DynamoDB as a ground: a private server without clocks of its own, processes with theirs.

Each process judges leases and expiry by its own wall clock, which may be ten minutes off, and by
the schedule's monotonic time: as in production, no server decides when anything ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from grounds import GROUNDS, NAMESPACE, Ground, Thing

from cachekit.backends.dynamodb import DynamoDBBackend
from cachekit.backends.dynamodb.items import KEY
from cachekit.testing.dynamodb import CREDENTIALS, DynaliteServer, MinistackServer

TABLE = "schedules"
WRITE_AT_ONCE = 25


class DynamoDB(Ground):
    """On ministack; on dynalite with CACHEKIT_SCHEDULES_DYNAMODB=dynalite. Time to live stays off:
    the server's clock is not the schedule's."""

    name = "dynamodb"
    timed = True

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        super().__init__(clock, wall)
        which = os.environ.get("CACHEKIT_SCHEDULES_DYNAMODB", "ministack")
        self._server = DynaliteServer() if which == "dynalite" else MinistackServer()
        self._server.start()
        self._client = self._server.client()
        self._client.create_table(
            TableName=TABLE,
            KeySchema=[{"AttributeName": KEY, "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": KEY, "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )

    def backend(self) -> Any:
        return DynamoDBBackend(f"dynamodb://{TABLE}", namespace=NAMESPACE, client=self._made)

    def _made(self, config: Any) -> Any:
        from botocore.session import get_session

        return get_session().create_client(
            "dynamodb",
            region_name="us-east-1",
            endpoint_url=self._server.url,
            config=config,
            **CREDENTIALS,
        )

    def adjust(self, store: Any) -> None:
        sightings, runtime = store._driver.sightings, store.world.runtime
        sightings.wall, sightings.clock = runtime.wall, runtime.clock

    def things(self) -> list[Thing]:
        items: dict[str, Any] = {}
        for page in self._client.get_paginator("scan").paginate(
            TableName=TABLE, ConsistentRead=True
        ):
            items.update((item[KEY]["S"], item) for item in page["Items"])
        return [
            Thing(name, "w" in items[name], lambda name=name: self._delete(name))
            for name in sorted(items)
        ]

    def _delete(self, name: str) -> None:
        self._client.delete_item(TableName=TABLE, Key={KEY: {"S": name}})

    def flush(self) -> None:
        names = [thing.name for thing in self.things()]
        for at in range(0, len(names), WRITE_AT_ONCE):
            keys = [{KEY: {"S": name}} for name in names[at : at + WRITE_AT_ONCE]]
            requests = [{"DeleteRequest": {"Key": key}} for key in keys]
            self._client.batch_write_item(RequestItems={TABLE: requests})

    def close(self) -> None:
        self._client.close()
        self._server.close()


GROUNDS[DynamoDB.name] = DynamoDB
