"""Handles in this process and in others, over one table: on a bus, or behind a stream."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from dax_desk import is_hit, item, key

import cachekit
import cachekit.dax
from cachekit.dax import Dax
from cachekit.testing.dynamodb import CREDENTIALS, REGION, DynamoDBServer

SOON = 10.0  # how long a test waits for what takes a fraction of it


def wait(reached: Callable[[], bool], seconds: float = SOON) -> float:
    """The seconds until it was so."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < seconds, "it did not come to pass"
        time.sleep(0.005)
    return time.monotonic() - began


def client_of(endpoint: str, service: str = "dynamodb", **config: Any) -> Any:
    session = boto3.Session(region_name=REGION, **CREDENTIALS)
    options = {"connect_timeout": 2, "read_timeout": 10, "retries": {"total_max_attempts": 1}}
    return session.client(
        service, endpoint_url=endpoint, config=Config(proxies={}, **{**options, **config})
    )


class Member:
    """One client behind a handle of its own."""

    def __init__(self, endpoint: str, table: str, **options: Any) -> None:
        self.table = table
        self.client = client_of(endpoint)
        self.dax: Dax = cachekit.dax.install(self.client, **{"settle": 0, **options})

    def get(self, pk: str, sk: int = 1) -> Any:
        return self.client.get_item(TableName=self.table, Key=key(pk, sk))

    def value(self, pk: str) -> int | None:
        found = self.get(pk).get("Item")
        return None if found is None else int(found["v"]["N"])

    def has(self, pk: str) -> bool:
        """Whether it was answered from the cache; now it is in it if it may be."""
        return is_hit(self.get(pk))

    def put(self, pk: str, v: int, **more: Any) -> None:
        self.client.put_item(TableName=self.table, Item=item(pk, 1, v=v, **more))

    def query(self, pk: str) -> Any:
        return self.client.query(
            TableName=self.table,
            KeyConditionExpression="pk = :p",
            ExpressionAttributeValues={":p": {"S": pk}},
        )

    def holds(self, pk: str) -> bool:
        """Whether the item is kept, without asking for it."""
        told = self.dax.explain("GetItem", TableName=self.table, Key=key(pk))
        return bool(told["answer"] == "cache")

    def joined(self) -> Member:
        """On the bus, with the table known."""
        self.get("~")
        wait(lambda: self.dax.stats()["bus"] == "push")
        return self

    def close(self) -> None:
        self.dax.uninstall()
        self.client.close()


class Process:
    """A member in a process of its own; it does one thing at a time."""

    def __init__(self, endpoint: str, table: str, **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps([endpoint, table, options])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            text=True,
        )

    def start(self, what: str, *args: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, *args]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process died"
        return json.loads(line)

    def do(self, what: str, *args: Any) -> Any:
        self.start(what, *args)
        return self.answer()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


def table_of(server: DynamoDBServer, name: str, view: str | None = None) -> None:
    """A table with ``pk`` and ``sk``, with a stream if a view is given."""
    stream = {} if view is None else {
        "StreamSpecification": {"StreamEnabled": True, "StreamViewType": view}
    }  # fmt: skip
    made = client_of(server.endpoint)
    made.create_table(
        TableName=name,
        KeySchema=[
            {"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[
            {"AttributeName": "pk", "AttributeType": "S"},
            {"AttributeName": "sk", "AttributeType": "N"},
        ],
        BillingMode="PAY_PER_REQUEST",
        **stream,
    )  # fmt: skip
    made.close()


def _serve() -> None:
    endpoint, table, options = json.loads(sys.argv[1])
    url = options.pop("url", None)
    if url is not None:
        options["cache"] = cachekit.Cache(url)
    member = Member(endpoint, table, **options)
    for line in sys.stdin:
        what, *args = json.loads(line)
        if what == "stats":
            answer: Any = {n: v for n, v in member.dax.stats().items() if n != "tables"}
        elif what == "gone":  # seconds until an item that is kept is kept no longer
            while member.holds(*args):
                time.sleep(0.0002)
            answer = time.monotonic()
        elif what == "put":
            began = time.monotonic()
            member.put(*args)
            answer = [began, time.monotonic()]
        else:
            answer = getattr(member, what)(*args)
        print(json.dumps(None if isinstance(answer, Member) else answer), flush=True)


if __name__ == "__main__":
    _serve()
