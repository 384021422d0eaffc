"""``cachekit dlq``: dead letters seen, revived and dropped from outside the application."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from write_back_shop import PATIENT, ROOT, Shop

from cachekit import Cache, cli
from cachekit.codecs import resolve
from cachekit.core.ops import OpKind
from cachekit.logs import open_log
from cachekit.protocols import Bounds, Letter, Record
from cachekit.runtime import Runtime, drive
from cachekit.strategies.journal import Payload
from cachekit.testing.servers import RedisServer

OWNER = b"o" * 16
Said = tuple[int, str, str]
Told = pytest.CaptureFixture[str]


class Log:
    """A queue by hand."""

    def __init__(self, url: str, queue: str = "orders", namespace: str = "") -> None:
        self.url, self.queue = url, queue
        self.log = open_log(url, queue, namespace=namespace, bounds=Bounds())
        self._world = Runtime().threads
        self._payload = Payload(resolve("json"), b"log\0" + namespace.encode() + b"\0")

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        deadline = self._world.deadline(PATIENT)
        return lambda *args: drive(getattr(self.log, verb)(self._world, *args, deadline))

    def put(self, key: str, id: Any = "id", value: Any = 0, *, delete: bool = False) -> int:
        kind = OpKind.DELETE if delete else OpKind.PUT
        data = self._payload.encode(key, kind, id, value)
        return self.append([Record(key, kind, data, at=1_700_000_000.0)])[0]

    def apply(self, key: str, version: int) -> None:
        epoch = self.claim(0, OWNER, 60.0)
        assert self.settle(0, epoch, [(key, version)], ())

    def park(self, key: str, error: str = "ValueError: bad", **given: Any) -> int:
        """A dead letter; its version."""
        version = self.put(key, **given)
        self.park_record(version, error)
        return version

    def park_record(self, version: int, error: str = "ValueError: bad") -> None:
        (record,) = self.read(0, version - 1, 1)
        letter = Letter(record, error, 5, 1_700_000_060.0)
        assert self.settle(0, self.claim(0, OWNER, 60.0), (), [letter])

    def dead(self) -> list[int]:
        return [letter.record.version for letter in self.letters(0, 1000)]

    def waiting(self) -> list[str]:
        return [record.key for record in self.read(0, 0, 1000)]

    def done(self) -> None:
        drive(self.log.close(self._world))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/orders.log"


@pytest.fixture
def log(url: str) -> Iterator[Log]:
    made = Log(url)
    yield made
    made.done()


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.server)])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    if request.param == "sqlite":
        made = Shop(tmp_path, f"sqlite:///{tmp_path}/orders.log")
        yield made
        made.close()
        return
    request.getfixturevalue("redis_server")  # or skipped
    with RedisServer() as server:
        made = Shop(tmp_path, server.url)
        yield made
        made.close()


def run(told: Told, *arguments: str) -> Said:
    told.readouterr()
    code = cli.main(["dlq", *arguments])
    return code, *told.readouterr()


def refused(told: Told, *arguments: str) -> str:
    code, out, err = run(told, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("cachekit: ")
    assert err.count("\n") == 1
    return err


# -- a poison row, from the sink to the source --------------------------------------------


def test_a_poison_row_is_found_and_written_once_its_cause_is_gone(shop: Shop) -> None:
    at = ("--log", shop.log, "--namespace", "shop")
    shop.orders.put_many({"o1": "a", "bad": "secret", "o3": "c"})
    assert shop.cli("worker", "--app", "shop:cache", "--once").returncode == 0
    assert shop.rows() == {"o1": "a", "o3": "c"}

    listed = shop.cli("dlq", "list", *at)
    assert listed.returncode == 0, listed.stderr
    head, line = listed.stdout.splitlines()
    assert head.split()[:3] == ["queue", "version", "key"]
    queue, version, key, kind, attempts, parked, outdated, error = line.split(maxsplit=7)
    assert (queue, key, kind, outdated) == ("orders", "order:bad", "put", "-")
    assert int(attempts) > 0
    assert parked.endswith("Z")
    assert error == "ValueError: no such customer"
    by_app = shop.cli("dlq", "list", "--app", "shop:make", WORKS="yes", LATER="yes")
    assert (by_app.returncode, by_app.stdout, by_app.stderr) == (0, listed.stdout, "")

    for place in (at, ("--app", "shop:cache")):
        shown = shop.cli("dlq", "show", *place, "--version", version)
        assert shown.returncode == 0
        assert "id:          bad" in shown.stdout
        assert "secret" not in shown.stdout
        shown = shop.cli("dlq", "show", *place, "--version", version, "--values")
        assert "value:       secret" in shown.stdout

    shop.touch("fixed")
    replayed = shop.cli("dlq", "replay", "--app", "shop:cache", "--version", version, WORKS="yes")
    assert (replayed.returncode, replayed.stderr) == (0, "")
    assert f"version {version} is waiting" in replayed.stdout
    # The command itself writes nothing, whatever worker= says.
    assert (shop.orders.depth(), "bad" in shop.rows()) == (1, False)
    assert shop.cli("worker", "--app", "shop:cache", "--once").returncode == 0
    assert shop.rows() == {"o1": "a", "o3": "c", "bad": "secret"}
    assert "no dead letters in orders" in shop.cli("dlq", "list", *at).stdout


@pytest.mark.server
def test_a_replay_through_the_application_tells_the_caches(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    with RedisServer() as server:
        shop = Shop(tmp_path, server.url, CACHE=server.url)
        shop.orders.put("bad", "new")
        shop.cli("worker", "--app", "shop:cache", "--once")
        with Cache(server.url, namespace="shop") as cache:
            cache.set("order:bad", "old")
        by_url = ("--log", server.url, "--namespace", "shop")
        shop.cli("dlq", "replay", "--app", "shop:cache", "--all")
        with Cache(server.url, namespace="shop") as cache:
            assert cache.get("order:bad") is None
        assert shop.cli("dlq", "list", *by_url).stdout == "no dead letters in orders\n"
        assert shop.orders.depth() == 1
        shop.cli("worker", "--app", "shop:cache", "--once")
        done = shop.cli("dlq", "replay", *by_url, "--all")
        assert done.returncode == 0
        assert "caches may show the old rows" in done.stderr
        shop.close()


# -- list ---------------------------------------------------------------------------------


def test_all_queues_of_a_place_are_listed(log: Log, capsys: Told) -> None:
    users = Log(log.url, "users")
    log.park("order:1", "ValueError: " + "long " * 50)
    users.park("user:1", delete=True)
    log.park("order:" + "x" * 100)
    code, out, err = run(capsys, "list", "--log", log.url)
    assert (code, err) == (0, "")
    lines = out.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [
        ["orders", "1"], ["orders", "2"], ["users", "1"],
    ]  # fmt: skip
    assert "2023-11-14T22:14:20Z" in lines[0]
    assert lines[0].endswith("...")
    assert "x..." in lines[1]
    assert "delete" in lines[2]
    assert max(map(len, lines)) < 250
    _, out, _ = run(capsys, "list", "--log", log.url, "--queue", "users")
    assert "user:1" in out
    assert "order:1" not in out


def test_the_list_as_json_is_exact_and_bounded(log: Log, capsys: Told) -> None:
    versions = [log.park(f"order:{n}\x1b\ud7ff", "ü" * 500) for n in range(205)]
    log.apply("order:0\x1b\ud7ff", log.put("order:0\x1b\ud7ff"))
    code, out, err = run(capsys, "list", "--log", log.url, "--json", "--limit", "203")
    assert code == 0
    assert out.isascii()
    assert "\x1b" not in out
    found = json.loads(out)
    assert [letter["version"] for letter in found] == versions[:203]
    assert found[0] == {
        "queue": "orders",
        "version": versions[0],
        "key": "order:0\x1b\ud7ff",
        "kind": "put",
        "attempts": 5,
        "accepted": "2023-11-14T22:13:20Z",
        "parked": "2023-11-14T22:14:20Z",
        "outdated": True,
        "error": "ü" * 500,
    }
    assert found[1]["outdated"] is False
    assert "2 more" in err
    assert len(run(capsys, "list", "--log", log.url)[1].splitlines()) == 101


def test_keys_names_and_errors_can_not_move_the_cursor(url: str, capsys: Told) -> None:
    evil = "k\x1b[2J\r\n\x9b31m\u202e\u2028[bold]\x7f"
    log = Log(url, "q\x1b]0;title\x07")
    version = log.park(f"order:{evil}", f"ValueError: {evil}", id=evil, value=evil)
    for arguments in (
        ("list",),
        ("list", "--json"),
        ("show", "--version", str(version), "--values"),
        ("show", "--version", str(version), "--values", "--json"),
        ("replay", "--version", "77"),
        ("replay", "--all"),
        ("replay", "--all"),
        ("list",),
    ):
        _, out, err = run(capsys, *arguments, "--log", url)
        assert out
        for char in (out + err).replace("\n", ""):
            assert char.isprintable() or (char == "\x7f" and "--json" in arguments)
    line = refused(capsys, "list", "--log", url, "--queue", "\x1b[2J")
    assert "\x1b" not in line
    log.done()


def test_numbers_that_are_no_times_are_listed_all_the_same(log: Log, capsys: Told) -> None:
    version = log.put("order:1")
    (record,) = log.read(0, 0, 1)
    letter = Letter(record, "x", 1, 1e300)
    assert log.settle(0, log.claim(0, OWNER, 60.0), (), [letter])
    code, out, _ = run(capsys, "list", "--log", log.url)
    assert code == 0
    assert out.splitlines()[1].split() == [
        "orders",
        str(version),
        "order:1",
        "put",
        "1",
        "?",
        "-",
        "x",
    ]


# -- show ---------------------------------------------------------------------------------


def test_values_are_shown_only_when_asked_for(log: Log, capsys: Told) -> None:
    value = {"card": "4111", "at": (1, 2)}
    version = str(log.park("order:7", id=7, value=value))
    place = ("show", "--log", log.url, "--version", version)
    code, out, _ = run(capsys, *place)
    assert code == 0
    assert "4111" not in out
    assert "add --values" in out
    assert "id:          7" in out
    assert "4111" in run(capsys, *place, "--values")[1]
    facts = json.loads(run(capsys, *place, "--json")[1])
    assert (facts["id"], facts["value"]) == (7, "not shown; add --values")
    assert (facts["key_bytes"], facts["accepted"]) == (7, "2023-11-14T22:13:20Z")
    assert facts["data_bytes"] > 20
    facts = json.loads(run(capsys, *place, "--json", "--values")[1])
    assert facts["value"] == {"card": "4111", "at": [1, 2]}
    gone = str(log.park("order:8", id=8, delete=True))
    facts = json.loads(run(capsys, "show", "--log", log.url, "--version", gone, "--json")[1])
    assert (facts["kind"], facts["id"]) == ("delete", 8)
    assert "value" not in facts


def test_what_can_not_be_decoded_is_shown_as_bytes_when_asked_for(log: Log, capsys: Told) -> None:
    (version,) = log.append([Record("order:1", OpKind.PUT, b"\x09secret" + b"." * 500)])
    log.park_record(version, "CodecError: an operation of schema 9")
    place = ("show", "--log", log.url, "--version", str(version))
    code, out, _ = run(capsys, *place)
    assert code == 0
    assert "unreadable:  an operation of schema 9" in out
    assert "73 65 63" not in out
    out = run(capsys, *place, "--values")[1]
    assert "begins:      09 73 65 63 72 65 74 2e" in out
    assert len(out) < 1000


# -- replay -------------------------------------------------------------------------------


def test_a_replay_says_what_it_refused_and_why(log: Log, capsys: Told) -> None:
    outdated, held, free = log.park("a"), log.park("b"), log.park("c")
    log.apply("a", log.put("a"))
    log.put("b")
    code, out, err = run(capsys, "replay", "--log", log.url, "--all")
    assert (code, err) == (1, "")
    lines = dict(zip((outdated, held, free), out.splitlines(), strict=True))
    assert "refused: a newer operation of its key was written or parked" in lines[outdated]
    assert "refused: its key has a newer operation in the log" in lines[held]
    assert lines[free] == f"orders: version {free} is waiting for the worker again"
    assert log.dead() == [outdated, held]
    assert log.waiting() == ["b", "c"]

    code, out, _ = run(capsys, "replay", "--log", log.url, "--version", str(free))
    assert code == 1
    assert "there is no such dead letter" in out

    both = ("--version", str(held), "--version", str(outdated), "--version", str(held))
    code, out, _ = run(capsys, "replay", "--log", log.url, *both, "--force")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert log.waiting() == ["b", "c", "a", "b"]
    assert run(capsys, "replay", "--log", log.url, "--all") == (
        0,
        "no dead letters in orders\n",
        "",
    )


def test_many_letters_are_replayed_in_their_order(log: Log, capsys: Told) -> None:
    versions = [log.put(f"order:{n:03}") for n in range(250)]
    letters = [Letter(record, "x", 1, 1.0) for record in log.read(0, 0, 1000)]
    assert log.settle(0, log.claim(0, OWNER, 60.0), (), letters)
    code, out, _ = run(capsys, "replay", "--log", log.url, "--all")
    assert code == 0
    assert len(out.splitlines()) == len(versions)
    assert log.waiting() == [f"order:{n:03}" for n in range(250)]
    assert log.dead() == []


# -- drop ---------------------------------------------------------------------------------


def test_a_drop_asks_and_where_nobody_can_be_asked_it_refuses(log: Log) -> None:
    versions = [log.park(f"order:{n}") for n in range(3)]

    def drop(*arguments: str, answer: str | None = None) -> tuple[int, str]:
        command = [sys.executable, "-m", "cachekit", "dlq", "drop", "--log", log.url, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        mine, theirs = pty.openpty()
        try:
            os.write(mine, (answer or "").encode() + b"\n")
            done = subprocess.run(
                command, stdin=theirs if answer is not None else subprocess.DEVNULL,
                capture_output=True, text=True, env=environment, timeout=PATIENT, check=False,
            )  # fmt: skip
        finally:
            os.close(mine)
            os.close(theirs)
        return done.returncode, done.stdout + done.stderr

    code, told = drop("--all")
    assert (code, log.dead()) == (2, versions)
    assert "add --yes" in told
    code, told = drop("--all", answer="no")
    assert (code, log.dead()) == (1, versions)
    assert "forget 3 dead letters for good? [y/N]" in told
    assert "nothing was dropped" in told
    code, told = drop("--version", str(versions[1]), answer="y")
    assert (code, log.dead()) == (0, [versions[0], versions[2]])
    assert "forget 1 dead letter for good" in told


def test_what_is_dropped_is_gone_for_good(log: Log, capsys: Told) -> None:
    first, second = log.park("a"), log.park("b")
    at = ("drop", "--log", log.url, "--yes")
    code, out, _ = run(capsys, *at, "--version", str(first), "--version", "99")
    assert code == 1
    assert out.splitlines() == [
        f"orders: version {first} dropped", "orders: version 99 was not there",
    ]  # fmt: skip
    assert log.dead() == [second]
    assert run(capsys, *at, "--all")[0] == 0
    assert (log.dead(), log.waiting()) == ([], [])
    assert run(capsys, *at, "--all") == (0, "no dead letters in orders\n", "")


# -- what can not work --------------------------------------------------------------------


def test_a_place_is_named_once_and_a_queue_where_there_are_several(log: Log, capsys: Told) -> None:
    at = ("--log", log.url)
    assert log.dead() == []  # the file is there
    assert run(capsys, "list", *at) == (0, "no queues there\n", "")
    log.put("a")
    Log(log.url, "users").put("b")
    for verb in (("list",), ("show", "--version", "1"), ("replay", "--all"), ("drop", "--all")):
        assert "--log URL or --app" in refused(capsys, *verb)
        assert "--log URL or --app" in refused(capsys, *verb, *at, "--app", "x:y")
        line = refused(capsys, *verb, *at, "--queue", "oders")
        assert "there is no queue 'oders'; known: orders, users" in line
    assert "--namespace goes with --log" in refused(
        capsys, "list", "--app", "x:y", "--namespace", "n"
    )
    for verb in (("show", "--version", "1"), ("replay", "--all"), ("drop", "--all", "--yes")):
        assert "--queue; there are: orders, users" in refused(capsys, *verb, *at)
    at = (*at, "--queue", "orders")
    assert "no dead letter of version 7" in refused(capsys, "show", *at, "--version", "7")
    for verb in ("replay", "drop"):
        assert "--version" in refused(capsys, verb, *at)
        assert "--version" in refused(capsys, verb, *at, "--all", "--version", "1")


def test_to_look_at_a_file_does_not_make_it(tmp_path: Path, capsys: Told) -> None:
    path = tmp_path / "none.log"
    assert "no such file" in refused(capsys, "list", "--log", f"sqlite:///{path}")
    assert not path.exists()
    path.write_text("something else that is long enough to be taken for a database " * 20)
    refused(capsys, "list", "--log", f"sqlite:///{path}")


@pytest.mark.parametrize(
    "url", ["orders.log", "memory", "memory://", "sqlite:///", "redis://me:secret@127.0.0.1:1/0"]
)
def test_a_log_that_can_not_be_asked_gets_one_line_without_secrets(url: str, capsys: Told) -> None:
    assert "secret" not in refused(capsys, "list", "--log", url)


def test_without_a_command_one_line_says_so(capsys: Told) -> None:
    assert "command" in refused(capsys)
