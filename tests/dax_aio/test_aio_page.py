"""What the page says about asyncio runs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("aioboto3")

import aioboto3

import cachekit.dax
from cachekit.testing.dynamodb import CREDENTIALS, REGION

if TYPE_CHECKING:
    from dax_desk import Desk

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "dax.md"


def test_the_code_of_the_page_runs(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## asyncio\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"^```text\n(.*?)^```", section, re.M | re.S)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", desk.server.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name.upper(), value)
    desk.raw.create_table(
        TableName="users",
        KeySchema=[{"AttributeName": "name", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "name", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    names: dict[str, Any] = {"aioboto3": aioboto3, "cachekit": cachekit}
    exec(compile(code, str(PAGE), "exec"), names)
    try:
        assert sorted(asyncio.run(names["main"]())) == ["ada", "grace"]
        stats = names["dax"].stats()
        assert (stats["item_hits"], stats["query_misses"], stats["not_served"]) == (1, 1, 0)
    finally:
        names["dax"].uninstall()
        desk.raw.delete_table(TableName="users")
