"""A private DynamoDB over HTTP: moto's server in a process of its own, and shops that write to it.

moto does not keep transactions apart, so requests are applied one at a time. What it can not do
itself is asked for by files in the server's folder and by marks in the items that are written:

- ``hold`` keeps the next transaction back until there is a file ``go``, whoever waits for it;
- an attribute ``cancel`` lets a transaction be cancelled, with that code as the item's reason;
- an attribute ``fail`` lets the whole request fail with that code.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cachekit.sinks import DynamoDBSink
from cachekit.testing import servers

KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "eu-west-1"}
_numbers = itertools.count(1)


class DynamoDBServer(servers.Server):
    program = "moto_server"
    _session: Any = None

    @property
    def url(self) -> str:
        return f"http://{servers.HOST}:{self.port}"

    def _command(self, port: int) -> list[str]:
        return [sys.executable, __file__, str(port)]

    def _question(self) -> bytes:
        return b"GET /pid HTTP/1.0\r\n\r\n"

    def _is_answer(self, answer: bytes, pid: int) -> bool:
        return b"pid %d." % pid in answer

    def client(self, **config: Any) -> Any:
        import boto3
        from botocore.config import Config

        options = {
            "connect_timeout": 2, "read_timeout": 10, "retries": {"total_max_attempts": 1}, **config
        }  # fmt: skip
        self._session = self._session or boto3.session.Session()  # it keeps what it has read
        return self._session.client(
            "dynamodb", endpoint_url=self.url, config=Config(**options), **KEYS
        )


def table_of(name: str, key: str = "id", kind: str = "N", sort: str | None = None) -> Any:
    """The arguments that make a table."""
    names = [(key, kind, "HASH"), *([(sort, "S", "RANGE")] if sort else [])]
    return {
        "TableName": name,
        "KeySchema": [{"AttributeName": n, "KeyType": role} for n, _, role in names],
        "AttributeDefinitions": [{"AttributeName": n, "AttributeType": k} for n, k, _ in names],
        "BillingMode": "PAY_PER_REQUEST",
    }


class DynamoDBShop:
    """Tables of a test's own: ``items`` and the fence, and sinks that write to them."""

    def __init__(self, server: DynamoDBServer, number: int) -> None:
        self.server = server
        self.items = f"items-{number}"
        self.fence = f"fence-{number}"
        self.client = server.client()
        self.client.create_table(**table_of(self.items))

    def sink(self, kind: type[DynamoDBSink] = DynamoDBSink, **options: Any) -> DynamoDBSink:
        client = options.pop("client", None) or self.server.client()
        given = {"fence_table": self.fence, "create_fence": True, "client": client, **options}
        return kind(given.pop("table", self.items), **given)

    def read(self, table: str) -> list[dict[str, Any]]:
        from boto3.dynamodb.types import TypeDeserializer

        read = TypeDeserializer().deserialize
        found: list[dict[str, Any]] = []
        pages = self.client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
        for page in pages:
            found += [{n: read(v) for n, v in item.items()} for item in page["Items"]]
        return found

    def rows(self, key: str = "id") -> dict[Any, Any]:
        return {row.pop(key): row for row in self.read(self.items)}

    def epochs(self) -> dict[str, Decimal]:
        return {row["lane"]: row["epoch"] for row in self.read(self.fence)}

    def tell(self, word: str) -> None:
        (self.server.folder / word).touch()

    def heard(self, word: str) -> bool:
        return (self.server.folder / word).exists()


@cache
def _server() -> DynamoDBServer | str:
    try:
        import boto3  # noqa: F401
        import moto.server  # noqa: F401
    except ImportError:
        return "no moto: pip install 'moto[server]'"
    return DynamoDBServer().__enter__()  # until the interpreter ends


def dynamodb_server() -> DynamoDBServer:
    """The one of this test run; skips the test, or fails it where servers are required."""
    found = _server()
    if isinstance(found, str):
        if os.environ.get("CACHEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail(found)
        pytest.skip(found)
    return found


def unused_shop() -> DynamoDBShop:
    """One with tables of its own."""
    return DynamoDBShop(dynamodb_server(), next(_numbers))


def watch(sink: DynamoDBSink, seen: Any, verb: str = "TransactWriteItems") -> None:
    """Call ``seen`` with the body of every such request, before it is sent."""
    client = sink._client.get()
    client.meta.events.register(
        f"before-send.dynamodb.{verb}", lambda request, **_: seen(request.body)
    )


# -- the server's process ------------------------------------------------------------------

Answer = Callable[..., Any]


class Desk:
    """Stands before moto's application."""

    def __init__(self, app: Callable[[Any, Answer], Iterable[bytes]]) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], answer: Answer) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/pid":
            answer("200 OK", [("Content-Type", "text/plain")])
            return [b"pid %d." % os.getpid()]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        held = False
        if environ.get("HTTP_X_AMZ_TARGET", "").endswith(".TransactWriteItems"):
            held = _kept_back()
            writes = [next(iter(each.values())) for each in json.loads(body)["TransactItems"]]
            items = [write.get("Item", {}) for write in writes]
            for item in items:
                if "fail" in item:
                    return _error(answer, item["fail"]["S"], {})
            if any("cancel" in item for item in items):
                return _error(answer, "TransactionCanceledException", _reasons(items))
        with self._lock:
            answered = list(self._app(environ, answer))
        if held:
            Path("landed").touch()
        return answered


def _kept_back() -> bool:
    try:
        os.rename("hold", "held")
    except FileNotFoundError:
        return False
    while not os.path.exists("go"):
        time.sleep(0.005)
    return True


def _reasons(items: list[Any]) -> dict[str, Any]:
    codes = [item.get("cancel", {"S": "None"})["S"] for item in items]
    return {"CancellationReasons": [{"Code": code, "Message": f"so {code}"} for code in codes]}


def _error(answer: Answer, code: str, more: dict[str, Any]) -> list[bytes]:
    kind = f"com.amazonaws.dynamodb.v20120810#{code}"
    status = "500 Server" if code == "InternalServerError" else "400 Bad"
    answer(status, [("Content-Type", "application/x-amz-json-1.0")])
    return [json.dumps({"__type": kind, "message": code, **more}).encode()]


def main(port: int) -> None:
    from moto.moto_server import werkzeug_app as moto
    from werkzeug.serving import run_simple

    run_simple(
        servers.HOST,
        port,
        Desk(moto.DomainDispatcherApplication(moto.create_backend_app)),
        threaded=True,
        request_handler=moto.MotoRequestHandler,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
