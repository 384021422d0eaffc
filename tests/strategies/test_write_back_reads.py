"""Read your writes: while an operation waits in the log, nothing in the cache can hide it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from stage import Gate, Opener, Rows, Stage, manual_runtime

from cachekit import Cache, WriteBack
from cachekit.testing.clock import ManualClock


def _dirty(stage: Stage, rows: Rows, cache: Cache | None = None, **options: Any) -> WriteBack:
    """A write-back strategy that flushes only when told."""
    made = stage.make("write-back", rows, cache=cache, delay=3600, **options)
    assert isinstance(made, WriteBack)
    return made


def test_what_was_put_and_deleted_is_read_at_once_and_the_source_is_not_asked(
    stage: Stage,
) -> None:
    rows = Rows({1: "old", 2: "old"})
    strategy = _dirty(stage, rows)

    async def body() -> None:
        face = stage.face(strategy)
        await face.put(1, "new")
        await face.delete(2)
        assert [await face.get(1), await face.get(2)] == ["new", None]
        assert await face.get(2, "gone") == "gone"
        assert await face.get_many([1, 2]) == {1: "new"}
        await face.put(2, "back")
        await face.delete(1)
        assert await face.get_many([1, 2]) == {2: "back"}
        assert rows.calls == []
        assert strategy.depth() == 2
        assert (await face.flush(5)).complete
        assert rows.rows == {2: "back"}
        assert await face.get_many([1, 2]) == {2: "back"}

    stage.play(body)


@pytest.mark.parametrize("what", ["put", "delete"])
@pytest.mark.parametrize("how", ["evicted", "expired", "invalidated", "tagged", "cleared", "all"])
def test_an_unwritten_value_survives_being(stage: Stage, how: str, what: str) -> None:
    clock, rows = ManualClock(), Rows({1: "old"})
    cache = stage.open(runtime=manual_runtime(clock), max_entries=4)
    strategy = _dirty(stage, rows, cache, ttl=10, tags=["row:{id}"])
    rows.rows |= {n: "filler" for n in range(100, 140)}

    async def body() -> None:
        face, plain = stage.face(strategy), stage.face(cache)
        expected = "new" if what == "put" else None
        assert await face.get(1) == "old"
        await (face.put(1, "new") if what == "put" else face.delete(1))
        for step in (how,) if how != "all" else (
            "evicted", "expired", "invalidated", "tagged", "cleared",
        ):  # fmt: skip
            if step == "evicted":
                for n in range(100, 140):
                    await face.get(n)
            elif step == "expired":
                clock.advance(11)
            elif step == "invalidated":
                await face.invalidate(1)
            elif step == "tagged":
                await plain.invalidate(tags=["row:1"])
            else:
                await plain.clear()
            assert await face.get(1) == expected
            assert await face.get_many([1]) == ({} if expected is None else {1: expected})
            assert strategy.depth() == 1
        assert (await face.flush(5)).complete
        assert rows.rows.get(1) == expected
        assert await face.get(1) == expected

    stage.play(body)


@pytest.mark.parametrize("what", ["put", "delete"])
@pytest.mark.parametrize("verb", ["get", "get_many"])
@pytest.mark.parametrize("flushed", ["dirty", "flushed"])
def test_a_read_that_was_about_to_load_when_the_write_came_does_not_bring_the_old_value_back(
    open_cache: Opener, monkeypatch: pytest.MonkeyPatch, what: str, verb: str, flushed: str
) -> None:
    """It looked into the log before the write, and at everything else after it. (In threads: a
    task does not stop between the two.)"""
    stage, rows = Stage("plain", open_cache), Rows({1: "old"})
    strategy = _dirty(stage, rows)
    gate, pending = Gate(), strategy.log.pending

    def look_then_wait(key: Any) -> Any:
        monkeypatch.setattr(strategy.log, "pending", pending)
        found = pending(key)
        gate.wait_at()
        return found

    async def body() -> None:
        face = stage.face(strategy)
        monkeypatch.setattr(strategy.log, "pending", look_then_wait)
        late = stage.start(face.get(1) if verb == "get" else face.get_many([1]))
        await stage.reached(gate)
        await (face.put(1, "new") if what == "put" else face.delete(1))
        if flushed == "flushed":
            await face.flush(5)
        gate.open()
        await late
        expected = "new" if what == "put" else None
        assert await face.get(1) == expected
        await face.flush(5)
        assert await face.get(1) == expected
        assert await face.get_many([1]) == ({} if expected is None else {1: expected})

    stage.play(body)


@pytest.mark.parametrize("flushed_meanwhile", [False, True])
def test_a_load_under_way_while_the_key_is_dirty_fills_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, flushed_meanwhile: bool
) -> None:
    """It begins after the put, past the overlay (its look came too early), and ends whenever."""
    rows = Rows({1: "old"})
    strategy = _dirty(stage, rows)

    async def body() -> None:
        face = stage.face(strategy)
        await face.delete(1)
        pending = strategy.log.pending
        monkeypatch.setattr(strategy.log, "pending", lambda key: None)
        gate = rows.gates["load"] = Gate()
        late = stage.start(face.get(1))
        await stage.reached(gate)
        monkeypatch.setattr(strategy.log, "pending", pending)
        if flushed_meanwhile:
            assert (await face.flush(5)).complete
        gate.open()
        assert await late == "old"
        assert await face.get(1) is None
        assert (await face.flush(5)).complete
        assert await face.get(1) is None

    stage.play(body)


def test_a_look_at_the_text_key_does_not_bring_the_old_value_back(open_shared: Opener) -> None:
    stage, rows = Stage("plain", open_shared), Rows({1: "old"})
    cache = stage.open()
    strategy = _dirty(stage, rows, cache)
    assert strategy.get(1) == "old"  # lies in the far tier now
    strategy.delete(1)
    cache.get(strategy.key(1))
    assert strategy.get(1) is None
    strategy.flush(5)
    assert strategy.get(1) is None
    assert cache.get(strategy.key(1)) is None


def test_near_copies_of_what_was_put_are_trusted_no_longer_than_others(
    open_shared: Opener,
) -> None:
    """After the flush another process may write: within the bound it must be seen."""
    clock, rows = ManualClock(), Rows({1: "old"})
    stage = Stage("plain", open_shared)
    one = _dirty(stage, rows, stage.open(runtime=manual_runtime(clock), coherence=1.0), ttl=3600)
    two = _dirty(stage, rows, stage.open(runtime=manual_runtime(clock), coherence=1.0), ttl=3600)
    one.put(1, "one")
    one.flush(5)
    assert one.get(1) == "one"
    two.put(1, "two")
    two.flush(5)
    clock.advance(1.1)
    assert one.get(1) == "two"


def test_none_can_be_put_and_reads_as_absent(stage: Stage) -> None:
    rows = Rows({1: "old"})
    strategy = _dirty(stage, rows)

    async def body() -> None:
        face = stage.face(strategy)
        await face.put(1, None)
        assert await face.get(1, "nothing") == "nothing"
        await face.flush(5)
        assert rows.rows == {1: None}
        assert await face.get(1, "nothing") == "nothing"

    stage.play(body)


def test_disabled_reads_still_see_what_waits(stage: Stage) -> None:
    rows = Rows({1: "old"})
    cache = stage.open()
    strategy = _dirty(stage, rows, cache)

    async def body() -> None:
        face = stage.face(strategy)
        await face.put(1, "new")
        with cache.disabled():
            assert await face.get(1) == "new"
            await face.put(2, "two")
            assert await face.get_many([1, 2]) == {1: "new", 2: "two"}
        await face.flush(5)
        assert rows.rows == {1: "new", 2: "two"}

    stage.play(body)


def test_a_put_whose_tags_can_not_be_made_is_refused_before_it_is_logged(stage: Stage) -> None:
    rows = Rows()
    strategy = _dirty(stage, rows, tags=["team:{value.team}"], invalidates=["list:{value.team}"])

    async def body() -> None:
        face = stage.face(strategy)
        with pytest.raises(AttributeError):
            await face.put(1, "has no team")
        assert strategy.depth() == 0
        assert (await face.flush(5)).complete
        assert rows.rows == {}

    stage.play(body)


class Coalescing(RuleBasedStateMachine):
    """Any mix of put, delete, read, invalidate, clear and flush against a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[int, str] = {}
        self.rows = Rows()
        self.cache = Cache(max_entries=2)
        self.strategy = WriteBack(
            self.cache,
            key="row:{id}",
            log="memory",
            delay=3600,
            batch=3,
            load=self.rows.load,
            load_many=self.rows.load_many,
            store_many=self.rows.store_many,
            delete_many=self.rows.delete_many,
        )

    ids = st.integers(0, 4)

    @rule(id=ids, value=st.text("ab", max_size=2))
    def put(self, id: int, value: str) -> None:
        self.strategy.put(id, value)
        self.model[id] = value

    @rule(id=ids)
    def delete(self, id: int) -> None:
        self.strategy.delete(id)
        self.model.pop(id, None)

    @rule(id=ids)
    def invalidate(self, id: int) -> None:
        self.strategy.invalidate(id)

    @rule()
    def clear(self) -> None:
        self.cache.clear()

    @rule()
    def flush(self) -> None:
        assert self.strategy.flush(5).complete
        assert self.rows.rows == self.model

    @rule(id=ids)
    def read(self, id: int) -> None:
        assert self.strategy.get(id) == self.model.get(id)

    @invariant()
    def all_reads_agree(self) -> None:
        assert self.strategy.get_many(range(5)) == self.model

    def teardown(self) -> None:
        self.cache.close()
        assert self.rows.rows == self.model


TestCoalescing = Coalescing.TestCase
TestCoalescing.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
