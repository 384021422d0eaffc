"""P60 to P62: whatever bytes lie in the store, a read gives the right value or loads it.

The bytes are changed by raw clients of real servers; every read goes through the public API.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import random
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from garbage import GARBAGE, NEWER, ORIGINAL, changed
from raw_store import BACKENDS, LOADED, Raw, RawRedis, Watched, raw_stores

from cachekit import Cache, WriteThrough
from cachekit.codecs import Compressed, Encrypted, ExactJson, Pickle, Signed
from cachekit.errors import ConfigurationError

SECRET = b"a secret of thirty-two bytes ..."
OLDER = b"another secret of thirty-two ..."


@pytest.fixture(params=BACKENDS)
def raw(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Raw]:
    yield from raw_stores(request, tmp_path)


# -- P60 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["plain", "async"])
def test_no_flipped_bit_of_a_stored_value_gives_a_wrong_value(raw: Raw, world: str) -> None:
    watched = Watched(raw)
    assert watched.cache.set("k", ORIGINAL, ttl=600, tags=["t"])
    stored = raw.stored("k")
    # Between them the two worlds flip every bit; both every one of the entry's first bytes.
    step, first = (2, world == "async") if len(stored) > 8 else (1, 0)
    bits = range(int(first), len(stored) * 8, step)

    def flip(bit: int) -> None:
        data = bytearray(stored)
        data[bit // 8] ^= 1 << bit % 8
        raw.write("k", bytes(data))

    def judge(bit: int, value: Any, unreadable: bool) -> None:
        if bit >= raw.head * 8:
            assert (value, unreadable) == (LOADED, True), f"bit {bit}"
        else:  # the slot's own head: its stamp is no part of the value
            assert value in (ORIGINAL, LOADED), f"bit {bit}"

    def plain() -> None:
        for bit in bits:
            flip(bit)
            judge(bit, *watched.read())

    async def asynchronous() -> None:
        for bit in bits:
            flip(bit)
            judge(bit, *await watched.read_async())
        await watched.cache.aio.close()

    if world == "plain":
        plain()
    else:
        asyncio.run(asynchronous())
    raw.write("k", stored)
    assert watched.read() == (ORIGINAL, False)  # the control: these bytes can be read
    assert watched.cache.stats().counts.get("backend_errors", 0) == 0


def test_a_damaged_value_is_told_of_once_per_read(raw: Raw) -> None:
    watched = Watched(raw)
    for read in (lambda: watched.read(), lambda: watched.cache.get("k")):
        assert watched.cache.set("k", ORIGINAL, ttl=600)
        stored = raw.stored("k")
        raw.write("k", stored[:-1] + bytes((stored[-1] ^ 1,)))
        del watched.events[:]
        read()
        assert watched.events.count("unreadable") == 1


def test_garbage_and_other_formats_are_a_miss_that_is_told(raw: Raw) -> None:
    watched = Watched(raw)
    assert watched.cache.set("k", ORIGINAL, ttl=600)
    stored = raw.stored("k")
    before, entry = stored[: raw.head], stored[raw.head :]
    tracemalloc.start()
    try:
        for what, make in {**GARBAGE, **NEWER}.items():
            data = make(entry)
            raw.write("k", before + data)
            assert watched.read() == (LOADED, True), what
            assert watched.read() == (LOADED, False), f"{what}: it was not replaced"
            raw.write("k", data)  # also in place of the whole slot
            assert watched.read()[0] == LOADED, what
            assert watched.read()[0] == LOADED, what
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    raw.write("k", stored)
    assert watched.read() == (ORIGINAL, False)


@pytest.mark.parametrize("field", ["created", "fresh", "ttl"])
def test_times_at_the_end_of_their_range_are_no_exception(raw: Raw, field: str) -> None:
    watched = Watched(raw)
    assert watched.cache.set("k", ORIGINAL, ttl=600)
    stored = raw.stored("k")
    offset = {"created": 14, "fresh": 22, "ttl": 30}[field]
    for value in (-(2**63), -1, 0, 1, 2**53, 2**63 - 1):
        raw.write("k", stored[: raw.head] + changed(stored[raw.head :], offset, "q", value))
        assert watched.read()[0] in (LOADED, ORIGINAL), value


def test_garbage_in_place_of_the_namespace_nonce_costs_misses_only(raw: Raw) -> None:
    watched = Watched(raw)
    assert watched.cache.set("k", ORIGINAL, ttl=600)
    good = raw.nonce()
    for data in (b"", b"x", bytes(len(good)), good[:-1], good + good, b"\xff" * 100_000):
        raw.nonce(data)
        assert watched.read()[0] == LOADED, data[:40]
        assert watched.cache.get("k") == LOADED, f"{data[:40]!r}: nothing is kept any more"
        watched.cache.clear()
        assert watched.cache.get("k") is None
        assert watched.cache.set("k", ORIGINAL, ttl=600)
    counts = watched.cache.stats().counts
    assert not counts.get("refused_values")
    assert not counts.get("backend_errors")


def test_redis_keys_of_another_type_are_a_miss(tmp_path: Path, redis_server: Any) -> None:
    raw = RawRedis(redis_server)
    try:
        watched = Watched(raw)
        assert watched.cache.set("k", ORIGINAL, ttl=600)
        raw.write_other_type("k")
        assert watched.read()[0] == LOADED
        assert watched.cache.get("k") in (None, LOADED)
        assert watched.cache.stats().breaker == "closed"
    finally:
        raw.close()


def test_a_damaged_sqlite_file_gives_no_wrong_value_and_is_replaced(tmp_path: Path) -> None:
    path, chance, hits = tmp_path / "cache.db", random.Random(11), 0
    with Cache(f"sqlite:///{path}", coherence="strict", timeout=5.0) as cache:
        for n in range(20):
            cache.set(f"k{n}", n, ttl=600, tags=[f"t{n}"])
    assert not os.path.exists(f"{path}-wal")  # the last connection wrote everything to the file
    whole = path.read_bytes()
    text = whole.index(b"CREATE TABLE slots")
    for turn in range(60):
        data = bytearray(whole)
        first, last = (text, text + 40) if turn % 4 == 0 else (0, len(data))
        for _ in range(chance.choice((1, 1, 4, 64))):
            data[chance.randrange(first, last)] ^= 1 << chance.randrange(8)
        data[60:72] = whole[60:72]  # what says whose file it is: another's is refused
        path.write_bytes(data)
        with Cache(f"sqlite:///{path}", coherence="strict", timeout=5.0) as cache:
            for n in range(20):
                value = cache.get_or_set(f"k{n}", lambda: LOADED, ttl=600)
                assert value in (n, LOADED)
                hits += value == n
            cache.invalidate(keys=["k1"], tags=["t2"])
    assert hits  # the control: most flips hit something else


# -- P61 ---------------------------------------------------------------------------------


class Trap:
    """A pickle of it makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("codec", ["json", "msgpack", "raw"])
def test_the_default_codec_and_its_like_never_unpickle(
    raw: Raw, codec: str, tmp_path: Path
) -> None:
    watched, folder = Watched(raw, codec=codec), tmp_path / "trapped"
    value = b"bytes" if codec == "raw" else ORIGINAL
    loaded = b"loaded" if codec == "raw" else LOADED
    for protocol in (0, 2, 5):
        for mark in (None, 3, 0x13, 0x43):
            assert watched.cache.set("k", value, ttl=600)
            trap = pickle.dumps(Trap(folder), protocol)
            entry = raw.entry("k")
            raw.forge("k", entry._replace(payload=trap, mark=mark or entry.mark))
            got = watched.cache.get_or_set("k", lambda: loaded, ttl=60)
            if not (codec == "raw" and mark is None):  # there any bytes are a value
                assert got == loaded
            assert not folder.exists()
    pickle.loads(trap)
    assert folder.exists()  # the control: the trap works


def test_pickle_must_be_signed_where_others_can_write(raw: Raw) -> None:
    for codec in ("pickle", Pickle(), Compressed(Pickle())):
        with pytest.raises(ConfigurationError):
            raw.cache(codec=codec)
        with pytest.raises(ConfigurationError):
            raw.cache().cached(codec=codec)(lambda n: n)
    assert raw.cache(codec=Pickle(SECRET)).set("k", {1, 2})
    assert Cache(codec="pickle").set("k", {1, 2})  # this process alone: nothing is decoded


SIGNING: dict[str, Callable[[Any], Any]] = {
    "signed": lambda secret: Signed(ExactJson(), secret),
    "pickle": lambda secret: Pickle(secret),
    "encrypted": lambda secret: Encrypted(ExactJson(), secret),
    "compressed": lambda secret: Signed(Compressed(ExactJson(), threshold=1), secret),
}


@pytest.mark.parametrize("kind", SIGNING)
def test_a_signed_value_can_not_be_changed_moved_or_kept_longer(raw: Raw, kind: str) -> None:
    watched = Watched(raw, codec=SIGNING[kind](SECRET))
    cache = watched.cache
    assert cache.set("k", ORIGINAL, ttl=600, tags=["t"])
    assert cache.set("other", "of the other", ttl=600, tags=["t"])
    stored, entry = raw.stored("k"), raw.entry("k")
    assert entry.tags
    forged = {
        "negative": entry._replace(negative=True),
        "created": entry._replace(created=entry.created + 1),
        "fresh": entry._replace(fresh=10**12),
        "ttl": entry._replace(ttl=None),
        "tags": entry._replace(tags=()),
        "remembered": entry._replace(remembered=("t",)),
        "row version": entry._replace(row_version=10**6),
        "cost": entry._replace(cost=entry.cost + 1),
        "mark": entry._replace(mark=entry.mark & 0x0F),
        "payload of another key": entry._replace(payload=raw.entry("other").payload),
        "unsigned payload": entry._replace(payload=ExactJson().encode("forged")),
        "no payload": entry._replace(payload=b""),
    }
    for what, made in forged.items():
        raw.write("k", stored)
        raw.forge("k", made)
        assert watched.read() == (LOADED, True), what
    raw.forge("other", entry)
    assert watched.read("other")[0] == LOADED
    raw.write("k", stored)
    assert watched.read() == (ORIGINAL, False)


@pytest.mark.parametrize("kind", SIGNING)
@pytest.mark.parametrize("with_its_nonce", [False, True])
def test_a_signed_value_moved_to_another_namespace_is_a_miss(
    raw: Raw, kind: str, with_its_nonce: bool
) -> None:
    theirs, codec = raw.namespace, SIGNING[kind](SECRET)
    assert raw.cache(codec=codec).set("k", ORIGINAL, ttl=600)
    stored, nonce = raw.stored("k"), raw.nonce()
    raw.namespace = theirs + "-ours"
    watched = Watched(raw, codec=codec, namespace=raw.namespace)
    assert watched.cache.set("k", "ours", ttl=600)
    if with_its_nonce:  # who may write the store may write the nonce as well
        raw.nonce(nonce)
    raw.write("k", stored)
    assert watched.read()[0] == LOADED


@pytest.mark.parametrize("kind", SIGNING)
def test_keys_are_rotated_new_first_and_the_old_still_read(raw: Raw, kind: str) -> None:
    make = SIGNING[kind]
    old, both, new = (Watched(raw, codec=make(s)) for s in (OLDER, [SECRET, OLDER], SECRET))
    assert old.cache.set("k", ORIGINAL, ttl=600)
    assert both.read() == (ORIGINAL, False)
    assert both.cache.set("k", "rewritten", ttl=600)
    assert new.read() == ("rewritten", False)
    assert old.read() == (LOADED, True)


@pytest.mark.parametrize("kind", SIGNING)
def test_no_secret_shows_in_errors_logs_or_reprs(
    raw: Raw, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    codec, fields = SIGNING[kind](SECRET), []
    cache = raw.cache(codec=codec, observers=[lambda name, told: fields.append((name, told))])
    with caplog.at_level(logging.DEBUG):
        assert cache.set("k", ORIGINAL, ttl=600)
        raw.forge("k", raw.entry("k")._replace(payload=b"forged" * 20))
        assert cache.get_or_set("k", lambda: LOADED) == LOADED
        with pytest.raises(ConfigurationError) as short:
            SIGNING[kind](SECRET[:7])
        cache.cached(ttl=60, name="secretive")(lambda n: lambda: SECRET)(1)  # can not be encoded
    said = [repr(codec), repr(cache), repr(cache.settings), repr(fields), caplog.text]
    said += [str(short.value), repr(cache.stats()), repr(vars(codec))]
    for text in said:
        for part in (SECRET[:7].decode(), SECRET[:7].hex(), "of the store"):
            assert part not in text


# -- P62 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["zlib", "zstd"])
def test_a_decompression_bomb_in_the_store_is_a_miss_in_bounded_memory(
    raw: Raw, algorithm: str
) -> None:
    megabyte = 2**20
    codec = Compressed(ExactJson(), algorithm, threshold=1, max_size=megabyte)
    watched = Watched(raw, codec=codec)
    assert watched.cache.set("k", "a" * 2000, ttl=600)
    if algorithm == "zlib":
        bomb = zlib.compress(b" " * (100 * megabyte), 9)
    else:
        zstandard = pytest.importorskip("zstandard")
        bomb = zstandard.ZstdCompressor().compress(b" " * (100 * megabyte))
    raw.forge("k", raw.entry("k")._replace(payload=b"\x01" + bomb))
    assert watched.cache.get("first") is None  # warm: connections and buffers are there
    tracemalloc.start()
    try:
        assert watched.read() == (LOADED, True)
        assert tracemalloc.get_traced_memory()[1] < 8 * megabyte
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("world", ["plain", "async"])
def test_a_value_above_the_limit_is_returned_counted_and_the_old_entry_gone(
    raw: Raw, world: str
) -> None:
    events: list[str] = []
    cache = raw.cache(max_value=1000, observers=[lambda name, fields: events.append(name)])
    plain, large = world == "plain", "x" * 5000

    def call(made: Any) -> Any:
        if plain:
            return made

        async def run() -> Any:
            try:
                return await made
            finally:
                await cache.aio.close()

        return asyncio.run(run())

    face: Any = cache if plain else cache.aio
    assert call(face.set("k", "small", ttl=0.2))
    raw_before = raw.read("k")
    assert raw_before is not None
    if plain:
        cache.touch("k", 600)
    # A load that gives more than the limit: returned, not kept, counted.
    call(face.invalidate(keys=["k"]))
    assert call(face.get_or_set("k", lambda: large, ttl=60)) == large
    assert "refused_values" in events
    assert cache.stats().counts["refused_values"] == 1
    assert call(face.get("k")) is None

    # A write through the cache: the older entry must not outlive it.
    rows: dict[int, str] = {}
    book = WriteThrough(cache, load=rows.get, store=rows.__setitem__, key="row:{id}", ttl=60)
    verbs: Any = book if plain else book.aio
    call(verbs.put(7, "small"))
    assert call(verbs.get(7)) == "small"
    call(verbs.put(7, large))
    assert rows[7] == large
    assert call(face.get("row:7")) is None
    assert call(verbs.get(7)) == large
    assert cache.stats().counts["refused_values"] >= 2


def test_a_set_above_the_limit_removes_the_old_entry(raw: Raw) -> None:
    cache = raw.cache(max_value=1000)
    assert cache.set("k", "small", ttl=60)
    with pytest.raises(Exception, match="max_value"):
        cache.set("k", "x" * 5000, ttl=60)
    assert cache.get("k") is None
    assert cache.stats().counts.get("refused_values", 0) == 1  # it is counted as well


def test_a_value_memcached_itself_refuses_leaves_no_older_one(memcached_server: Any) -> None:
    with Cache(memcached_server.url, namespace="too-large", coherence="strict", timeout=5.0) as c:
        rows: dict[int, str] = {}
        book = WriteThrough(c, load=rows.get, store=rows.__setitem__, key="row:{id}", ttl=60)
        book.put(7, "small")
        large = random.Random(3).randbytes(2**20).hex()  # above its limit of 1 MB an item
        book.put(7, large)
        assert c.get("row:7") is None
        assert book.get(7) == large
        counts = c.stats().counts
        assert counts.get("refused_values", 0) + counts.get("backend_errors", 0) >= 1
