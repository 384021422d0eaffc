"""Tables that follow their own streams: what anybody writes is evicted, on a real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from dax_desk import item, key
from dax_fleet import client_of, wait
from dax_shop import BRIEF, Shop, ministack, shop

import cachekit.dax
from cachekit.errors import ConfigurationError
from cachekit.testing.dynamodb import MinistackServer

__all__ = ["ministack", "shop"]
pytestmark = pytest.mark.server


@pytest.mark.parametrize("view", ["NEW_AND_OLD_IMAGES", "KEYS_ONLY"])
def test_what_others_write_is_evicted_pages_too(shop: Callable[..., Shop], view: str) -> None:
    on = shop(view)
    member = on.following()
    for write in (
        lambda: on.put("a", 1),
        lambda: on.put("a", 2),
        lambda: on.other.delete_item(TableName=on.table, Key=key("a")),
    ):
        member.query("a"), member.get("a")
        assert member.holds("a")
        write()
        wait(lambda: not member.holds("a"))
        want = on.other.get_item(TableName=on.table, Key=key("a"), ConsistentRead=True)
        assert member.get("a").get("Item") == want.get("Item")
        assert member.query("a")["Items"] == ([want["Item"]] if "Item" in want else [])


@pytest.mark.parametrize(("view", "stays"), [("NEW_IMAGE", True), ("KEYS_ONLY", False)])
def test_ones_own_write_told_again_stays_where_the_stream_has_the_item(
    shop: Callable[..., Shop], view: str, stays: bool
) -> None:
    on = shop(view)
    member = on.following()
    member.client.put_item(
        TableName=on.table,
        Item=item(
            "a", 1, v=1, s={"SS": ["x", "y"]}, b={"B": b"\0\xff"}, m={"M": {"n": {"N": "1"}}}
        ),
    )
    member.query("a")
    assert member.holds("a")
    wait(lambda: member.dax.stats()["stream_records"] >= 1)
    time.sleep(0.1)
    assert member.holds("a") is stays
    assert member.dax.stats()["stream_echoes"] == int(stays)
    member.client.delete_item(TableName=on.table, Key=key("a"))
    wait(lambda: member.dax.stats()["stream_records"] >= 2)
    time.sleep(0.1)
    assert member.holds("a"), "known to be missing: every view says that it was removed"


def test_nothing_is_kept_before_the_stream_is_read(shop: Callable[..., Shop]) -> None:
    on = shop()
    gate = threading.Event()

    def connect(service: str) -> Any:
        assert gate.wait(20)
        return client_of(on.server.endpoint, service)

    member = on.member(streams={on.table: {**BRIEF, "connect": connect}})
    for _ in range(3):
        assert not member.has("a")
    member.put("a", 1)
    assert not member.holds("a"), "a write does not keep it either"
    member.query("a"), member.query("a")
    assert member.dax.stats()["pages"] == 0
    assert member.dax.stats()["not_trusted"] > 0
    gate.set()
    wait(lambda: member.has("a"))


def test_a_table_without_a_stream_is_not_kept_and_that_is_said(
    shop: Callable[..., Shop], caplog: pytest.LogCaptureFixture
) -> None:
    on = shop(None)
    member = on.member(streams=True)
    member.put("a", 1)
    wait(lambda: "refused" in member.dax.stats()["streams"].get(on.table, ""))
    assert not member.has("a")
    assert not member.has("a")
    assert "no stream" in member.dax.stats()["streams"][on.table]
    assert len([r for r in caplog.records if "no stream" in r.getMessage()]) == 1
    on.other.update_table(
        TableName=on.table,
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "KEYS_ONLY"},
    )
    wait(lambda: member.has("a"), 20)


def test_a_stream_that_is_switched_off_costs_what_is_kept(shop: Callable[..., Shop]) -> None:
    on = shop()
    member = on.following()
    member.get("a")
    assert member.holds("a")
    on.other.update_table(TableName=on.table, StreamSpecification={"StreamEnabled": False})
    on.put("a", 1)
    wait(lambda: not member.holds("a"), 20)
    wait(lambda: member.value("a") == 1 and not member.has("a"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"t": {"poll": 0.1}},
        {"t": {"max_lag": 0.5}},
        {"t": {"lag": 1}},
        {"t": {"connect": 1}},
        "t",
        3,
    ],
)
def test_options_are_checked(wrong: Any, ministack: MinistackServer) -> None:
    with pytest.raises((ConfigurationError, TypeError), match="streams"):
        cachekit.dax.install(client_of(ministack.endpoint), streams=wrong)
