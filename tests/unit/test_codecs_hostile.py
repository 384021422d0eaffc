"""Bytes a codec did not write: CodecError and nothing else, and nothing is run."""

from __future__ import annotations

import os
import pickle
import struct
import sys
import tracemalloc

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cachekit.codecs import Compressed, Encrypted, ExactJson, Msgpack, Pickle, Raw, Signed
from cachekit.errors import CodecError

SECRET = b"s" * 32
JSON = ExactJson()

CODECS = [
    JSON,
    Msgpack(),
    Msgpack(type=list[int]),
    Pickle(secret=SECRET),
    Signed(JSON, SECRET),
    Signed(Pickle(), SECRET),
    Encrypted(JSON, SECRET),
    Compressed(JSON),
    Compressed(JSON, "zstd"),
    Signed(Compressed(JSON, "zstd"), SECRET),
]
codecs = pytest.mark.parametrize("codec", CODECS, ids=repr)


sprung: list[int] = []


def spring(number):
    sprung.append(number)


class Trap:
    """Unpickling one calls ``spring``."""

    def __reduce__(self):
        return spring, (1,)


GARBAGE = [
    b"",
    b"\0",
    b"\0" * 4096,
    b"\xff" * 4096,
    b" ",
    b"\n",
    b" NaN",
    b" [1",
    b" 1 ",
    b" \xff\xfe",
    b'\n["nothing", 1]',
    b"\n[]",
    b"\n[[]]",
    b"\n[{}]",
    b"x{}",
    b"\x80\x05N.",
    pickle.dumps(Trap()),
    b"\0" + pickle.dumps(Trap()),
    b"\1" + pickle.dumps(Trap()),
    b"\0\0\0\0" + pickle.dumps(Trap()),
    b"\0\0\0\0\xdd\xff\xff\xff\xff",
    b"\0\0\0\0\xdf\xff\xff\xff\xff",
    b"\0\0\0\0\xc1",
    b"\0\0\0\0" + b"\x91" * 100_000,
    b"\1\x28\xb5\x2f\xfd",
    b"\1\x78\x9c",
    b"PK\x03\x04",
    b"\x1f\x8b\x08\0",
    " é".encode("utf-16"),
    b" " + b"[" * 100_000,
    b"\n" + b'["list",' * 100_000,
    b" " + b"9" * 100_000,
    b"<html></html>",
]


@codecs
@pytest.mark.parametrize("data", GARBAGE, ids=lambda data: repr(data[:12]))
def test_garbage_is_a_codec_error(codec, data):
    with pytest.raises(CodecError):
        codec.decode(data, b"k")
    assert sprung == []


@codecs
@given(data=st.binary(max_size=200))
@settings(max_examples=100)
def test_random_bytes_give_a_value_or_a_codec_error(codec, data):
    for start in (b"", b" ", b"\n", b"\0", b"\1", b"\0\0\0\0"):
        try:
            codec.decode(start + data, b"k")
        except CodecError:
            continue


TAGS = ["list", "tuple", "set", "frozenset", "dict", "class", "float", "complex", "nothing"]
TAGS += ["bytes", "bytearray", "Decimal", "UUID", "date", "time", "datetime", "timedelta"]
TAGS += ["PosixPath", "WindowsPath", "IPv4Address", "IPv6Network"]

json_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from(["zone", "offset", "../../etc/passwd", "/etc/passwd", "Europe", "os.system"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.tuples(
            st.sampled_from(TAGS),
            inner,
        ).map(list)
        | st.lists(inner, max_size=5).map(lambda rest: ["datetime", "2024-01-01", 0, *rest])
    ),
    max_leaves=12,
)  # fmt: skip


@given(json_trees)
@example(["datetime", "2024-01-01", 0, "zone", "../../../etc/passwd"])
@example(["datetime", "2024-01-01", 0, "zone", "Europe"])
@example(["datetime", "2024-01-01", 7])
@example(["timedelta", 10**20, 0, 0])
@example(["set", ["list"]])
@example(["dict", 1])
@example(["dict", {}, 1])
@example(["class", ["list"], 1])
@example(["IPv4Network", "10.0.0.1/8"])
@settings(max_examples=500)
def test_hostile_trees_give_a_value_or_a_codec_error(tree):
    data = b"\n" + msgspec.json.encode(tree)
    try:
        JSON.decode(data)
    except CodecError:
        return


def test_a_class_name_in_the_bytes_imports_and_builds_nothing():
    assert "this" not in sys.modules
    before = set(sys.modules)
    for name in ("this.Zen", "os.system", "subprocess.Popen", "antigravity", "builtins.eval", ""):
        for state in ('"true"', "[]", "{}", '["tuple", "true"]'):
            with pytest.raises(CodecError):
                JSON.decode(f'\n["class", "{name}", {state}]'.encode())
            with pytest.raises(CodecError):
                JSON.decode(f'\n["{name}", {state}]'.encode())
    assert set(sys.modules) == before


@codecs
def test_every_flipped_bit_of_a_signed_or_encrypted_value_is_an_error(codec):
    if not codec.signs:
        return
    data = codec.encode([1, 2, 3], b"key")
    assert codec.decode(data, b"key") == [1, 2, 3]
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodecError):
            codec.decode(bytes(flipped), b"key")
    for size in range(len(data)):
        with pytest.raises(CodecError):
            codec.decode(data[:size], b"key")


@codecs
def test_a_signed_or_encrypted_value_moved_to_another_key_is_an_error(codec):
    if not codec.signs:
        return
    data = codec.encode("v", b"key")
    for context in (b"", b"other", b"ke", b"key" + data[-1:], b"key\0"):
        with pytest.raises(CodecError):
            codec.decode(data, context)


def test_no_byte_can_pass_from_the_context_to_the_data():
    codec = Signed(Raw(), SECRET)
    data = codec.encode(b"xv", b"k")
    assert data[32:] == b"xv"
    with pytest.raises(CodecError):
        codec.decode(data[:32] + b"v", b"kx")


@pytest.mark.parametrize("name", ["Decimal", "UUID", "PosixPath", "IPv4Address"])
@pytest.mark.parametrize("argument", ["1", "true", "null", "{}"])
def test_a_value_written_as_text_is_read_from_text_only(name, argument):
    with pytest.raises(CodecError):
        JSON.decode(f'\n["{name}",{argument}]'.encode())


@pytest.mark.parametrize("algorithm", ["zlib", "zstd"])
def test_a_decompression_bomb_is_stopped_before_it_is_whole(algorithm):
    limit = 1 << 20
    bomb = Compressed(JSON, algorithm, max_size=1 << 28).encode("0" * (1 << 26))
    assert len(bomb) < 1 << 17
    reader = Compressed(JSON, algorithm, max_size=limit)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            reader.decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 * limit
    finally:
        tracemalloc.stop()


def test_a_zstd_frame_that_lies_about_its_size_is_an_error():
    codec = Compressed(JSON, "zstd", max_size=1 << 20)
    data = bytearray(codec.encode("0" * 100_000))
    # magic, descriptor 0xa0 (4-byte content size, single segment), size
    assert data[5] >> 6 == 2
    assert struct.unpack_from("<I", data, 6) == (100_003,)
    for size in (0, 1, 99_999, 100_004, 1 << 20, 1 << 30):
        struct.pack_into("<I", data, 6, size)
        with pytest.raises(CodecError):
            codec.decode(bytes(data))


@pytest.mark.parametrize("algorithm", ["zlib", "zstd"])
def test_a_truncated_compressed_value_is_an_error(algorithm):
    codec = Compressed(Raw(), algorithm)
    data = codec.encode(bytes(range(256)) * 10)
    for size in range(len(data)):
        with pytest.raises(CodecError):
            codec.decode(data[:size])


@pytest.mark.parametrize("algorithm", ["zlib", "zstd"])
def test_trailing_bytes_after_the_compressed_ones_are_an_error(algorithm):
    codec = Compressed(JSON, algorithm)
    data = codec.encode("0" * 10_000)
    assert codec.decode(data) == "0" * 10_000
    for extra in (b"\0", data[1:]):
        with pytest.raises(CodecError):
            codec.decode(data + extra)


def test_the_bytes_do_not_choose_the_compression():
    value = "0" * 10_000
    for writer, reader in (("zlib", "zstd"), ("zstd", "zlib")):
        with pytest.raises(CodecError):
            Compressed(JSON, reader).decode(Compressed(JSON, writer).encode(value))


def test_an_unsigned_pickle_is_never_reached_through_a_signed_codec():
    for codec in (Pickle(secret=SECRET), Signed(Pickle(), SECRET), Encrypted(Pickle(), SECRET)):
        for data in (pickle.dumps(Trap()), os.urandom(32) + pickle.dumps(Trap())):
            with pytest.raises(CodecError):
                codec.decode(data, b"k")
    assert sprung == []
    Pickle().decode(pickle.dumps(Trap()))
    assert sprung == [1]
    sprung.clear()
