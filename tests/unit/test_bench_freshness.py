"""What a second, real process reads: caught where it is old, never accused where it is not."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest

from cachekit import cli
from cachekit.bench import freshness, matrix
from cachekit.bench.course import Stop
from cachekit.bench.freshness import NEAR_BOUND, Case, Promise, cases, watch
from cachekit.bench.source import open_source
from cachekit.bench.subjects import STRATEGIES
from cachekit.bench.watcher import Opening, Watcher, WatcherFailed

RECORDS = 20
SECONDS = 0.5


@pytest.fixture(scope="module")
def watcher():
    with Watcher() as watcher:
        yield watcher


@pytest.fixture
def source(tmp_path):
    source = open_source("sqlite", folder=tmp_path, delay=0.0)
    source.prepare(RECORDS, "text")
    yield source
    source.close()


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/cache.db"


def run(case, source, watcher, *, stop=None):
    return watch(
        case, source, [watcher], records=RECORDS, ttl=60.0, seconds=SECONDS, stop=stop or Stop()
    )


def file(url):
    return (url or "sqlite:////no-folder/cache.db").replace("cache.db", "log.db")


def of(url, near, name="cache-aside"):
    return next(c for c in cases("b", url, [name], 60.0, lambda: file(url)) if c.near == near)


def test_every_backend_gets_a_row_for_each_way_of_keeping_near_copies_right(url):
    made = cases("b", url, list(STRATEGIES), 60.0, lambda: file(url))
    found = [(c.strategy, c.near, c.promise.text) for c in made]
    late = {"write-back-memory": "until flushed"}
    strict = [(n, "strict", late.get(n, "0")) for n in STRATEGIES]
    assert found == [
        *strict, ("cache-aside", "push", "≤ 1 s"), ("cache-aside", "0.25 s", "≤ 0.25 s"),
    ]  # fmt: skip
    own, log = cases("memory", None, list(STRATEGIES), None, lambda: file(url))
    assert (own.near, own.promise.bound, own.promise.settles) == ("own copy", None, False)
    assert (log.strategy, log.near, log.promise.text) == ("write-back", "shared log", "0")


@pytest.mark.parametrize("name", ["cache-aside", "write-through", "write-around", "write-back"])
def test_another_process_that_asks_every_time_reads_nothing_old(source, watcher, url, name):
    found = run(of(url, "strict", name), source, watcher)
    assert found.error == ""
    assert (found.stale_reads, found.left_stale, found.lost_writes) == (0, 0, 0)
    assert found.writes > 10
    assert found.reads > 50
    assert found.kept
    assert found.complete


def test_near_copies_within_a_bound_are_old_and_never_older_than_it(source, watcher, url):
    case = of(url, "0.25 s")
    found = run(case, source, watcher)
    assert found.stale_reads > 0
    assert 0 < found.oldest <= NEAR_BOUND
    assert found.ages.count == found.stale_reads
    assert found.kept
    # The same reads held against what they can not keep:
    assert not replace(found, promise=Promise("0", 0.0)).kept


def test_near_copies_that_are_told_come_right(source, watcher, url):
    found = run(of(url, "push"), source, watcher)
    assert found.error == ""
    assert found.left_stale == 0
    assert found.kept


def test_queued_writes_are_unseen_by_another_process_until_they_are_flushed(source, watcher, url):
    found = run(of(url, "strict", "write-back-memory"), source, watcher)
    assert found.stale_reads > 0
    assert found.left_stale == 0
    assert found.lost_writes == 0
    assert found.kept


def test_embedded_caches_that_share_a_log_read_nothing_old(source, watcher, url):
    case = next(cases("memory", None, ["write-back"], 60.0, lambda: file(url)))
    found = run(case, source, watcher)
    assert found.error == ""
    assert (found.stale_reads, found.left_stale, found.lost_writes) == (0, 0, 0)
    assert found.writes > 10
    assert found.reads > 50
    assert found.kept


def test_a_copy_that_nobody_tells_stays_old(source, watcher):
    case = next(cases("memory", None, ["cache-aside"], 60.0, lambda: None))
    found = run(case, source, watcher)
    assert found.left_stale > 0
    assert found.stale_reads > 0
    assert found.kept
    # The writer's end: a promise to come right is seen to be broken.
    assert not replace(found, promise=Promise("≤ 60 s", 60.0)).kept


def test_a_requested_stop_ends_the_row_and_says_so(source, watcher, url):
    stop = Stop()
    stop.requested = True
    found = run(of(url, "strict"), source, watcher, stop=stop)
    assert not found.complete
    assert found.seconds < SECONDS


def test_what_the_other_process_can_not_open_fails_the_row_and_not_the_process(source, watcher):
    bad = Opening(source.opener(), "carrier-pigeon://x", "cache-aside", 60.0, {})
    with pytest.raises(WatcherFailed, match="carrier-pigeon"):
        watcher.open(bad)
    watcher.close()
    watcher.open(bad._replace(url=None))
    assert watcher.look([1, 99]) == [0, -1]
    watcher.close()


def test_a_reading_process_that_was_killed_is_an_error_and_no_hang(source):
    with Watcher() as watcher:
        watcher.open(Opening(source.opener(), None, "cache-aside", 60.0, {}))
        os.kill(watcher._process.pid, signal.SIGKILL)
        with pytest.raises(WatcherFailed, match="ended"):
            watcher.look([1])


def test_a_broken_promise_is_named_and_changes_the_exit_code(tmp_path, monkeypatch, capsys):
    def lying(backend, url, strategies, ttl, log):
        yield Case(backend, url, "cache-aside", "5 s", 5.0, Promise("0", 0.0))

    monkeypatch.setattr(freshness, "cases", lying)
    out = tmp_path / "out.json"
    arguments = [
        "bench", "--backend", "sqlite", "--strategy", "cache-aside", "--records", "50",
        "--seconds", "0.3", "--json", str(out),
    ]  # fmt: skip
    assert cli.main(arguments) == 3
    told = json.loads(out.read_text())
    name = "sqlite / cache-aside (5 s) read by another process"
    assert told["broken_promises"] == [name]
    assert told["freshness"][0]["left_stale"] > 0
    assert f"PROMISE BROKEN: {name}" in capsys.readouterr().out
    monkeypatch.undo()
    assert cli.main([*arguments, "--readers", "0"]) == 0
    assert json.loads(out.read_text())["freshness"] == []


def test_several_readers_are_counted_together(tmp_path):
    out = tmp_path / "out.json"
    code = cli.main(
        ["bench", "--backend", "sqlite", "--strategy", "write-through", "--records", "50",
         "--seconds", "0.3", "--readers", "2", "--json", str(out)]
    )  # fmt: skip
    assert code == 0
    rows = json.loads(out.read_text())["freshness"]
    assert [(r["near"], r["readers"], r["kept"]) for r in rows] == [
        ("strict", 2, True), ("push", 2, True), ("0.25 s", 2, True),
    ]  # fmt: skip


def test_a_row_that_could_not_be_watched_is_named_and_the_others_are_shown(tmp_path, monkeypatch):
    def broken(case, *given, **more):
        raise WatcherFailed("the reading process ended")

    monkeypatch.setattr(matrix.freshness, "watch", broken)
    out = tmp_path / "out.json"
    code = cli.main(
        ["bench", "--backend", "memory", "--strategy", "cache-aside", "--records", "50",
         "--operations", "100", "--json", str(out)]
    )  # fmt: skip
    assert code == 1
    told = json.loads(out.read_text())
    assert len(told["rows"]) == 2
    assert "the reading process ended" in told["failed"][0]
