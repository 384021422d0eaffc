"""P41: however a process ends in order, what it acknowledged reaches the source, and the handlers
of its user run."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

import cachekit
from cachekit.testing.servers import RedisServer

PATIENCE = 40.0

# Argument 1: a folder. Each acknowledged put is a line of its file "acknowledged", each row that
# the source got a line of "written", each handler of the user's that ran a line of "handlers".
HEAD = """
import asyncio, atexit, logging, os, signal, sys, threading, time
import cachekit

logging.basicConfig()
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs behind a shell
folder = sys.argv[1]

def note(name, what):
    with open(os.path.join(folder, name), "a") as file:
        file.write(f"{what}\\n")

def store_many(rows):
    time.sleep(SLOW)
    note("written", "\\n".join(f"{id} {value}" for id, value in rows.items()))

async def store_many_async(rows):
    await asyncio.sleep(SLOW)
    note("written", "\\n".join(f"{id} {value}" for id, value in rows.items()))

SLOW = 0.0

def made(sink, log, **options):
    if log == "sqlite":
        log = f"sqlite:///{folder}/log"
    given = {"delay": 3600, "batch": 7, **options}
    cache = cachekit.Cache(namespace=os.path.basename(folder))
    return cachekit.WriteBack(
        cache, key="row:{id}", log=log, store_many=sink, **given
    )

def put(book, id, value):
    book.put(id, value)
    note("acknowledged", f"{id} {value}")

async def put_async(book, id, value):
    await book.aio.put(id, value)
    note("acknowledged", f"{id} {value}")

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
    note("handlers", "nothing happened")
"""

PLAIN = """
book = made(store_many, LOG)
for n in range(20):
    put(book, n, n)
put(book, 0, "newer")
ENDING
"""

ASYNC = """
book = made(store_many_async, LOG)
async def main():
    for n in range(20):
        await put_async(book, n, n)
    await put_async(book, 0, "newer")
    ENDING
asyncio.run(main())
"""

# How it ends, and its exit code.
ENDINGS = {
    "the script ends": ("pass", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("raise RuntimeError('uncaught')", 1),
    "SIGTERM": ("cachekit.install_signal_handlers(); terminate()", 128 + signal.SIGTERM),
    "Ctrl-C": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(30)", -signal.SIGINT),
}


class Ended:
    """What a process left behind."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        _, self.told = process.communicate(timeout=PATIENCE)
        self.code = process.returncode
        self.acknowledged, self.written, self.handlers = (
            _lines(folder / name) for name in ("acknowledged", "written", "handlers")
        )

    def check(self, code: int) -> None:
        """Its code; the newest value of each acknowledged key was the last one written."""
        assert self.code == code, self.told
        wanted = dict(line.split(" ", 1) for line in self.acknowledged)
        assert wanted
        found = dict(line.split(" ", 1) for line in self.written)
        lost = {id: value for id, value in wanted.items() if found.get(id) != value}
        assert not lost, self.told
        for trouble in ("new thread", "never awaited", "was destroyed", "Exception ignored"):
            assert trouble not in self.told, self.told


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line] if path.exists() else []


def _started(
    script: str, folder: Path, python: str = sys.executable, **env: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, "-W", "ignore::DeprecationWarning", "-c", HEAD + script, str(folder)],
        stderr=subprocess.PIPE, text=True, env=env or None,
    )  # fmt: skip


def _waited(folder: Path, name: str, count: int) -> None:
    until = time.monotonic() + PATIENCE
    while len(_lines(folder / name)) < count:
        assert time.monotonic() < until, f"{name} never had {count} lines"
        time.sleep(0.01)


@pytest.mark.parametrize("log", ["memory", "sqlite"])
@pytest.mark.parametrize("sink", ["plain", "async"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_was_acknowledged_is_written_at_the_end(
    ending: str, sink: str, log: str, tmp_path: Path
) -> None:
    how, code = ENDINGS[ending]
    if sink == "async":
        how = how.replace("time.sleep", "await asyncio.sleep")
    script = PLAIN if sink == "plain" else ASYNC
    script = script.replace("ENDING", how).replace("LOG", repr(log))
    began = time.monotonic()
    Ended(_started(script, tmp_path), tmp_path).check(code)
    assert time.monotonic() - began < 8  # nothing hung here: the close timeout is longer


@pytest.mark.parametrize("sink", ["plain", "async"])
def test_what_was_acknowledged_by_a_log_on_a_server_is_written_at_the_end(
    sink: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    how, code = ENDINGS["SIGTERM"]
    script = (PLAIN if sink == "plain" else ASYNC).replace("ENDING", how)
    script = script.replace("LOG", repr(redis_server.url))
    began = time.monotonic()
    Ended(_started(script, tmp_path), tmp_path).check(code)
    assert time.monotonic() - began < 8


def _others() -> list[str]:
    """Newer Pythons that are installed beside this one: they refuse new threads at their end."""
    found = []
    for minor in (12, 13, 14):
        program = shutil.which(f"python3.{minor}")
        if program is None or sys.version_info[:2] == (3, minor):
            continue
        command = [program, "-c", "import sys; print(sys.executable)"]
        try:
            itself = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            continue
        found.append(itself.stdout.strip())
    return found


@pytest.mark.parametrize("python", _others(), ids=lambda path: Path(path).name)
@pytest.mark.parametrize("log", ["memory", "sqlite"])
def test_newer_pythons_flush_too_without_a_new_thread(
    log: str, python: str, tmp_path: Path
) -> None:
    packages = [str(Path(cachekit.__file__).parent.parent), sysconfig.get_paths()["purelib"]]
    env = {"PYTHONPATH": ":".join(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    for sink, script in (("plain", PLAIN), ("async", ASYNC)):
        for ending in ("the script ends", "SIGTERM"):
            folder = tmp_path / f"{sink} {ending}"
            folder.mkdir()
            how, code = ENDINGS[ending]
            # The first put comes when the interpreter already ends.
            late = "atexit.register(lambda: put(book, 'late', 1))\n" if sink == "plain" else ""
            text = script.replace("LOG", repr(log)).replace("ENDING", how)
            text = text.replace("for n", late + "for n", 1) if late else text
            Ended(_started(text, folder, python, **env), folder).check(code)


@pytest.mark.parametrize("log", ["memory", "sqlite"])
def test_a_sigterm_in_the_middle_of_puts_loses_none_that_returned(log: str, tmp_path: Path) -> None:
    """From the main thread, a daemon thread, and a loop in another; the source takes its time."""
    process = _started(
        f"""
SLOW = 0.02
cachekit.install_signal_handlers()
book = made(store_many, {log!r}, delay=0.05, batch=50, max_pending=500)

def produce(name):
    try:
        for n in range(10**9):
            put(book, f"{{name}}-{{n}}", n)
    except cachekit.errors.WriteBackClosed:
        note("handlers", f"{{name}} was told")

async def produce_async():
    for n in range(10**9):
        await put_async(book, f"loop-{{n}}", n)

threading.Thread(target=produce, args=("daemon",), daemon=True).start()
threading.Thread(target=lambda: asyncio.run(produce_async()), daemon=True).start()
produce("main")
        """,
        tmp_path,
    )
    _waited(tmp_path, "written", 200)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    ended = Ended(process, tmp_path)
    assert time.monotonic() - began < 15
    ended.check(128 + signal.SIGTERM)
    assert len(ended.acknowledged) >= 200


USERS = {
    "ends itself": ("note('handlers', 'mine'); sys.exit(7)", 7),
    "raises": ("note('handlers', 'mine'); raise KeyboardInterrupt", -signal.SIGINT),
    "sets a flag": ("note('handlers', 'mine'); stop.set()", 0),
}


@pytest.mark.parametrize("log", ["memory", "sqlite"])
@pytest.mark.parametrize("how", USERS)
def test_handlers_of_the_user_run_and_decide_how_the_process_ends(
    how: str, log: str, tmp_path: Path
) -> None:
    does, code = USERS[how]
    process = _started(
        f"""
stop = threading.Event()
def mine(number, frame):
    {does}
atexit.register(note, "handlers", "at exit, registered before")
hook = sys.excepthook
signal.signal(signal.SIGTERM, mine)
cachekit.install_signal_handlers()
cachekit.install_signal_handlers()
book = made(store_many, {log!r})
atexit.register(note, "handlers", "at exit, registered after")
for n in range(20):
    put(book, n, n)
assert sys.excepthook is hook
while not stop.wait(0.05):
    pass
        """,
        tmp_path,
    )
    _waited(tmp_path, "acknowledged", 20)
    process.send_signal(signal.SIGTERM)
    ended = Ended(process, tmp_path)
    ended.check(code)
    assert ended.handlers == [
        "mine", "at exit, registered after", "at exit, registered before",
    ]  # fmt: skip


def test_a_signal_that_was_ignored_stays_ignored(tmp_path: Path) -> None:
    script = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
cachekit.install_signal_handlers()
book = made(store_many, "memory")
os.kill(os.getpid(), signal.SIGTERM)
put(book, 1, "lived on")
"""
    Ended(_started(script, tmp_path), tmp_path).check(0)


def test_handlers_are_installed_for_the_signals_that_were_named_and_for_no_other(
    tmp_path: Path,
) -> None:
    script = """
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
before = signal.getsignal(signal.SIGTERM)
cachekit.install_signal_handlers([signal.SIGHUP])
assert signal.getsignal(signal.SIGTERM) is before
refused = []
def elsewhere():
    try:
        cachekit.install_signal_handlers()
    except cachekit.errors.ConfigurationError:
        refused.append(True)
thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
assert refused
book = made(store_many, "memory")
put(book, 1, 1)
os.kill(os.getpid(), signal.SIGHUP)
time.sleep(30)
"""
    Ended(_started(script, tmp_path), tmp_path).check(128 + signal.SIGHUP)


def test_without_the_handlers_a_durable_log_keeps_what_sigterm_left_for_the_next_start(
    tmp_path: Path,
) -> None:
    """SIGTERM ends a process at once unless told otherwise: the memory level loses what waits."""
    script = """
book = made(store_many, "sqlite", batch=100, lease=0.5)
for n in range(20):
    put(book, n, n)
terminate()
"""
    died = Ended(_started(script, tmp_path), tmp_path)
    assert died.code == -signal.SIGTERM
    assert len(died.acknowledged) == 20
    Ended(_started("book = made(store_many, 'sqlite'); book.flush(20)", tmp_path), tmp_path).check(
        0
    )


@pytest.mark.parametrize("log", ["memory", "sqlite"])
def test_a_source_that_hangs_holds_up_the_end_no_longer_than_the_close_timeout(
    log: str, tmp_path: Path
) -> None:
    script = f"""
def hangs(rows):
    note("handlers", "hangs")
    time.sleep(60)
book = made(hangs, {log!r}, batch=1)
cachekit.install_signal_handlers()
atexit.register(lambda: note("handlers", f"{{book.close(0.5).left}} left"))
put(book, 1, 1)
while True:
    time.sleep(0.01)
"""
    process = _started(script, tmp_path)
    _waited(tmp_path, "handlers", 1)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    ended = Ended(process, tmp_path)
    assert ended.code == 128 + signal.SIGTERM
    assert time.monotonic() - began < 0.5 + 3.0
    assert ended.handlers[-1] == "1 left"
