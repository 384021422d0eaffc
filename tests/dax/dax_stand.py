"""A client behind a cache, with its network and a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dax_desk import Desk, Wire, item, key

import cachekit.dax
from cachekit.dax import Dax


class Stand:
    """A client behind a cache, its network, and the table."""

    def __init__(self, desk: Desk, *, retries: int = 1, **options: Any) -> None:
        self.desk = desk
        self.table = desk.name
        self.client = desk.client(retries)
        self.wire = Wire(self.client)
        self.dax: Dax = cachekit.dax.install(self.client, **options)

    def get(self, pk: str, sk: int = 1, **params: Any) -> Any:
        return self.client.get_item(TableName=self.table, Key=key(pk, sk), **params)

    def put(self, pk: str, sk: int = 1, **attributes: Any) -> Any:
        return self.client.put_item(TableName=self.table, Item=item(pk, sk, **attributes))

    def query(self, pk: str, **params: Any) -> Any:
        return self.client.query(
            TableName=self.table,
            KeyConditionExpression="pk = :p",
            ExpressionAttributeValues={":p": {"S": pk}},
            **params,
        )

    def by_index(self, g: str) -> Any:
        return self.client.query(
            TableName=self.table,
            IndexName="by_g",
            KeyConditionExpression="g = :g",
            ExpressionAttributeValues={":g": {"S": g}},
        )

    def scan(self, **params: Any) -> Any:
        return self.client.scan(TableName=self.table, **params)

    def update(self, pk: str, value: int, sk: int = 1, **params: Any) -> Any:
        return self.client.update_item(
            TableName=self.table,
            Key=key(pk, sk),
            UpdateExpression="SET v = :v",
            ExpressionAttributeValues={":v": {"N": str(value)}},
            **params,
        )

    def requests(self) -> list[str]:
        """What left since the last call, but for the one question about the table."""
        sent = [name for name in self.wire.sent if name != "DescribeTable"]
        self.wire.clear()
        return sent

    def asks(self, call: Callable[[], Any]) -> tuple[Any, list[str]]:
        self.wire.clear()
        return call(), self.requests()


def served(on: Stand, pk: str, sk: int = 1) -> Any:
    """The item that the cache has, ``"missing"``; None if it has to ask."""
    answer, sent = on.asks(lambda: on.get(pk, sk))
    return None if sent else answer.get("Item", "missing")


Make = Callable[..., Stand]
