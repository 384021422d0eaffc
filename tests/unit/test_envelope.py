"""The wire format: exact round trip, and nothing but None for anything else."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.codecs import ExactJson
from cachekit.core.envelope import Envelope, context, pack, unpack

KEY = "ns:3:user:7"
PAGE = (Path(__file__).parents[2] / "docs" / "wire-format.md").read_text()

names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=230)
nonces = st.binary(min_size=16, max_size=16)
int64 = st.integers(-(2**63), 2**63 - 1)
spans = st.none() | st.integers(0, 2**63 - 1)
envelopes = st.builds(
    Envelope,
    payload=st.binary(max_size=300),
    mark=st.integers(0, 255),
    created=int64,
    fresh=spans,
    ttl=spans,
    negative=st.booleans(),
    space=st.none() | nonces,
    tags=st.lists(st.tuples(names, nonces), max_size=4).map(tuple),
    remembered=st.lists(names, max_size=4).map(tuple),
    row_version=st.none() | int64,
    cost=st.integers(0, 2**32 - 1),
)

FULL = Envelope(
    b'{"id": 7}',
    mark=0x13,
    created=1_700_000_000_123,
    fresh=30_000,
    ttl=90_000,
    negative=True,
    space=b"n" * 16,
    tags=(("user:7", b"a" * 16), ("org:1", b"b" * 16)),
    remembered=("org:1",),
    row_version=-5,
    cost=1234,
)
BARE = Envelope(b"x", 1, 0)


def sealed(body: bytes, key: str = KEY) -> bytes:
    return body + crc32(key.encode() + body).to_bytes(4, "little")


@given(envelopes)
def test_an_envelope_comes_back_as_it_was(envelope):
    again = unpack(pack(envelope, KEY), KEY)
    assert again == envelope
    assert type(again) is Envelope
    assert [type(field) for field in again] == [type(field) for field in envelope]


@pytest.mark.parametrize("envelope", [FULL, BARE], ids=["full", "bare"])
def test_every_single_bit_flip_is_a_miss(envelope):
    data = pack(envelope, KEY)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert unpack(bytes(flipped), KEY) is None, f"bit {bit}"


@pytest.mark.parametrize("envelope", [FULL, BARE], ids=["full", "bare"])
def test_every_truncation_and_every_extension_is_a_miss(envelope):
    data = pack(envelope, KEY)
    for size in range(len(data)):
        assert unpack(data[:size], KEY) is None
        assert unpack(data[size:] + data[:size], KEY) is None or size == 0
    assert unpack(data + b"\0", KEY) is None
    assert unpack(data * 2, KEY) is None


@given(envelopes, names)
@settings(max_examples=50)
def test_an_entry_moved_to_another_key_is_a_miss(envelope, key):
    if key != KEY:
        assert unpack(pack(envelope, KEY), key) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0" * 1024,
        b"\xff" * 1024,
        b"null",
        b'{"json": true}',
        b"\x80\x05N.",
        b"PK\x03\x04" + b"\0" * 80,
        b"\x1f\x8b\x08" + b"\0" * 80,
        b"\xc5ck",
        b"\xc5ck\x01",
        b"\xc5ck\x01" + b"\0" * 66,
        b"\xc5ck\x01" + b"\xff" * 80,
        b"\x28\xb5\x2f\xfd" + b"\1" * 90,
        "héllo".encode("utf-16") * 20,
        pack(BARE, KEY)[::-1],
        b" " + pack(BARE, KEY),
        b"!" * 1_000_000,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_garbage_is_a_miss(data):
    assert unpack(data, KEY) is None


@given(st.binary(max_size=400))
def test_any_bytes_under_a_right_checksum_are_an_entry_or_a_miss(body):
    for start in (b"", b"\xc5ck\x01", b"\xc5ck\x01\x01\x07"):
        found = unpack(sealed(start + body), KEY)
        assert found is None or isinstance(found, Envelope)


def test_another_version_is_a_miss_even_under_a_right_checksum():
    body = bytearray(pack(FULL, KEY)[:-4])
    assert unpack(sealed(bytes(body)), KEY) == FULL
    for version in (0, 2, 255):
        body[3] = version
        assert unpack(sealed(bytes(body)), KEY) is None


def test_an_unknown_flag_is_a_miss_even_under_a_right_checksum():
    body = bytearray(pack(BARE, KEY)[:-4])
    body[5] |= 0x08
    assert unpack(sealed(bytes(body)), KEY) is None


@pytest.mark.parametrize(
    ("tags", "remembered", "section"),
    [
        (65535, 65535, 0xFFFFFFFF),
        (65535, 0, 51),
        (0, 65535, 51),
        (3, 1, 51),
        (1, 1, 51),
        (2, 0, 51),
        (2, 1, 50),
        (2, 1, 52),
        (2, 1, 0),
        (0, 0, 51),
        (0, 0, 10_000),
    ],
)
def test_counts_that_do_not_fit_the_section_are_a_miss(tags, remembered, section):
    body = bytearray(pack(FULL, KEY)[:-4])
    assert struct.unpack_from(">HHI", body, 6) == (2, 1, 51)
    struct.pack_into(">HHI", body, 6, tags, remembered, section)
    assert unpack(sealed(bytes(body)), KEY) is None


def test_a_section_that_reaches_into_the_checksum_is_a_miss():
    body = pack(FULL._replace(payload=b"", remembered=()), KEY)[:-4]
    assert unpack(sealed(body), KEY) is not None
    assert unpack(sealed(body[:-4]), KEY) is None


def test_a_tag_that_is_not_ascii_is_a_miss():
    body = pack(FULL, KEY)[:-4].replace(b"user:7", b"user:\xe9")
    assert unpack(sealed(body), KEY) is None


@pytest.mark.parametrize(("offset", "field"), [(22, "fresh"), (30, "ttl")])
def test_a_negative_span_is_a_miss(offset, field):
    body = bytearray(pack(FULL, KEY)[:-4])
    struct.pack_into(">q", body, offset, -2)
    assert unpack(sealed(bytes(body)), KEY) is None, field


@pytest.mark.parametrize(
    "change",
    [
        {"mark": 256},
        {"created": 2**63},
        {"fresh": -1},
        {"ttl": -1},
        {"ttl": 2**63},
        {"row_version": 2**63},
        {"cost": -1},
        {"space": b"short"},
        {"space": b""},
        {"tags": (("t", b"short"),)},
        {"tags": (("", b"n" * 16),)},
        {"tags": (("t" * 256, b"n" * 16),)},
        {"tags": (("é", b"n" * 16),)},
        {"tags": (("t", b"n" * 16),) * 65536},
        {"remembered": ("",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_field_without_room_is_refused_at_packing(change):
    with pytest.raises(ValueError):
        pack(FULL._replace(**change), KEY)


def test_a_cost_beyond_its_field_is_kept_as_the_largest():
    again = unpack(pack(FULL._replace(cost=2**40), KEY), KEY)
    assert again is not None
    assert again.cost == 2**32 - 1


def test_the_context_covers_every_field_but_the_payload_and_the_key():
    changed = {
        "mark": 1,
        "created": 1,
        "fresh": None,
        "ttl": None,
        "negative": False,
        "space": None,
        "tags": FULL.tags[:1],
        "remembered": (),
        "row_version": None,
        "cost": 0,
    }
    assert {*changed, "payload"} == set(Envelope._fields)
    whole = context(FULL, KEY)
    assert context(FULL._replace(payload=b""), KEY) == whole
    assert context(FULL, KEY + "x") != whole
    for name, value in changed.items():
        assert context(FULL._replace(**{name: value}), KEY) != whole, name


def test_the_example_of_the_documentation_is_what_is_written():
    example = bytes.fromhex(re.search(r"```text\n(.*?)```", PAGE, re.S)[1])
    envelope = Envelope(ExactJson().encode(None), 1, 1_700_000_000_000, ttl=60_000)
    assert pack(envelope, "user:7") == example


@given(envelopes)
@settings(max_examples=50)
def test_the_reader_of_the_documentation_reads_what_is_written(envelope):
    namespace: dict = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.S)[1], namespace)
    data = pack(envelope, KEY)
    found = namespace["read_entry"](data, KEY)
    assert (
        Envelope(
            **{**found, "tags": tuple(found["tags"]), "remembered": tuple(found["remembered"])}
        )
        == envelope
    )
    assert namespace["read_entry"](data, KEY + "x") is None
    assert namespace["read_entry"](data[:-1], KEY) is None
