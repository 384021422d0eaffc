"""The DynamoDB backend when requests or answers are lost, throttled, or never come."""

from __future__ import annotations

import functools
import io
import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from dynamodb_desk import Desk, Plain, backend_at, late, started
from memcached_worlds import WORLDS, FakeServer, in_world

from cachekit.backends.dynamodb import DynamoDBBackend
from cachekit.backends.dynamodb.crew import HANDS, carry_out
from cachekit.errors import BackendError, BackendRefused, BackendTimeout, BackendUnavailable
from cachekit.protocols import Asking, Filling, Item, SlotState
from cachekit.runtime import AnyWorld, Runtime, drive
from cachekit.testing.dynamodb import DynamoDBServer, MinistackServer

LEASE = 30.0
BUDGET = 0.25
SLACK = 1.0
# Out of time in a pause, or while the last request was on its way.
WAITED = (BackendUnavailable, BackendTimeout)


@pytest.fixture(scope="module")
def server() -> Iterator[DynamoDBServer]:
    yield from started(MinistackServer())


@pytest.fixture
def desk(server: DynamoDBServer) -> Iterator[Desk]:
    with Desk(server).open() as desk:
        yield desk


def opened(desk: Desk, namespace: str) -> Plain:
    store = Plain(backend_at(desk.url, namespace).open(Runtime().threads))
    store.slot("warm")
    desk.asked.clear()
    return store


def new() -> bytes:
    return os.urandom(16)


# -- in parts, and throttled -------------------------------------------------------------


@pytest.mark.server
def test_keys_left_unprocessed_are_asked_for_until_all_are_answered(desk: Desk) -> None:
    store = opened(desk, "parts")
    items = [Item(f"k{n}", b"%d" % n, None) for n in range(130)]
    store.set_many(items)

    def leave(count: int) -> Callable[[dict[str, Any]], None]:
        def change(told: dict[str, Any]) -> None:
            found = told["Responses"]["cache"]
            kept, left = found[:count], found[count:]
            told["Responses"]["cache"] = kept
            keys = [{"k": item["k"]} for item in left]
            told["UnprocessedKeys"] = {"cache": {"Keys": keys, "ConsistentRead": True}}

        return change

    desk.plan("BatchGetItem", leave(10), leave(0), leave(0), leave(50), None, leave(1))
    desk.asked.clear()
    assert store.get_many([item.key for item in items]) == [item.data for item in items]
    assert desk.asked == {"BatchGetItem": 7}
    desk.plan("BatchGetItem", *[leave(0)] * 1000)
    with pytest.raises(WAITED):
        store.get_many(["k1"], deadline=late(BUDGET))
    store.close()


@pytest.mark.server
def test_items_left_unprocessed_are_written_again(desk: Desk) -> None:
    store = opened(desk, "unwritten")

    def undone(told: dict[str, Any]) -> None:
        """The server wrote them all: to write one of them again changes nothing."""
        item = {"k": {"S": "unwritten:d:k3"}, "v": {"B": "PQ=="}, "d": {"B": "bmV3"}}
        told["UnprocessedItems"] = {"cache": [{"PutRequest": {"Item": item}}]}

    desk.plan("BatchWriteItem", undone, undone, None)
    store.set_many([Item(f"k{n}", b"old", None) for n in range(5)])
    assert desk.asked == {"BatchWriteItem": 3}
    assert store.get_many(["k2", "k3"]) == [b"old", b"new"]
    store.close()


@pytest.mark.server
def test_what_is_throttled_is_sent_again_until_the_deadline(desk: Desk) -> None:
    store = opened(desk, "throttled")
    token = new()
    desk.plan("PutItem", "throttle", "throttle", None)
    assert store.acquire("k", token, LEASE).granted
    assert desk.asked == {"PutItem": 3}
    desk.plan("BatchGetItem", "throttle", None)
    assert store.slot("k").state is SlotState.TOKEN
    desk.plan("PutItem", *["throttle"] * 1000)
    began = time.monotonic()
    with pytest.raises(WAITED) as failed:
        store.fill("k", token, b"1", None, deadline=late(BUDGET))
    assert failed.value.key == "k"
    assert time.monotonic() - began < BUDGET + SLACK
    assert 3 < desk.asked["PutItem"] < 100, "with pauses that grow"
    store.close()


# -- lost --------------------------------------------------------------------------------


@pytest.mark.server
@pytest.mark.parametrize("how", ["lose request", "lose reply", "down"])
def test_a_write_without_an_answer_is_not_sent_again(how: str, desk: Desk) -> None:
    store = opened(desk, f"once-{how}")
    token, writer = new(), new()
    took_place = how == "lose reply"
    steps: list[tuple[str, str, Callable[[], Any]]] = [
        ("PutItem", "acquire", lambda: store.acquire("k", token, LEASE)),
        ("UpdateItem", "renew", lambda: store.renew("r", token, LEASE)),
        ("PutItem", "put", lambda: store.put("p", new(), b"1", None)),
        ("PutItem", "seize", lambda: store.seize(["s"], writer, LEASE)),
        ("PutItem", "nonces", lambda: store.nonces([], ["t"], new, None)),
        ("BatchWriteItem", "set_many", lambda: store.set_many([Item("d", b"1", None)])),
    ]
    for operation, verb, step in steps:
        desk.plan(operation, how)
        desk.asked.clear()
        with pytest.raises(BackendUnavailable, match=verb):
            step()
        assert desk.asked[operation] == 1, verb
    found = store.read(["k", "p", "s"], ["t"])
    states = [slot.state for slot in found.slots]
    assert states == (
        [SlotState.TOKEN, SlotState.ENTRY, SlotState.BLOCK]
        if took_place
        else [SlotState.NOTHING] * 3
    )
    assert (found.nonces == [None]) is not took_place
    store.close()


@pytest.mark.server
@pytest.mark.parametrize("how", ["lose request", "lose reply", "down"])
def test_what_reads_or_only_takes_away_is_sent_again(how: str, desk: Desk) -> None:
    store = opened(desk, f"again-{how}")
    writer = new()
    for key in ("v", "e"):
        store.put(key, new(), b"1", None)
    store.nonces([], ["t"], new, None)
    store.seize_tags(["u"], writer, LEASE)
    for operation, step in [
        ("BatchGetItem", lambda: store.slot("v")),
        ("DeleteItem", lambda: store.void(["v"])),
        ("DeleteItem", lambda: store.end(["e"], writer)),
        ("DeleteItem", lambda: store.drop_tags(["t"])),
        ("DeleteItem", lambda: store.end_tags(["u"], writer)),
    ]:
        desk.plan(operation, how, how, None)
        desk.asked.clear()
        step()
        assert desk.asked == {operation: 3}
    found = store.read(["v", "e"], ["t"])
    assert {slot.state for slot in found.slots} == {SlotState.NOTHING}
    assert found.nonces == [None]
    desk.plan("DeleteItem", how, how, how)
    with pytest.raises(BackendUnavailable):
        store.void(["v"])
    store.close()


@pytest.mark.server
@pytest.mark.parametrize("count", [2, 20])
def test_one_key_that_fails_keeps_no_invalidation_from_the_others(count: int, desk: Desk) -> None:
    store = opened(desk, f"each{count}")
    keys = [f"k{n}." for n in range(count)]
    for key in keys:
        store.put(key, new(), b"1", None)
    desk.judge = lambda operation, body: "down" if b":k0." in body else None
    with pytest.raises(BackendUnavailable):
        store.void(keys)
    desk.judge = lambda operation, body: None
    states = [slot.data for slot in store.read(keys, []).slots]
    assert states == [b"1"] + [None] * (count - 1)
    store.close()


@pytest.mark.server
def test_steps_on_many_keys_are_sent_together_and_answered_in_order(desk: Desk) -> None:
    store = opened(desk, "crew")
    together, most, lock = [0], [0], threading.Lock()

    def slowly(told: dict[str, Any]) -> None:
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        time.sleep(0.02)
        with lock:
            together[0] -= 1

    desk.judge = lambda operation, body: slowly
    asked = [Asking(f"k{n}", new()) for n in range(24)]
    taken = asked[::3]
    for each in taken:
        assert store.acquire(each.key, new(), LEASE).granted
    grants = store.acquire_many(asked, LEASE)
    assert [grant.granted for grant in grants] == [each not in taken for each in asked]
    fills = [Filling(each.key, each.token, each.key.encode(), None) for each in asked]
    assert store.fill_many(fills) == [each not in taken for each in asked]
    store.void([each.key for each in asked])
    found = store.read([each.key for each in asked], []).slots
    assert {slot.state for slot in found} == {SlotState.NOTHING}
    assert 3 <= most[0] <= HANDS
    assert not [t for t in threading.enumerate() if t.name == "cachekit-dynamodb"]
    store.close()


def test_what_is_no_error_of_the_backend_ends_the_work_and_is_raised() -> None:
    begun = []

    def job(number: int) -> None:
        begun.append(number)
        time.sleep(0.01)
        if number == 3:
            raise KeyboardInterrupt

    jobs = [functools.partial(job, number) for number in range(200)]
    with pytest.raises(KeyboardInterrupt):
        carry_out(jobs, late())
    assert len(begun) < 100


# -- answers that never come -------------------------------------------------------------


def verbs(store: Any, world: AnyWorld) -> dict[str, Callable[[], Awaitable[Any]]]:
    slots, id_ = store.slots, b"i" * 16

    def soon() -> Any:
        return world.deadline(BUDGET)

    return {
        "get_many": lambda: store.get_many(["k"], soon()),
        "set_many": lambda: store.set_many([Item("k", b"1", None)], soon()),
        "read": lambda: slots.read(["k"], ["t"], soon()),
        "fill": lambda: slots.fill("k", id_, b"x", None, soon()),
        "void": lambda: slots.void(["k", "l", "m", "n"], soon()),
        "seize": lambda: slots.seize(["k", "l"], id_, 5.0, soon()),
        "commit": lambda: slots.commit("k", id_, b"x", None, soon()),
        "nonces": lambda: slots.nonces(["k"], ["t"], new, None, soon()),
        "drop_space": lambda: slots.drop_space(soon()),
    }


@pytest.mark.server
@pytest.mark.parametrize("world", WORLDS)
def test_a_frozen_server_costs_each_verb_its_deadline_and_no_more(world: str) -> None:
    for server in started(MinistackServer()):

        async def body(here: AnyWorld, server: DynamoDBServer = server) -> None:
            backend = backend_at(server.url)
            store, second = backend.open(here), backend_at(server.url).open(here)
            await store.get_many(["k"], here.deadline(20.0))
            server.pause()
            try:
                # The second has no client yet: it can not even look whether there is a table.
                jobs = [*verbs(store, here).items(), *list(verbs(second, here).items())[:2]]
                for verb, job in jobs:
                    began = time.monotonic()
                    with pytest.raises(BackendTimeout):
                        await job()
                    assert time.monotonic() - began < BUDGET + SLACK, verb
            finally:
                server.resume()
            assert await store.slots.void(["k"], here.deadline(20.0)) is None
            await store.close()
            await second.close()

        in_world(world, body)


@pytest.mark.server
def test_a_server_that_was_killed_is_unavailable_and_found_again() -> None:
    for server in started(MinistackServer()):
        store = Plain(backend_at(server.url).open(Runtime().threads))
        store.put("k", new(), b"1", None)
        server.kill()
        with pytest.raises(BackendUnavailable):
            store.slot("k")
        server.start()
        with pytest.raises(BackendRefused, match="no such table"):
            store.slot("k")
        store.close()


def drips(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n")
    for byte in b"X-Slow: " + b"x" * 100_000:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def lies(connection: socket.socket) -> None:
    while connection.recv(65536):
        connection.sendall(b"+PONG\r\n")


def breaks_off(connection: socket.socket) -> None:
    while connection.recv(65536):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}")
        connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("script", "kind"),
    [(drips, BackendTimeout), (lies, BackendUnavailable), (breaks_off, BackendUnavailable)],
)
@pytest.mark.parametrize("world", WORLDS)
def test_a_server_that_drips_or_talks_nonsense_holds_nobody(
    world: str, script: Callable[[socket.socket], None], kind: type[BackendError]
) -> None:
    async def body(here: AnyWorld) -> None:
        url = f"dynamodb://cache?region=us-east-1&endpoint=http://127.0.0.1:{fake.port}"
        store = DynamoDBBackend(url).open(here)
        with pytest.raises(kind):  # the first also makes the client
            await store.get_many(["k"], here.deadline(3.0))
        began = time.monotonic()
        with pytest.raises(kind):
            await store.slots.fill("k", new(), b"1", None, here.deadline(BUDGET))
        assert time.monotonic() - began < BUDGET + SLACK
        await store.close()

    with FakeServer(script) as fake, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        in_world(world, body)


# -- words -------------------------------------------------------------------------------


@pytest.mark.server
def test_without_credentials_or_region_it_says_what_to_set(monkeypatch: Any) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    for url, advice in [
        ("dynamodb://cache?region=us-east-1", "no credentials were found"),
        ("dynamodb://cache", "no region was found"),
    ]:
        store: Any = DynamoDBBackend(url).open(Runtime().threads)
        with pytest.raises(BackendRefused, match=advice):
            drive(store.get_many(["k"], late()))
        drive(store.close())


@pytest.mark.server
def test_no_error_and_no_log_tells_a_value_or_a_credential(desk: Desk, monkeypatch: Any) -> None:
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logging.getLogger("cachekit").addHandler(handler)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-credential")
    store = opened(desk, "words")
    told = []
    for how in ("down", "throttle", "lose reply"):
        desk.plan("PutItem", *[how] * 100)
        with pytest.raises(BackendError) as failed:
            store.put("k", new(), b"hush-value", None, deadline=late(BUDGET))
        told.append("".join(traceback.format_exception(failed.value)))
    desk.plan("PutItem")
    with pytest.raises(BackendRefused, match="ParamValidationError") as failed:
        store.put("k", new(), ["hush-value"], None)  # not bytes: botocore quotes it
    told.append("".join(traceback.format_exception(failed.value)))
    logging.getLogger("cachekit").removeHandler(handler)
    text = "".join(told) + heard.getvalue() + repr(store.store._driver)
    assert text.count("cachekit.errors.Backend") >= 4
    assert "hush-credential" not in text
    assert not [
        line for line in text.splitlines() if "hush-value" in line and "store.put" not in line
    ]
    store.close()
