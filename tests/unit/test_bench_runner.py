"""The runner must catch a store that gives old values and one that forgets writes."""

from __future__ import annotations

import asyncio

import pytest

from cachekit.bench.course import Bounds, Stop
from cachekit.bench.runner import measure
from cachekit.bench.source import open_source
from cachekit.bench.subjects import STRATEGIES, NoCache, Recipe, Strategy, strategy_named
from cachekit.bench.workloads import WORKLOADS, draw, replay
from cachekit.errors import ConfigurationError

RECORDS = 20


@pytest.fixture
def source(tmp_path):
    source = open_source("sqlite", folder=tmp_path, delay=0.0)
    source.prepare(RECORDS, "text")
    yield source
    source.close()


@pytest.fixture(params=["threads", "tasks"])
def tasks(request):
    return request.param == "tasks"


def plan(name="a", count=600):
    workload = WORKLOADS[name]
    return draw(workload, keys=workload.keys, records=RECORDS, count=count, seed=1)


def run(recipe, plan, source, *, tasks, operations=500, concurrency=4, stop=None, warmup=0.2):
    bounds = Bounds(operations, None, warmup, concurrency, tasks)
    stop = stop or Stop()
    return measure(recipe, plan, bounds, source, stop=stop, report=lambda share: None)


class Fake(Recipe):
    """A subject from a plain class; the same one for tasks through coroutines."""

    def __init__(self, cls):
        self.cls = cls

    def build(self, source):
        return self.cls(source)

    def build_async(self, source, threads):
        inner = self.cls(source)

        class Face:
            async def read(self, key):
                await asyncio.sleep(0)
                return inner.read(key)

            async def write(self, key, row):
                await asyncio.sleep(0)
                inner.write(key, row)

            async def flush(self):
                return inner.flush()

            def troubles(self):
                return inner.troubles()

            async def close(self):
                inner.close()

        return Face()


class Honest:
    def __init__(self, source):
        self.source = source

    def read(self, key):
        return self.source.read(key)

    def write(self, key, row):
        self.source.write(key, row)

    def flush(self):
        return True

    def troubles(self):
        return 0

    def close(self):
        return None


class Forgetful(Honest):
    """Keeps the first value it saw for ever: stale after the first write."""

    def __init__(self, source):
        super().__init__(source)
        self.seen = {}

    def read(self, key):
        if key not in self.seen:
            self.seen[key] = self.source.read(key)
        return self.seen[key]


class Lossy(Honest):
    """Acknowledges every third write and throws it away."""

    count = 0

    def write(self, key, row):
        self.count += 1
        if self.count % 3:
            self.source.write(key, row)


class Late(Honest):
    """Writes only when it is closed: nothing is lost, everything reads old before."""

    def __init__(self, source):
        super().__init__(source)
        self.waiting = {}

    def write(self, key, row):
        self.waiting[key] = row

    def close(self):
        self.source.write_many(self.waiting)


class Swapped(Honest):
    def read(self, key):
        return self.source.read((key + 1) % RECORDS)


class Failing(Honest):
    def write(self, key, row):
        raise OSError("no room")


@pytest.mark.parametrize("name", "abcdf")
def test_the_source_itself_is_never_accused(source, tasks, name):
    found = run(NoCache(), plan(name), source, tasks=tasks)
    assert found.tally.done == 500
    assert (found.stale_reads, found.left_stale, found.lost_writes, found.errors) == (0, 0, 0, 0)
    assert found.load.reads == found.tally.reads.count
    assert found.load.writes == found.tally.writes.count
    assert found.complete
    assert found.flushed


def test_a_store_that_never_forgets_old_values_is_caught(source, tasks):
    found = run(Fake(Forgetful), plan(), source, tasks=tasks)
    assert found.stale_reads > 100
    assert found.ages.count == found.stale_reads
    assert 0 < found.ages.largest / 1e9 < 60
    assert found.left_stale > 5
    assert found.lost_writes == 0


def test_a_store_that_throws_writes_away_is_caught(source, tasks):
    found = run(Fake(Lossy), plan(), source, tasks=tasks, concurrency=1)
    assert found.lost_writes > 0
    assert 0 < found.lost_keys <= RECORDS
    assert found.stale_reads > 0


def test_writes_that_land_at_the_close_are_not_lost(source, tasks):
    found = run(Fake(Late), plan(), source, tasks=tasks)
    assert found.lost_writes == 0
    assert found.stale_reads > 0


def test_another_keys_row_is_an_error(source, tasks):
    found = run(Fake(Swapped), plan("c"), source, tasks=tasks)
    assert found.errors == 600  # warm-up included
    assert "asked for row" in found.error


def test_a_failed_write_is_counted_and_not_called_lost(source, tasks):
    found = run(Fake(Failing), plan(), source, tasks=tasks)
    assert found.errors > 200
    assert found.error == "OSError: no room"
    assert found.lost_writes == found.stale_reads == 0
    assert found.tally.writes.count == 0


def test_a_trace_is_run_once_through(source, tasks):
    trace = replay(iter([1, 2, 1, 3]), name="t", limit=100, write_ratio=0.0, seed=1)
    found = run(NoCache(), trace, source, tasks=tasks, operations=4, warmup=0.0)
    assert found.tally.done == 4
    assert found.load.reads == 4


def test_a_time_bound_ends_a_plan_that_repeats(source, tasks):
    endless = draw(WORKLOADS["c"], keys="uniform", records=RECORDS, count=None, seed=1)
    bounds = Bounds(None, 0.05, 0.2, 2, tasks)
    shares = []
    found = measure(NoCache(), endless, bounds, source, stop=Stop(), report=shares.append)
    assert found.tally.done > 0
    assert found.seconds >= 0.05
    assert shares[-1] == 1.0


def test_a_requested_stop_ends_the_row_and_says_so(source, tasks):
    stop = Stop()

    class Stopping(Honest):
        def read(self, key):
            stop.requested = True
            return super().read(key)

    found = run(Fake(Stopping), plan("c"), source, tasks=tasks, stop=stop, warmup=0.0)
    assert 1 <= found.tally.done <= 8
    assert not found.complete


def test_a_subject_is_closed_when_its_flush_fails(source, tasks):
    closed = []

    class Broken(Honest):
        def flush(self):
            raise RuntimeError("flush failed")

        def close(self):
            closed.append(True)

    with pytest.raises(RuntimeError, match="flush failed"):
        run(Fake(Broken), plan("c"), source, tasks=tasks)
    assert closed == [True]


def over_a_log(name, folder):
    return Strategy(
        name, lambda: None, ttl=60.0, options={"max_entries": 10},
        log=lambda: f"sqlite:///{folder}/log.db",
    )  # fmt: skip


@pytest.mark.parametrize("workload", "adf")
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_serves_nothing_stale_and_loses_nothing(
    source, tasks, name, workload, tmp_path
):
    recipe = over_a_log(name, tmp_path)
    found = run(recipe, plan(workload), source, tasks=tasks)
    assert found.error == ""
    assert (found.stale_reads, found.left_stale, found.lost_writes, found.errors) == (0, 0, 0, 0)
    assert found.tally.done == 500
    assert found.flushed
    assert 0 < found.load.reads < found.tally.reads.count


@pytest.mark.parametrize("name", ["write-back", "write-back-memory"])
def test_write_back_writes_in_fewer_calls_than_rows(source, tasks, name, tmp_path):
    recipe = over_a_log(name, tmp_path)
    found = run(recipe, plan(), source, tasks=tasks)
    assert found.load.write_calls < found.load.writes <= found.tally.writes.count


def test_a_strategy_is_found_by_any_spelling():
    for text in ("write-back", "write_back", "WriteBack", "WRITEBACK"):
        assert strategy_named(text) == "write-back"
    with pytest.raises(ConfigurationError, match="unknown strategy 'back'"):
        strategy_named("back")
