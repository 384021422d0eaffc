"""``cachekit.dax`` as an installation: where it goes, its switches, threads, faults of its own."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import boto3
import botocore.session
import pytest
from boto3.dynamodb.conditions import Attr, Key
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError
from botocore.stub import Stubber
from dax_desk import Desk, Wire, is_hit, item, key
from dax_stand import Make, Stand

import cachekit.dax
from cachekit.dax import Dax
from cachekit.errors import ConfigurationError

# -- where it goes -------------------------------------------------------------------------


def test_a_session_gives_clients_and_tables_that_share_one_cache(desk: Desk) -> None:
    session = desk.session()
    before = session.client("dynamodb", endpoint_url=desk.server.endpoint)
    with cachekit.dax.install(session) as dax:
        client = session.client("dynamodb", endpoint_url=desk.server.endpoint)
        table = session.resource("dynamodb", endpoint_url=desk.server.endpoint).Table(desk.name)
        table.put_item(Item={"pk": "a", "sk": 1, "v": Decimal("1.50"), "s": {"x"}})
        hit = client.get_item(TableName=desk.name, Key=key("a"))
        assert is_hit(hit)
        assert hit["Item"] == item("a", v={"N": "1.5"}, s={"SS": ["x"]})
        plain = table.get_item(Key={"pk": "a", "sk": Decimal("1.0")})
        assert is_hit(plain)
        assert plain["Item"] == {"pk": "a", "sk": 1, "v": Decimal("1.5"), "s": {"x"}}
        assert not is_hit(before.get_item(TableName=desk.name, Key=key("a")))
        assert dax.stats()["tables"][desk.name]["item_hits"] == 2
    assert not is_hit(client.get_item(TableName=desk.name, Key=key("a")))
    assert not is_hit(table.get_item(Key={"pk": "a", "sk": 1}))
    again = session.client("dynamodb", endpoint_url=desk.server.endpoint)
    assert not getattr(type(again), "_cachekit_dax", False)


def test_a_botocore_session_and_other_services_go_on(desk: Desk) -> None:
    session = botocore.session.get_session()
    session.set_credentials("test", "test")
    with cachekit.dax.install(session):
        client = session.create_client("dynamodb", "us-east-1", endpoint_url=desk.server.endpoint)
        client.put_item(TableName=desk.name, Item=item("a"))
        assert is_hit(client.get_item(TableName=desk.name, Key=key("a")))
        other = session.create_client("sqs", "us-east-1")
        assert not hasattr(type(other), "_cachekit_dax")


@pytest.mark.parametrize("what", ["resource", "table"])
def test_a_resource_or_table_that_exists_is_taken_over(desk: Desk, what: str) -> None:
    resource = desk.session().resource("dynamodb", endpoint_url=desk.server.endpoint)
    table = resource.Table(desk.name)
    kind = type(table)
    with cachekit.dax.install(resource if what == "resource" else table):
        if what == "resource":
            table = resource.Table(desk.name)
        with table.batch_writer() as batch:
            for sk in range(30):
                batch.put_item(Item={"pk": "a", "sk": sk})
        assert is_hit(table.get_item(Key={"pk": "a", "sk": 29}))
        found = table.query(KeyConditionExpression=Key("pk").eq("a") & Key("sk").lt(3))
        again = table.query(KeyConditionExpression=Key("pk").eq("a") & Key("sk").lt(3))
        assert is_hit(again)
        assert again["Items"] == found["Items"]
        wider = table.query(KeyConditionExpression=Key("pk").eq("a") & Key("sk").lt(4))
        assert wider["Count"] == 4
        assert table.scan(FilterExpression=Attr("sk").gt(27))["Count"] == 2
        answer = table.update_item(
            Key={"pk": "a", "sk": 1},
            UpdateExpression="SET v = :v",
            ExpressionAttributeValues={":v": Decimal("2.50")},
        )
        assert "Attributes" not in answer
        assert is_hit(table.get_item(Key={"pk": "a", "sk": 1}))
        assert table.get_item(Key={"pk": "a", "sk": 1})["Item"]["v"] == Decimal("2.5")
        assert table.table_status == "ACTIVE"
    if what == "table":
        assert type(table) is kind
    assert not is_hit(table.get_item(Key={"pk": "a", "sk": 1}))


def test_a_client_keeps_its_kind_exceptions_and_waiters(stand: Make) -> None:
    on = stand()
    assert type(on.client).__name__ == "DynamoDB"
    on.client.get_waiter("table_exists").wait(TableName=on.table)
    with pytest.raises(on.client.exceptions.ResourceNotFoundException):
        on.client.get_item(TableName="nothing", Key=key("a"))
    with pytest.raises(TypeError, match="keyword"):
        on.client.get_item(on.table)
    on.dax.uninstall()
    on.dax.uninstall()
    assert not hasattr(type(on.client), "_cachekit_dax")


def test_a_second_installation_on_a_client_is_refused(stand: Make) -> None:
    on = stand()
    with pytest.raises(ConfigurationError, match="uninstall"):
        cachekit.dax.install(on.client)


@pytest.mark.parametrize("wrong", [None, 7, object(), boto3])
def test_what_it_can_not_be_put_in_front_of_is_named(wrong: Any) -> None:
    with pytest.raises(TypeError, match="expected a boto3"):
        cachekit.dax.install(wrong)
    with pytest.raises(ConfigurationError, match="no DynamoDB"):
        cachekit.dax.install(boto3.Session().client("sqs", "us-east-1"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"preset": "x"}, ConfigurationError),
        ({"itemttl": 1}, ConfigurationError),
        ({"tables": {"t": {"ttl": 1}}}, ConfigurationError),
        ({"query_invalidation": "all"}, ConfigurationError),
        ({"item_ttl": -1}, ValueError),
        ({"max_bytes": "much"}, ValueError),
        ({"max_bytes": 0}, ValueError),
        ({"read_strongly": 1}, TypeError),
    ],
)
def test_a_wrong_option_is_refused_and_named(options: Any, error: type[Exception]) -> None:
    name = next(iter(options))
    with pytest.raises(error, match=name if name != "itemttl" else "item_ttl"):
        cachekit.dax.install(boto3.Session(), **options)


def test_a_botocore_whose_methods_go_another_way_is_served_by_its_events(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.client import BaseClient, ClientCreator

    def other(self: Any, name: str, operation: str, model: Any) -> Any:
        return lambda client, **params: client._another_way(operation, params)

    session = desk.session()
    monkeypatch.setattr(BaseClient, "_another_way", BaseClient._make_api_call, raising=False)
    monkeypatch.setattr(ClientCreator, "_create_api_method", other)
    with cachekit.dax.install(session, settle=0) as dax:
        once = Config(retries={"total_max_attempts": 1})
        client = session.client("dynamodb", endpoint_url=desk.server.endpoint, config=once)
        assert dax.stats()["by_events"] == 1
        wire = Wire(client)
        by_events(client, desk, wire, dax)
    assert not is_hit(client.get_item(TableName=desk.name, Key=key("a")))


def by_events(client: Any, desk: Desk, wire: Wire, dax: Dax) -> None:
    name = desk.name

    def served(pk: str) -> Any:
        wire.clear()
        answer = client.get_item(TableName=name, Key=key(pk))
        return None if wire.sent else answer.get("Item", "missing")

    assert served("a") is None
    assert served("a") == "missing"
    blob = {"B": b"\x00\xff"}
    client.put_item(TableName=name, Item=item("a", v={"N": "1.50"}, b=blob))
    assert served("a") == item("a", v={"N": "1.5"}, b=blob)
    client.update_item(
        TableName=name, Key=key("a"), UpdateExpression="SET v = :v",
        ExpressionAttributeValues={":v": {"N": "2"}},
    )  # fmt: skip
    assert served("a") is None
    assert served("a") == item("a", v=2, b=blob)
    ask = {
        "TableName": name, "KeyConditionExpression": "pk = :p",
        "ExpressionAttributeValues": {":p": {"S": "a"}},
    }  # fmt: skip
    page = client.query(**ask)
    assert is_hit(client.query(**ask))
    assert client.query(**ask)["Items"] == page["Items"]
    with dax.bypass():
        assert not is_hit(client.query(**ask))
    wire.lose("PutItem", land=None)
    with pytest.raises(ConnectionClosedError):
        client.put_item(TableName=name, Item=item("b"))
    for _ in range(3):
        assert served("b") is None, "it may still land"
    wire.refuse("GetItem", "InternalServerError", 500)
    with pytest.raises(ClientError):
        client.get_item(TableName=name, Key=key("c"))
    assert served("c") is None
    assert served("c") == "missing"
    keys = {name: {"Keys": [key("a"), key("c")]}}
    assert is_hit(client.batch_get_item(RequestItems=keys))
    with pytest.raises(ClientError, match="ConditionalCheck"):
        client.put_item(
            TableName=name, Item=item("a"), ConditionExpression="attribute_not_exists(pk)"
        )
    assert served("a") is None
    assert served("a") == item("a", v=2, b=blob)
    assert dax.stats()["faults"] == 0


# -- who sees what -------------------------------------------------------------------------


def test_two_installations_share_nothing(desk: Desk) -> None:
    one, other = Stand(desk), Stand(desk)
    with one.dax, other.dax:
        one.put("a")
        assert is_hit(one.get("a"))
        assert not is_hit(other.get("a"))


def test_other_credentials_share_nothing_but_their_writes_are_seen(desk: Desk) -> None:
    session = desk.session()
    with cachekit.dax.install(session, settle=0):
        own = session.client("dynamodb", endpoint_url=desk.server.endpoint)
        other = session.client(
            "dynamodb", endpoint_url=desk.server.endpoint,
            aws_access_key_id="other", aws_secret_access_key="other",
        )  # fmt: skip
        same = session.client("dynamodb", endpoint_url=desk.server.endpoint)
        own.put_item(TableName=desk.name, Item=item("a", v=1))
        assert is_hit(same.get_item(TableName=desk.name, Key=key("a")))
        assert not is_hit(other.get_item(TableName=desk.name, Key=key("a")))
        own.update_item(
            TableName=desk.name, Key=key("a"), UpdateExpression="SET v = :v",
            ExpressionAttributeValues={":v": {"N": "2"}},
        )  # fmt: skip
        assert other.get_item(TableName=desk.name, Key=key("a"))["Item"]["v"] == {"N": "2"}


def test_callers_of_too_many_credentials_are_not_served_but_their_writes_are_seen(
    stand: Make, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachekit.dax.store.MOST_SCOPES", 1)
    session = desk.session()
    with cachekit.dax.install(session, settle=0):
        own, more, many = (
            session.client(
                "dynamodb", endpoint_url=desk.server.endpoint,
                aws_access_key_id=name, aws_secret_access_key=name,
            )
            for name in ("own", "more", "many")
        )  # fmt: skip
        own.put_item(TableName=desk.name, Item=item("a", v=1))
        more.put_item(TableName=desk.name, Item=item("a", v=2))
        for client in (more, many, more):
            assert not is_hit(client.get_item(TableName=desk.name, Key=key("a")))
        assert own.get_item(TableName=desk.name, Key=key("a"))["Item"] == item("a", v=2)
        assert is_hit(own.get_item(TableName=desk.name, Key=key("a")))


def test_tables_beyond_the_bound_are_not_served_but_their_writes_are_seen(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = desk.session()
    with cachekit.dax.install(session, settle=0) as dax:
        own = session.client("dynamodb", endpoint_url=desk.server.endpoint)
        own.put_item(TableName=desk.name, Item=item("a", v=1))
        monkeypatch.setattr("cachekit.dax.store.MOST_TABLES", 0)
        more = session.client(
            "dynamodb", endpoint_url=desk.server.endpoint,
            aws_access_key_id="more", aws_secret_access_key="more",
        )  # fmt: skip
        more.put_item(TableName=desk.name, Item=item("a", v=2))
        for _ in range(3):
            assert not is_hit(more.get_item(TableName=desk.name, Key=key("a")))
        assert own.get_item(TableName=desk.name, Key=key("a"))["Item"] == item("a", v=2)
        assert dax.stats()["faults"] == 0


def test_a_table_and_its_arn_are_one(stand: Make, desk: Desk) -> None:
    on = stand()
    arn = desk.raw.describe_table(TableName=on.table)["Table"]["TableArn"]
    on.put("a", v=1)
    hit = on.client.get_item(TableName=arn, Key=key("a"))
    assert is_hit(hit)
    on.client.update_item(
        TableName=arn, Key=key("a"), UpdateExpression="SET v = :v",
        ExpressionAttributeValues={":v": {"N": "2"}},
    )  # fmt: skip
    assert on.get("a")["Item"]["v"] == {"N": "2"}
    foreign = arn.replace(":table/", "9:table/")
    assert not on.dax.stats()["faults"]
    _, sent = on.asks(lambda: _quiet(on.client.get_item, TableName=foreign, Key=key("a")))
    assert sent == ["GetItem"], "the table of another account"


def _quiet(call: Any, **params: Any) -> Any:
    try:
        return call(**params)
    except ClientError:
        return None


def test_a_stubber_on_the_client_wins(stand: Make) -> None:
    on = stand()
    on.put("a", v=1)
    assert is_hit(on.get("a"))
    with Stubber(on.client) as stub:
        stub.add_response("get_item", {"Item": item("a", v=9)})
        assert on.get("a")["Item"] == item("a", v=9)
        stub.add_response(
            "update_item", {},
            {
                "TableName": on.table, "Key": key("a"), "UpdateExpression": "SET v = :v",
                "ExpressionAttributeValues": {":v": {"N": "5"}},
            },
        )  # fmt: skip
        on.update("a", 5)
        stub.assert_no_pending_responses()
    assert on.get("a")["Item"] == item("a", v=1)


# -- switches ------------------------------------------------------------------------------


def test_bypassed_reads_see_dynamodb_and_bypassed_writes_still_evict(
    stand: Make, desk: Desk
) -> None:
    on = stand()
    on.put("a", v=1)
    desk.put_raw("a", v=2)
    with on.dax.bypass():
        assert on.get("a")["Item"] == item("a", v=2)
        assert not is_hit(on.query("a"))
        assert on.dax.stats()["pages"] == 0
    assert on.get("a")["Item"] == item("a", v=1)
    with on.dax.bypass():
        on.client.delete_item(TableName=on.table, Key=key("a"))
    assert "Item" not in on.get("a")


def test_invalidate_and_flush_drop_what_others_wrote(stand: Make, desk: Desk) -> None:
    on = stand()
    for pk in "abc":
        on.put(pk, v=1)
    on.query("a")
    for pk in "abc":
        desk.put_raw(pk, v=2)
    on.dax.invalidate(on.table, {"pk": "a", "sk": 1})
    assert on.get("a")["Item"] == item("a", v=2)
    assert on.query("a")["Items"][0]["v"] == {"N": "2"}
    assert on.get("b")["Item"] == item("b", v=1)
    on.dax.invalidate(on.table, [key("b")])
    assert on.get("b")["Item"] == item("b", v=2)
    on.dax.flush(on.table)
    assert on.get("c")["Item"] == item("c", v=2)
    on.dax.flush()
    assert on.dax.stats()["items"] == 0
    with pytest.raises(ValueError, match="one or two attributes"):
        on.dax.invalidate(on.table, {"pk": None})
    with pytest.raises(ValueError, match="no table"):
        on.dax.flush("arn:nonsense")


def test_what_is_told_is_so(stand: Make) -> None:
    on = stand(max_bytes="1MB", settle=30)
    on.put("a")
    on.get("a")
    on.get("nobody")
    on.query("a")
    on.query("a")
    told = on.dax.stats()
    assert (told["item_hits"], told["item_misses"]) == (1, 1)
    assert (told["query_hits"], told["query_misses"]) == (1, 1)
    assert (told["items"], told["pages"]) == (2, 1)
    assert 0 < told["bytes"] < told["max_bytes"] == 1 << 20

    def why(**params: Any) -> tuple[str, str]:
        answer = on.dax.explain("GetItem", **{"TableName": on.table, **params})
        return answer["answer"], answer["why"]

    assert why(Key=key("a")) == ("cache", "cached")
    assert why(Key=key("nobody")) == ("cache", "known not to exist")
    assert why(Key=key("new")) == ("DynamoDB", "not cached")
    assert why(Key=key("a"), ConsistentRead=True)[0] == "DynamoDB"
    assert why(Key={"pk": "a"}, TableName="arn:x")[0] == "DynamoDB"
    on.wire.lose("PutItem", land=None)
    with pytest.raises(Exception, match="closed"):
        on.put("a")
    assert "may still land" in why(Key=key("a"))[1]
    assert on.dax.stats()["item_hits"] == 1, "explaining counts as a hit"


def test_memory_is_bounded(stand: Make) -> None:
    on = stand(max_bytes="64KB")
    for number in range(40):
        on.put("a", number, text="x" * 4000)
    told = on.dax.stats()
    assert 0 < told["bytes"] <= 64 << 10
    assert told["evictions"] > 10
    for _ in range(4):
        for number in range(40):
            on.get("a", number)
    assert on.dax.stats()["bytes"] <= 64 << 10
