"""PynamoDB over a client that ``cachekit.dax`` is in front of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import cachekit.dax
from cachekit.dax import Dax
from cachekit.testing.dynamodb import CREDENTIALS, REGION, DynamoDBServer

pytest.importorskip("pynamodb")


@pytest.fixture
def model(server: DynamoDBServer) -> Any:
    from pynamodb.attributes import JSONAttribute, NumberAttribute, UnicodeAttribute
    from pynamodb.models import Model

    class User(Model):
        class Meta:
            table_name = "pynamodb-users"
            region = REGION
            host = server.endpoint
            aws_access_key_id = CREDENTIALS["aws_access_key_id"]
            aws_secret_access_key = CREDENTIALS["aws_secret_access_key"]

        name = UnicodeAttribute(hash_key=True)
        visits = NumberAttribute(default=0)
        more = JSONAttribute(null=True)

    User.create_table(wait=True, billing_mode="PAY_PER_REQUEST")
    return User


@pytest.fixture
def dax(model: Any) -> Iterator[Dax]:
    with cachekit.dax.install(model._get_connection().connection.client, settle=0) as dax:
        yield dax


def test_models_are_read_from_the_cache_and_see_their_writes(model: Any, dax: Dax) -> None:
    model("ada", visits=3, more={"x": [1]}).save()
    ada = model.get("ada")
    assert (ada.visits, ada.more) == (3, {"x": [1]})
    assert dax.stats()["item_hits"] == 1
    ada.update(actions=[model.visits.set(model.visits + 1)])
    assert model.get("ada").visits == 4
    assert [user.visits for user in model.query("ada")] == [4]
    assert [user.visits for user in model.query("ada")] == [4]
    assert dax.stats()["query_hits"] == 1
    with model.batch_write() as batch:
        for number in range(30):
            batch.save(model(f"user {number}", visits=number))
    assert model.get("user 29").visits == 29
    assert model.count() == 31
    assert sorted(user.name for user in model.batch_get(["ada", "user 7", "no one"])) == [
        "ada", "user 7",
    ]  # fmt: skip
    for _ in range(2):
        with pytest.raises(model.DoesNotExist):
            model.get("nobody")
    ada.refresh()
    ada.delete()
    with pytest.raises(model.DoesNotExist):
        model.get("ada")
    assert dax.stats()["faults"] == 0
