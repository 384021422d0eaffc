"""A write that a signal handler breaks off, wherever that is, is one of unknown outcome: its spots
are held for the quarantine, and free after it."""

from __future__ import annotations

import gc
import io
import json
import os
import zlib
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from dax_desk import item, key

import cachekit.dax
from cachekit.dax.protocol import LOOK, Outcome, Protocol
from cachekit.testing.clock import ManualClock
from cachekit.testing.dynamodb import CREDENTIALS, REGION
from cachekit.testing.interrupts import interrupt_after

EVERY = 1 if os.environ.get("CACHEKIT_NIGHTLY") == "1" else 6
NAMES = [f"n{n}" for n in range(4)]


def _free(protocol: Protocol, names: list[str]) -> bool:
    look = protocol.look(names)
    try:
        return protocol.may_fill(look, was_strong=True)
    finally:
        protocol.leave(look)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_no_step_of_a_write_leaves_a_spot_taken(outcome: Outcome) -> None:
    for steps in range(1, 1000):
        clock = ManualClock()
        protocol = Protocol(clock, settle=1.0, hold=10.0)

        def write(protocol: Protocol = protocol) -> None:
            protocol.end(protocol.begin(NAMES[:3], NAMES[3:]), outcome)

        broken = interrupt_after(steps, write)
        assert _free(protocol, NAMES) or broken or outcome is Outcome.UNKNOWN
        clock.advance(LOOK + 0.1)
        _free(protocol, NAMES)  # it is seen now, if it was dropped
        clock.advance(10.1)
        assert _free(protocol, NAMES), steps
        assert all(not spot.writers for spot in protocol._spots.values()), steps
        if not broken:
            break
    assert steps > 15


def test_one_that_is_dropped_holds_as_one_of_unknown_outcome() -> None:
    clock = ManualClock()
    protocol = Protocol(clock, settle=1.0, hold=10.0)
    before = protocol.look(["a"])
    protocol.begin(["a"])  # nobody keeps it
    gc.collect()
    assert not protocol.may_fill(before, was_strong=True)
    assert not _free(protocol, ["a"])
    assert _free(protocol, ["b"])
    clock.advance(LOOK + 0.1)
    assert not _free(protocol, ["a"])  # seen now
    clock.advance(9.9)
    assert not _free(protocol, ["a"])
    clock.advance(0.2)
    assert _free(protocol, ["a"])


# -- whole requests ------------------------------------------------------------------------


class _Raw(io.BytesIO):
    def stream(self, *_: Any, **__: Any) -> Any:
        yield self.getvalue()


def _answer(request: Any, **_: Any) -> AWSResponse:
    """A network that answers at once, and has nothing."""
    target = request.headers["X-Amz-Target"]
    operation = (target.decode() if isinstance(target, bytes) else target).split(".")[1]
    schema = [("pk", "HASH"), ("sk", "RANGE")]
    body: dict[str, Any] = {
        "DescribeTable": {
            "Table": {
                "TableName": "t",
                "KeySchema": [{"AttributeName": n, "KeyType": kind} for n, kind in schema],
            }
        },
        "Scan": {"Items": [], "Count": 0, "ScannedCount": 0},
        "BatchWriteItem": {"UnprocessedItems": {}},
    }.get(operation, {})
    data = json.dumps(body).encode()
    headers = {"x-amz-crc32": str(zlib.crc32(data)), "content-length": str(len(data))}
    return AWSResponse(request.url, 200, headers, _Raw(data))


def _writes(client: Any) -> dict[str, Callable[[int], Any]]:
    return {
        "PutItem": lambda n: client.put_item(TableName="t", Item=item(f"a{n}")),
        "BatchWriteItem": lambda n: client.batch_write_item(
            RequestItems={"t": [{"PutRequest": {"Item": item(f"a{n}")}}]}
        ),
        "ExecuteStatement": lambda n: client.execute_statement(Statement="DELETE FROM t"),
    }


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("name", ["PutItem", "BatchWriteItem", "ExecuteStatement"])
def test_items_and_pages_are_kept_again_after_a_write_that_was_broken_off(name: str) -> None:
    session = boto3.Session(region_name=REGION, **CREDENTIALS)
    client = session.client("dynamodb", endpoint_url="http://127.0.0.1:1")
    client.meta.events.register("before-send.dynamodb", _answer)
    clock = ManualClock()
    with cachekit.dax.install(client, settle=0, quarantine=1, item_ttl=None) as dax:
        store = dax._store
        store.clock = store.protocol._clock = clock
        write = _writes(client)[name]
        client.put_item(TableName="t", Item=item("first"))
        for steps in range(1, 5000, EVERY):
            broken = interrupt_after(steps, lambda n=steps: write(n))
            clock.advance(1.1)
            # What was broken off while leaving the near tier's section is kept by it until the
            # next one comes in.
            with store.near.section:
                pass
            found = [store.protocol._all, *store.protocol._spots.values()]
            client.scan(TableName="t")  # a page that is to go
            if any(spot.writers for spot in found):  # the traceback may be part of a circle
                gc.collect()
            _free(store.protocol, ["another"])  # its next step
            clock.advance(1.1)
            assert not any(spot.writers for spot in found), steps
            assert len(store.flights) == 0, steps
            if not broken:
                break
        else:
            raise AssertionError("it takes more steps")
        clock.advance(1.1)
        before = dax.stats()["query_hits"]
        for _ in range(2):
            client.scan(TableName="t")
        assert dax.stats()["query_hits"] > before
        client.get_item(TableName="t", Key=key("b"))
        client.get_item(TableName="t", Key=key("b"))
        assert dax.stats()["item_hits"] > 0
