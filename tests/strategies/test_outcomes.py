"""What a source's error says about a write: refused, or nobody knows."""

from __future__ import annotations

import asyncio
import sqlite3
import urllib.error
from email.message import Message
from typing import Any

import botocore.exceptions
import httpx
import pytest
import redis
import sqlalchemy.exc

from cachekit import Cache, WriteThrough
from cachekit.strategies.answers import is_outage
from cachekit.strategies.intent import outcome_unknown

REQUEST = httpx.Request("PUT", "http://source")


def _answered(status: int) -> list[Exception]:
    metadata: Any = {"Error": {"Code": "x"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return [
        botocore.exceptions.ClientError(metadata, "PutItem"),
        httpx.HTTPStatusError("x", request=REQUEST, response=httpx.Response(status)),
        urllib.error.HTTPError("http://source", status, "x", Message(), None),
        _named("ClientResponseError", status=status),  # aiohttp
        _named("TransportError", status_code=status),  # opensearch-py
        _named("HTTPClientError", code=status),  # tornado
    ]


def _named(name: str, **has: Any) -> Exception:
    return type(name, (Exception,), has)()


class Sly(Exception):
    @property
    def response(self) -> Any:
        raise RuntimeError("closed")


UNKNOWN = [
    TimeoutError(),
    ConnectionResetError(),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
    sqlite3.OperationalError(),
    sqlalchemy.exc.OperationalError("x", {}, Exception()),
    redis.ConnectionError(),
    redis.TimeoutError(),
    httpx.ReadTimeout("x", request=REQUEST),
    httpx.RemoteProtocolError("x", request=REQUEST),
    botocore.exceptions.ReadTimeoutError(endpoint_url="x"),
    botocore.exceptions.ConnectionClosedError(endpoint_url="x"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="x"),
    _named("AutoReconnect", code=189),  # pymongo: a primary that steps down
    _named("ConnectionError", status_code="N/A"),  # opensearch-py
    *_answered(500),
    *_answered(503),
]
REFUSED = [
    ValueError(),
    OSError(),
    sqlite3.IntegrityError(),
    sqlalchemy.exc.IntegrityError("x", {}, Exception()),
    redis.ResponseError(),
    botocore.exceptions.ParamValidationError(report="x"),
    *_answered(400),
    *_answered(409),
    _named("SerializationError"),
    Sly(),
]


def _name(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__name__}"


@pytest.mark.parametrize("error", UNKNOWN, ids=_name)
def test_nobody_knows(error: BaseException) -> None:
    assert outcome_unknown(error)


@pytest.mark.parametrize("error", REFUSED, ids=_name)
def test_it_was_refused(error: BaseException) -> None:
    assert not outcome_unknown(error)


def test_a_response_of_another_shape_says_nothing() -> None:
    for response in (None, {}, {"ResponseMetadata": None}, "500", object()):
        error = ValueError()
        error.response = response  # type: ignore[attr-defined]  # as drivers do
        assert not outcome_unknown(error)


@pytest.mark.parametrize(("status", "away"), [(400, False), (500, False), (502, True), (503, True)])
def test_a_batch_is_split_for_a_500_and_waits_for_a_gateway(status: int, away: bool) -> None:
    assert {is_outage(error) for error in _answered(status)} == {away}


@pytest.mark.parametrize("status", [400, 503])
def test_a_row_that_may_still_be_written_is_not_kept(status: int) -> None:
    """Refused: what is loaded next is kept. Unknown: the old row may be replaced any moment."""
    error, rows = _answered(status)[0], {1: "old"}

    def store(id: int, value: str) -> None:
        raise error

    with Cache() as cache:
        books = WriteThrough(cache, key="row:{id}", load=rows.get, store=store)
        with pytest.raises(botocore.exceptions.ClientError):
            books.put(1, "new")
        assert books.get(1) == "old"
        rows[1] = "new"
        assert books.get(1) == ("old" if status < 500 else "new")
