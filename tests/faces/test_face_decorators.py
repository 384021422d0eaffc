"""cached_many, invalidates and write_back on both worlds; what ``cached`` does is in the promises
and in the core's own tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from stage import Gate, Opener, Stage

import cachekit
from cachekit import Cache
from cachekit.errors import ConfigurationError


class Prices:
    """A loader of many that counts; made plain or async by the world."""

    def __init__(self) -> None:
        self.prices = {sku: sku.upper() for sku in "abcdefgh"}
        self.asked: list[list[str]] = []
        self.gates: list[Gate] = []
        self._lock = threading.Lock()

    def load(self, skus: list[str]) -> dict[str, str]:
        with self._lock:
            self.asked.append(list(skus))
            gate = self.gates.pop(0) if self.gates else None
        found = {sku: self.prices[sku] for sku in skus if sku in self.prices}
        if gate is not None:
            gate.wait_at()
        return found

    def decorated(self, stage: Stage, cache: Cache, **options: Any) -> Callable[..., Any]:
        if stage.plain:

            def prices(skus: list[str]) -> dict[str, str]:
                return self.load(skus)

            made: Any = cache.cached_many(key="price:{sku}", **{"ttl": 60, **options})(prices)
            return made

        async def prices_async(skus: list[str]) -> dict[str, str]:
            return await asyncio.to_thread(self.load, skus)

        made = cache.cached_many(key="price:{sku}", **{"ttl": 60, **options})(prices_async)
        return made


async def _called(result: Any) -> Any:
    return await result if hasattr(result, "__await__") else result


def test_one_call_loads_all_that_miss_and_duplicates_once(stage: Stage) -> None:
    source = Prices()
    prices = source.decorated(stage, stage.open())

    async def body() -> None:
        assert await _called(prices(["a", "b", "a"])) == {"a": "A", "b": "B"}
        assert await _called(prices(["b", "c", "c", "d"])) == {"b": "B", "c": "C", "d": "D"}
        assert await _called(prices(["a", "b", "c", "d"])) == {x: x.upper() for x in "abcd"}
        assert await _called(prices([])) == {}
        assert source.asked == [["a", "b"], ["c", "d"]]

    stage.play(body)


def test_items_the_loader_leaves_out_are_absent_and_asked_for_again(stage: Stage) -> None:
    source = Prices()
    prices = source.decorated(stage, stage.open())

    async def body() -> None:
        assert await _called(prices(["a", "?"])) == {"a": "A"}
        assert await _called(prices(["a", "?"])) == {"a": "A"}
        source.prices["?"] = "known now"
        assert await _called(prices(["a", "?"])) == {"a": "A", "?": "known now"}
        assert source.asked == [["a", "?"], ["?"], ["?"]]

    stage.play(body)


def test_single_items_can_be_invalidated_and_looked_at(stage: Stage) -> None:
    source = Prices()
    cache = stage.open()
    prices = source.decorated(stage, cache, tags=["sku:{sku}", "all prices"])

    async def body() -> None:
        face = stage.face(cache)
        await _called(prices(["a", "b", "c"]))
        source.prices |= {"a": 1, "b": 2, "c": 3}  # type: ignore[dict-item]
        await _called(prices.invalidate(["a"]))  # type: ignore[attr-defined]
        assert await _called(prices.peek(["a", "b"])) == {"b": "B"}  # type: ignore[attr-defined]
        assert await _called(prices(["a", "b", "c"])) == {"a": 1, "b": "B", "c": "C"}
        await face.invalidate(tags=["sku:b"])
        assert await _called(prices(["a", "b", "c"])) == {"a": 1, "b": 2, "c": "C"}
        await face.invalidate(keys=["price:c"])
        assert await _called(prices(["a", "b", "c"])) == {"a": 1, "b": 2, "c": 3}
        await face.invalidate(tags=["all prices"])
        source.asked.clear()
        await _called(prices(["a", "b", "c"]))
        assert source.asked == [["a", "b", "c"]]

    stage.play(body)


def test_overlapping_batches_load_each_item_once_and_do_not_deadlock(stage: Stage) -> None:
    source = Prices()
    prices = source.decorated(stage, stage.open())
    batches = [list("abc"), list("cde"), list("efa"), list("gab"), list("hgd")]

    async def body() -> None:
        gates = source.gates = [Gate(), Gate()]
        held = list(gates)

        async def call(skus: list[str]) -> Any:
            if stage.plain:
                return await asyncio.to_thread(prices, skus)
            return await prices(skus)

        first = asyncio.create_task(call(batches[0]))
        await stage.reached(held[0])
        second = asyncio.create_task(call(batches[1]))
        await stage.reached(held[1])
        others = [asyncio.create_task(call(batch)) for batch in batches[2:]]
        await asyncio.sleep(0.05)
        held[1].open()  # the second one's own items land before those it waits for
        held[0].open()
        answers = await asyncio.wait_for(asyncio.gather(first, second, *others), 20)
        assert answers == [{sku: sku.upper() for sku in batch} for batch in batches]
        asked = [sku for batch in source.asked for sku in batch]
        assert sorted(asked) == sorted(set(asked)), "an item was loaded twice"

    stage.play(body)


def test_an_error_of_the_loader_reaches_all_and_is_not_kept(stage: Stage) -> None:
    source = Prices()
    error = LookupError("no such table")
    failing = [error]
    load = source.load

    def fails_once(skus: list[str]) -> dict[str, str]:
        if failing:
            raise failing.pop()
        return load(skus)

    source.load = fails_once  # type: ignore[method-assign]
    prices = source.decorated(stage, stage.open())

    async def body() -> None:
        with pytest.raises(LookupError) as caught:
            await _called(prices(["a", "b"]))
        assert caught.value is error
        assert await _called(prices(["a", "b"])) == {"a": "A", "b": "B"}

    stage.play(body)


def test_a_batch_that_began_before_an_invalidation_does_not_fill_after_it(stage: Stage) -> None:
    source = Prices()
    cache = stage.open(coherence="strict")
    prices = source.decorated(stage, cache, tags=["sku:{sku}"])

    async def body() -> None:
        face = stage.face(cache)
        for invalidate in (
            lambda: face.invalidate(keys=["price:a"]),
            lambda: face.invalidate(tags=["sku:a"]),
            face.clear,
        ):
            source.prices["a"] = "old"
            gate = Gate()
            source.gates = [gate]
            late = asyncio.create_task(
                asyncio.to_thread(prices, ["a", "b"]) if stage.plain else prices(["a", "b"])
            )
            await stage.reached(gate)
            source.prices["a"] = "new"
            await invalidate()
            gate.open()
            assert (await late)["a"] == "old"
            assert (await _called(prices(["a", "b"])))["a"] == "new"
            await face.clear()

    stage.play(body)


def test_other_parameters_are_passed_on_and_may_be_part_of_the_key(open_cache: Opener) -> None:
    cache, asked = open_cache(), []

    @cache.cached_many(key="price:{land}:{sku}", over="skus", ttl=60)
    def prices(land: str, skus: list[str], *, vat: bool = True) -> dict[str, str]:
        asked.append((land, skus, vat))
        return {sku: f"{sku} in {land}" for sku in skus}

    assert prices("de", ["a"]) == {"a": "a in de"}
    assert prices(land="at", skus=["a", "b"]) == {"a": "a in at", "b": "b in at"}
    assert prices("de", ["a", "b"], vat=False)["b"] == "b in de"
    assert asked == [("de", ["a"], True), ("at", ["a", "b"], True), ("de", ["b"], False)]


def test_what_makes_no_sense_is_refused_at_decoration() -> None:
    with Cache() as cache:
        with pytest.raises(ConfigurationError, match="item"):
            cache.cached_many(key="price")(lambda skus: {})
        with pytest.raises(ConfigurationError, match="over"):
            cache.cached_many(key="price:{sku}", over="nothing")(lambda skus: {})

        @cache.cached_many(key="price:{sku}")
        def listed(skus: list[str]) -> Any:
            return skus

        with pytest.raises(TypeError, match="mapping"):
            listed(["a"])


def test_invalidates_drops_tags_and_keys_after_the_call(stage: Stage) -> None:
    cache, seen = stage.open(), []

    async def body() -> None:
        face = stage.face(cache)

        def rename(user: int, name: str) -> dict[str, str]:
            seen.append(cache.get(f"profile:{user}") if stage.plain else None)
            if name == "bad":
                raise ValueError("refused")
            return {"team": "red"}

        options: Any = {
            "tags": ["user:{user}", "team:{result[team]}"], "keys": ["profile:{user}"],
        }  # fmt: skip
        if stage.plain:
            changed: Any = cache.invalidates(**options)(rename)
        else:

            async def rename_async(user: int, name: str) -> dict[str, str]:
                return rename(user, name)

            changed = cache.invalidates(**options)(rename_async)

        async def fill() -> None:
            await face.set("profile:1", "P")
            await face.set("profile:2", "P")
            await face.set("by user", "U", tags=["user:1"])
            await face.set("by team", "T", tags=["team:red"])

        keys = ["profile:1", "profile:2", "by user", "by team"]
        await fill()
        assert await _called(changed(1, name="bob")) == {"team": "red"}
        assert await face.get_many(keys) == {"profile:2": "P"}
        if stage.plain:
            assert seen == ["P"], "it is invalidated after the call, not before"
        await fill()
        with pytest.raises(ValueError, match="refused"):
            await _called(changed(1, "bad"))
        # It may have changed something; what the result would have named can not be known.
        assert await face.get_many(keys) == {"profile:2": "P", "by team": "T"}

    stage.play(body)


def test_invalidates_keeps_methods_classmethods_and_staticmethods() -> None:
    with Cache() as cache:

        class Users:
            @cache.invalidates(tags=["user:{user}"])
            def plain(self, user: int) -> str:
                return f"plain {user}"

            @cache.invalidates(tags=["user:{user}"])
            @classmethod
            def of_class(cls, user: int) -> str:
                return f"{cls.__name__} {user}"

            @cache.invalidates(tags=["user:{user}"])
            @staticmethod
            def static(user: int) -> str:
                return f"static {user}"

        users = Users()
        for call, answer in (
            (users.plain, "plain 1"), (Users.of_class, "Users 1"), (Users.static, "static 1"),
        ):  # fmt: skip
            cache.set("k", 1, tags=["user:1"])
            assert call(1) == answer
            assert cache.get("k") is None


def test_invalidates_finds_the_calls_of_a_decorated_function(open_cache: Opener) -> None:
    cache, loads = open_cache(), []

    @cache.cached(ttl=60, key="profile:{user}", tags=["user:{user}"], name="profile")
    def profile(user: int) -> int:
        loads.append(user)
        return len(loads)

    @cache.invalidates(keys=["profile:{user}"])
    def rename(user: int) -> None: ...

    @cache.invalidates(tags=["user:{user}"])
    def remove(user: int) -> None: ...

    assert [profile(1), profile(2), profile(1)] == [1, 2, 1]
    rename(1)
    assert [profile(1), profile(2)] == [3, 2]
    remove(2)
    assert [profile(1), profile(2)] == [3, 4]


def test_a_write_back_function_logs_a_call_and_writes_batches(stage: Stage) -> None:
    cache, batches = stage.open(), []

    def write(rows: dict[int, str]) -> None:
        batches.append(dict(rows))

    if stage.plain:
        save: Any = cache.write_back(key="row:{id}", log="memory", batch=10, delay=3600)(write)
    else:

        async def write_async(rows: dict[int, str]) -> None:
            write(rows)

        save = cache.write_back(key="row:{id}", log="memory", batch=10, delay=3600)(write_async)

    async def body() -> None:
        for n in range(3):
            await _called(save(n, f"v{n}"))
        await _called(save(0, "newer"))
        await _called(save.put_many({7: "seven"}))
        assert batches == []
        assert await stage.face(save.strategy).get(0) == "newer"
        assert (await _called(save.flush(5))).complete
        assert batches == [{0: "newer", 1: "v1", 2: "v2", 7: "seven"}]
        assert (await _called(save.close(5))).complete

    stage.play(body)


def test_a_write_back_function_needs_a_log_by_name() -> None:
    with Cache() as cache, pytest.raises(ConfigurationError, match="log"):
        cache.write_back(key="row:{id}")(lambda rows: None)
    assert cachekit.WriteBack.description
