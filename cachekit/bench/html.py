"""The outcome as one HTML file: charts, table, and words for a reader new to the subject."""

from __future__ import annotations

from html import escape

from .charts import Mark, bars, ranges
from .page import CHOOSING, COLUMNS, STYLE
from .report import FRESHNESS, duration, oldest, percentage, points, verdict
from .result import Latency, Outcome, Result, machine, versions
from .subjects import STRATEGIES


def to_html(outcome: Outcome) -> str:
    """Self-contained: no script, nothing fetched; follows the reader's light or dark setting."""
    title = f"Caching strategies under {outcome.workload}"
    body = "".join(
        (
            f"<h1>{escape(title)}</h1>",
            _lead(outcome),
            _verdict(outcome),
            _correctness(outcome.results),
            _freshness(outcome),
            _charts(outcome.results),
            _table(outcome.results),
            f"<h2>How to read the columns</h2>{_terms(COLUMNS)}",
            f"<h2>The strategies</h2>{_terms(_strategies(outcome.results))}",
            f"<h2>How to choose</h2>{CHOOSING}",
            _method(outcome),
        )
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _lead(outcome: Outcome) -> str:
    s = outcome.settings
    workers = f"{s['concurrency']} {s['mode']}"
    long = f"{s['seconds']:g} seconds" if s["seconds"] else f"{s['operations']:,} operations"
    delay = s["source_delay_seconds"]
    slowed = f", slowed by {duration(delay)} an operation" if delay else ""
    return (
        f"<p class=lead>{workers} at a time read and wrote {s['records']:,} records "
        f"({escape(outcome.about)}) for {long} a row: first straight on the database "
        f"(<b>no-cache</b>, the reference), then through each caching strategy over each cache "
        f"backend. The database is a real one: {escape(outcome.source)}{slowed}. Every row began "
        "with the same data and an empty cache.</p>"
    )


def _verdict(outcome: Outcome) -> str:
    lines = [f"<li>{escape(line)}</li>" for line in verdict(outcome)]
    for result in outcome.results:
        where = f"{result.backend} / {result.strategy}"
        if result.measured.errors:
            lines.append(
                f"<li class=bad>{escape(where)}: {result.measured.errors:,} operations failed, the "
                f"first with {escape(result.measured.error)}.</li>"
            )
        if result.measured.backend_errors:
            lines.append(
                f"<li class=bad>{escape(where)}: {result.measured.backend_errors:,} calls to the "
                "backend failed or timed out. No caller saw it, but the row measures a cache that "
                "was partly without its backend.</li>"
            )
    lines.extend(f"<li class=bad>Promise broken: {escape(t)}</li>" for t in outcome.broken)
    lines.extend(f"<li class=bad>Failed: {escape(text)}</li>" for text in outcome.failed)
    if outcome.interrupted:
        lines.append("<li class=bad>Interrupted: the last row is cut short, later ones miss.</li>")
    lines.extend(f"<li>Skipped: {escape(text)}</li>" for text in outcome.skipped)
    return f"<ul class=verdict>{''.join(lines)}</ul>" if lines else ""


def _correctness(results: list[Result]) -> str:
    bad = [
        r for r in results
        if r.measured.stale_reads or r.measured.left_stale or r.measured.lost_writes
    ]  # fmt: skip
    head = "<h2>Was every answer right?</h2>"
    reads = sum(r.reads for r in results)
    writes = sum(r.writes for r in results)
    if not bad:
        return (
            f"{head}<p class=good>Yes, in every row and in the process that writes: no stale read "
            f"among {reads:,} reads, no lost write among {writes:,} acknowledged writes.</p>"
        )
    marks = []
    for r in bad:
        m = r.measured
        text = f"{m.stale_reads:,} stale, {m.left_stale:,} left stale, {m.lost_writes:,} lost"
        numbers = (float(m.stale_reads), float(m.left_stale), float(m.lost_writes))
        marks.append(Mark(r.backend, r.label, numbers, text))
    others = len(results) - len(bad)
    return (
        f"{head}<p class=bad>Not in {len(bad)} of {len(results)} rows. The other {others} gave "
        "neither a stale read nor a lost write.</p>"
        + _figure(
            "Wrong answers", "fewer is better",
            bars(marks, name="stale reads and lost writes", right=250),
            ("stale reads", "still stale at the end", "lost writes"),
        )
    )  # fmt: skip


def _freshness(outcome: Outcome) -> str:
    rows = outcome.freshness
    if not rows:
        return ""
    marks = [
        Mark(
            row.backend, f"{row.strategy}, {row.near}", (row.oldest,),
            (duration(row.oldest) if row.stale_reads else "never")
            + f"; promised: {row.promise.text}" + ("" if row.kept else "  BROKEN"),
        )
        for row in rows
    ]  # fmt: skip
    heads = ("backend", "strategy", "near copies", *(head for head, _ in FRESHNESS), "promise")
    lines = []
    for row in rows:
        cells = "".join(_cell(of(row)) for _, of in FRESHNESS)
        verdict = "<td class=good>kept</td>" if row.kept else "<td class=bad>BROKEN</td>"
        names = "".join(
            f"<td>{escape(text)}</td>" for text in (row.backend, row.strategy, row.near)
        )
        lines.append(f"<tr>{names}{cells}{verdict}</tr>")
    broken = sum(not row.kept for row in rows)
    said = (
        f"<p class=bad>{broken} of {len(rows)} rows broke their promise.</p>"
        if broken
        else f"<p class=good>All {len(rows)} rows kept what they promise.</p>"
    )
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return (
        f"<h2>What other processes read</h2>{said}<p>{escape(outcome.about_freshness)}</p>"
        + _figure(
            "Oldest answer", "how long an old value was still served after the newer one had been "
            "acknowledged; shorter is better",
            bars(marks, name="oldest stale answer", right=250),
        )
        + f"<div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )  # fmt: skip


def _charts(results: list[Result]) -> str:
    loads = [(r.measured.load, max(1, r.measured.tally.done)) for r in results]
    figures = [
        _figure(
            "Throughput", "operations a second, more is better" + _warning(results),
            bars(
                [
                    _mark(r, (r.throughput,), f"{r.throughput:,.0f}" + ("" if r.trusted else " ⚠"))
                    for r in results
                ],
                name="throughput",
            ),
        ),
        _figure(
            "Hit ratio", "reads that cost the database nothing, more is better",
            bars(
                [
                    _mark(r, None if r.hit_ratio is None else (r.hit_ratio,),
                          "no reads" if r.hit_ratio is None else f"{r.hit_ratio:.1%}")
                    for r in results
                ],
                full=1.0, name="hit ratio",
            ),
        ),
        _figure(
            "Time of a read", "dot: half are faster (p50); bar: 95 %; ring: 99 %. "
            "Left is better; each gridline is ten times the last",
            _latencies(results, reads=True),
        ),
        _figure(
            "Time of a write", "until acknowledged; the same signs",
            _latencies(results, reads=False),
        ),
        _figure(
            "Load on the database", "rows for every 1,000 operations, less is better",
            bars(
                [
                    _mark(r, (1e3 * load.reads / done, 1e3 * load.writes / done),
                          f"{1e3 * (load.reads + load.writes) / done:,.0f}", keep=True)
                    for r, (load, done) in zip(results, loads, strict=True)
                ],
                name="load on the database",
            ),
            ("read", "written"),
        ),
        _figure(
            "Write transactions on the database", "for every 1,000 operations, less is better",
            bars(
                [
                    _mark(r, (1e3 * load.write_calls / done,),
                          _rate(1e3 * load.write_calls / done))
                    for r, (load, done) in zip(results, loads, strict=True)
                ],
                name="write transactions",
            ),
        ),
    ]  # fmt: skip
    return f"<h2>Compared</h2><div class=grid>{''.join(figures)}</div>"


def _mark(
    result: Result, numbers: tuple[float, ...] | None, text: str, *, keep: bool = False
) -> Mark:
    reference = result.backend == "none"
    group = "reference" if reference else result.backend
    return Mark(group, result.label, numbers, text, muted=reference and not keep)


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 or number == 0 else f"{number:.2g}"


def _warning(results: list[Result]) -> str:
    return "" if all(r.trusted for r in results) else "; ⚠ = gave wrong answers or errors"


def _latencies(results: list[Result], *, reads: bool) -> str:
    marks = []
    for result in results:
        tally = result.measured.tally
        latency = Latency.of(tally.reads if reads else tally.writes)
        if latency is None:
            marks.append(_mark(result, None, ""))
        else:
            numbers = (latency.p50, latency.p95, latency.p99)
            text = f"{duration(latency.p50)} … {duration(latency.p99)}"
            marks.append(_mark(result, numbers, text))
    chart = ranges(marks, tick=duration, name="read latency" if reads else "write latency")
    return chart or "<p>There were none in this workload.</p>"


def _figure(title: str, words: str, svg: str, series: tuple[str, ...] = ()) -> str:
    legend = "".join(
        f'<span><i class="s{number}"></i>{escape(name)}</span>'
        for number, name in enumerate(series)
    )
    return (
        f"<figure><figcaption><b>{escape(title)}</b> <small>{escape(words)}</small>"
        f"<div class=legend>{legend}</div></figcaption>{svg}</figure>"
    )


def _table(results: list[Result]) -> str:
    heads = (
        "backend", "strategy", "ops/s", "read p50", "p95", "p99", "write p50", "p95", "p99",
        "hit ratio", "source reads", "source writes", "in calls", "flush", "stale reads",
        "promised", "oldest stale", "left stale", "lost writes", "errors",
    )  # fmt: skip
    rows = []
    for r in results:
        m = r.measured
        cells = [
            f"<td>{escape(r.backend)}</td><td>{escape(r.label)}</td>",
            _cell(f"{r.throughput:,.0f}"),
            *(_cell(text) for text in points(m.tally.reads)),
            *(_cell(text) for text in points(m.tally.writes)),
            _cell(percentage(r.hit_ratio)),
            _cell(f"{m.load.reads:,}"),
            _cell(f"{m.load.writes:,}"),
            _cell(f"{m.load.write_calls:,}"),
            _cell(duration(m.flush_seconds) if m.flush_seconds > 0.0005 else "-"),
            _count(m.stale_reads),
            _cell("0"),
            _cell(oldest(r) if m.stale_reads else "-"),
            *(_count(n) for n in (m.left_stale, m.lost_writes, m.errors)),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return (
        f"<h2>All numbers</h2><div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    return f"<td class=n>{escape(text)}</td>"


def _count(count: int) -> str:
    return f'<td class="n {"bad" if count else "good"}">{count:,}</td>'


def _strategies(results: list[Result]) -> list[tuple[str, str]]:
    used = {r.strategy for r in results}
    told = [("no-cache", "every read and write goes to the database: what caching has to beat")]
    return told + [(kind.name, kind.about) for kind in STRATEGIES.values() if kind.name in used]


def _terms(pairs: list[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in pairs) + "</dl>"


def _method(outcome: Outcome) -> str:
    s, found, there = outcome.settings, versions(), machine()
    ttl = "for ever" if s["ttl_seconds"] is None else f"{s['ttl_seconds']:g} s"
    facts = [
        ("command", outcome.command),
        ("date", outcome.date),
        ("versions", f"cachekit {found['cachekit']}, {found['python']}"),
        ("machine", f"{there['processor']}, {there['cores']} cores, {there['system']}"),
        ("source", outcome.source),
        ("cache", f"near tier of {s['capacity']:,} entries; values live {ttl}"),
        ("values", f"{s['records']:,} records with {s['value_size']:,} characters each"),
        ("warm-up", f"{s['warmup']:.0%} of the run beforehand, not measured; seed {s['seed']}"),
    ]
    if outcome.harness is not None:
        facts.append(
            (
                "harness",
                f"{outcome.harness:,.0f} operations a second with nothing behind it: a row near "
                "that is held back by the benchmark, not by its cache",
            )
        )
    lines = "".join(f"<tr><th>{a}</th><td>{escape(b)}</td></tr>" for a, b in facts)
    return f"<h2>How it was measured</h2><table class=facts>{lines}</table>"
