"""Events, the off switch, namespaces, opening and closing."""

from __future__ import annotations

import builtins
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stage import WORLDS, Opener, Stage, opener_for

import cachekit
from cachekit import Cache, Settings
from cachekit.errors import ConfigurationError, MissingDependencyError


@dataclass
class Paid:
    user: int


@dataclass
class PaidInFull(Paid):
    amount: int = 0


def test_an_event_invalidates_the_tags_it_is_mapped_to(stage: Stage) -> None:
    cache = stage.open()
    cache.on(Paid, lambda e: [f"user:{e.user}"])
    cache.on(PaidInFull, lambda e: ["debts", f"user:{e.user}"])

    async def body() -> None:
        face = stage.face(cache)

        async def fill() -> None:
            for n in (1, 2):
                await face.set(f"profile {n}", n, tags=[f"user:{n}"])
            await face.set("debts", 5, tags=["debts"])

        async def there() -> set[str]:
            return set(await face.get_many(["profile 1", "profile 2", "debts"]))

        await fill()
        assert await face.emit(Paid(1)) == ["user:1"]
        assert await there() == {"profile 2", "debts"}
        await fill()
        assert sorted(await face.emit(PaidInFull(2))) == ["debts", "user:2"]
        assert await there() == {"profile 1"}
        await fill()
        assert await face.emit("an event nobody mapped") == []
        assert await there() == {"profile 1", "profile 2", "debts"}

    stage.play(body)


def test_only_classes_can_be_mapped() -> None:
    with Cache() as cache, pytest.raises(TypeError, match="class"):
        cache.on(Paid(1), lambda e: [])  # type: ignore[arg-type]


def test_disabled_runs_every_function_and_keeps_nothing(stage: Stage) -> None:
    cache, calls = stage.open(), []

    @cache.cached(ttl=60, name="doubled")
    def doubled(n: int) -> int:
        calls.append(n)
        return 2 * n

    async def body() -> None:
        face = stage.face(cache)
        assert [doubled(1), doubled(1)] == [2, 2]
        assert calls == [1]
        await face.set("k", "v")
        with cache.disabled():
            assert [doubled(1), doubled(1)] == [2, 2]
            assert calls == [1, 1, 1]
            assert await face.get("k") is None
            assert await face.set("other", "v") is False
            assert await face.get_or_set("k", stage.source(lambda: "loaded")) == "loaded"
            assert await face.get_or_set_many(["k"], stage.source(lambda keys: {"k": 1})) == {
                "k": 1
            }
        assert doubled(1) == 2
        assert calls == [1, 1, 1]
        assert await face.get("k") == "v"
        assert await face.get("other") is None

    stage.play(body)


def test_disabled_never_disables_invalidations(stage: Stage) -> None:
    cache = stage.open()

    @cache.invalidates(tags=["t"], keys=["b"])
    def change() -> None: ...

    async def body() -> None:
        face = stage.face(cache)
        await face.set("a", 1, tags=["t"])
        await face.set("b", 1)
        await face.set("c", 1)
        with cache.disabled():
            change()
            await face.delete("c")
        assert await face.get_many(["a", "b", "c"]) == {}
        await face.set("d", "old")
        with cache.disabled():
            await face.set("d", "new")  # not kept, but the old one is outdated
        assert await face.get("d") is None

    stage.play(body)


def test_disabled_ends_with_an_exception_too() -> None:
    with Cache() as cache:
        cache.set("k", 1)
        with pytest.raises(ZeroDivisionError), cache.disabled():
            raise ZeroDivisionError
        assert cache.get("k") == 1


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("place", ["sqlite", "redis", "memcached"])
def test_namespaces_share_no_key_no_tag_and_no_clear(
    request: pytest.FixtureRequest, tmp_path: Path, place: str, world: str
) -> None:
    stage = Stage(world, opener_for(place, request, tmp_path))
    base = stage.open.namespace
    names = [base, base + "x", base + ":", base + "{0}", base + "*", base.upper()]
    caches = [stage.open(namespace=name, coherence="strict") for name in names]

    async def body() -> None:
        faces = [stage.face(cache) for cache in caches]
        for n, face in enumerate(faces):
            await face.set("k", n, tags=["t"])
            await face.set("untagged", n)
        assert [await face.get("k") for face in faces] == list(range(len(faces)))
        await faces[0].invalidate(tags=["t"])
        assert [await face.get("k") for face in faces] == [None, *range(1, len(faces))]
        await faces[1].delete("k")
        await faces[2].clear()
        assert [await face.get("k") for face in faces] == [
            None, None, None, *range(3, len(faces)),
        ]  # fmt: skip
        assert [await face.get("untagged") for face in faces] == [
            0, 1, None, *range(3, len(faces)),
        ]  # fmt: skip

    stage.play(body)
    stage.open.close()


def test_two_caches_of_one_namespace_see_each_others_values(shared_stage: Stage) -> None:
    stage = shared_stage
    one, two = stage.open(coherence="strict"), stage.open(coherence="strict")

    async def body() -> None:
        await stage.face(one).set("k", {"v": 1}, tags=["t"])
        assert await stage.face(two).get("k") == {"v": 1}
        await stage.face(two).invalidate(tags=["t"])
        assert await stage.face(one).get("k") is None
        await stage.face(one).set("k", 2)
        assert await stage.face(two).get("k") == 2
        await stage.face(two).clear()
        assert await stage.face(one).get("k") is None

    stage.play(body)


def test_close_twice_is_fine_on_both_faces(stage: Stage) -> None:
    cache = stage.open()

    async def body() -> None:
        face = stage.face(cache)
        await face.set("k", 1)
        await face.close()
        await face.close()
        cache.close()
        cache.close()

    stage.play(body)


def test_with_closes_on_both_faces(open_cache: Opener) -> None:
    stage = Stage("async", open_cache)

    async def body() -> None:
        with open_cache() as cache:
            cache.set("k", 1)
            async with cache.aio as face:
                assert await face.get("k") == 1

    stage.play(body)


def test_one_cache_serves_many_loops_one_after_the_other_and_threads_too(
    open_cache: Opener,
) -> None:
    import asyncio

    cache = open_cache()

    async def once(n: int) -> int:
        value = await cache.aio.get_or_set("k", lambda: 7, ttl=60)
        await cache.aio.set(f"k{n}", n)
        found = await cache.aio.get(f"k{n}")
        await cache.aio.close()
        return int(value) + int(found)

    assert [asyncio.run(once(n)) for n in range(5)] == [7 + n for n in range(5)]
    assert cache.get("k") == 7


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "NAMESPACE": "shop",
        "MAX_ENTRIES": "5",
        "TTL": "10m",
        "TIMEOUT": "100ms",
        "STRICT": "yes",
        "COHERENCE": "strict",
        "INVALIDATION": "replay",
        "CLOCK": "coarse",
        "STATS": "sampled",
    }.items():
        monkeypatch.setenv("CACHEKIT_" + name, value)
    with Cache.from_env() as cache:
        settings = cache.settings
        assert (settings.namespace, settings.max_entries, settings.ttl) == ("shop", 5, "10m")
        assert (settings.timeout, settings.strict, settings.coherence) == (0.1, True, "strict")
        assert (settings.invalidation, settings.clock, settings.stats) == (
            "replay", "coarse", "sampled",
        )  # fmt: skip
        for n in range(20):
            cache.set(f"k{n}", n)
        assert cache.stats().entries <= 5
    monkeypatch.setenv("OTHER_NAMESPACE", "else")
    with Cache.from_env("OTHER_") as cache:
        assert cache.settings.namespace == "else"


def test_the_url_comes_from_the_environment(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEKIT_URL", f"sqlite:///{tmp_path}/c.db")
    with Cache.from_env() as cache:
        cache.set("k", 1)
    with Cache.from_env() as cache:
        assert cache.get("k") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("TIMEOUT", "soon"), ("MAX_ENTRIES", "many"), ("STRICT", "perhaps"), ("CLOCK", "sundial")],
)
def test_a_variable_that_makes_no_sense_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("CACHEKIT_" + name, value)
    with pytest.raises(ConfigurationError, match=rf"(?i){name}"):
        Cache.from_env()


@pytest.mark.parametrize(
    ("url", "options", "told"),
    [
        (None, {"tiemout": 1}, "tiemout.*timeout"),
        (None, {"timeout": 0}, "timeout"),
        (None, {"max_entries": 0}, "max_entries"),
        (None, {"invalidation": "hope"}, "invalidation"),
        (None, {"max_weight": 5}, "weigh"),
        ("redis", {}, "URL"),
        ("gopher://host", {}, "gopher.*redis"),
        ("memcached://localhost:1?nonsense=1", {}, "nonsense"),
        ("redis://localhost:1?nonsense=1", {}, "nonsense"),
    ],
)
def test_an_option_that_is_unknown_or_wrong_is_refused_at_once_and_says_what_to_use(
    url: str | None, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"(?s){told}"):
        Cache(url, **options)


def test_no_message_or_repr_holds_the_password() -> None:
    cache = Cache("redis://user:hunter2@127.0.0.1:1/0")
    assert "hunter2" not in repr(cache) + repr(cache.settings)
    with pytest.raises(ConfigurationError) as caught:
        Cache("gopher://user:hunter2@host")
    assert "hunter2" not in str(caught.value)
    cache.close()


@pytest.mark.parametrize(
    ("url", "client", "extra"),
    [
        ("redis://127.0.0.1:1", "redis", "redis"),
        ("memcached://127.0.0.1:1", "pymemcache", "memcached"),
    ],
)
def test_a_missing_client_library_is_told_with_the_exact_pip_line(
    monkeypatch: pytest.MonkeyPatch, url: str, client: str, extra: str
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == client:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    for name in list(sys.modules):
        if name.split(".")[0] == client or name.startswith("cachekit.backends"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with (
        pytest.raises(
            MissingDependencyError, match=rf"pip install ['\"]?cachekit-strategies\[{extra}\]"
        ),
        Cache(url) as cache,
    ):
        cache.get("k")


def test_a_url_and_a_backend_are_one_too_many() -> None:
    from cachekit.backends.memory import MemoryBackend

    with pytest.raises(ConfigurationError, match="not both"):
        Cache("redis://localhost", backend=MemoryBackend())
    assert Settings(namespace="a").namespace == "a"


def test_everything_public_is_there() -> None:
    for name in cachekit.__all__:
        assert getattr(cachekit, name) is not None
