"""What a hit says beside the item: the response's metadata, and the capacity it did not use."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

_next: Callable[[], int] = itertools.count(1).__next__
_process = os.urandom(5).hex().upper()
_CAPACITY = ("TOTAL", "INDEXES")


def metadata() -> dict[str, Any]:
    """As botocore makes it; the request id is unique, and the headers tell that it was a hit."""
    number = f"CACHEKIT{_process}{_next():014X}"
    return {
        "RequestId": number,
        "HTTPStatusCode": 200,
        "HTTPHeaders": {
            "server": "cachekit",
            "content-type": "application/x-amz-json-1.0",
            "x-amzn-requestid": number,
            "x-cachekit": "hit",
        },
        "RetryAttempts": 0,
    }


def asks_capacity(params: Mapping[str, Any]) -> bool:
    return params.get("ReturnConsumedCapacity") in _CAPACITY


def capacity(params: Mapping[str, Any], table: str) -> dict[str, Any]:
    """The ConsumedCapacity of a hit: nothing."""
    used: dict[str, Any] = {"TableName": table, "CapacityUnits": 0.0}
    if params.get("ReturnConsumedCapacity") == "INDEXES":
        used["Table"] = {"CapacityUnits": 0.0}
    return used


def may_be_answered(params: Mapping[str, Any]) -> bool:
    """Whether ``ReturnConsumedCapacity`` is one that DynamoDB knows."""
    asked = params.get("ReturnConsumedCapacity")
    return asked is None or asked == "NONE" or asked in _CAPACITY


def _after_fork() -> None:
    global _process
    _process = os.urandom(5).hex().upper()


os.register_at_fork(after_in_child=_after_fork)
