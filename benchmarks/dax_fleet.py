"""How long another process serves the old item after a write: by the bus, and by Streams.

    python benchmarks/dax_fleet.py [writes]

Two processes, a private Redis, and a private ministack (CACHEKIT_MINISTACK) in place of DynamoDB.
Times are of the clock that all processes of a Linux host share.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config

import cachekit
import cachekit.dax
from cachekit.testing.dynamodb import CREDENTIALS, REGION, MinistackServer
from cachekit.testing.servers import RedisServer

TABLE = "fleet"
KEY = {"pk": {"S": "a"}}


def client_of(endpoint: str) -> Any:
    session = boto3.Session(region_name=REGION, **CREDENTIALS)
    return session.client("dynamodb", endpoint_url=endpoint, config=Config(proxies={}))


def install(client: Any, options: dict[str, Any]) -> Any:
    url = options.get("url")
    cache = None if url is None else cachekit.Cache(url)
    return cachekit.dax.install(client, cache=cache, streams=options.get("streams"))


def hold() -> None:
    """The other process: keeps the item, then says when its hit was gone and the new one read."""
    endpoint, options = json.loads(sys.argv[2])
    client = client_of(endpoint)
    dax = install(client, options)

    def kept() -> bool:
        told = dax.explain("GetItem", TableName=TABLE, Key=KEY)
        return bool(told["answer"] == "cache")

    for line in sys.stdin:
        old = line.strip()
        while not kept():
            client.get_item(TableName=TABLE, Key=KEY)
            time.sleep(0.002)
        print("kept", flush=True)
        while kept():
            time.sleep(0.0001)
        gone = time.monotonic()
        while client.get_item(TableName=TABLE, Key=KEY)["Item"]["v"]["N"] == old:
            continue
        print(json.dumps([gone, time.monotonic()]), flush=True)


def measure(endpoint: str, options: dict[str, Any], writes: int, *, behind: bool) -> None:
    """``behind``: the writer has a handle too, on the same bus; else it is anybody."""
    client = client_of(endpoint)
    dax = install(client, options) if behind else None
    other = subprocess.Popen(
        [sys.executable, __file__, "hold", json.dumps([endpoint, options])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdin is not None
    assert other.stdout is not None
    gone, new, took = [], [], []
    for number in range(1, writes + 1):
        other.stdin.write(f"{number - 1}\n")
        other.stdin.flush()
        other.stdout.readline()
        time.sleep(random.random() * 0.5)
        began = time.monotonic()
        client.put_item(TableName=TABLE, Item={**KEY, "v": {"N": str(number)}})
        ended = time.monotonic()
        when, read = json.loads(other.stdout.readline())
        gone.append(when - ended)
        new.append(read - ended)
        took.append(ended - began)
    other.kill()
    other.wait()
    for what, times in (
        ("old item gone, after the write returned", gone),
        ("new item read, after the write returned", new),
        ("the write", took),
    ):
        print(f"  {what:42} p50 {_at(times, 0.5):8.1f}  p99 {_at(times, 0.99):8.1f} ms")
    if dax is not None:
        dax.uninstall()


def _at(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * share))] * 1e3


def main(writes: int) -> None:
    runs: list[tuple[str, Callable[[str], dict[str, Any]], bool]] = [
        ("bus (Redis)", lambda url: {"url": url}, True),
        ("Streams, poll 0.5 s, a reader in each process", lambda _: {"streams": True}, False),
        ("Streams, poll 0.2 s",
         lambda _: {"streams": {TABLE: {"poll": 0.2}}}, False),
        ("Streams, poll 0.5 s, one reader for both, over the bus",
         lambda url: {"url": url, "streams": True}, False),
    ]  # fmt: skip
    with MinistackServer() as server, RedisServer() as redis:
        client_of(server.endpoint).create_table(
            TableName=TABLE,
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
        )
        client_of(server.endpoint).put_item(TableName=TABLE, Item={**KEY, "v": {"N": "0"}})
        for name, options, behind in runs:
            print(name)
            client_of(server.endpoint).put_item(TableName=TABLE, Item={**KEY, "v": {"N": "0"}})
            measure(server.endpoint, options(redis.url), writes, behind=behind)


if __name__ == "__main__":
    if sys.argv[1:2] == ["hold"]:
        hold()
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
