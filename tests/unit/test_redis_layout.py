"""Names and bytes of the Redis backend, and its URLs."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from cachekit.backends.redis import RedisBackend
from cachekit.backends.redis import layout as names
from cachekit.backends.redis.options import Topology, parse_url
from cachekit.backends.redis.scripts import ALL
from cachekit.backends.redis.wire import Address
from cachekit.errors import ConfigurationError, MissingDependencyError
from cachekit.protocols import NOTHING, SlotState
from cachekit.runtime import Runtime

ASCII = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
HOSTILE = st.text(st.sampled_from("{}:#!=~%a1\0\r\n é*"), max_size=8)
ID = bytes(range(16))


def all_names(namespace: str, partitions: int, text: str) -> dict[str, bytes]:
    encoded = names.encode_namespace(namespace)
    layout = names.Layout(encoded, partitions)
    found = {
        "slot": layout.slot(text),
        "record": layout.record(text),
        "tag": layout.tag(text),
        "partitions": names.partitions_key(encoded),
    }
    return found | {f"space {p}": name for p, name in enumerate(layout.spaces)}


@given(HOSTILE, HOSTILE, ASCII, ASCII)
def test_no_two_things_have_one_name(one: str, other: str, text: str, more: str) -> None:
    for namespace, thing in ((other, text), (one, more), (other, more)):
        mine, theirs = all_names(one, 3, text), all_names(namespace, 3, thing)
        assert len(set(mine.values())) == len(mine)
        for kind, name in mine.items():
            same = [other_kind for other_kind, n in theirs.items() if n == name]
            if namespace != one:
                assert same == []
            elif kind in ("slot", "record", "tag"):
                assert same == ([kind] if thing == text else [])


@given(HOSTILE, ASCII)
def test_an_entry_and_its_namespace_nonce_share_a_cluster_slot(namespace: str, key: str) -> None:
    layout = names.Layout(names.encode_namespace(namespace), 64)
    slot, space = layout.place(key)
    assert key_slot(slot) == key_slot(space) == key_slot(layout.record(key))
    assert layout.locate([key]) == ([slot], [layout.partition(key)])
    assert layout.spaces[layout.partition(key)] == space


def test_the_names_are_the_documented_ones() -> None:
    layout = names.Layout(names.encode_namespace("shop:eu {1}"), 64)
    assert layout.slot("user:7") == b"{shop%3Aeu%20%7B1%7D:55}:user:7"
    assert layout.tag("t") == b"{shop%3Aeu%20%7B1%7D:#t}"
    assert names.partitions_key("") == b"{}:partitions"
    assert names.bus_channel("shop%3Aeu") == b"{shop%3Aeu}:bus"


def test_a_namespace_of_a_megabyte_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="keep it under"):
        RedisBackend(namespace="x" * 1_000_000)


@given(
    st.one_of(
        st.binary(max_size=70),
        st.sampled_from("TERB").flatmap(
            lambda kind: st.binary(max_size=70).map(lambda rest: kind.encode() + b"\x01" + rest)
        ),
    )
)
def test_any_bytes_under_a_slots_name_are_read_without_an_error(value: bytes) -> None:
    slot = names.parse_slot(value)
    assert (slot.data is None) == (slot.state not in (SlotState.ENTRY, SlotState.REFRESHING))
    if value[1:2] != b"\x01":
        assert slot == NOTHING
    names.lease_end(value)


def test_each_state_is_read_from_its_documented_bytes() -> None:
    lease = b"-0000000000500"
    assert names.parse_slot(None) == NOTHING
    assert names.parse_slot(b"T\x01" + ID).state is SlotState.TOKEN
    assert names.parse_slot(b"E\x01" + ID + b"v") == (SlotState.ENTRY, ID, b"v")
    refreshing = b"R\x01" + ID + b"r" * 16 + lease + b"v"
    assert names.parse_slot(refreshing) == (SlotState.REFRESHING, ID, b"v")
    assert names.lease_end(refreshing) == -500
    given_back = b"R\x01" + ID + bytes(16) + lease + b"v"
    assert names.parse_slot(given_back) == (SlotState.ENTRY, ID, b"v")
    assert names.parse_slot(b"B\x010" + ID).state is SlotState.BLOCK


@given(st.binary(max_size=70), st.sampled_from([b"", b"r" * 16]))
def test_a_nonce_is_read_from_32_bytes_of_the_same_run_only(value: bytes, run: bytes) -> None:
    assert names.parse_nonce(value, run) == (
        value[16:] if len(value) == 32 and value[: len(run)] == run else None
    )
    stored = b"r" * 16 + ID
    assert names.parse_nonce(stored, run) == ID
    assert names.parse_nonce(stored, b"s" * 16) is None
    assert names.parse_nonce(None, run) is None


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0000001, 1), (0.001, 1), (0.0015, 2), (0.25, 250), (1e300, names.LONGEST_MS)],
)
def test_a_ttl_is_rounded_up_and_never_to_nothing(seconds: float, expected: int) -> None:
    assert names.milliseconds(seconds) == expected
    assert names.expiry(None) == b"0"


def test_scripts_have_one_key_and_distinct_digests() -> None:
    assert len({script.digest for script in ALL}) == len(ALL)
    assert all(b"KEYS[2]" not in script.source for script in ALL)
    assert not any(word in s.source for s in ALL for word in (b"'TIME'", b"'KEYS'", b"'SCAN'"))


# -- URLs ----------------------------------------------------------------------------------


def test_urls_of_every_topology_are_understood() -> None:
    options = parse_url("redis://app:p%40ss@db.example:6390/3?client_name=me")
    assert options.addresses == (Address("db.example", 6390),)
    login = options.login
    assert (login.username, login.password, login.db, login.client_name, login.tls) == (
        "app",
        "p@ss",
        3,
        "me",
        None,
    )
    assert parse_url("redis://").addresses == (Address("localhost", 6379),)
    assert parse_url("redis://[::1]:7/0").addresses == (Address("::1", 7),)
    assert parse_url("unix:///run/redis.sock?db=2").addresses == (Address("/run/redis.sock", 0),)
    tls = parse_url("rediss://h").login.tls
    assert tls is not None
    assert tls.context.check_hostname
    assert tls.context.verify_mode.name == "CERT_REQUIRED"
    cluster = parse_url("redis+cluster://:pw@a:1,b:2,c")
    assert (cluster.topology, cluster.login.password) == (Topology.CLUSTER, "pw")
    assert cluster.addresses == (Address("a", 1), Address("b", 2), Address("c", 6379))
    sentinel = parse_url("redis+sentinel://a,b:5/main/4?sentinel_password=sp")
    assert (sentinel.service, sentinel.login.db, sentinel.login.master_only) == ("main", 4, True)
    assert sentinel.addresses == (Address("a", 26379), Address("b", 5))
    assert (sentinel.sentinel_login.password, sentinel.sentinel_login.db) == ("sp", 0)


def test_a_restart_is_trusted_only_where_asked_for_and_then_no_run_is_asked() -> None:
    for url, overrides, trusted in (
        ("redis://h", {}, False),
        ("redis://h?trust_restart=False", {}, False),
        ("redis+cluster://h?trust_restart=true", {}, True),
        ("redis+sentinel://h/main", {"trust_restart": True}, True),
        ("redis://h?trust_restart=true", {"trust_restart": False}, False),
    ):
        options = parse_url(url, **overrides)
        assert (options.trust_restart, options.login.ask_run) == (trusted, not trusted)
        assert (("INFO", "server") in options.login.greeting) != trusted
        assert not options.sentinel_login.ask_run


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "redis:h",
        "redis://:hunter2@h:port/0",
        "redis://:hunter2/x@h",
        "redis://:hunter2#x@h",
        "redis://:hunter2@h/zero",
        "redis://:hunter2@h?password=hunter2&nope=1",
        "redis://:hunter2@h?socket_timeout=1",
        "redis://:hunter2@h?db=hunter2",
        "redis://:hunter2@a,b",
        "redis+sentinel://:hunter2@h",
        "redis+cluster://:hunter2@h/1",
        "redis://hunter2@h",
        "unix://hunter2/x",
        "rediss://:hunter2@h?ssl_cert_reqs=maybe",
        "redis://:hunter2@h?partitions=0",
        "redis://:hunter2@h?max_connections=0",
        "redis://:hunter2@h?trust_restart=hunter2",
        "rediss://:hunter2@h?ssl_check_hostname=hunter2",
    ],
)
def test_a_wrong_url_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisBackend(url)
    assert "hunter2" not in str(caught.value)


def test_a_missing_client_library_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("redis", "hiredis"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(MissingDependencyError, match=r"cachekit-strategies\[redis\]"):
                RedisBackend()


def test_opening_and_closing_does_no_io() -> None:
    backend = RedisBackend("redis://127.0.0.1:1/0")
    assert (backend.name, backend.shared) == ("redis", True)
    assert backend.log is not None
    backend.log("orders")
    backend.open(Runtime().threads)
    nowhere: Any = type("World", (), {"name": "trio"})()
    with pytest.raises(ConfigurationError, match="trio"):
        backend.open(nowhere)
