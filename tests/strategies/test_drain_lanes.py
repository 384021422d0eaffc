"""The worker's side of a log in parts: what one partition's server does concerns no other."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from durable_books import LONG, QUEUE, Ledger, Shelf, count, shows, wait_for

from cachekit import Cache
from cachekit.backends.redis import RedisBackend
from cachekit.errors import BackendTimeout, BackendUnavailable
from cachekit.protocols import Log, Op
from cachekit.runtime import Runtime, drive
from cachekit.strategies import drain, lane_owner
from cachekit.testing.servers import RedisServer

PARTS = 4
OF_A_PART = {"claim", "renew", "release", "read", "settle"}
OF_ALL = {"standing", "left"}


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    with Shelf(tmp_path) as shelf:
        yield shelf


class Spread:
    """A log whose partitions lie on servers of their own, any of which may be away."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.name, self.level, self.parts, self.tells = log.name, log.level, log.parts, log.tells
        self.away: set[int] = set()
        self.hangs = False  # they let one wait, in place of an answer that nobody is there

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        step = getattr(self._log, verb)

        async def asked(world: Any, *args: Any, **kwargs: Any) -> Any:
            if self.away and (verb in OF_ALL or (verb in OF_A_PART and args[0] in self.away)):
                if not self.hangs:
                    raise BackendUnavailable("nobody is there")
                late = next(each for each in args if hasattr(each, "left"))
                await world.run(time.sleep, late.left())
                raise BackendTimeout("no answer")
            return await step(world, *args, **kwargs)

        return asked


class Case:
    """A queue in parts on a server, with operations in each of them."""

    def __init__(self, shelf: Shelf, url: str) -> None:
        self.shelf = shelf
        self.space = f"lanes-{uuid.uuid4().hex[:10]}"
        self._url = url
        self.source = Ledger()
        self.spread = Spread(self.log())

    def log(self) -> Any:
        return RedisBackend(self._url, namespace=self.space).log(QUEUE, parts=PARTS)

    def cache(self) -> Cache:
        return self.shelf.cache(namespace=self.space)

    def book(self, sink: Any = None, cache: Cache | None = None, **options: Any) -> Any:
        given = {"log": self.spread, "delay": 0.01, "lease": 1.0, **options}
        return self.shelf.book(sink or self.source.write_many, cache or self.cache(), **given)

    def put(self, ids: range, value: str) -> None:
        putter = self.book(log=self.log(), worker=False)
        putter.put_many(dict.fromkeys(ids, value))

    def waiting(self) -> list[set[int]]:
        """Per partition the ids that wait."""
        log, world = self.log(), Runtime().threads
        found: list[set[int]] = []
        for part in range(PARTS):
            records = drive(log.read(world, part, 0, 1000, world.deadline(LONG)))
            found.append({int(record.key.removeprefix("row:")) for record in records})
        drive(log.close(world))
        return found

    def written(self, ids: set[int], value: str) -> bool:
        return all(self.source.rows.get(id) == value for id in ids)


@pytest.fixture
def case(shelf: Shelf, redis_server: RedisServer) -> Case:
    return Case(shelf, redis_server.url)


def test_partitions_whose_server_is_away_hold_up_no_other(case: Case) -> None:
    case.put(range(40), "old")
    homes = case.waiting()
    assert all(homes)
    case.spread.away = {0, 2}
    cache = case.cache()
    worker = case.book(cache=cache)
    worker.put(min(homes[1]), "old")  # a flush that can not ask the whole log starts no worker
    there = homes[1] | homes[3]
    wait_for(lambda: case.written(there, "old"), "the others were not claimed and read")
    assert case.source.rows.keys() == there
    case.spread.away = set()
    assert worker.flush(LONG).complete
    case.spread.away = {1, 3}  # owned by now
    case.put(range(40), "new")
    there = homes[0] | homes[2]
    wait_for(lambda: case.written(there, "new"), "the others were not written on")
    wait_for(lambda: not (case.waiting()[0] or case.waiting()[2]), "and not settled")
    case.spread.away = set()
    assert worker.flush(LONG).complete
    assert case.written(set(range(40)), "new")
    assert count(cache, "worker_errors") == 0


def test_in_an_event_loop_partitions_whose_server_hangs_hold_up_no_other(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (drain, lane_owner):
        monkeypatch.setattr(module, "PATIENCE", 1.0)
    case.put(range(40), "old")
    homes = case.waiting()
    case.spread.away, case.spread.hangs = {0, 2}, True
    there = homes[1] | homes[3]

    async def write_many(ops: Sequence[Op]) -> None:
        case.source.write_many(ops)

    async def main() -> None:
        cache = case.cache()
        book = case.book(write_many, cache)
        await book.aio.put(min(homes[1]), "old")
        await shows(lambda: case.written(there, "old"))
        case.spread.away, case.spread.hangs = set(), False
        assert (await book.aio.flush(2 * LONG)).complete
        await book.aio.close(LONG)
        assert count(cache, "worker_errors") == 0

    asyncio.run(main())
    assert case.written(set(range(40)), "old")


def test_partitions_whose_server_hangs_cost_no_other_its_lease(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (drain, lane_owner):
        monkeypatch.setattr(module, "PATIENCE", 2.5)
    case.put(range(40), "old")
    homes = case.waiting()
    worker = case.book(lease=2.0)
    assert worker.flush(LONG).complete
    elsewhere, cache = Ledger(), case.cache()
    case.spread.away, case.spread.hangs = {0, 1}, True
    case.put(range(40), "new")
    rival = case.book(elsewhere.write_many, cache, log=case.log(), lease=2.0)
    rival.flush(0.1)
    theirs = homes[0] | homes[1]
    wait_for(lambda: theirs <= elsewhere.rows.keys(), "nobody took over what is away")
    wait_for(lambda: case.written(homes[2] | homes[3], "new"), "the others were not written")
    assert elsewhere.rows.keys() == theirs
    assert count(cache, "log_claimed") == 2
    case.spread.hangs, case.spread.away = False, set()


@pytest.mark.parametrize("fate", ["applied", "parked"])
def test_what_the_source_answered_while_the_log_went_away_is_settled_when_it_is_back(
    case: Case, fate: str
) -> None:
    case.put(range(40), "old")
    homes, goes = case.waiting(), {1, 2}

    def write_many(ops: Sequence[Op]) -> Any:
        case.source.write_many(ops)
        part = next(part for part in range(PARTS) if ops[0].id in homes[part])
        if part in goes:
            case.spread.away.add(part)
            if fate == "parked":
                return {op.id: ValueError("refused") for op in ops}
        return None

    cache = case.cache()
    worker = case.book(write_many, cache, lease=LONG)
    worker.flush(0.1)
    there = homes[0] | homes[3]
    wait_for(lambda: case.written(there, "old"), "one partition held up the others")
    wait_for(lambda: case.spread.away == {1, 2})
    wait_for(lambda: case.waiting() == [set(), homes[1], homes[2], set()])
    goes.clear()
    case.spread.away = set()
    assert worker.flush(LONG).complete
    once = [id for id, _ in case.source.taken]
    if fate == "applied":
        assert sorted(once) == list(range(40)), "something was written twice"
        assert worker.dead() == []
    else:
        assert {letter.op.id for letter in worker.dead()} == homes[1] | homes[2]
    assert count(cache, "worker_errors") == count(cache, "batches_lost") == 0


def test_a_log_all_of_which_hung_is_drained_as_soon_as_it_answers(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (drain, lane_owner):
        monkeypatch.setattr(module, "PATIENCE", 0.7)
    case.spread.away, case.spread.hangs = set(range(PARTS)), True
    cache = case.cache()
    worker = case.book(cache=cache)
    worker.put_many(dict.fromkeys(range(8), "a"))
    wait_for(lambda: count(cache, "log_errors") > 0)
    case.spread.away = set()
    wait_for(lambda: case.written(set(range(8)), "a"))
    assert worker.flush(LONG).complete
