"""A DynamoDB table as a source: its methods and values, over private servers."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest
from dynamodb_desk import started
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sink_sources import in_a_child, put
from source_tables import Ground

from cachekit.errors import ConfigurationError
from cachekit.sources import DynamoDBTable, VersionConflict
from cachekit.sources.records import python
from cachekit.testing.dynamodb import CREDENTIALS, REGION, DynaliteServer, MinistackServer

pytest.importorskip("boto3")


@pytest.fixture(scope="module", params=[MinistackServer, DynaliteServer], ids=lambda s: s.program)
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    for server in started(request.param()):
        made = Ground(server)
        yield made
        made.close()


@dataclass
class User:
    id: int
    name: str = ""
    rate: float = 0.0
    paid: Decimal | None = None
    marks: tuple[int, ...] = ()
    kinds: set[str] = field(default_factory=lambda: {"new"})
    shout: str = field(init=False)  # made of another one; in the item, for those who query it

    def __post_init__(self) -> None:
        self.shout = self.name.upper()


class Point:
    """Neither a mapping nor a dataclass."""

    def __init__(self, id: str, at: list[int]) -> None:
        self.id, self.at = id, at

    @classmethod
    def made(cls, item: dict[str, Any]) -> Point:
        return cls(item["id"], item["at"])

    def told(self) -> dict[str, Any]:
        return {"id": self.id, "at": self.at}


def test_what_was_saved_is_loaded_and_what_was_deleted_is_not(ground: Ground) -> None:
    users = ground.source()
    assert users.load(1) is None
    users.save({"id": 1, "name": "ada", "old": True})
    users.save({"id": 1, "name": "ada"})  # the whole item: "old" is gone
    assert users.load(1) == {"id": 1, "name": "ada"}
    users.delete(1)
    users.delete(1)
    assert users.load(1) is None


def test_many_are_loaded_saved_and_deleted_beyond_the_size_of_one_request(ground: Ground) -> None:
    users = ground.source()
    users.save_many({"id": n, "n": n * n} for n in range(230))
    found = users.load_many([*range(-5, 235), *range(235)])
    assert found == {n: {"id": n, "n": n * n} for n in range(230)}
    assert list(found) == list(range(230))
    users.delete_many([*range(0, 230, 2), 0, 2])
    assert list(users.load_many(range(230))) == list(range(1, 230, 2))
    assert users.load_many([]) == {}
    users.save_many([])
    users.delete_many([])


def test_of_records_of_one_id_in_a_batch_the_last_is_kept(ground: Ground) -> None:
    users = ground.source()
    users.save_many([{"id": n % 3, "n": n} for n in range(60)])
    assert users.load_many([0, 1, 2]) == {n: {"id": n, "n": 57 + n} for n in range(3)}


def test_the_id_of_a_table_with_a_sort_key_is_a_tuple(ground: Ground) -> None:
    table = ground.table(customer="S", number="N")
    orders = ground.source(table=table, key=("customer", "number"))
    for customer in ("ada", "bob"):
        orders.save_many([{"customer": customer, "number": n, "by": customer} for n in (1, 2)])
    one = {"customer": "bob", "number": 1, "by": "bob"}
    assert orders.load(("bob", 1)) == one
    assert orders.__cache_id__(one) == ("bob", 1)
    assert orders.__cache_id__({"customer": "bob"}) is None
    orders.delete(("ada", 2))
    assert orders.load_many([("ada", 1), ("ada", 2), ("bob", 1)]).keys() == {("ada", 1), ("bob", 1)}
    for wrong in ("bob", ("bob",), ("bob", 1, 2), ["bob", 1]):
        with pytest.raises(TypeError, match="customer, number"):
            orders.load(wrong)


def test_ids_may_be_text_numbers_or_bytes(ground: Ground) -> None:
    for kind, ids in (("S", ["a", "1", "é"]), ("N", [1, -3, Decimal("0.5")]), ("B", [b"\x00a"])):
        things = ground.source(table=ground.table(id=kind))
        things.save_many([{"id": id, "is": kind} for id in ids])
        assert things.load_many(ids) == {id: {"id": id, "is": kind} for id in ids}
        assert type(things.load(ids[0])["id"]) is type(ids[0])


@pytest.mark.parametrize(
    "id", [True, 1.0, None, "", (1,), b"", Decimal("NaN"), Decimal(1), Decimal("1.50"), "x" * 2049]
)
def test_what_can_not_be_an_id_is_refused_before_it_is_sent(id: Any) -> None:
    class Silent:
        def batch_get_item(self, **_: Any) -> None:
            raise AssertionError("sent")

        get_item = put_item = delete_item = batch_write_item = batch_get_item

    users = DynamoDBTable("users", client=Silent())
    for ask in (users.load, users.delete, lambda id: users.save({"id": id})):
        with pytest.raises((TypeError, ValueError), match=r"^users: "):
            ask(id)
    for many in (users.load_many, users.delete_many):
        with pytest.raises((TypeError, ValueError), match=r"^users: "):
            many([5, id])


VALUES = st.recursive(
    st.none() | st.booleans() | st.text() | st.binary()
    | st.integers(-(10**37), 10**37)
    | st.decimals(-1000, 1000, places=3)
    | st.sets(st.text(min_size=1), min_size=1) | st.sets(st.integers(-9, 9), min_size=1)
    | st.sets(st.binary(min_size=1), min_size=1),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(min_size=1, max_size=9), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(VALUES)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_values_come_back_as_they_were(ground: Ground, value: Any) -> None:
    if not hasattr(ground, "kept"):
        ground.kept = ground.source()  # type: ignore[attr-defined]  # one table for all examples
    users: DynamoDBTable = ground.kept  # type: ignore[attr-defined]
    users.save({"id": 1, "value": value})
    assert users.load(1)["value"] == value
    assert users.load_many([1])[1]["value"] == value


def test_numbers_are_read_as_int_where_integral_and_else_as_decimal(ground: Ground) -> None:
    users = ground.source()
    users.save({"id": 1, "n": [1.5, 2.0, Decimal("3.00"), 10**37, 0.1]})
    read = users.load(1)["n"]
    assert read == [Decimal("1.5"), 2, 3, 10**37, Decimal("0.1")]
    assert [type(n) for n in read] == [Decimal, int, int, int, Decimal]
    large = python({"N": "1E+125"})
    assert (type(large), large) == (Decimal, Decimal("1E+125"))  # as an int it had 126 digits
    users.save({"id": 2, "n": large})
    for wrong in (float("nan"), float("inf"), Decimal("1." + "1" * 38), object(), {1: 2}, set()):
        with pytest.raises((TypeError, ValueError), match=r"^table-\d+: "):
            users.save({"id": 1, "n": wrong})


def test_records_are_dataclasses_where_one_is_given(ground: Ground) -> None:
    users = ground.source(record=User)
    for user in (User(1, "ada", 0.1, Decimal("2"), (1, 2)), User(2, rate=3.0)):
        users.save(user)
        read = users.load(user.id)
        assert read == user
        assert [type(read.rate), type(read.marks)] == [float, tuple]
        assert isinstance(read.paid, Decimal | None)
    assert users.load_many([1, 2, 3]) == {1: users.load(1), 2: users.load(2)}
    plain = ground.source(table=users.__cache_key__())
    assert plain.load(1)["shout"] == "ADA"
    plain.save({"id": 4, "name": "dan"})
    assert users.load(4) == User(4, "dan")  # what the item has not has its default
    plain.save({"id": 5, "age": 9})
    with pytest.raises(TypeError, match="'age'"):
        users.load(5)


def test_other_records_are_made_by_functions_both_ways(ground: Ground) -> None:
    table = ground.table(id="S")
    points = ground.source(table=table, record=Point.made, to_item=Point.told)
    points.save(Point("a", [1, 2]))
    assert points.load("a").at == [1, 2]
    assert points.__cache_id__(Point("a", [])) == "a"
    sink = points.sink(fence_table=f"{table}-fence", create_fence=True)
    if ground.server.program == "ministack":  # the other has no transactions
        assert sink.write_many([put("b", Point("b", [3]))]) == {}
        assert points.load("b").at == [3]
    with pytest.raises(TypeError, match="to_item="):
        ground.source(table=table).save(Point("a", []))


def test_a_record_without_its_key_is_refused(ground: Ground) -> None:
    users = ground.source()
    for ask in (users.save, lambda record: users.save_many([record])):
        for record in ({"name": "x"}, {"id": None}):
            with pytest.raises(ValueError, match="no 'id'"):
                ask(record)


def test_with_a_version_only_the_successor_of_what_is_stored_is_saved(ground: Ground) -> None:
    docs = ground.source(version="v")
    docs.save({"id": 1, "v": 1, "by": "a"})
    docs.save({"id": 1, "v": 2, "by": "a"})
    for stale in (1, 2, 4):
        with pytest.raises(VersionConflict, match="load it again") as told:
            docs.save({"id": 1, "v": stale, "by": "b"})
        assert (told.value.id, told.value.version) == (1, stale)
        assert str(pickle.loads(pickle.dumps(told.value))) == str(told.value)
    assert docs.load(1) == {"id": 1, "v": 2, "by": "a"}
    with pytest.raises(VersionConflict):
        docs.save_many([{"id": 2, "v": 1}, {"id": 2, "v": 2}, {"id": 1, "v": 9}, {"id": 3, "v": 1}])
    assert docs.load_many([2, 3]) == {2: {"id": 2, "v": 2}}
    docs.delete(1)
    with pytest.raises(VersionConflict):  # a writer that read it before the delete
        docs.save({"id": 1, "v": 3})
    assert docs.load(1) is None
    for wrong in (None, 0, -1, True, "1", 1.0):
        with pytest.raises(ValueError, match="'v' must be"):
            docs.save({"id": 1, "v": wrong})
    assert docs.row_version({"id": 1, "v": 7}) == 7
    assert docs.row_version({"id": 1}) is None


def test_an_item_from_before_versions_takes_the_first_one(ground: Ground) -> None:
    table = ground.table()
    ground.source(table=table).save({"id": 1, "name": "old"})
    docs = ground.source(table=table, version="v")
    docs.save({"id": 1, "v": 1})
    with pytest.raises(VersionConflict):
        docs.save({"id": 1, "v": 1})


def test_errors_are_the_clients_own(ground: Ground) -> None:
    missing = ground.source(table="missing")
    with pytest.raises(ground.asking.exceptions.ResourceNotFoundException):
        missing.load(1)
    with pytest.raises(ground.asking.exceptions.ResourceNotFoundException):
        missing.save_many([{"id": 1}])
    users = ground.source()
    with pytest.raises(ground.asking.exceptions.ClientError, match="ValidationException"):
        users.load("a text where a number is due")


@pytest.mark.parametrize(
    "options",
    [{"table": ""}, {"key": ""}, {"key": ()}, {"key": ("a", "b", "c")}, {"key": ("a", "a")},
     {"key": "v", "version": "v"}, {"version": ""}, {"client": object()}, {"record": "User"},
     {"to_item": 1}, {"patience": -1}, {"patience": "soon"}],
)  # fmt: skip
def test_what_can_not_fit_together_is_told_at_once(options: Any) -> None:
    with pytest.raises(ConfigurationError):
        DynamoDBTable(**{"table": "users", **options})


def test_without_a_client_one_of_the_environment_is_made_at_first_use(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name.upper(), value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", ground.server.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    users = ground.source(client=None)
    assert users._connection.client._own is None
    for n in (1, 2):
        users.save({"id": n})
        client = users._connection.client.get()
        assert client.meta.config.retries["total_max_attempts"] == 1
        assert (client.meta.config.connect_timeout, client.meta.config.read_timeout) == (2.0, 5.0)
        users.close()
        users.close()
    assert users.load_many([1, 2]).keys() == {1, 2}
    users.close()


def test_threads_that_come_first_together_open_one_client(ground: Ground) -> None:
    made: list[Any] = []
    gate = threading.Barrier(6)
    done: list[Any] = []

    def make() -> Any:
        made.append(ground.server.client())
        return made[-1]

    users = ground.source(client=make)

    def work(n: int) -> None:
        gate.wait(20)
        users.save({"id": n})
        done.append(users.load(n))

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(each["id"] for each in done) == list(range(6))
    assert len(made) == 1
    users.close()


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("made", [True, False], ids=["made-by-the-source", "given"])
def test_a_forked_child_speaks_over_connections_of_its_own(ground: Ground, made: bool) -> None:
    made_clients: list[Spy] = []

    def make() -> Spy:
        made_clients.append(Spy(ground.server.client()))
        return made_clients[-1]

    users = ground.source(client=make if made else make())
    users.save({"id": 1})

    def work() -> None:
        users.save({"id": 2})
        assert users.load(1) == {"id": 1}
        assert len(made_clients) == (2 if made else 1)
        assert made_clients[0].closed == (0 if made else 1)

    in_a_child(work)
    users.save({"id": 3})
    assert users.load_many([1, 2, 3]).keys() == {1, 2, 3}
    assert [client.closed for client in made_clients] == [0]
    users.close()
    assert made_clients[0].closed == (1 if made else 0)


def test_boto3_is_imported_by_the_first_load_only_and_named_where_it_is_missing() -> None:
    code = (
        "import sys; from cachekit.sources import DynamoDBTable; DynamoDBTable('users')\n"
        "assert not {'boto3', 'botocore'} & set(sys.modules)\n"
        "from cachekit.errors import MissingDependencyError\n"
        "sys.modules['boto3'] = None\n"
        "try: DynamoDBTable('users')\n"
        "except MissingDependencyError as error:\n"
        "    assert 'cachekit-strategies[dynamodb]' in str(error), error\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
