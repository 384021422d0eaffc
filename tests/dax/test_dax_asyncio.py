"""Clients of an asyncio botocore that is not understood: refused, or left alone.

Those that are understood have tests of their own, in ``tests/dax_aio``."""

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


class Other(AioBaseClient):
    async def get_item(self, **params: Any) -> Any:
        return {"asked": "on another road"}


def test_an_asyncio_client_on_another_road_is_refused() -> None:
    client = Other()
    with pytest.raises(ConfigurationError, match="aiobotocore"):
        cachekit.dax.install(client)
    assert type(client) is Other


@pytest.mark.parametrize(("base", "served"), [(AioBaseClient, True), (Other, False)])
def test_a_session_whose_clients_can_not_be_served_makes_them_as_before(
    base: type, served: bool
) -> None:
    dax = Dax(Settings.make())
    bases: list[type] = [base]
    attributes = {"get_item": base.get_item}  # type: ignore[attr-defined]  # both have it
    dax.placing.creating_client(class_attributes=attributes, base_classes=bases)
    assert len(bases) == 1 + served
    assert bases[-1] is base
    assert dax.stats()["not_served"] == int(not served)
    dax.uninstall()
