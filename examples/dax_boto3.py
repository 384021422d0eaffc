"""An ordinary boto3 program, run twice: as it is, and behind one line of cachekit.dax.

    python examples/dax_boto3.py [ENDPOINT]

Without an endpoint it starts a private server of its own (pip install 'moto[server]').
"""

from __future__ import annotations

import sys
import time
from decimal import Decimal
from typing import Any

import boto3
from boto3.dynamodb.conditions import Key

import cachekit.dax
from cachekit.testing.dynamodb import CREDENTIALS, REGION, MotoServer

TABLE = "orders"


def make_table(dynamodb: Any) -> None:
    dynamodb.create_table(
        TableName=TABLE,
        KeySchema=[
            {"AttributeName": "customer", "KeyType": "HASH"},
            {"AttributeName": "number", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[
            {"AttributeName": "customer", "AttributeType": "S"},
            {"AttributeName": "number", "AttributeType": "N"},
        ],
        BillingMode="PAY_PER_REQUEST",
    ).wait_until_exists()


def application(dynamodb: Any) -> list[Any]:
    """Knows nothing of a cache. Gives what it read."""
    orders = dynamodb.Table(TABLE)
    with orders.batch_writer() as batch:
        for number in range(10):
            batch.put_item(
                Item={"customer": "ada", "number": number, "total": Decimal("9.50") * number}
            )
    read: list[Any] = []
    for _ in range(20):
        read.append(orders.get_item(Key={"customer": "ada", "number": 3})["Item"])
        read.append(orders.query(KeyConditionExpression=Key("customer").eq("ada"))["Count"])
        read.append("Item" in orders.get_item(Key={"customer": "nobody", "number": 0}))
    orders.update_item(
        Key={"customer": "ada", "number": 3},
        UpdateExpression="SET paid = :yes",
        ExpressionAttributeValues={":yes": True},
    )
    read.append(orders.get_item(Key={"customer": "ada", "number": 3})["Item"]["paid"])
    orders.delete_item(Key={"customer": "ada", "number": 4})
    read.append(orders.query(KeyConditionExpression=Key("customer").eq("ada"))["Count"])
    return read


def timed(dynamodb: Any) -> tuple[list[Any], float]:
    start = time.perf_counter()
    read = application(dynamodb)
    return read, time.perf_counter() - start


def run(endpoint: str) -> None:
    session = boto3.Session(region_name=REGION, **CREDENTIALS)
    make_table(session.resource("dynamodb", endpoint_url=endpoint))
    plain, slow = timed(session.resource("dynamodb", endpoint_url=endpoint))

    dax = cachekit.dax.install(session)  # the one line

    cached, fast = timed(session.resource("dynamodb", endpoint_url=endpoint))
    told = dax.stats()
    print(f"same answers: {cached == plain} ({len(cached)} of them)")
    for name in ("item_hits", "item_misses", "query_hits", "query_misses"):
        print(f"{name.replace('_', ' ')}: {told[name]}")
    print(f"without: {slow * 1000:.0f} ms, with: {fast * 1000:.0f} ms, {slow / fast:.1f} times")

    orders = session.resource("dynamodb", endpoint_url=endpoint).Table(TABLE)
    with dax.bypass():
        first = orders.get_item(Key={"customer": "ada", "number": 3})
    again = orders.get_item(Key={"customer": "ada", "number": 3})
    print(f"bypassed and cached are equal: {first['Item'] == again['Item']}")
    print(
        "explained:", dax.explain("GetItem", TableName=TABLE, Key={"customer": "ada", "number": 3})
    )
    dax.uninstall()


def main() -> None:
    if len(sys.argv) > 1:
        run(sys.argv[1])
        return
    with MotoServer() as server:
        run(server.endpoint)


if __name__ == "__main__":
    main()
