"""The DynamoDB sink, over a server in a process of its own: rows, tables and clients."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from dynamodb_server import KEYS, DynamoDBShop, table_of, unused_shop, watch
from hypothesis import given
from hypothesis import strategies as st
from sink_sources import LANE, Aside, at, gone, in_a_child, put

from cachekit import Cache, Retrying, WriteBack
from cachekit.errors import ConfigurationError
from cachekit.sinks import DynamoDBSink
from cachekit.sinks import items as wire

MANY = range(250)  # rows of three transactions


@pytest.fixture
def shop() -> DynamoDBShop:
    return unused_shop()


@dataclass
class Item:
    id: int
    name: str


def test_puts_and_deletes_of_a_batch_become_the_state_of_the_table(shop: DynamoDBShop) -> None:
    sink = shop.sink()
    assert not sink.write_many([put(1, {"name": "pen", "x": 3}), put(2, Item(2, "ink")), gone(9)])
    assert shop.rows() == {1: {"name": "pen", "x": 3}, 2: {"name": "ink"}}
    assert not sink.write_many([put(1, {"name": "cap"}, epoch=2), gone(2, epoch=2)])
    assert shop.rows() == {1: {"name": "cap"}}, "a put leaves nothing of the item before"
    assert not sink.write_many([])


def test_named_columns_are_required_and_leave_other_attributes_alone(shop: DynamoDBShop) -> None:
    shop.sink().write_many([put(1, {"name": "pen", "seen": 5})])
    sink = shop.sink(columns=["name", "size"])
    failed = sink.write_many(
        at(2, [put(1, {"name": "cap", "size": 1, "seen": 0}), put(2, {"name": "ink"})])
    )
    assert "size" in str(failed.pop(2))
    assert not failed
    assert shop.rows() == {1: {"name": "cap", "size": 1, "seen": 5}}
    sink.write_many(at(3, [put(7, {"name": "new", "size": 2})]))
    assert shop.rows()[7] == {"name": "new", "size": 2}


def test_every_kind_of_value_is_read_back_equal(shop: DynamoDBShop) -> None:
    value = {
        "text": "é\0\U0001f600", "none": None, "true": True, "bytes": b"\0\xff", "int": -(10**37),
        "float": 0.1, "decimal": Decimal("1.50"), "empty": "", "list": [1, [2.5, "x"], {}],
        "map": {"a": {"b": (1, 2)}}, "numbers": {1, 2.5}, "texts": frozenset({"a", "b"}),
    }  # fmt: skip
    assert not shop.sink().write_many([put(1, value)])
    row = shop.rows()[1]
    assert bytes(row.pop("bytes")) == value.pop("bytes")
    assert float(row.pop("float")) == value.pop("float")
    assert row == {**value, "map": {"a": {"b": [1, 2]}}}


@given(st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: 1e-115 < abs(x) < 1e125))
def test_a_float_becomes_a_decimal_that_reads_back_as_it(number: float) -> None:
    types = pytest.importorskip("boto3.dynamodb.types")
    written = wire.value_of(number, types.TypeSerializer().serialize)
    assert float(types.TypeDeserializer().deserialize(written)) == number


@pytest.mark.parametrize(
    "bad",
    [float("nan"), float("inf"), Decimal("-Infinity"), 10**38 + 1, 1e300, object(), set(), {1, "x"},
     {"": 1}, {1: 2}, "\ud800", [{"deep": float("nan")}]],
)  # fmt: skip
def test_a_row_that_has_no_exact_form_fails_alone(shop: DynamoDBShop, bad: Any) -> None:
    failed = shop.sink().write_many([put(1, {"name": "pen"}), put(2, {"secret": bad})])
    assert failed.keys() == {2}
    assert isinstance(failed[2], (TypeError, ValueError))
    assert shop.rows() == {1: {"name": "pen"}}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [("S", "a", ["", "x" * 2049, 1, b"a", None]), ("N", Decimal("1.5"), ["1", True, 1.5, None]),
     ("B", b"a", [b"", "a", None])],
    ids=["S", "N", "B"],
)  # fmt: skip
def test_a_key_is_of_the_type_of_the_tables_key(
    shop: DynamoDBShop, kind: str, good: Any, bad: list[Any]
) -> None:
    shop.items += kind
    shop.client.create_table(**table_of(shop.items, "no", kind))
    sink = shop.sink(key="no")
    for wrong in bad:
        for op in (put(wrong, {"name": "x"}), gone(wrong)):
            assert sink.write_many([op]).keys() == {wrong}
    assert not sink.write_many([put(good, {"name": "x"}), gone(good * 2)])
    assert [bytes(k) if kind == "B" else k for k in shop.rows("no")] == [good]


def test_a_row_of_another_key_than_its_operation_is_not_written(shop: DynamoDBShop) -> None:
    failed = shop.sink().write_many([put(1, {"id": 2, "name": "pen"})])
    assert "'id'" in str(failed[1])
    assert shop.rows() == {}


def test_ids_that_are_one_item_do_not_spoil_the_batch(shop: DynamoDBShop) -> None:
    sink = shop.sink()
    assert not sink.write_many([put(1, {"name": "a"}), put(Decimal(1), {"name": "b"})])
    assert shop.rows() == {1: {"name": "b"}}


def test_rows_beyond_a_transactions_size_go_into_several(shop: DynamoDBShop) -> None:
    sizes: list[int] = []
    sink = shop.sink()
    sink.last_epoch(LANE)
    watch(sink, lambda sent: sizes.append(len(sent)))
    large = {"text": "é" * 150_000}
    assert not sink.write_many([put(n, large) for n in range(20)])
    assert len(shop.rows()) == 20
    assert len(sizes) == 2
    assert max(sizes) <= 4 * 1024 * 1024 * 3  # an é has two bytes, and six in JSON


def test_a_row_too_large_fails_alone(shop: DynamoDBShop) -> None:
    failed = shop.sink().write_many(
        [put(1, {"name": "pen"}), put(2, {"text": "x" * 420_000}), put(3, {"name": "ink"})]
    )
    assert failed.keys() == {2}
    assert "size" in str(failed[2])
    assert shop.rows() == {1: {"name": "pen"}, 3: {"name": "ink"}}


# -- tables and clients ----------------------------------------------------------------------


def test_a_missing_fence_is_made_only_if_asked(shop: DynamoDBShop) -> None:
    sink = shop.sink(create_fence=False)
    for _ in range(2):
        with pytest.raises(ConnectionError, match="ResourceNotFound"):
            sink.write_many([put(1, {"name": "pen"})])
    assert shop.rows() == {}
    shop.client.create_table(**sink.fence_definition)
    sink.write_many([put(1, {"name": "pen"})])
    assert shop.epochs() == {LANE: 1}


def test_sinks_that_begin_at_once_make_one_fence(shop: DynamoDBShop) -> None:
    barrier = threading.Barrier(4)

    def begin(number: int) -> Any:
        sink = shop.sink()
        barrier.wait(20)
        return sink.write_many([put(number, {"n": 1}, lane=f"shop/{number}")])

    for thread in [Aside(lambda n=n: begin(n)) for n in range(4)]:
        thread.result()
    assert len(shop.epochs()) == 4


def test_keys_that_do_not_fit_are_refused_before_any_row_is(shop: DynamoDBShop) -> None:
    shop.client.create_table(**table_of(shop.items + "-c", sort="day"))
    shop.client.create_table(**table_of(shop.fence + "-n", "lane", "N"))
    wrong: list[dict[str, Any]] = [
        {"table": shop.items + "-c"},
        {"key": "no"},
        {"fence_table": shop.items + "-c"},
        {"fence_table": shop.fence + "-n"},
        {"fence_table": shop.items},  # whose key is a number
    ]
    for options in wrong:
        with pytest.raises(ConfigurationError, match="key"):
            shop.sink(**options).write_many([put(1, {"name": "x"})])
    assert shop.rows() == {}


def test_a_table_made_anew_with_another_key_is_not_taken_for_bad_rows(shop: DynamoDBShop) -> None:
    sink = shop.sink()
    sink.write_many([put(1, {"name": "x"})])
    shop.client.delete_table(TableName=shop.items)
    shop.client.create_table(**table_of(shop.items, "no"))
    refused = [put(n, {"fail": "ValidationException"}, epoch=2) for n in (1, 2)]
    with pytest.raises(Exception, match="ValidationException"):
        sink.write_many(refused)
    with pytest.raises(ConfigurationError, match="'no'"):
        sink.write_many(at(3, refused))


def test_keys_of_the_fence_in_the_same_table_are_not_for_rows(shop: DynamoDBShop) -> None:
    shop.items = shop.fence = shop.items + "-s"
    shop.client.create_table(**table_of(shop.items, "id", "S"))
    sink = shop.sink(create_fence=False)
    own = f"cachekit_fence/{LANE}"
    failed = sink.write_many([put("a", {"n": 1}), gone(own)])
    assert failed.keys() == {own}
    assert sink.write_many([put(own, {"n": 1}, epoch=2)]).keys() == {own}
    assert shop.rows() == {"a": {"n": 1}, own: {"epoch": 1}}


@pytest.mark.parametrize(
    "options",
    [{"table": ""}, {"key": ("a", "b")}, {"columns": []}, {"columns": "name"}, {"columns": ["id"]},
     {"client": object()}, {"to_row": "x"}, {"fence_table": None}],
)  # fmt: skip
def test_what_can_not_fit_together_is_told_at_once(options: Any) -> None:
    with pytest.raises(ConfigurationError):
        DynamoDBSink(**{"table": "items", **options})


def test_without_a_client_one_of_the_environment_is_made_that_does_not_repeat_itself(
    shop: DynamoDBShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv("AWS_DEFAULT_REGION" if "region" in name else name.upper(), value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", shop.server.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    sink = DynamoDBSink(shop.items, fence_table=shop.fence, create_fence=True)
    requests: list[bytes] = []
    sink.last_epoch(LANE)
    watch(sink, requests.append)
    with pytest.raises(ConnectionError):
        sink.write_many([put(1, {"fail": "InternalServerError"})])
    assert len(requests) == 1
    for epoch in (2, 3):
        sink.write_many([put(1, {"n": epoch}, epoch=epoch)])
        sink.close()
        sink.close()
    assert shop.rows() == {1: {"n": 3}}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("made", [True, False], ids=["made-by-the-sink", "given"])
def test_a_forked_child_speaks_over_connections_of_its_own(shop: DynamoDBShop, made: bool) -> None:
    made_clients: list[Spy] = []

    def make() -> Spy:
        made_clients.append(Spy(shop.server.client()))
        return made_clients[-1]

    sink = shop.sink(client=make if made else make())
    sink.write_many([put(1, {"n": 1})])

    def work() -> None:
        sink.write_many([put(2, {"n": 2}, epoch=2)])
        sink.write_many([put(2, {"n": 2}, epoch=3)])
        assert len(made_clients) == (2 if made else 1)
        assert made_clients[0].closed == (0 if made else 1)

    in_a_child(work)
    sink.write_many([put(3, {"n": 3}, epoch=4)])
    assert sorted(shop.rows()) == [1, 2, 3]
    assert [client.closed for client in made_clients] == [0]


def test_boto3_is_imported_by_the_first_batch_only_and_named_where_it_is_missing() -> None:
    code = (
        "import sys; from cachekit.sinks import DynamoDBSink; DynamoDBSink('items')\n"
        "assert not {'boto3', 'botocore'} & set(sys.modules)\n"
        "sys.modules['boto3'] = None\n"
        "try: DynamoDBSink('items')\n"
        "except Exception as error: assert 'cachekit-strategies[dynamodb]' in str(error), error\n"
        "else: raise AssertionError\n"
    )
    pytest.importorskip("boto3")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


class Spy:
    """A client that counts how often it is closed."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.closed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def close(self) -> None:
        self.closed += 1
        self._client.close()


# -- write-back ------------------------------------------------------------------------------


def test_write_back_over_a_log_brings_every_row_to_the_table(
    shop: DynamoDBShop, tmp_path: Path
) -> None:
    def to_row(id: int, value: Any) -> dict[str, Any]:
        return {"price": value, **({"cancel": "ValidationError"} if value == 13.5 else {})}

    with Cache() as cache:
        prices = WriteBack(
            cache, key="price:{id}", name="prices", load=lambda id: None,
            sink=shop.sink(to_row=to_row), log=f"sqlite:///{tmp_path}/log.db",
            batch=150, delay=0.01, retry=Retrying(attempts=1, base=0.01, cap=0.05),
        )  # fmt: skip
        prices.put_many({n: n + 0.5 for n in range(300)})
        flushed = prices.flush(timeout=60)
        assert (flushed.complete, flushed.left, flushed.parked) == (True, 0, 1)
        assert len(shop.rows()) == 299
        for n in range(0, 300, 3):
            prices.delete(n)
        prices.put(301, 1)
        prices.delete(301)
        flushed = prices.flush(timeout=60)
        assert (flushed.complete, flushed.left, flushed.parked) == (True, 0, 0)
    expected = {n: {"price": Decimal(f"{n}.5")} for n in range(300) if n % 3 and n != 13}
    assert shop.rows() == expected
