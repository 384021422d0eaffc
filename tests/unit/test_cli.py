"""The command line as a user meets it: a process, its output and its exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import cachekit
from cachekit import cli
from cachekit.version import __version__

ROOT = Path(cachekit.__path__[0]).parent
QUICK = ("--strategy", "no-cache", "--records", "50", "--operations", "200")


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def run(*arguments, timeout=60):
    return subprocess.run(
        [sys.executable, "-m", "cachekit", *arguments],
        capture_output=True, text=True, timeout=timeout, env=environment(), check=False,
    )  # fmt: skip


def refused(capsys, *arguments):
    """Exit code 2 and exactly one line on stderr, nothing on stdout; gives the line."""
    assert cli.main(list(arguments)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.endswith("\n")
    assert told.err.startswith("cachekit: ")
    return told.err


def test_the_whole_command_runs_against_a_real_source(tmp_path):
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    done = run("bench", *QUICK, "--json", str(out), "--html", str(page))
    assert done.returncode == 0
    assert done.stderr == ""  # the bar is for terminals
    assert "no-cache" in done.stdout
    (row,) = json.loads(out.read_text())["rows"]
    assert row["operations"] == 200
    assert row["source_reads"] == row["reads"] > 0
    assert row["source_writes"] == row["writes"] > 0
    assert row["stale_reads"] == row["lost_writes"] == row["errors"] == 0
    assert "<svg" in page.read_text()


def test_tasks_inserts_and_a_slow_source_run_too(tmp_path):
    out = tmp_path / "out.json"
    done = run(
        "bench", *QUICK, "--workload", "D", "--mode", "tasks", "--source-delay", "1ms",
        "--json", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert row["read_ms"]["p50"] >= 1.0
    assert row["stale_reads"] == row["lost_writes"] == 0


def test_a_trace_runs_to_its_end(tmp_path):
    trace, out = tmp_path / "trace", tmp_path / "out.json"
    trace.write_text("".join(f"{n % 7}\n" for n in range(100)))
    done = run("bench", "--trace", str(trace), "--strategy", "no-cache", "--json", str(out))
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert told["settings"]["records"] == 7
    assert told["rows"][0]["reads"] == 100


def test_the_same_seed_gives_the_same_operations(tmp_path):
    counts = []
    for name in ("one", "two"):
        out = tmp_path / name
        assert cli.main(["bench", *QUICK, "--seed", "9", "--json", str(out)]) == 0
        (row,) = json.loads(out.read_text())["rows"]
        counts.append((row["reads"], row["writes"]))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workload", "x"), "'x' is not one of"),
        (("--keys", "gaussian"), "gaussian"),
        (("--nonsense",), "No such option"),
        (("--records", "0"), "--records"),
        (("--records", "many"), "--records"),
        (("--concurrency", "-1"), "--concurrency"),
        (("--ttl", "3x"), "--ttl"),
        (("--source-delay", "-1"), "--source-delay"),
        (("--strategy", "write-sideways"), "unknown strategy"),
        (("--operations", "5", "--seconds", "5"), "not both"),
        (("--trace", "/no/such/file"), "can not be read"),
        (("--trace", "x", "--workload", "a"), "drop --workload"),
        (("--write-ratio", "0.5"), "--write-ratio"),
        (("--json", "/no/such/folder/x.json"), "can not be written"),
        (("--html", "/"), "can not be written"),
        (("--source", "mysql://u:secret@h/d", "--strategy", "no-cache"), "unknown source"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(capsys, arguments, words):
    line = refused(capsys, "bench", *arguments)
    assert words in line
    assert "secret" not in line


def test_an_unknown_command_gets_one_line(capsys):
    assert "nonsense" in refused(capsys, "nonsense")


def test_a_broken_trace_is_refused_before_anything_runs(tmp_path, capsys):
    trace = tmp_path / "trace"
    trace.write_bytes(b"\x1f\x8b" + b"rubbish")
    assert "trace" in refused(capsys, "bench", "--trace", str(trace))
    trace.write_bytes(b"")
    assert "is empty" in refused(capsys, "bench", "--trace", str(trace))


def test_a_postgresql_server_that_refuses_gets_one_line(capsys):
    pytest.importorskip("psycopg")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"postgresql://me:secret@127.0.0.1:{port}/db"
    line = refused(capsys, "bench", *QUICK, "--source", url)
    assert "refused" in line
    assert "secret" not in line


def test_the_version_is_shown(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cachekit {__version__}\n"


def test_help_is_shown_without_arguments_and_for_the_command(capsys):
    assert cli.main([]) == 0
    assert "bench" in capsys.readouterr().out
    assert cli.main(["bench", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--workload" in told
    assert "--html" in told


@pytest.mark.parametrize("missing", ["rich", "typer"])
def test_without_the_extra_one_line_says_what_to_install(missing):
    code = f"""
        import sys
        sys.modules[{missing!r}] = None
        from cachekit.cli import main
        sys.exit(main(["bench"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=30, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr
    assert "pip install 'cachekit-strategies[bench]'" in done.stderr


def test_the_version_needs_no_extra():
    code = "import sys; sys.modules['rich'] = sys.modules['typer'] = None\n"
    code += "from cachekit.cli import main; sys.exit(main(['--version']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=30, env=environment(), check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"cachekit {__version__}\n")


# The process tells when a row is running; only then is the signal sent.
INTERRUPTED = """
import sys
from cachekit import cli
from cachekit.bench import matrix
measure = matrix.measure
def announced(recipe, plan, bounds, source, *, stop, report):
    def told(share):
        report(share)
        if bounds.seconds and share > 0:
            print("running", file=sys.stderr, flush=True)
    return measure(recipe, plan, bounds, source, stop=stop, report=told)
matrix.measure = announced
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("number", "code", "mode"),
    [
        (signal.SIGINT, 130, "threads"),
        (signal.SIGINT, 130, "tasks"),
        (signal.SIGTERM, 143, "threads"),
    ],
)
def test_an_interrupted_run_shows_what_was_measured(tmp_path, number, code, mode):
    out = tmp_path / "out.json"
    arguments = ["bench", "--strategy", "no-cache", "--records", "50", "--seconds", "50"]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *arguments, "--warmup", "0", "--mode", mode,
         "--json", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "running\n"
        process.send_signal(number)
        stdout, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert "Interrupted" in stdout
    told = json.loads(out.read_text())
    assert told["interrupted"] is True
    (row,) = told["rows"]
    assert row["complete"] is False
    assert row["operations"] > 0
    assert row["seconds"] < 40


def test_a_server_that_refuses_gets_one_line_before_anything_runs(capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for scheme in ("redis", "memcached"):
        url = f"{scheme}://127.0.0.1:{port}"
        line = refused(capsys, "bench", "--backend", url, "--records", "10", "--operations", "10")
        assert f"{scheme}://127.0.0.1:{port} refused" in line


def test_a_refused_url_shows_no_password(capsys):
    line = refused(capsys, "bench", "--backend", "redis://me:secret@127.0.0.1:1/0")
    assert "secret" not in line


def test_unknown_backends_get_one_line(capsys):
    assert "unknown backend 'postgres'" in refused(capsys, "bench", "--backend", "postgres")
    assert "carrier-pigeon" in refused(capsys, "bench", "--backend", "carrier-pigeon://x")


def test_the_matrix_has_a_row_for_every_backend_and_strategy(tmp_path):
    out = tmp_path / "out.json"
    done = run(
        "bench", "--backend", "memory", "--backend", "memory", "--strategy", "write-back",
        "--strategy", "CacheAside", "--records", "50", "--operations", "200", "--json", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [(r["backend"], r["strategy"], r["level"]) for r in rows] == [
        ("none", "no-cache", None),
        ("memory", "write-back", "process (SQLite log)"),
        ("memory", "cache-aside", None),
    ]
    assert all(r["stale_reads"] == r["lost_writes"] == r["errors"] == 0 for r in rows)


@pytest.mark.server
@pytest.mark.parametrize("name", ["redis", "memcached"])
def test_a_private_server_is_measured_and_gone_afterwards(tmp_path, name):
    out = tmp_path / "out.json"
    done = run(
        "bench", "--backend", name, "--strategy", "write-through", "--records", "50",
        "--operations", "300", "--json", str(out),
    )  # fmt: skip
    if done.returncode == 2 and "can be started here" in done.stderr:
        if os.environ.get("CACHEKIT_REQUIRE_SERVERS"):
            pytest.fail(done.stderr)
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    row = json.loads(out.read_text())["rows"][1]
    assert row["backend"] == name
    assert row["hit_ratio"] > 0
    assert row["stale_reads"] == row["lost_writes"] == row["errors"] == 0
