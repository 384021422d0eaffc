"""A load longer than its lease keeps the lease; one that is dead, or hangs for ever, does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stage import Gate, Rows, Stage

LEASE = 0.4


@pytest.mark.parametrize("verb", ["get", "get_many"])
def test_a_load_of_several_leases_is_not_joined_by_another_process(
    shared_stage: Stage, verb: str
) -> None:
    stage, rows = shared_stage, Rows({1: "row"})
    options = {"lease": LEASE, "wait": 8, "ttl": 60}
    one, two = (
        stage.make("read-through", rows, cache=stage.open(coherence="strict"), **options)
        for _ in range(2)
    )

    async def read(strategy: Any) -> Any:
        face = stage.face(strategy)
        return await face.get(1) if verb == "get" else (await face.get_many([1]))[1]

    async def body() -> None:
        gate = rows.gates["load"] = Gate()
        slow = stage.start(read(one))
        await stage.reached(gate)
        waiting = stage.start(stage.face(two).get(1))
        await asyncio.sleep(4 * LEASE)
        gate.open()
        assert [await slow, await waiting] == ["row", "row"]
        assert rows.count("load") == 1
        assert stage.open.caches[0].stats().counts["leases_renewed"] >= 3

    stage.play(body)


def test_a_load_that_hangs_is_renewed_to_its_load_timeout_and_no_longer(
    shared_stage: Stage,
) -> None:
    stage, rows = shared_stage, Rows({1: "row"})
    one, two = (
        stage.make(
            "read-through",
            rows,
            cache=stage.open(coherence="strict"),
            lease=LEASE,
            wait=8,
            load_timeout=timeout,
        )
        for timeout in (2 * LEASE, None)
    )

    async def body() -> None:
        gate = rows.gates["load"] = Gate()
        slow = stage.start(stage.face(one).get(1))
        await stage.reached(gate)
        assert await stage.face(two).get(1) == "row"
        gate.open()
        with pytest.raises(Exception, match="took longer"):
            await slow

    stage.play(body)


def test_nothing_is_held_after_loads_that_end_fail_or_are_refused(shared_stage: Stage) -> None:
    stage, rows = shared_stage, Rows({n: "row" for n in range(9)})
    strategy = stage.make("read-through", rows, cache=stage.open())

    async def body() -> None:
        face = stage.face(strategy)
        rows.errors["load"] = [ValueError("no")]
        with pytest.raises(ValueError, match="no"):
            await face.get(1)
        assert await face.get(1) == "row"
        assert len(await face.get_many(list(range(9)))) == 9
        keeper = stage.open.caches[0].parts.reader.keeper
        assert keeper is not None
        assert keeper._held == {}

    stage.play(body)
