"""The fence of the DynamoDB sink, and what it makes of refusals and outages."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from dynamodb_server import DynamoDBServer, DynamoDBShop, table_of, unused_shop, watch
from sink_sources import LANE, Aside, at, gone, lost, put, until

from cachekit.errors import ConfigurationError, FencedOut
from cachekit.sinks import DynamoDBSink

MANY = range(250)  # rows of three transactions


@pytest.fixture
def shop() -> DynamoDBShop:
    return unused_shop()


@pytest.fixture
def held(shop: DynamoDBShop) -> Iterator[DynamoDBShop]:
    """A shop whose server keeps the next transaction back."""
    shop.tell("hold")
    yield shop
    shop.tell("go")
    for word in ("hold", "held", "go", "landed"):
        (shop.server.folder / word).unlink(missing_ok=True)


class Unfenced(DynamoDBSink):
    def _guard(self, *args: Any) -> dict[str, Any]:
        guard = super()._guard(*args)
        return guard | {"ConditionExpression": "attribute_not_exists(#epoch) OR :epoch = :epoch"}


@pytest.mark.parametrize("own", [True, False], ids=["own-table", "same-table"])
def test_a_late_batch_changes_nothing_after_a_newer_put_and_a_newer_delete(
    shop: DynamoDBShop, own: bool
) -> None:
    if not own:
        shop.items = shop.fence = shop.items + "-s"
        shop.client.create_table(**table_of(shop.items, "id", "S"))
    late, new = shop.sink(), shop.sink()
    late.last_epoch(LANE)
    ids: tuple[Any, Any] = (1, 2) if own else ("1", "2")
    new.write_many([put(ids[0], {"name": "new"}, epoch=2), gone(ids[1], epoch=2)])
    before = shop.read(shop.items)
    with pytest.raises(FencedOut, match=LANE):
        late.write_many([put(id, {"name": "zombie"}) for id in ids])
    with pytest.raises(FencedOut):
        late.write_many([gone(ids[0])])
    assert shop.read(shop.items) == before
    assert late.last_epoch(LANE) == 2


def test_the_same_late_batch_does_damage_where_the_fence_is_open(shop: DynamoDBShop) -> None:
    shop.sink().write_many([put(1, {"name": "new"}, epoch=2), gone(2, epoch=2)])
    shop.sink(Unfenced).write_many([put(1, {"name": "old"}), put(2, {"name": "zombie"})])
    assert shop.rows() == {1: {"name": "old"}, 2: {"name": "zombie"}}


def test_an_earlier_delivery_of_the_same_owner_is_refused_too(shop: DynamoDBShop) -> None:
    sink = shop.sink()
    sink.write_many([put(1, {"name": "pen"}, epoch=5)])
    for epoch in (4, 5):
        with pytest.raises(FencedOut):
            sink.write_many([put(1, {"name": "x"}, epoch=epoch)])
    sink.write_many([put(1, {"name": "pen"}, epoch=6)])
    assert shop.rows() == {1: {"name": "pen"}}
    assert shop.epochs() == {LANE: 6}


def test_lanes_have_epochs_of_their_own(shop: DynamoDBShop) -> None:
    sink = shop.sink()
    assert sink.last_epoch("a/0") == 0
    asked: list[bytes] = []
    watch(sink, asked.append, "GetItem")
    sink.write_many([put(1, {"name": "a"}, epoch=(1 << 50) + 8, lane="a/0")])
    sink.write_many([put(2, {"name": "b"}, epoch=1, lane="b/0")])
    assert (sink.last_epoch("a/0"), sink.last_epoch("b/0")) == ((1 << 50) + 8, 1)
    assert len(asked) == 2
    assert all(b'"ConsistentRead": true' in body for body in asked), "an old epoch may be read"


def test_a_batch_of_many_rows_is_written_under_one_epoch(shop: DynamoDBShop) -> None:
    sink = shop.sink()
    assert not sink.write_many([put(n, {"n": n}, epoch=3) for n in MANY])
    assert shop.rows() == {n: {"n": n} for n in MANY}
    assert not sink.write_many([gone(n, epoch=4) for n in MANY if n % 2])
    assert list(sorted(shop.rows())) == [n for n in MANY if not n % 2]
    assert shop.epochs() == {LANE: 4}


def test_a_writer_overtaken_between_two_transactions_is_refused_the_rest(
    shop: DynamoDBShop,
) -> None:
    late, new = shop.sink(), shop.sink()
    new.last_epoch(LANE)
    turns = itertools.count()

    def overtake(_: bytes) -> None:
        if next(turns) == 1:
            new.write_many([put(n, {"name": "new"}, epoch=2) for n in range(95, 105)])

    watch(late, overtake)
    with pytest.raises(FencedOut, match="rest"):
        late.write_many([put(n, {"name": "old"}) for n in MANY])
    rows = shop.rows()
    assert {n for n, row in rows.items() if row["name"] == "new"} == set(range(95, 105))
    assert max(rows) == 104, "nothing of the second transaction may land"


def test_without_the_check_of_later_transactions_an_overtaken_writer_does_damage(
    shop: DynamoDBShop,
) -> None:
    late, new = shop.sink(Unfenced), shop.sink()
    turns = itertools.count()

    def overtake(_: bytes) -> None:
        if next(turns) == 1:
            new.write_many([put(n, {"name": "new"}, epoch=2) for n in range(95, 105)])

    watch(late, overtake)
    late.write_many([put(n, {"name": "old"}) for n in MANY])
    assert {n for n, row in shop.rows().items() if row["name"] == "new"} == set(range(95, 99))


def test_a_transaction_that_lands_after_its_retry_is_refused(held: DynamoDBShop) -> None:
    shop = held
    sink = shop.sink(client=shop.server.client(read_timeout=0.5))
    with pytest.raises(ConnectionError) as caught:
        sink.write_many([put(1, {"name": "first"}), put(2, {"name": "first"})])
    assert lost(caught.value)
    sink.write_many([put(1, {"name": "second"}, epoch=2), gone(2, epoch=2)])
    assert shop.heard("held")
    assert not shop.heard("landed")
    shop.tell("go")
    until(lambda: shop.heard("landed"), 10)
    assert shop.heard("landed")
    assert shop.rows() == {1: {"name": "second"}}
    assert shop.epochs() == {LANE: 2}


def test_the_same_landing_does_damage_where_the_fence_is_open(held: DynamoDBShop) -> None:
    shop = held
    sink = shop.sink(Unfenced, client=shop.server.client(read_timeout=0.5))
    with pytest.raises(ConnectionError):
        sink.write_many([put(1, {"name": "first"})])
    sink.write_many([put(1, {"name": "second"}, epoch=2)])
    shop.tell("go")
    until(lambda: shop.heard("landed"), 10)
    assert shop.rows() == {1: {"name": "first"}}


def test_of_writers_that_race_the_newest_one_stays_whole(shop: DynamoDBShop) -> None:
    shop.sink().last_epoch(LANE)
    barrier = threading.Barrier(4)

    def write(epoch: int) -> bool:
        sink = shop.sink()
        sink.last_epoch(LANE)
        barrier.wait(20)
        try:
            sink.write_many([put(n, {"by": epoch}, epoch=epoch) for n in range(5)])
        except FencedOut:
            return False
        return True

    wrote = [Aside(lambda e=e: write(e)) for e in (1, 2, 3, 4)]
    assert [each.result() for each in wrote][-1] is True
    assert shop.rows() == {n: {"by": 4} for n in range(5)}
    assert shop.epochs() == {LANE: 4}


@pytest.mark.parametrize(
    "ops",
    [
        [put(1, {}, epoch=1), put(2, {}, epoch=2)],
        [put(1, {}, lane="a"), put(2, {}, lane="b")],
        [put(1, {}, epoch=0)],
        [put(1, {}, lane="")],
    ],
    ids=["epochs", "lanes", "no-epoch", "no-lane"],
)
def test_what_can_not_be_fenced_is_not_written(shop: DynamoDBShop, ops: Any) -> None:
    with pytest.raises(ConfigurationError):
        shop.sink().write_many(ops)
    assert shop.rows() == {}


# -- refusals and outages --------------------------------------------------------------------


def test_rows_that_the_service_refuses_fail_alone(shop: DynamoDBShop) -> None:
    batch = [put(n, {"n": n, **({"cancel": "ValidationError"} if n in (3, 150) else {})})
             for n in MANY]  # fmt: skip
    failed = shop.sink().write_many(batch)
    assert failed.keys() == {3, 150}
    assert "so ValidationError" in str(failed[3])
    assert not lost(failed[3])
    assert sorted(shop.rows()) == [n for n in MANY if n not in failed]
    assert shop.epochs() == {LANE: 1}


def test_where_no_row_is_left_the_fence_stays_as_it_was(shop: DynamoDBShop) -> None:
    sink = shop.sink()
    failed = sink.write_many([put(1, {"cancel": "ValidationError"})])
    assert failed.keys() == {1}
    assert sink.last_epoch(LANE) == 0


@pytest.mark.parametrize(
    "mark",
    [*[{"cancel": c} for c in ("TransactionConflict", "ThrottlingError",
                               "ProvisionedThroughputExceeded", "AccessDenied")],
     *[{"fail": c} for c in ("ThrottlingException", "ProvisionedThroughputExceededException",
                             "RequestLimitExceeded", "InternalServerError",
                             "TransactionInProgressException", "AccessDeniedException",
                             "ExpiredTokenException", "UnrecognizedClientException")]],
    ids=lambda mark: next(iter(mark.values())),
)  # fmt: skip
def test_what_says_nothing_about_the_rows_is_told_as_a_loss(
    shop: DynamoDBShop, mark: dict[str, str]
) -> None:
    sink = shop.sink()
    with pytest.raises(ConnectionError) as caught:
        sink.write_many([put(1, {"cancel": "ValidationError"}), put(2, mark)])
    assert lost(caught.value)
    assert shop.rows() == {}
    sink.write_many([put(1, {"name": "pen"}, epoch=2)])
    assert shop.rows() == {1: {"name": "pen"}}


def test_a_request_refused_as_a_whole_is_told_as_it_is_and_of_one_row_as_its_own(
    shop: DynamoDBShop,
) -> None:
    botocore = pytest.importorskip("botocore.exceptions")
    sink = shop.sink()
    bad = put(2, {"fail": "ValidationException"})
    with pytest.raises(botocore.ClientError) as caught:
        sink.write_many([put(1, {"name": "pen"}), bad])
    assert not lost(caught.value)
    assert sink.write_many(at(2, [bad])).keys() == {2}
    assert shop.rows() == {}


def test_a_server_that_is_down_is_told_as_a_loss_until_it_is_back() -> None:
    unused_shop()  # or skip
    with DynamoDBServer() as server:
        shop = DynamoDBShop(server, 0)
        sink = shop.sink(client=server.client(read_timeout=1))
        sink.write_many([put(1, {"name": "pen"})])
        server.pause()
        for step in (lambda: sink.write_many([put(1, {"name": "x"}, epoch=2)]),
                     lambda: sink.last_epoch(LANE)):  # fmt: skip
            with pytest.raises(ConnectionError) as caught:
                step()
            assert lost(caught.value)
        server.resume()
        until(lambda: shop.epochs()[LANE] == 2, 5)  # it was under way, and lands
        sink.write_many([put(1, {"name": "ink"}, epoch=3)])
        assert shop.rows() == {1: {"name": "ink"}}
        server.kill()
        with pytest.raises(ConnectionError):
            sink.write_many([put(1, {"name": "x"}, epoch=4)])
        server.start()  # without its tables
        shop.client.list_tables()  # its first answer takes long
        for _ in range(2):
            with pytest.raises(ConnectionError, match="ResourceNotFound"):
                sink.write_many([put(1, {"name": "x"}, epoch=5)])
        shop.client.create_table(**table_of(shop.items))
        sink.write_many([put(1, {"name": "back"}, epoch=6)])
        assert shop.rows() == {1: {"name": "back"}}
