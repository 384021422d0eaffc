"""What each write leaves in the cache, and what one of uncertain outcome does."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError
from dax_desk import Desk, item, key, response
from dax_stand import Make, Stand, served

PRESETS = ("coherent", "dax")
presets = pytest.mark.parametrize("preset", PRESETS)


# -- one item ------------------------------------------------------------------------------


@presets
def test_a_put_is_kept_as_dynamodb_stores_it(stand: Make, preset: str) -> None:
    on = stand(preset=preset)
    sent = {
        "n": {"N": "1.50"}, "big": {"N": "1E+2"}, "zero": {"N": "-0"}, "b": {"B": b"\x00"},
        "ns": {"NS": ["2.0", "1"]}, "m": {"M": {"l": {"L": [{"N": "0.10"}, {"BS": [b"x"]}]}}},
    }  # fmt: skip
    on.put("a", **sent)
    kept = served(on, "a")
    assert kept == item(
        "a", n={"N": "1.5"}, big={"N": "100"}, zero={"N": "0"}, b={"B": b"\x00"},
        ns={"NS": ["2", "1"]}, m={"M": {"l": {"L": [{"N": "0.1"}, {"BS": [b"x"]}]}}},
    )  # fmt: skip


def test_a_put_whose_stored_form_is_not_certain_is_not_kept(stand: Make, desk: Desk) -> None:
    on = stand()
    on.put("a", v=1)
    on.put("a", v={"N": "1E+60"})
    assert served(on, "a") is None


def test_a_put_that_a_handler_changed_on_its_way_is_not_kept(stand: Make) -> None:
    on = stand()

    def add(params: dict[str, Any], **_: Any) -> None:
        params["Item"] = {**params["Item"], "added": {"S": "by a handler"}}

    on.client.meta.events.register("before-parameter-build.dynamodb.PutItem", add)
    on.put("a", v=1)
    answer, sent = on.asks(lambda: on.get("a"))
    assert sent == ["GetItem"]
    assert answer["Item"]["added"] == {"S": "by a handler"}


def test_an_update_asks_for_the_new_item_and_does_not_show_it(stand: Make) -> None:
    on = stand()
    on.put("a", v=1, w=2)
    answer = on.update("a", 5)
    assert "Attributes" not in answer
    assert on.wire.bodies[-1]["ReturnValues"] == "ALL_NEW"
    assert served(on, "a") == item("a", v=5, w=2)


@pytest.mark.parametrize("wanted", ["NONE", "UPDATED_NEW", "ALL_OLD", "UPDATED_OLD"])
def test_an_update_that_gives_no_whole_item_evicts(stand: Make, wanted: str) -> None:
    on = stand(preset="dax")
    on.put("a", v=1)
    answer = on.update("a", 5, ReturnValues=wanted)
    assert on.wire.bodies[-1]["ReturnValues"] == wanted
    assert ("Attributes" in answer) == (wanted != "NONE")
    assert served(on, "a") is None
    assert served(on, "a") == item("a", v=5)


@presets
def test_an_update_whose_caller_asks_for_the_new_item_keeps_it(stand: Make, preset: str) -> None:
    on = stand(preset=preset)
    answer = on.update("a", 5, ReturnValues="ALL_NEW")
    assert answer["Attributes"] == item("a", v=5)
    assert served(on, "a") == item("a", v=5)


def test_a_caller_that_may_not_read_what_it_updates_still_updates(stand: Make, desk: Desk) -> None:
    on = stand()

    def denied(operation: str, body: dict[str, Any]) -> Any:
        if operation != "UpdateItem" or body.get("ReturnValues", "NONE") == "NONE":
            return None
        return response(400, {"__type": "x#AccessDeniedException", "message": "no"})

    on.wire.rule(denied)
    on.update("a", 5)
    assert desk.get_raw("a") == item("a", v=5)
    on.wire.clear()
    on.update("a", 6)
    assert on.requests() == ["UpdateItem"], "it is not tried again"


@presets
def test_a_deleted_item_is_known_to_be_missing(stand: Make, preset: str) -> None:
    on = stand(preset=preset)
    on.put("a", v=1)
    on.client.delete_item(TableName=on.table, Key=key("a"))
    assert served(on, "a") == "missing"


@presets
def test_a_conditional_failure_evicts(stand: Make, desk: Desk, preset: str) -> None:
    on = stand(preset=preset)
    on.put("a", v=1)
    desk.put_raw("a", v=2)
    with pytest.raises(ClientError, match="ConditionalCheckFailed"):
        on.client.put_item(
            TableName=on.table, Item=item("a", v=3), ConditionExpression="attribute_not_exists(pk)"
        )
    assert on.get("a")["Item"] == item("a", v=2)


# -- several items -------------------------------------------------------------------------


@pytest.mark.server
def test_a_batch_keeps_what_was_processed(any_desk: Desk) -> None:
    on = Stand(any_desk, settle=0)
    with on.dax:
        on.put("gone", v=1)
        on.put("left", v=1)
        puts = [{"PutRequest": {"Item": item(pk, v=2)}} for pk in ("new", "left")]
        requests = {on.table: [*puts, {"DeleteRequest": {"Key": key("gone")}}]}
        on.client.batch_write_item(RequestItems=requests)
        assert served(on, "new") == served(on, "new") == item("new", v=2)
        assert served(on, "left") == item("left", v=2)
        assert served(on, "gone") == "missing"


def test_what_a_batch_did_not_process_stays_evicted(stand: Make, desk: Desk) -> None:
    on = stand()
    on.put("a", v=1)
    on.put("b", v=1)
    unprocessed = [{"PutRequest": {"Item": item("a", v=2)}}]

    def partly(operation: str, body: dict[str, Any]) -> Any:
        if operation == "BatchWriteItem":
            return response(200, {"UnprocessedItems": {on.table: unprocessed}})
        return None

    undo = on.wire.rule(partly)
    requests = [*unprocessed, {"PutRequest": {"Item": item("b", v=2)}}]
    on.client.batch_write_item(RequestItems={on.table: requests})
    undo()
    assert served(on, "b") == item("b", v=2)
    assert served(on, "a") is None
    assert served(on, "a") == item("a", v=1)


def _transact(on: Stand, **more: Any) -> Any:
    return on.client.transact_write_items(
        TransactItems=[
            {"Put": {"TableName": on.table, "Item": item("put", v=2)}},
            {"Delete": {"TableName": on.table, "Key": key("deleted")}},
            {
                "Update": {
                    "TableName": on.table,
                    "Key": key("updated"),
                    "UpdateExpression": "SET v = :v",
                    "ExpressionAttributeValues": {":v": {"N": "2"}},
                }
            },
        ],
        **more,
    )


@presets
def test_a_transaction_keeps_puts_and_deletes_and_evicts_updates(stand: Make, preset: str) -> None:
    on = stand(preset=preset)
    for pk in ("deleted", "updated"):
        on.put(pk, v=1)
    _transact(on)
    assert served(on, "put") == item("put", v=2)
    assert served(on, "deleted") == "missing"
    assert served(on, "updated") is None


def test_a_transaction_under_a_token_of_the_caller_keeps_nothing(stand: Make) -> None:
    on = stand()
    _transact(on, ClientRequestToken="a" * 36)
    assert served(on, "put") is None
    assert served(on, "deleted") is None


def test_a_cancelled_transaction_evicts(stand: Make, desk: Desk) -> None:
    on = stand()
    on.put("a", v=1)
    desk.put_raw("a", v=2)
    with pytest.raises(ClientError, match="TransactionCanceled"):
        on.client.transact_write_items(
            TransactItems=[
                {
                    "Put": {
                        "TableName": on.table,
                        "Item": item("a", v=3),
                        "ConditionExpression": "attribute_not_exists(pk)",
                    }
                }
            ]
        )
    assert on.get("a")["Item"] == item("a", v=2)


@pytest.mark.server
@pytest.mark.parametrize("any_server", ["ministack"], indirect=True)
def test_a_partiql_write_empties_the_cache_and_a_select_does_not(any_desk: Desk) -> None:
    on = Stand(any_desk, settle=0, preset="dax")
    on.put("a", v=1)
    on.query("a")
    select = f"SELECT * FROM \"{on.table}\" WHERE pk = 'a' AND sk = 1"
    on.client.execute_statement(Statement=select)
    assert served(on, "a") == item("a", v=1)
    update = f"UPDATE \"{on.table}\" SET v = 2 WHERE pk = 'a' AND sk = 1"
    on.client.execute_statement(Statement=update)
    assert on.get("a")["Item"]["v"] == {"N": "2"}
    assert on.query("a")["Items"][0]["v"] == {"N": "2"}
    on.dax.uninstall()


@presets
def test_a_table_that_is_made_anew_is_empty(stand: Make, desk: Desk, preset: str) -> None:
    on = stand(preset=preset)
    on.put("a", v=1)
    on.query("a")
    on.client.delete_table(TableName=on.table)
    with pytest.raises(ClientError, match="ResourceNotFound"):
        on.get("a")
    desk.make(on.table)
    assert "Item" not in on.get("a")
    assert on.query("a")["Count"] == 0


# -- outcomes that are not certain ---------------------------------------------------------


@presets
def test_a_lost_reply_is_followed_by_no_hit_until_the_write_can_not_land_any_more(
    stand: Make, desk: Desk, preset: str
) -> None:
    on = stand(preset=preset, quarantine=60)
    on.put("a", v=1)
    on.wire.lose("PutItem", land=None)
    with pytest.raises(ConnectionClosedError):
        on.put("a", v=2)
    assert on.get("a")["Item"] == item("a", v=1)
    desk.put_raw("a", v=2)  # the packet arrives after all
    assert on.get("a")["Item"] == item("a", v=2)
    assert served(on, "a") is None
    assert on.dax.stats()["unknown_outcomes"] == 1
    assert served(on, "b") is None
    assert served(on, "b") == "missing", "other keys are served"


def test_the_quarantine_ends(stand: Make) -> None:
    on = stand(quarantine=0)
    on.wire.lose("PutItem", land=None)
    with pytest.raises(ConnectionClosedError):
        on.put("a", v=2)
    on.get("a")
    assert served(on, "a") == "missing"


@pytest.mark.parametrize(("code", "status", "certain"), [
    ("ProvisionedThroughputExceededException", 400, True),
    ("ThrottlingException", 400, True),
    ("InternalServerError", 500, False),
    ("ServiceUnavailable", 503, False),
    ("SomethingNewException", 400, False),
])  # fmt: skip
def test_an_error_that_does_not_say_nothing_was_written_quarantines(
    stand: Make, code: str, status: int, certain: bool
) -> None:
    on = stand()
    on.put("a", v=1)
    on.wire.refuse("PutItem", code, status)
    with pytest.raises(ClientError):
        on.put("a", v=2)
    on.get("a")
    assert (served(on, "a") is not None) == certain


def test_a_write_that_was_sent_twice_is_not_kept(desk: Desk) -> None:
    on = Stand(desk, settle=0, retries=2)
    with on.dax:
        on.wire.lose("UpdateItem", land=lambda _: desk.put_raw("a", v=5))
        on.update("a", 5)
        assert on.wire.sent.count("UpdateItem") == 2
        assert served(on, "a") is None
        assert served(on, "a") is None, "the first attempt may still land"


def test_a_write_that_was_only_throttled_before_is_kept(desk: Desk) -> None:
    on = Stand(desk, settle=0, retries=3)
    with on.dax:
        on.wire.refuse("PutItem", "ThrottlingException", times=1)
        on.put("a", v=1)
        assert on.wire.sent.count("PutItem") == 2
        assert served(on, "a") == item("a", v=1)


def test_a_write_that_was_never_sent_quarantines_nothing(stand: Make) -> None:
    on = stand()
    on.put("a", v=1)
    with pytest.raises(Exception, match="validation"):
        on.client.put_item(TableName=on.table, Item={**key("a"), "v": 1})

    def fails(**_: Any) -> None:
        raise ValueError("a handler of the application")

    events = on.client.meta.events
    events.register("before-parameter-build.dynamodb.PutItem", fails)
    with pytest.raises(ValueError, match="of the application"):
        on.put("a", v=2)
    assert on.dax.stats()["unknown_outcomes"] == 0
    on.get("a")
    assert served(on, "a") == item("a", v=1)
