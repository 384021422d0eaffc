from __future__ import annotations

import asyncio
import os
import pickle
import threading

import pytest

from cachekit.bench.source import AsyncSource, Load, Pool, open_source
from cachekit.errors import ConfigurationError

POSTGRESQL = os.environ.get("CACHEKIT_TEST_POSTGRESQL")  # a URL


@pytest.fixture(params=["sqlite", "postgresql"])
def source(tmp_path, request):
    if request.param == "postgresql" and not POSTGRESQL:
        pytest.skip("CACHEKIT_TEST_POSTGRESQL names no server")
    spec = POSTGRESQL if request.param == "postgresql" else "sqlite"
    source = open_source(spec, folder=tmp_path, delay=0.0)
    source.prepare(5, "text")
    yield source
    source.close()


def test_rows_are_read_written_and_counted(source):
    before = source.load()
    assert source.read(3) == {"id": 3, "version": 0, "payload": "text"}
    assert source.read(9) is None
    source.write(3, source.row(3, 7))
    source.write_many({4: source.row(4, 8), 9: source.row(9, 9)})
    found = source.read_many([3, 4, 9, 77])
    assert {key: row["version"] for key, row in found.items()} == {3: 7, 4: 8, 9: 9}
    source.delete(9)
    assert source.read(9) is None
    assert source.load().since(before) == Load(reads=7, read_calls=4, writes=4, write_calls=3)


def test_a_reset_brings_back_the_first_rows(source):
    source.write_many({1: source.row(1, 5), 9: source.row(9, 6)})
    source.reset(5)
    assert sorted(source.versions()) == [(n, 0) for n in range(5)]


def test_threads_write_at_once_without_an_error(source):
    barrier = threading.Barrier(8)
    errors = []

    def work(key):
        barrier.wait()
        try:
            for version in range(20):
                source.write(key, source.row(key, version))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n % 5,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert source.load().writes == 160


def test_tasks_reach_the_same_rows(source):
    async def use():
        face = AsyncSource(source, 2)
        await face.write(1, source.row(1, 4))
        rows = await face.read_many([1, 2])
        await face.delete(2)
        gone = await face.read(2)
        face.close()
        return rows, gone

    rows, gone = asyncio.run(use())
    assert rows[1]["version"] == 4
    assert gone is None


def test_an_unknown_source_is_refused_without_showing_its_password(tmp_path):
    with pytest.raises(ConfigurationError, match="unknown source") as caught:
        open_source("mysql://me:secret@host/db", folder=tmp_path, delay=0.0)
    assert "secret" not in str(caught.value)


class Connection:
    def __init__(self):
        self.closed = False

    def close(self):
        self.closed = True


def test_threads_that_ended_leave_no_connection_behind():
    opened = []

    def connect():
        opened.append(Connection())
        return opened[-1]

    pool = Pool(connect)
    for _ in range(20):
        thread = threading.Thread(target=pool.use, args=(id,))
        thread.start()
        thread.join()
    assert len(opened) == 1
    pool.close()
    assert opened[0].closed


def test_a_connection_on_which_something_failed_is_closed_and_replaced():
    opened = []

    def connect():
        opened.append(Connection())
        return opened[-1]

    def fail(connection):
        raise RuntimeError("broken")

    pool = Pool(connect)
    with pytest.raises(RuntimeError, match="broken"):
        pool.use(fail)
    assert opened[0].closed
    assert pool.use(lambda connection: connection) is opened[1]


def test_a_bounded_pool_makes_callers_wait_for_their_turn():
    pool = Pool(Connection, 1)
    inside, leave, second = threading.Event(), threading.Event(), threading.Event()

    def hold(connection):
        inside.set()
        assert leave.wait(10)

    first = threading.Thread(target=pool.use, args=(hold,))
    first.start()
    assert inside.wait(10)
    other = threading.Thread(target=lambda: pool.use(lambda connection: second.set()))
    other.start()
    assert not second.wait(0.05)
    leave.set()
    assert second.wait(10)
    first.join()
    other.join()


def test_another_process_opens_the_same_rows_and_closing_them_leaves_them(source):
    source.write(3, source.row(3, 7))
    again = pickle.loads(pickle.dumps(source.opener()))()
    assert again.read(3)["version"] == 7
    assert again.delay == source.delay
    again.close()
    assert source.read(3)["version"] == 7
