"""Whatever is done to an answer, or to what a write was given, changes no later answer: every
operation, in both forms, on items made by hypothesis, against a real server."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import boto3
import pytest
from boto3.dynamodb.conditions import Key
from boto3.dynamodb.types import TypeDeserializer
from dax_desk import spoil
from dax_shop import ministack
from hypothesis import given, settings
from hypothesis import strategies as st

import cachekit.dax
from cachekit.testing.dynamodb import CREDENTIALS, REGION, MinistackServer

__all__ = ["ministack"]
pytestmark = pytest.mark.server

numbers = st.integers(-(10**37), 10**37).map(str) | st.sampled_from(
    ["0.1", "-1.5", "9" * 38, "-" + "9" * 38, "1234567890123456789012345678901234567.8"]
)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
blobs = st.binary(min_size=1, max_size=6)
leaves = st.one_of(
    st.builds(lambda v: {"S": v}, texts),
    st.builds(lambda v: {"N": v}, numbers),
    st.builds(lambda v: {"B": v}, blobs),
    st.builds(lambda v: {"BOOL": v}, st.booleans()),
    st.builds(lambda: {"NULL": True}),
    st.builds(lambda v: {"SS": v}, st.lists(texts, min_size=1, max_size=3, unique=True)),
    st.builds(lambda v: {"NS": v}, st.lists(numbers, min_size=1, max_size=3, unique=True)),
    st.builds(lambda v: {"BS": v}, st.lists(blobs, min_size=1, max_size=3, unique=True)),
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.builds(lambda v: {"L": v}, st.lists(inner, max_size=3))
        | st.builds(lambda v: {"M": v}, st.dictionaries(texts, inner, max_size=3))
    ),
    max_leaves=8,
)
bodies = st.dictionaries(texts.filter(lambda n: n not in ("pk", "sk")), values, max_size=5)


def plain(item: dict[str, Any]) -> dict[str, Any]:
    return {name: TypeDeserializer().deserialize(value) for name, value in item.items()}


def sets_in_order(value: Any) -> Any:
    """Sets have no order, in the client's form either."""
    if isinstance(value, dict):
        return {
            name: sorted(each) if name in ("SS", "NS", "BS") else sets_in_order(each)
            for name, each in value.items()
        }
    return [sets_in_order(each) for each in value] if isinstance(value, list) else value


class Table:
    """One table, asked through the cache by a client and by a resource."""

    def __init__(self, server: MinistackServer) -> None:
        options: Any = {"endpoint_url": server.endpoint}
        self.raw = boto3.Session(region_name=REGION, **CREDENTIALS).client("dynamodb", **options)
        self.name = "mutation"
        self.raw.create_table(
            TableName=self.name,
            KeySchema=[
                {"AttributeName": "pk", "KeyType": "HASH"},
                {"AttributeName": "sk", "KeyType": "RANGE"},
            ],
            AttributeDefinitions=[
                {"AttributeName": "pk", "AttributeType": "S"},
                {"AttributeName": "sk", "AttributeType": "N"},
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        session = boto3.Session(region_name=REGION, **CREDENTIALS)
        self.dax = cachekit.dax.install(session, settle=0)
        self.client = session.client("dynamodb", **options)
        self.resource = session.resource("dynamodb", **options)
        self.table = self.resource.Table(self.name)
        self._number = itertools.count(1)

    def key(self) -> dict[str, Any]:
        return {"pk": {"S": f"k{next(self._number)}"}, "sk": {"N": "1"}}

    def hits(self) -> int:
        told = self.dax.stats()
        return int(told["item_hits"] + told["query_hits"])

    # -- reads: what they found ------------------------------------------------------------

    def reads(self, key: dict[str, Any]) -> dict[str, tuple[bool, Callable[[], Any]]]:
        """By name: whether in the resource's form, and the call; it gives answer and item."""
        name, client, table = self.name, self.client, self.table
        own, pk = plain(key), key["pk"]["S"]

        def batch(ask: Any, key: Any) -> Any:
            answer = ask(RequestItems={name: {"Keys": [key]}})
            return answer, answer["Responses"][name][0]

        def first(answer: Any) -> Any:
            return answer, answer["Items"][0]

        def asked(answer: Any) -> Any:
            return answer, answer["Item"]

        condition = {
            "KeyConditionExpression": "pk = :p",
            "ExpressionAttributeValues": {":p": {"S": pk}},
        }
        only = {
            "FilterExpression": "pk = :p",
            "ExpressionAttributeValues": {":p": {"S": pk}},
        }
        pages = client.get_paginator("query")
        return {
            "GetItem": (False, lambda: asked(client.get_item(TableName=name, Key=key))),
            "Table.get_item": (True, lambda: asked(table.get_item(Key=own))),
            "BatchGetItem": (False, lambda: batch(client.batch_get_item, key)),
            "resource.batch": (True, lambda: batch(self.resource.batch_get_item, own)),
            "Query": (False, lambda: first(client.query(TableName=name, **condition))),
            "Query, paginated": (
                False,
                lambda: first(next(iter(pages.paginate(TableName=name, **condition)))),
            ),
            "Table.query": (
                True,
                lambda: first(table.query(KeyConditionExpression=Key("pk").eq(pk))),
            ),
            "Scan": (False, lambda: first(client.scan(TableName=name, **only))),
            "Table.scan": (True, lambda: first(table.scan(FilterExpression=Key("pk").eq(pk)))),
        }

    # -- writes: what they were given, and gave --------------------------------------------

    def writes(self, item: dict[str, Any]) -> dict[str, Callable[[], list[Any]]]:
        """Calls that leave the item as it is; each gives everything that may be spoilt."""
        name, client, table = self.name, self.client, self.table
        key = {n: copy.deepcopy(item[n]) for n in ("pk", "sk")}

        def put() -> list[Any]:
            given = copy.deepcopy(item)
            return [given, client.put_item(TableName=name, Item=given, ReturnValues="ALL_OLD")]

        def put_plain() -> list[Any]:
            given = plain(item)
            return [given, table.put_item(Item=given)]

        def update(returned: str) -> list[Any]:
            changes = {
                "Key": copy.deepcopy(key),
                "UpdateExpression": "SET touched = :t REMOVE touched2",
                "ExpressionAttributeValues": {":t": {"L": [{"S": "x"}]}},
            }
            answer = client.update_item(TableName=name, ReturnValues=returned, **changes)
            undo = client.update_item(
                TableName=name, Key=key, UpdateExpression="REMOVE touched", ReturnValues=returned
            )
            return [changes, answer, undo]

        def batch() -> list[Any]:
            given = {name: [{"PutRequest": {"Item": copy.deepcopy(item)}}]}
            return [given, client.batch_write_item(RequestItems=given)]

        def written() -> list[Any]:
            given = plain(item)
            with table.batch_writer() as writer:
                writer.put_item(Item=given)
            return [given]

        def transaction() -> list[Any]:
            given = [{"Put": {"TableName": name, "Item": copy.deepcopy(item)}}]
            return [given, client.transact_write_items(TransactItems=given)]

        return {
            "PutItem": put,
            "Table.put_item": put_plain,
            "UpdateItem": lambda: update("NONE"),
            "UpdateItem, ALL_NEW": lambda: update("ALL_NEW"),
            "BatchWriteItem": batch,
            "batch_writer": written,
            "TransactWriteItems": transaction,
        }


@pytest.fixture(scope="module")
def table(ministack: MinistackServer) -> Iterator[Table]:
    table = Table(ministack)
    yield table
    table.dax.uninstall()


@given(body=bodies)
@settings(max_examples=20, deadline=None)
def test_no_change_of_an_answer_reaches_a_later_one(table: Table, body: dict[str, Any]) -> None:
    key = table.key()
    item = {**key, **body}
    table.raw.put_item(TableName=table.name, Item=item)
    stored = table.raw.get_item(TableName=table.name, Key=key, ConsistentRead=True)["Item"]
    for name, (is_plain, ask) in table.reads(key).items():
        before = table.hits()
        for _ in range(5):  # the miss, hits out of bytes, hits of what was promoted
            answer, found = ask()
            if is_plain:
                assert found == plain(stored), name
                assert _types(found) == _types(plain(stored)), name
            else:
                assert sets_in_order(found) == sets_in_order(stored), name
            spoil(answer)
        assert table.hits() >= before + 3, name
    table.raw.delete_item(TableName=table.name, Key=key)
    table.dax.invalidate(table.name, key)


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _types(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_types(each) for each in value]
    return type(value)


@given(body=bodies)
@settings(max_examples=10, deadline=None)
def test_what_a_write_was_given_and_gave_is_not_shared(table: Table, body: dict[str, Any]) -> None:
    item = {**table.key(), **body}
    key = {name: item[name] for name in ("pk", "sk")}
    table.raw.put_item(TableName=table.name, Item=item)
    stored = table.raw.get_item(TableName=table.name, Key=key, ConsistentRead=True)["Item"]
    for name, write in table.writes(item).items():
        for each in write():
            spoil(each)
        before = table.hits()
        found = table.client.get_item(TableName=table.name, Key=key)["Item"]
        assert sets_in_order(found) == sets_in_order(stored), name
        assert table.table.get_item(Key=plain(key))["Item"] == plain(stored), name
        assert table.hits() > before, name
    gone = table.client.delete_item(TableName=table.name, Key=key, ReturnValues="ALL_OLD")
    spoil(gone)
    assert "Item" not in table.client.get_item(TableName=table.name, Key=key)


def test_numbers_come_back_as_exactly_as_they_went(table: Table) -> None:
    key = table.key()
    given = {"a": Decimal("9" * 38), "b": {Decimal("0.1"), Decimal("-1E+2")}, "c": Decimal("1.50")}
    table.table.put_item(Item={**plain(key), **given})
    for _ in range(3):
        found = table.table.get_item(Key=plain(key))["Item"]
        assert {name: found[name] for name in given} == given
        assert all(type(each) is Decimal for each in found["b"])
        spoil(found)
