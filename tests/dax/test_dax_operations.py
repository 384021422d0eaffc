"""The operation table of ``docs/dax.md``, row by row, over real servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError
from dax_desk import Desk, is_hit, item, key, response
from dax_stand import Make, Stand

PRESETS = ("coherent", "dax")


presets = pytest.mark.parametrize("preset", PRESETS)


# -- GetItem -------------------------------------------------------------------------------


@pytest.mark.server
@presets
def test_an_item_is_asked_for_once_on_every_server(any_desk: Desk, preset: str) -> None:
    any_desk.put_raw("a", v=1, b={"B": b"\x00\xff"}, m={"M": {"l": {"L": [{"NULL": True}]}}})
    on = Stand(any_desk, preset=preset)
    with on.dax:
        first = on.get("a")
        again, sent = on.asks(lambda: on.get("a"))
        assert sent == []
        assert again["Item"] == first["Item"] == any_desk.get_raw("a")
        assert is_hit(again)
        assert not is_hit(first)
        assert set(again["ResponseMetadata"]) >= {
            "RequestId", "HTTPStatusCode", "HTTPHeaders", "RetryAttempts",
        }  # fmt: skip
        on.put("a", v=2)
        assert on.get("a")["Item"]["v"] == {"N": "2"}
        assert on.query("a")["Count"] == 1


@presets
def test_a_missing_item_is_known_to_be_missing(stand: Make, preset: str) -> None:
    on = stand(preset=preset)
    assert "Item" not in on.get("nobody")
    answer, sent = on.asks(lambda: on.get("nobody"))
    assert sent == []
    assert set(answer) == {"ResponseMetadata"}


def test_numbers_that_are_equal_are_one_key(stand: Make) -> None:
    on = stand()
    on.put("a", 1)
    on.requests()
    for number in ("1", "1.0", "1E0", "01"):
        answer = on.client.get_item(TableName=on.table, Key={"sk": {"N": number}, "pk": {"S": "a"}})
        assert answer["Item"]["sk"] == {"N": "1"}
    assert on.requests() == []


@presets
def test_a_strong_read_is_not_answered_by_the_cache(stand: Make, desk: Desk, preset: str) -> None:
    on = stand(preset=preset)
    on.put("a", v=1)
    desk.put_raw("a", v=2)
    strong, sent = on.asks(lambda: on.get("a", ConsistentRead=True))
    assert sent == ["GetItem"]
    assert strong["Item"]["v"] == {"N": "2"}
    seen = {"coherent": "2", "dax": "1"}[preset]
    assert on.get("a")["Item"]["v"] == {"N": seen}


def test_a_projection_is_taken_from_the_whole_item_once_dynamodb_accepted_it(stand: Make) -> None:
    on = stand()
    on.put("a", v=1, w=2)
    ask = {"ProjectionExpression": "v"}
    first, sent = on.asks(lambda: on.get("a", **ask))
    assert sent == ["GetItem"]
    again, sent = on.asks(lambda: on.get("a", **ask))
    assert sent == []
    assert again["Item"] == first["Item"] == {"v": {"N": "1"}}


def test_a_part_of_an_item_is_never_kept_as_the_item(stand: Make, desk: Desk) -> None:
    on = stand()
    desk.put_raw("a", v=1, w=2)
    on.get("a", ProjectionExpression="v")
    on.get("a", AttributesToGet=["v"])
    assert on.get("a")["Item"] == item("a", v=1, w=2)


def test_a_wrong_projection_meets_the_error_of_dynamodb_however_warm_the_cache(
    stand: Make,
) -> None:
    on = stand()
    on.put("a", v=1)
    for _ in range(2):
        with pytest.raises(ClientError, match="reserved keyword"):
            on.get("a", ProjectionExpression="name")


@presets
def test_wrong_parameters_meet_the_errors_that_there_would_be_without_a_cache(
    stand: Make, desk: Desk, preset: str
) -> None:
    on = stand(preset=preset)
    on.put("a", v=1)
    wrong: list[Any] = [
        {"Key": {"pk": {"S": "a"}}},
        {"Key": {"pk": {"S": "a"}, "sk": {"S": "1"}}},
        {"Key": {"pk": {"S": "a"}, "sk": {"N": "x"}}},
        {"Key": {"pk": "a", "sk": 1}},
        {"Key": key("a"), "ConsistentRead": "yes"},
        {"Key": key("a"), "Nothing": 1},
        {"Key": None},
        {},
    ]
    errors = []
    for params in wrong:
        bare = _error(lambda p=params: desk.raw.get_item(TableName=on.table, **p))
        assert _error(lambda p=params: on.client.get_item(TableName=on.table, **p)) is bare
        errors.append(bare)
    assert len([error for error in errors if error is not None]) >= 6
    assert on.dax.stats()["faults"] == 0


@presets
def test_capacity_is_told_when_it_is_asked_for(stand: Make, preset: str) -> None:
    on = stand(preset=preset)
    on.put("a")
    on.query("a")
    hit = on.get("a", ReturnConsumedCapacity="TOTAL")
    assert is_hit(hit)
    assert hit["ConsumedCapacity"] == {"TableName": on.table, "CapacityUnits": 0.0}
    page = on.query("a", ReturnConsumedCapacity="INDEXES")
    assert is_hit(page)
    assert page["ConsumedCapacity"]["Table"] == {"CapacityUnits": 0.0}
    whole = on.client.batch_get_item(
        RequestItems={on.table: {"Keys": [key("a")]}}, ReturnConsumedCapacity="TOTAL"
    )
    assert is_hit(whole)
    assert whole["ConsumedCapacity"] == [{"TableName": on.table, "CapacityUnits": 0.0}]


def _error(call: Callable[[], Any]) -> type[Exception] | None:
    try:
        call()
    except Exception as error:
        return type(error)
    return None


# -- BatchGetItem --------------------------------------------------------------------------


@pytest.mark.server
def test_known_keys_leave_a_batch_and_the_rest_goes_in_one_call(any_desk: Desk) -> None:
    for pk in "abc":
        any_desk.put_raw(pk, v=1)
    on = Stand(any_desk, settle=0)
    with on.dax:
        on.get("a")
        on.get("nobody")
        ask = {on.table: {"Keys": [key(pk) for pk in ("a", "b", "c", "nobody", "no one")]}}
        answer, sent = on.asks(lambda: on.client.batch_get_item(RequestItems=ask))
        assert sent == ["BatchGetItem"]
        pks = sorted(each["pk"]["S"] for each in answer["Responses"][on.table])
        assert pks == ["a", "b", "c"]
        again, sent = on.asks(lambda: on.client.batch_get_item(RequestItems=ask))
        assert sent == []
        assert sorted(e["pk"]["S"] for e in again["Responses"][on.table]) == pks
        assert again["UnprocessedKeys"] == {}
        assert on.asks(lambda: on.get("no one"))[1] == []
        assert ask[on.table]["Keys"][0] == key("a"), "the caller's request was changed"


def test_only_the_unknown_keys_are_sent(stand: Make) -> None:
    on = stand()
    on.put("a")
    on.wire.clear()
    on.client.batch_get_item(RequestItems={on.table: {"Keys": [key("a"), key("b")]}})
    assert on.wire.bodies[-1]["RequestItems"][on.table]["Keys"] == [key("b")]


def test_what_was_not_processed_is_not_missing(stand: Make, desk: Desk) -> None:
    on = stand()
    desk.put_raw("a")
    left = {on.table: {"Keys": [key("a")]}}

    def unprocessed(operation: str, body: Any) -> Any:
        if operation != "BatchGetItem":
            return None
        return response(200, {"Responses": {on.table: []}, "UnprocessedKeys": left})

    undo = on.wire.rule(unprocessed)
    ask = {on.table: {"Keys": [key("a"), key("gone")]}}
    assert on.client.batch_get_item(RequestItems=ask)["UnprocessedKeys"] == left
    undo()
    assert on.get("a")["Item"] == item("a")
    assert on.asks(lambda: on.get("gone"))[1] == []


def test_duplicates_and_too_many_keys_meet_the_errors_of_dynamodb(stand: Make) -> None:
    on = stand()
    on.put("a")
    for keys in ([key("a"), key("a")], [key("a", n) for n in range(101)]):
        with pytest.raises(ClientError):
            on.client.batch_get_item(RequestItems={on.table: {"Keys": keys}})


def test_a_projected_batch_keeps_nothing(stand: Make, desk: Desk) -> None:
    on = stand()
    desk.put_raw("a", v=1, w=2)
    ask = {on.table: {"Keys": [key("a")], "ProjectionExpression": "v"}}
    on.client.batch_get_item(RequestItems=ask)
    assert on.get("a")["Item"] == item("a", v=1, w=2)


# -- Query and Scan ------------------------------------------------------------------------


@presets
def test_a_page_is_asked_for_once_empty_ones_too(stand: Make, preset: str) -> None:
    on = stand(preset=preset)
    on.put("a", 1)
    on.put("a", 2)
    for ask, count in ((lambda: on.query("a"), 2), (lambda: on.query("none"), 0), (on.scan, 2)):
        first = ask()
        again, sent = on.asks(ask)
        assert sent == []
        assert is_hit(again)
        assert again["Items"] == first["Items"]
        assert again["Count"] == first["Count"] == count


def test_paginators_are_served_page_by_page(stand: Make) -> None:
    on = stand()
    for sk in range(5):
        on.put("a", sk)
    pages = on.client.get_paginator("query")

    def read() -> list[str]:
        found = pages.paginate(
            TableName=on.table,
            KeyConditionExpression="pk = :p",
            ExpressionAttributeValues={":p": {"S": "a"}},
            PaginationConfig={"PageSize": 2},
        )
        return [each["sk"]["N"] for page in found for each in page["Items"]]

    first, sent = on.asks(read)
    assert first == ["0", "1", "2", "3", "4"]
    assert sent == ["Query"] * 3
    assert on.asks(read) == (first, [])


def test_queries_of_other_parameters_are_other_pages(stand: Make) -> None:
    on = stand()
    for sk in range(3):
        on.put("a", sk, v=sk)
    forward = [each["sk"]["N"] for each in on.query("a")["Items"]]
    assert [e["sk"]["N"] for e in on.query("a", ScanIndexForward=False)["Items"]] == forward[::-1]
    assert on.query("a", Limit=1)["Count"] == 1
    assert "Items" not in on.query("a", Select="COUNT")
    assert on.query("a", ProjectionExpression="v")["Items"][0] == {"v": {"N": "0"}}
    assert on.query("a")["Count"] == 3
    assert on.scan(Limit=2)["Count"] == 2
    assert on.scan()["Count"] == 3


def test_names_and_values_behind_one_expression_make_other_pages(stand: Make) -> None:
    on = stand()
    on.put("a", 1, v=1, w=2)

    def count(name: str, value: int) -> Any:
        return on.client.scan(
            TableName=on.table,
            FilterExpression="#n = :v",
            ExpressionAttributeNames={"#n": name},
            ExpressionAttributeValues={":v": {"N": str(value)}},
        )["Count"]

    for _ in range(2):
        assert [count("v", 1), count("w", 1), count("w", 2), count("v", 2)] == [1, 0, 1, 0]
    assert on.dax.stats()["query_hits"] == 4


def test_a_write_drops_the_pages_of_its_partition_and_no_others(stand: Make) -> None:
    on = stand()
    on.put("a", 1, g="x")
    on.put("b", 1, g="x")

    def cold() -> list[bool]:
        return [
            not is_hit(each) for each in (on.query("a"), on.query("b"), on.by_index("x"), on.scan())
        ]

    cold()
    assert cold() == [False] * 4
    for write in (
        lambda: on.put("a", 2, g="x"),
        lambda: on.update("a", 7),
        lambda: on.client.delete_item(TableName=on.table, Key=key("a", 2)),
        lambda: on.client.batch_write_item(
            RequestItems={on.table: [{"PutRequest": {"Item": item("a", 3)}}]}
        ),
        lambda: on.client.transact_write_items(
            TransactItems=[{"Put": {"TableName": on.table, "Item": item("a", 4)}}]
        ),
    ):
        write()
        assert cold() == [True, False, True, True]
    assert on.query("a")["Count"] == 3


def test_a_local_index_belongs_to_its_partition(stand: Make) -> None:
    on = stand()

    def by_local(pk: str) -> Any:
        return on.client.query(
            TableName=on.table,
            IndexName="by_l",
            KeyConditionExpression="pk = :p",
            ExpressionAttributeValues={":p": {"S": pk}},
        )

    on.put("a", 1, l="x")
    by_local("a")
    on.put("b", 1, l="x")
    assert is_hit(by_local("a"))
    on.put("a", 2, l="y")
    assert by_local("a")["Count"] == 2


def test_the_preset_dax_never_drops_a_page_by_a_write(stand: Make) -> None:
    on = stand(preset="dax")
    on.put("a", 1)
    assert on.query("a")["Count"] == 1
    on.put("a", 2)
    assert on.query("a")["Count"] == 1
    on.dax.flush(on.table)
    assert on.query("a")["Count"] == 2


def test_table_wide_invalidation_drops_every_page(stand: Make) -> None:
    on = stand(query_invalidation="table")
    on.put("a", 1)
    on.query("a")
    on.put("b", 1)
    assert not is_hit(on.query("a"))


def test_the_old_condition_parameters_are_understood(stand: Make) -> None:
    on = stand()

    def query() -> Any:
        return on.client.query(
            TableName=on.table,
            KeyConditions={
                "pk": {"AttributeValueList": [{"S": "a"}], "ComparisonOperator": "EQ"},
            },
        )

    on.put("a", 1)
    query()
    on.put("b", 1)
    assert is_hit(query())
    on.put("a", 2)
    assert query()["Count"] == 2


# -- tables that are not cached ------------------------------------------------------------


def test_a_table_can_be_left_out(stand: Make, desk: Desk) -> None:
    on = stand(tables={desk.name: None})
    on.put("a", v=1)
    assert on.asks(lambda: on.get("a"))[1] == ["GetItem"]
    assert on.asks(lambda: on.query("a"))[1] == ["Query"]
    assert on.dax.stats()["items"] == 0


def test_a_table_has_ttls_of_its_own(stand: Make, desk: Desk) -> None:
    on = stand(tables={desk.name: {"item_ttl": 0, "negative_ttl": 0}})
    on.put("a", v=1)
    assert on.asks(lambda: on.get("a"))[1] == ["GetItem"]
    assert on.asks(lambda: on.get("a"))[1] == ["GetItem"]
    on.query("a")
    assert is_hit(on.query("a"))
