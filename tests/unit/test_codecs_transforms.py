"""Signing, encrypting, compressing, marks, and finding a codec by its name."""

from __future__ import annotations

import builtins
import importlib.metadata
import itertools

import pytest

from cachekit.codecs import (
    Compressed,
    Encrypted,
    ExactJson,
    Msgpack,
    Pickle,
    Raw,
    Signed,
    resolve,
)
from cachekit.errors import CodecError, ConfigurationError, MissingDependencyError

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32
JSON = ExactJson()


@pytest.mark.parametrize(
    "make",
    [
        lambda secret: Signed(JSON, secret),
        lambda secret: Encrypted(JSON, secret),
        lambda secret: Pickle(secret=secret),
    ],
    ids=["signed", "encrypted", "pickle"],
)
def test_keys_rotate_from_old_to_new(make):
    old, both, new = make(OLD), make([NEW, OLD]), make(NEW)
    assert both.decode(old.encode(1, b"k"), b"k") == 1
    assert new.decode(both.encode(1, b"k"), b"k") == 1
    for codec, data in ((old, both.encode(1, b"k")), (new, old.encode(1, b"k"))):
        with pytest.raises(CodecError):
            codec.decode(data, b"k")
    with pytest.raises(CodecError):
        make(OTHER).decode(both.encode(1, b"k"), b"k")


@pytest.mark.parametrize("algorithm", ["zlib", "zstd"])
def test_only_values_over_the_threshold_that_shrink_are_compressed(algorithm):
    codec = Compressed(JSON, algorithm, threshold=100)
    short, long = "0" * 50, "0" * 5000
    assert codec.encode(short) == b"\0" + JSON.encode(short)
    assert codec.encode(long)[:1] == b"\1"
    assert len(codec.encode(long)) < 100
    assert (codec.decode(codec.encode(short)), codec.decode(codec.encode(long))) == (short, long)
    raw = Compressed(Raw(), algorithm, threshold=0)
    noise = bytes(range(256))
    assert raw.encode(noise) == b"\0" + noise
    assert raw.decode(raw.encode(b"")) == b""


@pytest.mark.parametrize("algorithm", ["zlib", "zstd"])
def test_a_value_of_just_the_largest_size_passes_and_one_more_byte_does_not(algorithm):
    codec = Compressed(Raw(), algorithm, max_size=2000)
    assert codec.decode(codec.encode(b"0" * 2000)) == b"0" * 2000
    with pytest.raises(CodecError, match="max_size"):
        codec.encode(b"0" * 2001)
    bigger = Compressed(Raw(), algorithm, max_size=4000)
    for data in (bigger.encode(b"0" * 2001), b"\0" + b"0" * 2001):
        with pytest.raises(CodecError):
            codec.decode(data)


@pytest.mark.parametrize(
    "codec",
    [
        Signed(Compressed(JSON, threshold=10), NEW),
        Encrypted(Compressed(JSON, "zstd", threshold=10), NEW),
        Compressed(Encrypted(Signed(Pickle(), NEW), NEW), threshold=10),
        Signed(Compressed(Msgpack(), "zstd", threshold=10), NEW),
    ],
    ids=repr,
)
def test_transforms_stack(codec):
    value = {"a": ["x" * 100, 1.5, None]}
    assert codec.decode(codec.encode(value, b"k"), b"k") == value


def test_every_stack_of_settings_has_its_own_mark():
    def wrapped(codec):
        yield codec
        for compress, sign, encrypt in itertools.product((None, "zlib", "zstd"), (0, 1), (0, 1)):
            inner = codec if compress is None else Compressed(codec, compress)
            inner = Signed(inner, NEW) if sign else inner
            yield Encrypted(inner, NEW) if encrypt else inner

    stacks = [w for base in (JSON, Msgpack(), Pickle(), Raw()) for w in wrapped(base)]
    marks = {codec.mark: repr(codec) for codec in stacks}
    assert len(marks) == 4 * 12
    assert all(0 < mark < 256 for mark in marks)
    assert Pickle(secret=NEW).mark == Signed(Pickle(), NEW).mark == 0x13


def test_the_order_of_transforms_is_a_setting_too():
    one = Signed(Compressed(JSON, threshold=10), NEW)
    other = Compressed(Signed(JSON, NEW), threshold=10)
    for value in ("0", "0" * 5000):
        with pytest.raises(CodecError):
            one.decode(other.encode(value, b"k"), b"k")
        with pytest.raises(CodecError):
            other.decode(one.encode(value, b"k"), b"k")


def test_the_same_transform_twice_is_refused():
    for make in (
        lambda: Signed(Signed(JSON, NEW), NEW),
        lambda: Signed(Pickle(secret=NEW), NEW),
        lambda: Encrypted(Compressed(Encrypted(JSON, NEW)), NEW),
        lambda: Compressed(Compressed(JSON), "zstd"),
    ):
        with pytest.raises(ConfigurationError, match="already"):
            make()


def test_a_codec_is_safe_only_if_no_foreign_byte_reaches_a_pickle():
    assert not Pickle().safe
    assert not Compressed(Pickle()).safe
    for codec in (
        JSON,
        Msgpack(),
        Raw(),
        Pickle(secret=NEW),
        Signed(Pickle(), NEW),
        Encrypted(Pickle(), NEW),
        Compressed(Pickle(secret=NEW)),
        Signed(Compressed(Pickle()), NEW),
    ):
        assert codec.safe, codec


def test_only_codecs_that_authenticate_ask_for_the_context():
    assert not any(c.signs for c in (JSON, Msgpack(), Pickle(), Raw(), Compressed(JSON)))
    for codec in (Pickle(secret=NEW), Signed(JSON, NEW), Encrypted(JSON, NEW)):
        assert codec.signs
        assert Compressed(codec).signs


def test_equal_values_are_encrypted_differently_each_time():
    codec = Encrypted(JSON, NEW)
    assert len({codec.encode("v", b"k") for _ in range(20)}) == 20
    assert b"swordfish" not in codec.encode("swordfish", b"k")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Signed(JSON, b"short"),
        lambda: Signed(JSON, [NEW, b"short"]),
        lambda: Signed(JSON, []),
        lambda: Signed(JSON, "text" * 8),
        lambda: Signed(JSON, [NEW, "text" * 8]),
        lambda: Signed(JSON, None),
        lambda: Pickle(secret=b""),
        lambda: Encrypted(JSON, b"k" * 17),
        lambda: Encrypted(JSON, "k" * 32),
        lambda: Pickle(protocol=99),
        lambda: Compressed(JSON, "lzma"),
        lambda: Compressed(JSON, threshold=-1),
        lambda: Compressed(JSON, max_size=0),
        lambda: Msgpack(type=3),
    ],
)
def test_settings_that_can_not_work_are_refused_when_the_codec_is_made(make):
    with pytest.raises(ConfigurationError) as caught:
        make()
    for secret in ("short", "texttext", "k" * 17):
        assert secret not in str(caught.value)


def test_no_secret_is_in_a_repr_or_an_attribute_that_shows_it():
    def shown(thing, depth=4):
        yield repr(thing)
        if depth and hasattr(thing, "__dict__"):
            for part in vars(thing).values():
                yield from shown(part, depth - 1)
        if isinstance(thing, list):
            for part in thing:
                yield from shown(part, depth - 1)

    secret = b"swordfish-swordfish-swordfish-00"
    for codec in (
        Pickle(secret=secret),
        Signed(JSON, [secret, secret]),
        Encrypted(JSON, secret),
        Compressed(Signed(JSON, secret)),
    ):
        assert not [text for text in shown(codec) if "swordfish" in text]


def test_raw_takes_and_gives_bytes_only():
    assert Raw().decode(Raw().encode(b"\0x")) == b"\0x"
    for value in ("x", bytearray(b"x"), memoryview(b"x"), None, type("B", (bytes,), {})(b"x")):
        with pytest.raises(CodecError, match="takes bytes"):
            Raw().encode(value)


def test_names_resolve_to_codecs():
    assert [type(resolve(n)) for n in (None, "json", "msgpack", "pickle", "raw")] == [
        ExactJson,
        ExactJson,
        Msgpack,
        Pickle,
        Raw,
    ]
    codec = Signed(JSON, NEW)
    assert resolve(codec) is codec


@pytest.mark.parametrize("spec", ["yaml", "", "JSON"])
def test_an_unknown_name_is_an_error_that_lists_the_names(spec):
    with pytest.raises(ConfigurationError, match="'json', 'msgpack', 'pickle', 'raw'"):
        resolve(spec)


@pytest.mark.parametrize("spec", [3, object(), ExactJson, b"x"])
def test_what_is_not_a_codec_is_refused(spec):
    with pytest.raises(ConfigurationError, match="is not a codec"):
        resolve(spec)


class Plugin:
    mark = 8
    safe = True

    def encode(self, value, context):
        return b"p"

    def decode(self, data, context):
        return "p"


class Unmarked(Plugin):
    mark = 0


plugin = Plugin()


@pytest.fixture
def entry_points(monkeypatch):
    def points(group):
        assert group == "cachekit.codecs"
        return [
            importlib.metadata.EntryPoint(name, value, group)
            for name, value in {
                "made": f"{__name__}:Plugin",
                "ready": f"{__name__}:plugin",
                "unmarked": f"{__name__}:Unmarked",
                "gone": "cachekit_no_such_module:Codec",
                "json": "cachekit_no_such_module:Codec",
            }.items()
        ]

    monkeypatch.setattr(importlib.metadata, "entry_points", points)


def test_a_codec_of_another_package_is_found_by_its_entry_point(entry_points):
    assert type(resolve("made")) is Plugin
    assert resolve("ready") is plugin
    assert Signed(resolve("made"), NEW).mark == 0x18


def test_an_entry_point_never_stands_in_for_a_built_in_name(entry_points):
    assert type(resolve("json")) is ExactJson


@pytest.mark.parametrize("name", ["unmarked", "gone"])
def test_a_broken_entry_point_is_a_configuration_error(entry_points, name):
    with pytest.raises(ConfigurationError, match=name):
        resolve(name)


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("msgspec", Msgpack, "msgspec"),
        ("zstandard", lambda: Compressed(JSON, "zstd"), "zstd"),
        ("cryptography", lambda: Encrypted(JSON, NEW), "crypto"),
    ],
)
def test_a_missing_library_is_named_with_its_pip_line(monkeypatch, module, make, extra):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == module:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=rf"cachekit-strategies\[{extra}\]"):
        make()
