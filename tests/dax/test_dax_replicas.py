"""Replicas that lag, over a real server: what is read just after a write."""

from __future__ import annotations

from typing import Any

import pytest
from dax_desk import is_hit, item, key, response
from dax_stand import Make, Stand, served


def test_reads_just_after_a_write_are_strong_and_later_ones_are_not(stand: Make) -> None:
    on = stand(settle=30)
    on.get("a")
    assert "ConsistentRead" not in on.wire.bodies[-1]
    on.client.transact_write_items(  # an update in a transaction evicts
        TransactItems=[
            {
                "Update": {
                    "TableName": on.table,
                    "Key": key("a"),
                    "UpdateExpression": "SET v = :v",
                    "ExpressionAttributeValues": {":v": {"N": "2"}},
                }
            }
        ]
    )
    on.get("a")
    assert on.wire.bodies[-1]["ConsistentRead"] is True
    assert served(on, "a") == item("a", v=2)
    on.query("a")
    assert on.wire.bodies[-1]["ConsistentRead"] is True
    assert is_hit(on.query("a"))
    on.query("other")
    assert "ConsistentRead" not in on.wire.bodies[-1]
    on.client.batch_get_item(RequestItems={on.table: {"Keys": [key("b")]}})
    assert "ConsistentRead" not in on.wire.bodies[-1]["RequestItems"][on.table]


def test_what_can_not_be_read_strongly_is_not_kept_just_after_a_write(stand: Make) -> None:
    on = stand(settle=30)
    on.put("a", v=1, g="x")
    for ask in (on.scan, lambda: on.by_index("x")):
        ask()
        assert not is_hit(ask())


class LaggingReplica:
    """Answers eventual reads of one key with what stood there before the last write."""

    def __init__(self, on: Stand, pk: str) -> None:
        self.on, self.pk = on, pk
        self.before: Any = None
        on.wire.rule(self)

    def __call__(self, operation: str, body: dict[str, Any]) -> Any:
        if operation in ("PutItem", "UpdateItem"):
            self.before = self.on.desk.get_raw(self.pk)
        elif operation == "GetItem" and not body.get("ConsistentRead"):
            return response(200, {"Item": self.before} if self.before else {})
        return None


@pytest.mark.parametrize("preset", ["coherent", "dax"])
def test_an_item_read_from_a_lagging_replica_is_not_kept(stand: Make, preset: str) -> None:
    on = stand(settle=30, preset=preset, return_images=False)
    on.put("a", v=1)
    LaggingReplica(on, "a")
    on.update("a", 2)
    for _ in range(3):
        on.get("a")
    on.wire._rules.clear()  # the replica has caught up
    assert on.get("a")["Item"] == item("a", v=2)


def test_without_the_window_the_lagging_replica_is_caught(stand: Make) -> None:
    on = stand(settle=0, return_images=False)
    on.put("a", v=1)
    LaggingReplica(on, "a")
    on.update("a", 2)
    on.get("a")
    on.wire._rules.clear()
    assert on.get("a")["Item"] == item("a", v=1), "this test can not see a stale item"
