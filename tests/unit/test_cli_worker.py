"""``cachekit worker``: a process of its own writes what others put."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from write_back_shop import Shop, ended

from cachekit import cli
from cachekit.testing.servers import RedisServer

Make = Callable[..., Shop]


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.server)])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/orders.log"
        return
    request.getfixturevalue("redis_server")  # or skipped
    with RedisServer() as server:
        yield server.url


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Make]:
    shops: list[Shop] = []

    def make(log: str | None = None, **environment: str) -> Shop:
        folder = tmp_path / f"shop{len(shops)}"
        folder.mkdir()
        shops.append(Shop(folder, log or f"sqlite:///{tmp_path}/orders.log", **environment))
        return shops[-1]

    yield make
    for shop in shops:
        shop.close()


def test_a_worker_writes_what_other_processes_put_and_gives_the_log_back(
    made: Make, log: str
) -> None:
    shop = made(log)
    shop.python("import shop; shop.orders.put_many({f'o{n}': n for n in range(23)})")
    assert shop.rows() == {}
    with shop.worker() as process:
        shop.until(lambda: len(shop.rows()) == 23)
        shop.orders.put("late", 1)
        shop.orders.delete("o0")
        shop.until(lambda: "late" in shop.rows() and "o0" not in shop.rows())
        shop.until(lambda: shop.orders.depth() == 0)
        assert ended(process) == (0, "", "")
    shop.orders.put("next", 2)
    began = time.monotonic()
    with shop.worker() as process:
        shop.until(lambda: "next" in shop.rows())
        assert time.monotonic() - began < 25  # its lease of a minute had been given back
        assert ended(process, signal.SIGINT)[0] == 0


@pytest.mark.parametrize("later", ["", "yes"], ids=["plain", "async"])
def test_sigterm_lets_the_batch_under_way_end_and_leaves_the_rest(made: Make, later: str) -> None:
    shop = made(SLOW="1", LATER=later)
    shop.orders.put_many({f"o{n}": n for n in range(10)})
    with shop.worker() as process:
        shop.until_busy()
        assert ended(process) == (0, "", "")
    assert shop.rows() == {f"o{n}": n for n in range(5)}
    assert shop.orders.depth() == 5
    assert shop.cli("worker", "--app", "shop:cache", "--once", SLOW="0").returncode == 0
    assert len(shop.rows()) == 10


@pytest.mark.parametrize("later", ["", "yes"], ids=["plain", "async"])
def test_a_batch_that_does_not_end_in_time_is_told_of_and_comes_again(
    made: Make, later: str
) -> None:
    shop = made(SLOW="100", LATER=later, LEASE="0.5")
    shop.orders.put("o1", 1)
    with shop.worker("--grace", "100ms") as process:
        shop.until_busy()
        code, _, err = ended(process)
    assert code == 1
    assert err.startswith("orders: its batch did not end in time")
    assert shop.orders.depth() == 1
    assert shop.cli("worker", "--app", "shop:make", "--once", SLOW="0").returncode == 0
    assert shop.rows() == {"o1": 1}


def test_a_second_signal_ends_it_at_once(made: Make) -> None:
    shop = made(SLOW="100")
    shop.orders.put("o1", 1)
    with shop.worker() as process:
        shop.until_busy()
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None  # it waits for its batch
        assert ended(process)[0] == 128 + signal.SIGTERM
    assert shop.rows() == {}
    assert shop.orders.depth() == 1


def test_another_worker_takes_over_from_one_that_was_killed(made: Make, log: str) -> None:
    shop = made(log, LEASE="1", SLOW="100")
    shop.orders.put_many({f"o{n}": n for n in range(12)})
    with shop.worker() as first:
        shop.until_busy()
        first.kill()
        with shop.worker(SLOW="0") as second:
            shop.until(lambda: shop.orders.depth() == 0)
            assert shop.rows() == {f"o{n}": n for n in range(12)}
            assert ended(second)[0] == 0


def test_two_workers_share_the_work_of_a_log_one_at_a_time(made: Make) -> None:
    shop = made(LEASE="1")
    with shop.worker() as first, shop.worker() as second:
        shop.orders.put("o1", 1)
        shop.until(lambda: shop.rows() == {"o1": 1})
        assert ended(first)[0] == 0
        shop.orders.put("o2", 2)
        shop.until(lambda: shop.rows() == {"o1": 1, "o2": 2})
        assert ended(second)[0] == 0


@pytest.mark.parametrize("later", ["", "yes"], ids=["plain", "async"])
def test_once_writes_what_is_there_and_tells_of_it(made: Make, later: str) -> None:
    shop = made(LATER=later, WORKS=later, DELAY="1h")
    shop.orders.put_many({"o1": 1, "bad": 2, "o3": 3})
    done = shop.cli("worker", "--app", "shop:cache", "--queue", "orders", "--once")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == ["orders: 3 waited, 1 parked, 0 left"]
    assert shop.rows() == {"o1": 1, "o3": 3}


def test_once_gives_up_in_time_where_the_source_is_down(made: Make) -> None:
    shop = made(WORKS="yes")
    shop.touch("down")
    shop.orders.put("o1", 1)
    began = time.monotonic()
    done = shop.cli("worker", "--app", "shop:cache", "--once", "--timeout", "500ms")
    assert done.returncode == 1
    assert "orders: 1 waited, 0 parked, 1 left" in done.stdout
    assert time.monotonic() - began < 10  # nor does its end wait for the log to be empty
    assert (shop.rows(), shop.orders.depth()) == ({}, 1)


def test_it_says_how_it_goes(made: Make) -> None:
    shop = made()
    shop.touch("down")
    shop.orders.put("o1", 1)
    with shop.worker("--status", "100ms") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("orders: 1 waiting, the oldest for ")
        assert ", 0 dead; 0.0 writes/s, " in line
        (shop.folder / "down").unlink()
        while not line.startswith("orders: 0 waiting, 0 dead; "):
            line = process.stdout.readline()
        code, _, err = ended(process)
    assert code == 0
    # Told once, however often it is tried.
    assert err.startswith("orders: the source takes no batches now (ConnectionError: ")
    assert err.count("\n") == 1
    assert shop.rows() == {"o1": 1}


def test_a_reader_of_its_lines_that_goes_away_does_not_stop_it(made: Make) -> None:
    shop = made()
    with shop.worker("--status", "100ms") as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        time.sleep(0.5)
        shop.orders.put("o1", 1)
        shop.until(lambda: shop.rows() == {"o1": 1})
        assert ended(process) == (0, None, "")


@pytest.mark.server
def test_a_log_that_is_away_at_the_start_is_asked_again(made: Make) -> None:
    with RedisServer() as server:
        shop = made(server.url)
        shop.orders.put("o1", 1)
        server.stop()
        with shop.worker() as process:
            assert process.stderr is not None
            assert "it is tried again" in process.stderr.readline()
            server.start()
            shop.orders.put("o2", 2)
            shop.until(lambda: "o2" in shop.rows())
            assert ended(process)[0] == 0
        server.stop()
        done = shop.cli("worker", "--app", "shop:cache", "--once")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("cachekit: ")


# -- what can not work --------------------------------------------------------------------


APPS = {
    "app_nothing.py": "from cachekit import Cache\ncache = Cache()\nnumber = 7\n",
    "app_memory.py": "from cachekit import Cache, WriteBack\ncache = Cache()\n"
    "orders = WriteBack(cache, key='o:{id}', name='orders', store_many=print, log='memory')\n",
    "app_broken.py": "\n\n1 / 0\n",
    "app_lacking.py": "import a_module_that_nobody_has\n",
    "app_factory.py": "def make():\n    raise OSError('no \\x1b[2J settings')\n"
    "async def later():\n    pass\n",
}


@pytest.fixture
def apps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in APPS.items():
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name[:-3], raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--app"),
        (("--app", "app_nothing"), "module:attribute"),
        (("--app", ":cache"), "module:attribute"),
        (("--app", "app_no_such:cache"), "there is no module app_no_such"),
        (("--app", "app_nothing.part:cache"), "app_nothing.part"),
        (("--app", "app_lacking:cache"), "No module named 'a_module_that_nobody_has'"),
        (("--app", "app_broken:cache"), "ZeroDivisionError: division by zero"),
        (("--app", "app_broken:cache"), "app_broken.py:3)"),
        (("--app", "app_nothing:cash"), "app_nothing has no 'cash'"),
        (("--app", "app_nothing:number"), "got int"),
        (("--app", "app_nothing:cache"), "has no write-back strategy"),
        (("--app", "app_memory:cache"), "the log is in memory"),
        (("--app", "app_memory:cache", "--queue", "oders"), "no queue 'oders'; known: orders"),
        (("--app", "app_factory:make"), "calling it raised OSError: no \\x1b[2J settings"),
        (("--app", "app_factory:later"), "is async"),
        (("--app", "app_memory:cache", "--status", "soon"), "--status"),
        (("--app", "app_memory:cache", "--timeout", "1s"), "--timeout goes with --once"),
    ],
)
@pytest.mark.usefixtures("apps")
def test_what_can_not_work_gets_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert cli.main(["worker", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("cachekit: ")
    assert told.err.count("\n") == 1
    assert words in told.err
