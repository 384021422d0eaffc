"""The fixed parts of the HTML report: style and explanations."""

from __future__ import annotations

from typing import Final

COLUMNS: Final = [
    ("backend", "where cached values are kept beside the process's own near tier: memory alone, a "
     "SQLite file, a Redis or a Memcached server. 'none' is the database by itself."),
    ("ops/s", "operations finished a second by all workers together. A read-modify-write is one "
     "operation."),
    ("read, write p50 / p95 / p99", "the time that 50, 95 and 99 of 100 calls did not exceed. "
     "p99 is what the unlucky reader feels. A write is timed until it was acknowledged."),
    ("hit ratio", "1 - rows read from the database / reads. A reader that waited for another's "
     "load counts as a hit, as it cost the database nothing; a reload in the background counts "
     "as a row read."),
    ("source reads, source writes, in calls", "rows that the database was asked for and told to "
     "write in the measured time, and the number of write transactions they came in."),
    ("flush", "time after the run until every acknowledged write was in the database."),
    ("stale reads", "reads that gave a value older than the last write acknowledged before the "
     "read began, or nothing at all although there was a value. A read during a write may give "
     "either value. Warm-up included."),
    ("promised, oldest stale", "how old an answer the row's strategy may give in the process that "
     "writes: never any; and how long the oldest stale answer had been old when its read began. "
     "What it promises other processes is in the table of what those read."),
    ("left stale", "keys that still read differently from the database when all had come to "
     "rest."),
    ("lost writes", "writes that were acknowledged, but that the database does not show at the "
     "end, nor anything newer."),
    ("errors", "operations that raised an error; they are in no other column."),
]  # fmt: skip

CHOOSING: Final = """
<ol>
<li><b>Strike out what you can not accept.</b> A row with stale reads shows old values after a
change was confirmed; a row with lost writes forgets what it confirmed. Speed does not make up for
either, unless your application can bear it.</li>
<li><b>Mostly reads?</b> Take the simplest strategy whose hit ratio is close to the best:
cache-aside or read-through. If a few very popular rows make readers wait whenever they expire,
look at the p99 of refresh-ahead.</li>
<li><b>Rows are read soon after they are written?</b> write-through keeps them in the cache:
compare its hit ratio with write-around. If rows are written and seldom read, write-around does
not spend the cache on them.</li>
<li><b>Is the database's write load the limit?</b> write-back acknowledges first and writes in
batches, several changes of a row as one. Marked <i>process</i>, what it acknowledged is in a log
that survives a killed process, and every process that shares the log reads it. Marked
<i>memory (lossy)</i>, a crash of the process loses what is not yet written. This benchmark does not
crash the process; 0 lost writes here says only that nothing is lost in an orderly run.</li>
<li><b>One process or many?</b> The memory backend is the fastest, but every process has its own
copy. Redis and Memcached are shared; their rows show what that costs.</li>
<li><b>Is the reference too good to be true?</b> A database file on this machine can answer faster
than a cache server over a socket. Run again with <code>--source-delay 2ms</code>, or on your own
database, to see the picture for a database behind a network.</li>
</ol>
"""

STYLE: Final = """
:root{--bg:#fff;--fg:#1c2430;--soft:#5b6675;--line:#d9dee5;--card:#f6f8fa;--s0:#2f6fde;
--s1:#e08a1e;--s2:#c0392b;--muted:#8a94a3;--good:#1a7f4b;--bad:#c0291c}
@media (prefers-color-scheme:dark){:root{--bg:#12161c;--fg:#e4e9f0;--soft:#9aa6b5;--line:#2d3642;
--card:#1a2029;--s0:#6ea3ff;--s1:#f0a84a;--s2:#ff7b6b;--muted:#7b8796;--good:#5fd39a;--bad:#ff8577}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,-apple-system,
"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1440px;margin:0 auto;padding:28px 24px 60px}
h1{font-size:26px;margin:0 0 8px}h2{font-size:19px;margin:34px 0 10px}
.lead{max-width:90ch;margin:0 0 14px}
.verdict{background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:12px 12px 12px 32px;margin:0}
.good{color:var(--good)}.bad{color:var(--bad);font-weight:600}
p.good{font-weight:600}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,560px),1fr));gap:18px}
figure{margin:0;max-width:820px;padding:14px 16px;background:var(--card);
border:1px solid var(--line);border-radius:8px}
figcaption{margin-bottom:8px}figcaption small{color:var(--soft)}
.legend{font-size:13px;color:var(--soft)}.legend span{margin-right:16px}
.legend i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px}
.legend .s0{background:var(--s0)}.legend .s1{background:var(--s1)}.legend .s2{background:var(--s2)}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--fg);font-size:12.5px;dominant-baseline:central}
svg .label{text-anchor:end}svg .group{font-weight:600}svg .value{fill:var(--soft)}
svg .tick{fill:var(--soft);font-size:11px;text-anchor:middle}
svg .s0{fill:var(--s0);stroke:var(--s0)}svg .s1{fill:var(--s1)}svg .s2{fill:var(--s2)}
svg .muted{fill:var(--muted);stroke:var(--muted)}svg rect{stroke:none!important}
svg .span{stroke-width:2;opacity:.55}svg .hollow{fill:var(--card)!important;stroke-width:2}
svg .grid{stroke:var(--line)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13px}
td,th{padding:4px 7px;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
thead th{color:var(--soft);font-weight:600;text-align:right;white-space:normal;
vertical-align:bottom}
thead th:nth-child(-n+2){text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.facts td{white-space:normal}.facts th{color:var(--soft);vertical-align:top}
dl{display:grid;grid-template-columns:max-content 1fr;gap:6px 18px;max-width:120ch;margin:0}
dt{font-weight:600;white-space:nowrap}dd{margin:0}
ol{max-width:110ch;padding-left:22px}li{margin:4px 0}
code{background:var(--card);padding:1px 5px;border-radius:4px}
@media (max-width:700px){dl{grid-template-columns:1fr}}
"""
