"""Tables of a test's own on a private DynamoDB, and sources over them."""

from __future__ import annotations

import itertools
from typing import Any

from cachekit.sources import DynamoDBTable
from cachekit.testing.dynamodb import CREDENTIALS, REGION

_numbers = itertools.count(1)


def client_at(url: str, service: str = "dynamodb", **config: Any) -> Any:
    """A boto3 client without retries, that the caller closes."""
    import boto3
    from botocore.config import Config

    options = {
        "connect_timeout": 2, "read_timeout": 10, "retries": {"total_max_attempts": 1}, **config
    }  # fmt: skip
    session = boto3.session.Session(region_name=REGION, **CREDENTIALS)
    return session.client(service, endpoint_url=url, config=Config(**options))


class Ground:
    """One server's tables; ``url`` is where the sources ask, ``client`` asks the server itself."""

    def __init__(self, server: Any, url: str = "") -> None:
        self.server = server
        self.client = server.client()
        self.asking = client_at(url or server.url)

    def table(self, **keys: str) -> str:
        """A new table's name; ``keys``: {attribute: type}, the partition's first; else id: N."""
        keys = keys or {"id": "N"}
        name = f"table-{next(_numbers)}"
        self.client.create_table(
            TableName=name,
            KeySchema=[
                {"AttributeName": each, "KeyType": role}
                for each, role in zip(keys, ("HASH", "RANGE"), strict=False)
            ],
            AttributeDefinitions=[
                {"AttributeName": each, "AttributeType": kind} for each, kind in keys.items()
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        ready = self.client.get_waiter("table_exists")
        ready.wait(TableName=name, WaiterConfig={"Delay": 0.02, "MaxAttempts": 500})
        return name

    def source(
        self, kind: type[DynamoDBTable] = DynamoDBTable, *, table: str = "", **options: Any
    ) -> DynamoDBTable:
        """Over ``table``, or a new one whose key is the number "id"."""
        return kind(table or self.table(), **{"client": self.asking, **options})

    def close(self) -> None:
        self.client.close()
        self.asking.close()
