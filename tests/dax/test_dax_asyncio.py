"""Clients of an asyncio botocore: left alone, as long as their answers can not be waited for."""

from __future__ import annotations

from typing import Any

import pytest

import cachekit.dax
from cachekit.dax import Dax
from cachekit.dax.settings import Settings
from cachekit.errors import ConfigurationError


class AioBaseClient:
    async def _make_api_call(self, operation_name: str, api_params: Any) -> Any:
        return {"asked": operation_name}

    async def get_item(self, **params: Any) -> Any:
        return await self._make_api_call("GetItem", params)


def test_an_asyncio_client_is_refused() -> None:
    client = AioBaseClient()
    with pytest.raises(ConfigurationError, match="asyncio"):
        cachekit.dax.install(client)
    assert type(client) is AioBaseClient


def test_an_asyncio_session_makes_clients_as_before() -> None:
    dax = Dax(Settings.make())
    bases: list[type] = [AioBaseClient]
    dax._creating_client(class_attributes={"get_item": AioBaseClient.get_item}, base_classes=bases)
    dax._creating_client(class_attributes={"get_item": lambda self, **_: None}, base_classes=bases)
    assert bases == [AioBaseClient]
    assert dax.stats()["not_served"] == 2
    dax.uninstall()
