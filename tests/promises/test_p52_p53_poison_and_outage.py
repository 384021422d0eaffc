"""P52: a row that the source refuses costs the others nothing. P53: a source that is down fills
the queue to its bound and no further, and afterwards gets all that was accepted, in order."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from outages import Letters, Report, Source, go_through, go_through_async

from cachekit import Cache, QueueFull, WriteBack
from cachekit.logs import open_log
from cachekit.protocols import Bounds, Op

NIGHTLY = os.environ.get("CACHEKIT_NIGHTLY") == "1"
ROWS = 100_000 if NIGHTLY else 10_000
OUTAGE = 60.0 if NIGHTLY else 3.0
# A machine shared with others: what a run of a second may lose to them.
SLACK = 0.0 if NIGHTLY else 1.5
CATCH_UP = 20.0
MOST = 400
BLOCK = 0.2


def _url(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    if kind == "redis":
        url: str = request.getfixturevalue("redis_server").url
        return url
    return f"sqlite:///{folder}/log"


# -- P52 ---------------------------------------------------------------------------------


def _seconds_for(book: WriteBack, source: Source, ids: Sequence[int]) -> float:
    """From the first put to the last row that landed."""
    began = time.monotonic()
    for first in range(0, len(ids), 1000):
        book.put_many({id: f"row {id}" for id in ids[first : first + 1000]})
    flushed = book.flush(100.0)
    assert flushed.complete, flushed
    landed = [source.landed[id] for id in ids if id in source.landed]
    # What landed before the flush began is not in its count.
    assert flushed.applied <= len(landed) <= len(ids)
    return max(landed) - began


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_poison_row_among_many_is_parked_and_the_others_land_in_twice_the_time(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = Source()
    namespace = f"poison-{os.getpid()}-{time.monotonic_ns()}"
    url, bounds = _url(kind, tmp_path, request), Bounds(operations=2 * ROWS)
    letters = Letters(open_log(url, "row", namespace=namespace, bounds=bounds))
    cache = Cache(namespace=namespace)
    book = WriteBack(
        cache, name="row", key="row:{id}", load=source.rows.get, store_many=source.store_many,
        delay=0.01, log=open_log(url, "row", namespace=namespace, bounds=bounds),
    )  # fmt: skip
    with cache:
        clean = _seconds_for(book, source, range(ROWS))
        source.poison = ROWS + ROWS // 3
        ids = range(ROWS, 2 * ROWS)
        took = _seconds_for(book, source, ids)
        assert took < 2 * clean + SLACK
        assert source.rows == {id: f"row {id}" for id in range(2 * ROWS) if id != source.poison}

        # Parked with its error, and not shown any more.
        [letter] = letters.all()
        assert letter.record.key == f"row:{source.poison}"
        assert letter.error == "ValueError: the row breaks a constraint"
        assert letter.attempts >= 1
        assert not letter.outdated
        assert abs(letter.parked - time.time()) < 100
        assert cache.stats().dead_letters == 1
        assert book.get(source.poison) is None
        dead = book.dead()
        assert [(each.op.id, each.error) for each in dead] == [(source.poison, letter.error)]

        # Revived too early it is parked again; after the cause is gone it lands.
        version = letter.record.version
        assert letters.revive([version]) == [version]
        assert letters.all() == []
        assert book.flush(20.0).complete
        [again] = letters.all()
        assert again.record.version > version
        assert (again.record.key, again.record.data) == (letter.record.key, letter.record.data)
        cured, source.poison = source.poison, None
        assert letters.revive([again.record.version]) == [again.record.version]
        assert book.get(cured) == f"row {cured}"  # it waits again, or has landed already
        assert book.flush(20.0).complete
        assert source.rows[cured] == f"row {cured}"
        assert book.get(cured) == f"row {cured}"
        assert letters.all() == []

        # One whose key was written since is refused, unless told; one may be dropped.
        source.poison = "x"
        book.put("x", "older")
        assert book.flush(20.0).complete
        source.poison = None
        book.put("x", "newer")
        [old] = letters.all()
        assert letters.revive([old.record.version]) == []  # the newer one waits, or has landed
        assert book.flush(20.0).complete
        [old] = letters.all()
        assert old.outdated
        assert letters.revive([old.record.version]) == []
        assert letters.drop([old.record.version]) == [old.record.version]
        assert letters.drop([old.record.version]) == []
        assert letters.all() == []
        assert book.flush(20.0).complete
        assert source.rows["x"] == book.get("x") == "newer"
    letters.close()


@pytest.mark.parametrize("kind", ["sqlite", "redis", "memory"])
def test_a_poison_row_is_found_by_an_async_source_too(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = Source()
    source.poison = 333
    namespace = f"poison-{os.getpid()}-{time.monotonic_ns()}"

    async def main() -> None:
        cache = Cache(namespace=namespace)
        book = WriteBack(
            cache, key="row:{id}", store_many=source.store_many_async, delay=0.01,
            log=kind if kind == "memory" else _url(kind, tmp_path, request),
        )  # fmt: skip
        async with cache.aio:
            await book.aio.put_many({id: id for id in range(1000)})
            flushed = await book.aio.flush(60.0)
            assert (flushed.applied, flushed.parked, flushed.left) == (999, 1, 0), flushed
            assert flushed.errors == ["ValueError: the row breaks a constraint"]
        assert source.rows == {id: id for id in range(1000) if id != 333}

    asyncio.run(main())


# -- P53 ---------------------------------------------------------------------------------


KINDS = ("memory", "sqlite", "redis")
WORLDS = ("plain", "async")


@pytest.fixture(scope="module")
def outage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], Report]]:
    """All of them at once, in one outage."""
    reports = {(kind, world): Report() for kind in KINDS for world in WORLDS}
    caches: list[Cache] = []
    threads: list[threading.Thread] = []
    folder = tmp_path_factory.mktemp("outage")
    for (kind, world), report in reports.items():
        caches.append(Cache(namespace=f"outage-{world}-{os.getpid()}-{time.monotonic_ns()}"))
        plain = world == "plain"
        (folder / world).mkdir(exist_ok=True)
        book = WriteBack(
            caches[-1], key="row:{id}", delay=0.01, max_pending=MOST, block=BLOCK,
            log=kind if kind == "memory" else _url(kind, folder / world, request),
            store_many=report.store_many if plain else report.store_many_async,
        )  # fmt: skip

        def run(book: WriteBack = book, report: Report = report, plain: bool = plain) -> None:
            try:
                if plain:
                    go_through(book, report, OUTAGE)
                else:
                    asyncio.run(go_through_async(book, report, OUTAGE))
            except Exception as error:
                report.errors.append(repr(error))

        threads.append(threading.Thread(target=run))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield reports
    for cache in caches:
        cache.close(timeout=1.0)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", KINDS)
class TestASourceThatIsDown:
    @pytest.fixture
    def report(self, kind: str, world: str, outage: dict[tuple[str, str], Report]) -> Report:
        return outage[kind, world]

    def test_the_queue_stays_within_its_bound_and_then_pushes_back(self, report: Report) -> None:
        assert report.errors == []
        assert report.tried_while_down > 1
        assert MOST // 2 < report.deepest <= MOST
        assert len(report.refused) >= 2
        for seconds in report.refused:
            assert seconds > 0.9 * BLOCK
        assert sorted(report.refused)[len(report.refused) // 2] < BLOCK + 1.0

    def test_all_that_was_accepted_arrives_soon_and_in_order(self, report: Report) -> None:
        assert report.left == 0
        assert report.letters == 0
        assert 0 <= report.caught_up < CATCH_UP
        assert sum(map(len, report.accepted.values())) >= MOST
        delivered: dict[str, list[int]] = {}
        for key, n in report.delivered:
            delivered.setdefault(key, []).append(n)
        assert {k: ns[-1] for k, ns in delivered.items()} == {
            k: ns[-1] for k, ns in report.accepted.items()
        }
        for key, ns in delivered.items():
            assert ns == sorted(set(ns)), f"{key}: not in order, or twice"
            assert set(ns) <= set(report.accepted[key]), f"{key}: one that was refused arrived"


# -- at the bound, whatever the source does ------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_put_that_may_not_wait_is_taken_while_there_is_room_and_then_refused_at_once(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    report = Report()
    with Cache(namespace=f"bound-{time.monotonic_ns()}") as cache:
        book = WriteBack(
            cache, key="row:{id}", delay=3600, batch=100, max_pending=5, block=0,
            log=kind if kind == "memory" else _url(kind, tmp_path, request),
            store_many=report.store_many,
        )  # fmt: skip
        for n in range(5):
            book.put(str(n), n)
        began = time.monotonic()
        with pytest.raises(QueueFull):
            book.put("5", 5)
        with pytest.raises(QueueFull) as told:
            book.put_many({"6": 6, "7": 7})
        assert time.monotonic() - began < 2
        assert told.value.accepted == []
        assert book.depth() == 5
        report.down = False
        assert book.flush(20.0).applied == 5
        assert report.delivered == [(str(n), n) for n in range(5)]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_queue_at_its_bound_writes_through_where_that_was_asked_for(
    kind: str, world: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Except what an older operation waits for: that one must come first."""
    report = Report()
    plain = world == "plain"
    may = threading.Event()

    def sink(ops: Sequence[Op]) -> None:
        assert may.wait(20)
        report.store_many({op.id: op.value for op in ops})

    async def sink_async(ops: Sequence[Op]) -> None:
        assert await asyncio.to_thread(may.wait, 20)
        await report.store_many_async({op.id: op.value for op in ops})

    async def main() -> None:
        # An embedded cache of another process could not be told of what went past this log.
        url = f"sqlite:///{tmp_path}/cache.db" if kind == "sqlite" else None
        cache = Cache(url, namespace=f"bound-{time.monotonic_ns()}")
        book = WriteBack(
            cache, key="row:{id}", delay=3600, batch=100, max_pending=5, block=0.2,
            full="write_through", log=kind if kind == "memory" else _url(kind, tmp_path, request),
            store_many=report.store_many if plain else report.store_many_async,
            sink=sink if plain else sink_async,
        )  # fmt: skip

        async def put(id: str, value: int) -> None:
            if plain:
                book.put(id, value)
            else:
                await book.aio.put(id, value)

        report.down = False
        for n in range(5):
            await put(str(n), n)
        assert report.delivered == []
        await put("through", 1)
        assert report.delivered == [("through", 1)]
        report.down = True
        with pytest.raises(ConnectionError):
            await put("refused", 1)
        if kind == "memory":
            await put("3", 33)  # takes no room that it has not
        else:
            with pytest.raises(QueueFull):
                await put("3", 33)
        assert book.depth() == 5
        report.down = False
        may.set()
        flushed = book.flush(20.0) if plain else await book.aio.flush(20.0)
        assert flushed.complete
        last = {str(n): n for n in range(5)} | {"through": 1}
        if kind == "memory":
            last["3"] = 33
        assert dict(report.delivered) == last
        await book.aio.close()
        cache.close()

    asyncio.run(main())
