"""What the tests of ``cachekit.dax`` share: tables on a real server, and a network in between.

:class:`Wire` sits on a client's ``before-send`` event: it sees every request that leaves, can lose
the reply of one, refuse one, or answer eventual reads as a replica that lags."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import boto3
from boto3.dynamodb.types import Binary
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError

from cachekit.testing.dynamodb import CREDENTIALS, REGION, DynamoDBServer

_numbers = itertools.count(1)


@cache
def _session() -> Any:
    return boto3.Session(region_name=REGION, **CREDENTIALS)


class Desk:
    """One table of a test's own, ``pk`` (text) and ``sk`` (number), with a global index ``by_g``
    and a local index ``by_l``; and ``raw``, a client that no cache is in front of."""

    def __init__(self, server: DynamoDBServer) -> None:
        self.server = server
        self.raw = self.client()
        self.name = f"dax-{next(_numbers)}"
        self.make(self.name)

    def make(self, name: str) -> None:
        every = {"Projection": {"ProjectionType": "ALL"}}
        self.raw.create_table(
            TableName=name,
            KeySchema=_schema("pk", "sk"),
            AttributeDefinitions=[
                {"AttributeName": n, "AttributeType": "N" if n == "sk" else "S"}
                for n in ("pk", "sk", "g", "l")
            ],
            GlobalSecondaryIndexes=[{"IndexName": "by_g", "KeySchema": _schema("g"), **every}],
            LocalSecondaryIndexes=[{"IndexName": "by_l", "KeySchema": _schema("pk", "l"), **every}],
            BillingMode="PAY_PER_REQUEST",
        )
        self.raw.get_waiter("table_exists").wait(
            TableName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 20}
        )

    def session(self) -> Any:
        return boto3.Session(region_name=REGION, **CREDENTIALS)

    def client(self, retries: int = 1) -> Any:
        """One of a session that all share, which has read botocore's data once."""
        config = Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": retries})
        return _session().client("dynamodb", endpoint_url=self.server.endpoint, config=config)

    def put_raw(self, pk: str, sk: int = 1, **attributes: Any) -> None:
        """Write past the cache, as another process does."""
        self.raw.put_item(TableName=self.name, Item=item(pk, sk, **attributes))

    def get_raw(self, pk: str, sk: int = 1) -> Any:
        answer = self.raw.get_item(TableName=self.name, Key=key(pk, sk), ConsistentRead=True)
        return answer.get("Item")


def _schema(hash_name: str, range_name: str | None = None) -> list[dict[str, str]]:
    names = [(hash_name, "HASH"), *([(range_name, "RANGE")] if range_name else [])]
    return [{"AttributeName": name, "KeyType": role} for name, role in names]


def key(pk: str, sk: int = 1) -> dict[str, Any]:
    return {"pk": {"S": pk}, "sk": {"N": str(sk)}}


def item(pk: str, sk: int = 1, **attributes: Any) -> dict[str, Any]:
    """Attributes by name; ints and texts are taken as N and S."""
    shaped = {
        name: value if isinstance(value, dict) else {"N" if type(value) is int else "S": str(value)}
        for name, value in attributes.items()
    }
    return {**key(pk, sk), **shaped}


def is_hit(answer: dict[str, Any]) -> bool:
    return answer["ResponseMetadata"]["HTTPHeaders"].get("x-cachekit") == "hit"


def spoil(value: Any) -> None:
    """Change every container of an answer, at any depth."""
    if isinstance(value, dict):
        for each in list(value.values()):
            spoil(each)
        value.clear()
        value["spoilt"] = "spoilt"
    elif isinstance(value, list):
        for each in value:
            spoil(each)
        value[:] = ["spoilt"]
    elif isinstance(value, set):
        for each in value:
            spoil(each)
        value.clear()
    elif isinstance(value, Binary):
        value.value = b"spoilt"


class Wire:
    """The network of one client. ``sent``: the operations that left, ``bodies``: what they said."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.sent: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self._rules: list[Callable[[str, dict[str, Any]], Any]] = []
        client.meta.events.register("before-send.dynamodb", self._before)

    def _before(self, request: Any, event_name: str, **_: Any) -> Any:
        operation = event_name.rpartition(".")[2]
        body = json.loads(request.body)
        self.sent.append(operation)
        self.bodies.append(body)
        for rule in list(self._rules):
            answer = rule(operation, body)
            if answer is not None:
                return answer
        return None

    def clear(self) -> None:
        self.sent.clear()
        self.bodies.clear()

    def rule(self, rule: Callable[[str, dict[str, Any]], Any]) -> Callable[[], None]:
        """Have every request pass ``rule``: it gives an answer, raises, or gives None."""
        self._rules.append(rule)
        return lambda: self._rules.remove(rule)

    def refuse(self, operation: str, code: str, status: int = 400, times: int = 1) -> None:
        """Answer so instead of the server."""
        left = [times]

        def answer(name: str, _: dict[str, Any]) -> Any:
            if name != operation or not left[0]:
                return None
            left[0] -= 1
            return response(status, {"__type": f"com.amazonaws.dynamodb#{code}", "message": code})

        self.rule(answer)

    def lose(
        self, operation: str, land: Callable[[dict[str, Any]], None] | None, times: int = 1
    ) -> None:
        """No reply comes. ``land(body)`` does what the server does with it; None: it never came."""
        left = [times]

        def lost(name: str, body: dict[str, Any]) -> Any:
            if name != operation or not left[0]:
                return None
            left[0] -= 1
            if land is not None:
                land(body)
            raise ConnectionClosedError(endpoint_url="http://127.0.0.1")

        self.rule(lost)


def response(status: int, body: dict[str, Any]) -> AWSResponse:
    raw = io.BytesIO(json.dumps(body).encode())
    raw.stream = lambda *_, **__: iter([raw.read()])  # type: ignore[attr-defined]  # as urllib3's
    headers = {"content-type": "application/x-amz-json-1.0", "x-amzn-requestid": "T"}
    return AWSResponse("http://127.0.0.1", status, headers, raw)
