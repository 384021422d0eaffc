"""A DAX cluster behind the cache: what goes there, and what comes back from it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from botocore.exceptions import ParamValidationError

from cachekit.errors import ConfigurationError

if (
    importlib.util.find_spec("amazondax") is None
    and os.environ.get("CACHEKIT_REQUIRE_SERVERS") != "1"
):
    pytest.skip("no amazon-dax-client", allow_module_level=True)

from dax_clustered import Cluster, Clustered
from dax_desk import Desk, item, key

EVERYTHING = {
    "text": {"S": "wörld"},
    "number": {"N": "-12.5"},
    "large": {"N": "12345678901234567890"},
    "bytes": {"B": b"\x00\xff"},
    "flag": {"BOOL": False},
    "nothing": {"NULL": True},
    "list": {"L": [{"S": "a"}, {"N": "0"}, {"L": []}]},
    "map": {"M": {"x": {"M": {}}, "y": {"B": b"b"}}},
    "texts": {"SS": ["a", "b"]},
    "numbers": {"NS": ["1", "2.5"]},
    "blobs": {"BS": [b"\x01", b"\x02"]},
}


@pytest.fixture
def clustered(desk: Desk) -> Iterator[Clustered]:
    """Makes clients in front of a cluster of their own."""
    with Clustered(desk) as make:
        yield make


def test_a_read_is_answered_by_the_cluster_and_after_that_by_the_cache(
    clustered: Clustered,
) -> None:
    on = clustered()
    on.desk.put_raw("a", v=1)
    first, second = on.get("a"), on.get("a")
    assert first["Item"] == second["Item"] == item("a", v=1)
    assert on.cluster.asked == ["GetItem"]
    assert not on.requests()
    assert on.dax.stats()["cluster_answers"] == 1


def test_what_is_missing_there_is_missing(clustered: Clustered) -> None:
    on = clustered()
    assert "Item" not in on.get("nobody")
    assert "Item" not in on.get("nobody")
    assert on.cluster.asked == ["GetItem"]
    assert not on.requests()


def test_every_type_of_value_comes_back_as_from_dynamodb(clustered: Clustered) -> None:
    on = clustered()
    on.client.put_item(TableName=on.table, Item={**key("a"), **EVERYTHING})
    assert on.cluster.asked == ["PutItem"]
    on.dax.flush()
    found = on.get("a")
    assert on.cluster.asked == ["PutItem", "GetItem"]
    assert not on.requests()
    assert found["Item"] == on.desk.get_raw("a") == {**key("a"), **EVERYTHING}
    told = found["ResponseMetadata"]
    assert told["HTTPStatusCode"] == 200
    assert told["RetryAttempts"] == 0
    assert told["RequestId"]


def test_a_key_as_somebody_writes_it_comes_back_as_dynamodb_writes_it(clustered: Clustered) -> None:
    on = clustered()
    on.desk.put_raw("a", sk=1, v=1)
    found = on.client.get_item(TableName=on.table, Key={"pk": {"S": "a"}, "sk": {"N": "1.0"}})
    assert found["Item"]["sk"] == {"N": "1"}


def test_writes_go_through_the_cluster_and_what_they_tell_comes_back(clustered: Clustered) -> None:
    on = clustered(preset="dax")
    on.put("a", v=1)
    assert on.client.put_item(TableName=on.table, Item=item("a", v=2, w=0), ReturnValues="ALL_OLD")[
        "Attributes"
    ] == item("a", v=1)
    assert on.update("a", 3, ReturnValues="UPDATED_NEW")["Attributes"] == {"v": {"N": "3"}}
    assert on.update("a", 4, ReturnValues="ALL_NEW")["Attributes"] == item("a", v=4, w=0)
    assert on.update("a", 5).keys() == {"ResponseMetadata"}
    gone = on.client.delete_item(TableName=on.table, Key=key("a"), ReturnValues="ALL_OLD")
    assert gone["Attributes"] == item("a", v=5, w=0)
    assert on.cluster.asked == ["PutItem"] * 2 + ["UpdateItem"] * 3 + ["DeleteItem"]
    assert not on.requests()
    assert on.desk.get_raw("a") is None


def test_what_was_written_through_the_cluster_is_served_without_asking(
    clustered: Clustered,
) -> None:
    on = clustered()
    on.put("a", v=1)
    on.update("b", 2)
    on.cluster.asked.clear()
    assert on.get("a")["Item"] == item("a", v=1)
    assert on.get("b")["Item"] == item("b", v=2)
    assert on.cluster.asked == []
    assert not on.requests()


def test_batches_and_transactions_go_through_the_cluster(clustered: Clustered) -> None:
    on = clustered()
    puts = [{"PutRequest": {"Item": item("a", sk=n, v=n)}} for n in range(1, 4)]
    asked = {on.table: [*puts, {"DeleteRequest": {"Key": key("z")}}]}
    assert on.client.batch_write_item(RequestItems=asked)["UnprocessedItems"] == {}
    assert asked[on.table][0] == {"PutRequest": {"Item": item("a", sk=1, v=1)}}  # untouched
    on.client.transact_write_items(
        TransactItems=[
            {"Put": {"TableName": on.table, "Item": item("b", v=1)}},
            {"Delete": {"TableName": on.table, "Key": key("a", 3)}},
        ]
    )
    gets = [{"Get": {"TableName": on.table, "Key": key("b", sk)}} for sk in (1, 2)]
    assert on.client.transact_get_items(TransactItems=gets)["Responses"] == [
        {"Item": item("b", v=1)},
        {},
    ]
    on.dax.flush()
    keys = [key("a", 1), key("a", 2), key("a", 3), key("b")]
    got = on.client.batch_get_item(RequestItems={on.table: {"Keys": keys}})
    found = sorted(got["Responses"][on.table], key=repr)
    assert found == [item("a", 1, v=1), item("a", 2, v=2), item("b", v=1)]
    assert got["UnprocessedKeys"] == {}
    assert on.cluster.asked == [
        "BatchWriteItem",
        "TransactWriteItems",
        "TransactGetItems",
        "BatchGetItem",
    ]
    assert not on.requests()


def test_pages_go_to_the_cluster_where_no_write_is_to_drop_them(clustered: Clustered) -> None:
    on = clustered(preset="dax")
    for n in range(1, 6):
        on.desk.put_raw("p", sk=n, v=n, g="g")
    pages = on.client.get_paginator("query").paginate(
        TableName=on.table,
        KeyConditionExpression="#p = :p AND sk BETWEEN :a AND :b",
        FilterExpression="v <> :c OR attribute_not_exists(v)",
        ExpressionAttributeNames={"#p": "pk"},
        ExpressionAttributeValues={
            ":p": {"S": "p"},
            ":a": {"N": "1"},
            ":b": {"N": "4"},
            ":c": {"N": "2"},
        },
        PaginationConfig={"PageSize": 2},
    )
    found = [(each["Count"], [i["v"]["N"] for i in each["Items"]]) for each in pages]
    assert found[:2] == [(1, ["1"]), (2, ["3", "4"])]
    assert on.by_index("g")["Count"] == 5
    assert on.scan()["Count"] == 5
    assert set(on.cluster.asked) == {"Query", "Scan"}
    assert not on.requests()


def test_pages_that_writes_are_to_drop_come_from_dynamodb(clustered: Clustered) -> None:
    on = clustered(preset="coherent", tables={"other": {"query_invalidation": "none"}})
    on.put("p", v=1)
    assert on.query("p")["Count"] == on.scan()["Count"] == 1
    assert on.cluster.asked == ["PutItem"]
    assert on.requests() == ["Query", "Scan"]


def test_some_attributes_only(clustered: Clustered) -> None:
    on = clustered(item_ttl=0)
    inner = {"M": {"x": {"L": [{"N": "1"}, {"N": "2"}]}, "y": {"S": "z"}}}
    on.desk.put_raw("a", v=1, w=2, m=inner)
    found = on.get("a", ProjectionExpression="w, missing, m.x[1]")
    assert found["Item"] == {"w": {"N": "2"}, "m": {"M": {"x": {"L": [{"N": "2"}]}}}}
    assert on.cluster.asked == ["GetItem"]


def test_refusals_are_the_clients_own_exceptions(clustered: Clustered) -> None:
    on = clustered()
    on.put("a", v=1)
    with pytest.raises(on.client.exceptions.ConditionalCheckFailedException) as refused:
        on.client.put_item(
            TableName=on.table, Item=item("a", v=2), ConditionExpression="attribute_not_exists(pk)"
        )
    told = refused.value.response
    assert told["Error"]["Code"] == "ConditionalCheckFailedException"
    assert told["Error"]["Message"]
    assert told["ResponseMetadata"]["HTTPStatusCode"] == 400
    on.cluster.fail = ["ResourceNotFoundException", "ValidationException"]
    with pytest.raises(on.client.exceptions.ResourceNotFoundException):
        on.get("b")
    with pytest.raises(on.client.exceptions.ClientError, match="ValidationException"):
        on.update("a", 3)
    assert on.cluster.asked == ["PutItem", "PutItem", "GetItem", "UpdateItem"]
    assert not on.requests()
    assert on.dax.stats()["unknown_outcomes"] == 0


def test_a_cancelled_transaction_tells_its_reasons(clustered: Clustered) -> None:
    on = clustered()
    on.desk.put_raw("b", v=1)
    new = {"ConditionExpression": "attribute_not_exists(pk)"}
    with pytest.raises(on.client.exceptions.TransactionCanceledException) as cancelled:
        on.client.transact_write_items(
            TransactItems=[
                {"Put": {"TableName": on.table, "Item": item("a", v=2)}},
                {"Put": {"TableName": on.table, "Item": item("b", v=2), **new}},
            ]
        )
    reasons = cancelled.value.response["CancellationReasons"]
    assert [each["Code"] for each in reasons] == ["None", "ConditionalCheckFailed"]
    assert on.cluster.asked == ["TransactWriteItems"]
    assert on.dax.stats()["unknown_outcomes"] == 0


def test_what_is_throttled_is_tried_again_and_kept(clustered: Clustered) -> None:
    on = clustered()
    on.cluster.fail = ["ProvisionedThroughputExceededException"]
    assert on.put("a", v=1)["ResponseMetadata"]["RetryAttempts"] == 1
    assert on.get("a")["Item"] == item("a", v=1)
    assert on.cluster.asked == ["PutItem", "PutItem"]
    on.cluster.fail = ["ProvisionedThroughputExceededException"] * 3
    with pytest.raises(on.client.exceptions.ProvisionedThroughputExceededException):
        on.put("a", v=2)
    assert on.dax.stats()["unknown_outcomes"] == 0


def test_parameters_that_nobody_takes_fail_as_they_do_without_a_cluster(
    clustered: Clustered,
) -> None:
    on = clustered()
    with pytest.raises(ParamValidationError, match="Key"):
        on.client.get_item(TableName=on.table, Key=1)
    with pytest.raises(on.client.exceptions.ClientError, match="ValidationException"):
        on.update("a", 1, ConditionExpression="this is none")
    assert on.cluster.asked == []


def test_what_the_clusters_client_would_make_right_is_refused_all_the_same(
    clustered: Clustered,
) -> None:
    on = clustered()
    for wrong in (
        {"AttributesToGet": ["v"], "ProjectionExpression": "v"},
        {"Key": {**key("a"), "too": {"S": "much"}}},
    ):
        with pytest.raises(on.client.exceptions.ClientError, match="ValidationException"):
            on.client.get_item(**{"TableName": on.table, "Key": key("a"), **wrong})
    assert on.cluster.asked == []


def test_what_the_clusters_client_would_drop_goes_to_dynamodb(clustered: Clustered) -> None:
    on = clustered()
    on.get("a")
    on.cluster.asked.clear()
    on.put("a", v=1)
    on.get("b")
    on.client.put_item(
        TableName=on.table, Item=item("a", v=2), ReturnValuesOnConditionCheckFailure="ALL_OLD"
    )
    assert on.cluster.asked == ["PutItem", "GetItem"]
    assert on.requests() == ["PutItem"]
    # The cluster has not learned of it.
    on.dax.flush()
    assert on.get("a")["Item"] == item("a", v=2)
    assert on.requests() == ["GetItem"]


@pytest.mark.server
@pytest.mark.parametrize("any_server", ["ministack"], indirect=True)
def test_statements_that_write_are_nothing_the_cluster_knows(any_desk: Desk) -> None:
    any_desk.put_raw("a", v=1)
    with Clustered(any_desk) as make:
        on = make(item_ttl=0)
        assert on.get("a")["Item"] == item("a", v=1)  # now the cluster keeps it
        on.client.execute_statement(
            Statement=f"UPDATE \"{on.table}\" SET v = 2 WHERE pk = 'a' AND sk = 1"
        )
        assert on.get("a")["Item"]["v"] == {"N": "2"}
        assert on.cluster.asked == ["GetItem"]


def test_a_table_of_a_resource_gives_and_takes_its_own_types(desk: Desk) -> None:
    import boto3
    from boto3.dynamodb.conditions import Attr, Key

    import cachekit.dax

    cluster = Cluster(desk)
    session = desk.session()
    with cluster, cachekit.dax.install(session, preset="dax", endpoint=cluster.options) as dax:
        assert isinstance(session, boto3.Session)
        table = session.resource("dynamodb", endpoint_url=desk.server.endpoint).Table(desk.name)
        table.put_item(
            Item={"pk": "a", "sk": 1, "v": Decimal("1.5"), "s": {"x"}},
            ConditionExpression=Attr("pk").not_exists(),
        )
        dax.flush()
        wanted = {"pk": "a", "sk": Decimal(1), "v": Decimal("1.5"), "s": {"x"}}
        assert table.get_item(Key={"pk": "a", "sk": 1})["Item"] == wanted
        found = table.query(KeyConditionExpression=Key("pk").eq("a") & Key("sk").gt(0))
        assert found["Items"] == [wanted]
        dax.flush()
        cluster.server.spoil = "lose"  # now DynamoDB is asked, with the same parameters
        assert table.get_item(Key={"pk": "a", "sk": 1})["Item"] == wanted
        with table.batch_writer() as batch:
            batch.put_item(Item={"pk": "b", "sk": 1})
        assert cluster.server.asked == [
            "PutItem",
            "GetItem",
            "Query",
            "GetItem",
            "BatchWriteItem",
        ]


def test_asked_for_capacity_it_tells_it(clustered: Clustered) -> None:
    on = clustered()
    on.desk.put_raw("a", v=1)
    used: Any = on.get("a", ReturnConsumedCapacity="TOTAL")["ConsumedCapacity"]
    assert used == {"TableName": on.table, "CapacityUnits": 1.0}
    assert type(used["CapacityUnits"]) is float


@pytest.mark.parametrize(
    "given",
    ["https://x", "dax://", "dax://host/path", {"url": "dax://h", "speed": 1}, {"timeout": 1},
     {"url": "dax://h", "timeout": 0}],
)  # fmt: skip
def test_an_endpoint_that_can_not_be_is_refused(desk: Desk, given: Any) -> None:
    import cachekit.dax

    with pytest.raises(ConfigurationError, match="endpoint"):
        cachekit.dax.install(desk.client(), endpoint=given)
