"""What the Memcached backend sends: keys, expiry times, nodes, URLs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.backends.memcached import MemcachedBackend
from cachekit.backends.memcached.names import MAX_KEY, Names, Ring
from cachekit.backends.memcached.values import (
    LAST_SECOND,
    MAX_WRITERS,
    RELATIVE_LIMIT,
    Block,
    entry_value,
    expiry,
    read_slot,
)
from cachekit.errors import ConfigurationError
from cachekit.protocols import SlotState

NOW = 1_800_000_000.25
KINDS = ("slot", "refresh", "record", "tag")


# -- keys


@given(st.text(max_size=300), st.text(max_size=300), st.sampled_from(KINDS))
def test_a_name_on_the_wire_is_short_and_holds_nothing_that_ends_a_word(
    namespace: str, key: str, kind: str
) -> None:
    name = getattr(Names(namespace), kind)(key)
    assert 0 < len(name) <= MAX_KEY
    assert all(0x21 <= byte <= 0x7E for byte in name)


@pytest.mark.parametrize(
    "key", ["", " ", "a b", "a\r\nflush_all", "\0", "é", "k" * 10**6, "\ud800"]
)
def test_a_hostile_key_becomes_one_harmless_name(key: str) -> None:
    name = Names("").slot(key)
    assert name.startswith(b":K:")
    assert len(name) < 60


PARTS = st.text(st.sampled_from("ab:#%kKrdtn~ \xe9"), max_size=6)


@given(st.tuples(PARTS, PARTS), st.tuples(PARTS, PARTS))
def test_different_namespaces_kinds_and_keys_never_share_a_name(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    every = []
    for space, key in {one, other}:
        names = Names(space)
        every += [getattr(names, kind)(key) for kind in KINDS]
    every += [Names(space).space for space in {one[0], other[0]}]
    every += [Names(space).epoch for space in {one[0], other[0]}]
    assert len(set(every)) == len(every)


def test_a_key_written_like_a_hashed_one_is_not_that_key() -> None:
    names = Names("ns")
    hashed = names.slot("k" * 300).decode()
    assert names.slot(hashed.partition(":")[2]) != names.slot("k" * 300)


def test_the_longest_contract_key_fits_under_a_long_namespace() -> None:
    names = Names("tenant/" * 40)
    assert len(names.slot("k" * 230)) <= MAX_KEY
    assert names.slot("k" * 230) != names.slot("k" * 229 + "x")


# -- times


@pytest.mark.parametrize(
    ("ttl", "sent"),
    [
        (None, 0),
        (0.001, 2),
        (0.9, 2),
        (1, 2),
        (1.0001, 3),
        (59.5, 61),
        (RELATIVE_LIMIT - 1, RELATIVE_LIMIT),
        (RELATIVE_LIMIT, 1_800_000_001 + RELATIVE_LIMIT + 1),
        (40 * 86400.0, 1_800_000_001 + 40 * 86400 + 1),
        (1e12, LAST_SECOND),
    ],
)
def test_a_ttl_is_sent_so_that_nothing_ends_early_or_lives_for_ever(
    ttl: float | None, sent: int
) -> None:
    assert expiry(ttl, NOW) == sent


@given(st.floats(min_value=1e-9, max_value=1e15))
def test_no_ttl_is_ever_sent_as_for_ever_or_as_a_date_in_the_past(ttl: float) -> None:
    sent = expiry(ttl, NOW)
    assert sent > NOW if sent > RELATIVE_LIMIT else sent >= ttl


# -- values


@given(st.binary(max_size=80), st.none() | st.binary(max_size=50))
def test_any_bytes_read_as_some_slot(value: bytes, side: bytes | None) -> None:
    slot = read_slot(value, side)
    if not value.startswith((b"E", b"T", b"B")):
        assert slot.state is SlotState.NOTHING
    assert (slot.data is not None) == (slot.state in (SlotState.ENTRY, SlotState.REFRESHING))


def test_a_side_key_for_another_stamp_means_no_refresh() -> None:
    mine, other, token = b"s" * 16, b"o" * 16, b"t" * 16
    value = entry_value(mine, b"x")
    assert read_slot(value, b"R" + token + mine).state is SlotState.REFRESHING
    assert read_slot(value, b"R" + token + other).state is SlotState.ENTRY


def test_a_block_that_too_many_writers_left_behind_ends_by_time_alone() -> None:
    block = Block(5, False, (bytes([0]) * 15 + b"\1",))
    ids = [number.to_bytes(16, "big") for number in range(1, MAX_WRITERS + 20)]
    for writer in ids:
        block = block.joined(writer, 5)
    assert len(block.writers) == MAX_WRITERS
    for writer in ids:
        left = block.without(writer)
        assert left is not None
        block = left
    assert Block.parse(block.value()) == block


# -- nodes


def test_taking_a_node_away_moves_only_its_own_names() -> None:
    names = [f"k{n}".encode() for n in range(3000)]
    three, two = Ring(["a:1", "b:1", "c:1"]), Ring(["a:1", "b:1"])
    shares = {node: len(part) for node, part in three.split(names).items()}
    assert min(shares.values()) > 800
    for name in names:
        if three.node(name) != "c:1":
            assert two.node(name) == three.node(name)


def test_the_order_of_the_nodes_in_the_url_does_not_matter() -> None:
    one, other = Ring(["a:1", "b:1", "c:1"]), Ring(["c:1", "a:1", "b:1"])
    assert all(one.node(b"k%d" % n) == other.node(b"k%d" % n) for n in range(500))


@pytest.mark.parametrize(
    ("url", "nodes"),
    [
        ("memcached://localhost", "localhost:11211"),
        ("memcached://a:1,b:2/", "a:1, b:2"),
        ("memcached://[::1]:7,[::2]", "::1:7, ::2:11211"),
        ("memcached:///run/memcached.sock", "/run/memcached.sock"),
        ("memcached://a?connections=3", "a:11211"),
    ],
)
def test_a_url_names_the_nodes(url: str, nodes: str) -> None:
    assert repr(MemcachedBackend(url)) == f"MemcachedBackend({nodes})"


@pytest.mark.parametrize(
    "url",
    [
        "memcached://",
        "memcached://a:b",
        "memcached://a:0",
        "memcached://a:99999",
        "memcached://a,,b",
        "memcached://a/1",
        "memcached://a?pool=3",
        "memcached://a?connections=0",
        "memcached://me:secret@a",
    ],
)
def test_a_url_it_can_not_use_is_refused_with_the_remedy_and_no_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        MemcachedBackend(url)
    assert "secret" not in str(refused.value)
    assert "memcached" in str(refused.value)


def test_without_pymemcache_the_error_has_the_pip_line() -> None:
    script = (
        "import sys; sys.modules['pymemcache'] = None\n"
        "from cachekit.errors import MissingDependencyError\n"
        "try:\n"
        "    import cachekit.backends.memcached\n"
        "except MissingDependencyError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert "pip install 'cachekit-strategies[memcached]'" in done.stdout
