"""Near copies of two processes over one backend: how old they may be, and no older."""

from __future__ import annotations

import pytest
from stage import Gate, Opener, Rows, Stage, manual_runtime
from steps import STEPS

from cachekit.testing.clock import ManualClock


@pytest.mark.parametrize("step", ["put", "delete", "invalidate"])
@pytest.mark.parametrize("verb", ["get", "get_many"])
def test_a_load_whose_fill_another_process_made_void_is_not_kept_near_either(
    shared_stage: Stage, step: str, verb: str
) -> None:
    stage, rows = shared_stage, Rows({1: "old"})
    options = {"tags": ["row:{id}"], "wait": 0.05}
    actor = stage.make("write-through", rows, cache=stage.open(coherence="strict"), **options)
    # Its near copies are trusted for long: an old one would show.
    reader = stage.make("write-through", rows, cache=stage.open(coherence=60.0), **options)

    async def body() -> None:
        face = stage.face(reader)
        gate = rows.gates["load"] = Gate()
        late = stage.start(face.get(1) if verb == "get" else face.get_many([1]))
        await stage.reached(gate)
        await STEPS[step](stage, actor, rows)
        gate.open()
        await late
        assert await face.get(1) == rows.rows.get(1)

    stage.play(body)


@pytest.mark.parametrize("step", ["invalidate-tag", "clear"])
def test_a_near_copy_is_trusted_from_when_its_tags_were_read_not_from_when_it_was_loaded(
    shared_stage: Stage, step: str
) -> None:
    """Another process's invalidation falls into a load that takes longer than the bound."""
    stage, rows, clock = shared_stage, Rows({1: "old"}), ManualClock()
    options = {"tags": ["row:{id}"], "wait": 0.05}
    actor = stage.make("write-through", rows, cache=stage.open(coherence="strict"), **options)
    cache = stage.open(coherence=5.0, runtime=manual_runtime(clock))
    reader = stage.make("write-through", rows, cache=cache, **options)

    async def body() -> None:
        face = stage.face(reader)
        gate = rows.gates["load"] = Gate()
        late = stage.start(face.get(1))
        await stage.reached(gate)
        await STEPS[step](stage, actor, rows)
        clock.advance(6)
        gate.open()
        assert await late == "old"
        assert await face.get(1) == "new"

    stage.play(body)


def test_write_back_of_two_processes_shows_everybody_the_flushed_value(open_shared: Opener) -> None:
    stage, rows = Stage("plain", open_shared), Rows({1: "old"})
    one, two = (
        stage.make("write-back", rows, cache=stage.open(coherence="strict"), delay=60)
        for _ in range(2)
    )
    assert [one.get(1), two.get(1)] == ["old", "old"]
    one.put(1, "one")
    assert [one.get(1), two.get(1)] == ["one", "old"]
    assert one.flush(5).complete
    assert [one.get(1), two.get(1)] == ["one", "one"]
    two.put(1, "two")
    assert two.flush(5).complete
    assert [one.get(1), two.get(1)] == ["two", "two"]
