from __future__ import annotations

import io
import json
import re
import stat
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from cachekit.bench.course import Tally
from cachekit.bench.freshness import Freshness, Promise
from cachekit.bench.histogram import Histogram
from cachekit.bench.html import to_html
from cachekit.bench.report import check_target, duration, print_outcome, to_json, write_target
from cachekit.bench.result import SCHEMA, Outcome, Result
from cachekit.bench.runner import Measured
from cachekit.bench.source import Load
from cachekit.errors import ConfigurationError

HOSTILE = "<script>alert('x')</script>"


def measured(**changes):
    tally = Tally(done=150)
    for _ in range(100):
        tally.reads.record(2_000)
    for _ in range(50):
        tally.writes.record(3_000_000)
    whole = Measured(
        tally=tally, seconds=0.5, load=Load(25, 20, 50, 5), stale_reads=0, ages=Histogram(),
        left_stale=0,
        lost_writes=0, lost_keys=0, errors=0, error="", backend_errors=0,
        flush_seconds=0.01, flushed=True, complete=True,
    )  # fmt: skip
    return replace(whole, **changes)


def aged(*milliseconds):
    ages = Histogram()
    for age in milliseconds:
        ages.record(int(age * 1e6))
    return ages


def watched(promise, *ages, **changes):
    row = Freshness(
        backend="redis", strategy="cache-aside", near="push", promise=promise, readers=1,
        seconds=1.0, reads=500, writes=80, stale_reads=len(ages), ages=aged(*ages), left_stale=0,
        lost_writes=0, errors=0, error="", complete=True,
    )  # fmt: skip
    return replace(row, **changes)


NEVER = Promise("0", 0.0)
SECOND = Promise("≤ 1 s", 1.0, delay=1.0)
FLUSHED = Promise("until flushed", None)
OWN = Promise("up to its ttl", 600.0, settles=False)


@pytest.fixture
def outcome():
    outcome = Outcome(
        command=f"cachekit bench --trace {HOSTILE}",
        workload="YCSB A, zipfian keys",
        about="update heavy",
        source="SQLite file",
        settings={
            "records": 100, "value_size": 10, "capacity": 10, "ttl_seconds": 600.0,
            "concurrency": 8, "mode": "threads", "operations": None, "seconds": 3.0,
            "warmup": 0.2, "source_delay_seconds": 0.0, "seed": 1, "readers": 1,
        },
        harness=1000.0,
    )  # fmt: skip
    faulty = measured(stale_reads=3, ages=aged(1, 5, 40), errors=2, error=HOSTILE)
    outcome.results = [
        Result("none", "no-cache", None, measured(load=Load(100, 100, 50, 50))),
        Result("memory", "write-through", None, measured()),
        Result("memory", "write-back", "memory (lossy)", measured(lost_writes=7, lost_keys=3)),
        Result("redis://h/0", "cache-aside", None, faulty),
    ]
    outcome.skipped = ["memcached: no server can be started here"]
    return outcome


def printed(outcome, width):
    out = io.StringIO()
    print_outcome(outcome, Console(file=out, width=width))
    return out.getvalue()


def test_json_has_every_figure_of_a_row(outcome):
    told = json.loads(to_json(outcome))
    assert told["schema"] == SCHEMA
    assert set(told) == {
        "schema", "date", "command", "versions", "machine", "workload", "about", "source",
        "settings", "harness_throughput", "interrupted", "skipped", "failed", "rows",
        "about_freshness", "freshness", "broken_promises",
    }  # fmt: skip
    row = told["rows"][1]
    assert row == {
        "backend": "memory", "strategy": "write-through", "level": None, "operations": 150,
        "seconds": 0.5, "throughput": 300.0, "reads": 100, "writes": 50,
        "read_ms": row["read_ms"], "write_ms": row["write_ms"], "hit_ratio": 0.75,
        "source_reads": 25, "source_read_calls": 20, "source_writes": 50, "source_write_calls": 5,
        "promise": "0", "kept": True, "stale_p99_ms": None, "stale_max_ms": None,
        "stale_reads": 0, "left_stale": 0, "lost_writes": 0, "lost_keys": 0, "errors": 0,
        "first_error": None, "backend_errors": 0, "flush_seconds": 0.01,
        "flushed": True, "complete": True,
    }  # fmt: skip
    assert row["read_ms"]["p50"] == pytest.approx(0.002, rel=0.016)
    assert row["write_ms"]["p99"] == pytest.approx(3.0, rel=0.016)
    assert told["rows"][2]["level"] == "memory (lossy)"
    assert told["rows"][3]["stale_max_ms"] == 40.0
    assert [row["kept"] for row in told["rows"]] == [True, True, False, False]
    assert told["broken_promises"] == ["memory / write-back", "redis://h/0 / cache-aside"]


def test_a_row_without_writes_has_no_write_latency(outcome):
    tally = Tally(done=1)
    tally.reads.record(5)
    outcome.results = [Result("none", "no-cache", None, measured(tally=tally))]
    assert json.loads(to_json(outcome))["rows"][0]["write_ms"] is None
    assert "none in this workload" in to_html(outcome) or "There were none" in to_html(outcome)


def test_background_reloads_do_not_make_a_negative_hit_ratio():
    assert Result("m", "refresh-ahead", None, measured(load=Load(500, 500, 0, 0))).hit_ratio == 0.0


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_shows_every_figure_at_any_width(outcome, width):
    text = printed(outcome, width)
    for words in ("no-cache", "write-through", "memory (lossy)", "75.0%", "300", "3 ms", "errors"):
        assert words in text
    assert "left" not in text.split("source:")[0]  # nothing was left stale: no column for it


def test_the_verdict_passes_over_rows_that_gave_wrong_answers(outcome):
    text = " ".join(printed(outcome, 200).split())
    assert "Fastest with nothing stale, lost or failed: write-through on memory" in text
    assert "Caught with stale reads: redis://h/0 / cache-aside." in text
    assert "Caught with lost writes: memory / write-back." in text
    assert "skipped memcached" in text


def test_a_lossy_winner_is_followed_by_the_fastest_that_survives_a_crash(outcome):
    outcome.results[2] = Result("memory", "write-back", "memory (lossy)", measured(seconds=0.1))
    text = " ".join(printed(outcome, 200).split())
    assert "lost or failed: write-back, memory (lossy) on memory, 5.0 x the source alone." in text
    assert "survive a crash of the process: write-through on memory." in text


class Reading(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag != "meta":
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_fetches_nothing(outcome):
    page = to_html(outcome)
    reading = Reading()
    reading.feed(page)
    assert not reading.open
    assert not reading.links
    assert reading.tags.isdisjoint({"script", "link", "img", "iframe", "object", "style src"})
    assert not re.search(r"url\(|@import|https?://", page)


def test_the_page_escapes_what_it_was_given(outcome):
    page = to_html(outcome)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_page_explains_itself(outcome):
    page = to_html(outcome)
    for words in (
        "How to choose", "How to read the columns", "Throughput", "Hit ratio", "Time of a read",
        "Time of a write", "Load on the database", "How it was measured", "Not in 2 of 4 rows",
        "cachekit bench --trace", "memory (lossy)", "prefers-color-scheme:dark", "cores",
    ):  # fmt: skip
        assert words in page, words
    outcome.results = outcome.results[:2]
    assert "Yes, in every row" in to_html(outcome)


def test_a_cache_that_lost_its_backend_is_named(outcome):
    outcome.results = [Result("redis", "cache-aside", None, measured(backend_errors=4))]
    words = "redis / cache-aside: 4 calls to the backend failed"
    assert words in printed(outcome, 200)
    assert words in to_html(outcome)


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        (watched(NEVER), True),
        (watched(NEVER, 0.0), False),
        (watched(NEVER, left_stale=1), False),
        (watched(NEVER, lost_writes=1), False),
        (watched(SECOND, 3, 999), True),
        (watched(SECOND, 3, 1001), False),
        (watched(FLUSHED, 5000), True),
        (watched(FLUSHED, 5000, left_stale=1), False),
        (watched(OWN, 5000, left_stale=16), True),
    ],
)
def test_a_promise_to_other_processes_is_kept_or_broken(outcome, row, kept):
    outcome.results, outcome.freshness = outcome.results[:2], [row]
    assert row.kept is kept
    assert row.as_json()["kept"] is kept
    assert outcome.broken == (
        [] if kept else ["redis / cache-aside (push) read by another process"]
    )
    for text in (printed(outcome, 80), printed(outcome, 200), to_html(outcome)):
        assert ("BROKEN" in text.replace("marked BROKEN", "")) is not kept


def test_what_other_processes_read_stands_beside_what_was_promised(outcome):
    outcome.freshness = [watched(SECOND, *[30] * 98, 40, 47.8)]
    told = json.loads(to_json(outcome))["freshness"][0]
    assert told["stale_p99_ms"] == pytest.approx(40, rel=0.016)
    assert (told["stale_max_ms"], told["promise"], told["promise_seconds"]) == (47.8, "≤ 1 s", 1.0)
    for text in (printed(outcome, 80), printed(outcome, 200), to_html(outcome)):
        assert "47.8 ms" in text
        assert "≤ 1 s" in text
        assert "its age is the time from that acknowledgement" in " ".join(text.split())


def test_an_interrupted_run_says_so_everywhere(outcome):
    outcome.interrupted = True
    assert "Interrupted" in to_html(outcome)
    assert "Interrupted" in printed(outcome, 200)
    assert json.loads(to_json(outcome))["interrupted"] is True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5e-7, "250 ns"), (1.234e-5, "12.3 µs"), (0.00999, "9.99 ms"), (12.0, "12 s")],
)
def test_durations_have_three_digits_and_a_unit(seconds, text):
    assert duration(seconds) == text


def test_a_target_is_checked_without_leaving_a_trace(tmp_path):
    check_target(tmp_path / "new.json", "--json")
    assert not list(tmp_path.iterdir())
    for bad in (tmp_path, tmp_path / "no" / "folder.json"):
        with pytest.raises(ConfigurationError, match=r"--json .* can not be written"):
            check_target(bad, "--json")


def test_a_target_is_replaced_whole_and_keeps_its_mode(tmp_path):
    target = tmp_path / "out.json"
    target.write_text("old")
    target.chmod(0o640)
    write_target(target, "new")
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
