from __future__ import annotations

import gzip
import lzma
import struct

import pytest

from cachekit.bench.traces import accesses
from cachekit.errors import ConfigurationError

KEYS = [1, 2, 3, 70_000, 2, 1]
PACK = {"int32be": ">6i", "int32le": "<6i", "int64be": ">6q"}
WRAP = {"plain": bytes, "gzip": gzip.compress, "xz": lzma.compress}


@pytest.mark.parametrize("wrap", WRAP)
@pytest.mark.parametrize("form", PACK)
def test_binary_formats_are_read_whatever_the_compression(tmp_path, form, wrap):
    file = tmp_path / "trace"  # no suffix: the first bytes decide
    file.write_bytes(WRAP[wrap](struct.pack(PACK[form], *KEYS)))
    assert list(accesses(file, form)) == KEYS


@pytest.mark.parametrize("wrap", WRAP)
def test_text_has_one_key_a_line(tmp_path, wrap):
    file = tmp_path / "trace"
    file.write_bytes(WRAP[wrap]("a\nb \r\n\nünïcode\na".encode()))
    assert list(accesses(file)) == ["a", "b", "ünïcode", "a"]


def test_a_long_binary_trace_is_read_across_chunks(tmp_path):
    file = tmp_path / "trace"
    file.write_bytes(struct.pack(">50000q", *range(50_000)))
    assert list(accesses(file, "int64be")) == list(range(50_000))


def test_a_trace_is_read_as_a_stream(tmp_path):
    file = tmp_path / "trace"
    whole = gzip.compress(b"x\n" * 1_000_000, mtime=0)
    file.write_bytes(whole[: len(whole) // 2])  # its end is missing, and never asked for
    keys = accesses(file)
    assert [next(keys) for _ in range(10)] == ["x"] * 10


@pytest.mark.parametrize(
    ("content", "form", "words"),
    [
        (b"", "text", "is empty"),
        (b"\n\n", "text", "is empty"),
        (b"", "int32be", "is empty"),
        (gzip.compress(b"", mtime=0), "text", "is empty"),
        (gzip.compress(b"a\nb\n" * 999, mtime=0)[:-20], "text", "is cut short"),
        (lzma.compress(b"a\nb\n" * 999)[:-40], "text", "is cut short"),
        (b"\xfd7zXZ\x00" + b"rubbish" * 9, "text", "is damaged"),
        (b"\x1f\x8b" + b"rubbish" * 9, "text", "is damaged"),
        (struct.pack(">3i", 1, 2, 3) + b"x", "int32be", "left over"),
        (struct.pack(">3i", 1, 2, 3), "text", "not text"),
        (b"y" * 100_000, "text", "not text"),
        (b"1\n", "int16", "unknown trace format"),
    ],
)
def test_a_broken_trace_is_refused_with_its_reason(tmp_path, content, form, words):
    file = tmp_path / "trace"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=words):
        list(accesses(file, form))


def test_a_flipped_byte_inside_a_compressed_trace_is_noticed(tmp_path):
    content = bytearray(gzip.compress(b"".join(b"%d\n" % n for n in range(5000))))
    content[len(content) // 2] ^= 0xFF
    file = tmp_path / "trace"
    file.write_bytes(bytes(content))
    with pytest.raises(ConfigurationError, match=r"is damaged|not text|is cut short"):
        list(accesses(file))


def test_a_missing_trace_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ConfigurationError, match="can not be read"):
            list(accesses(path))
