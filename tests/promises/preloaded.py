"""A process that opens and uses caches, keeps threads busy in them, and then forks workers.

``main(URL, FOLDER, FORKS)`` prints one JSON object: what the parent saw, and each child's report.
Run by the tests of P40 in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import faulthandler
import json
import multiprocessing
import os
import select
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cachekit import Cache, WriteBack

PATIENCE = 15  # seconds after which a child that still runs is killed, and counts as hung
KEYS = 40
AT_ONCE = 5


@dataclasses.dataclass
class Renamed:
    id: int


class Preloaded:
    def __init__(self, url: str, folder: Path) -> None:
        self.written = folder / "written"
        self.written.touch()
        self.cache = Cache(
            url,
            namespace="preload",
            timeout=10.0,
            coherence="push",
            replay_log=str(folder / "private" / "replay.log"),
            invalidation="replay",
        )
        self.near = Cache(clock="coarse", stats="sampled")
        self.soon = self._book("soon", 0.05)
        self.late = self._book("late", 60.0)
        self.streams = self.cache.parts.events.stream is not None
        self.cache.on(Renamed, lambda event: [f"renamed:{event.id}"])
        self.cache.schedule(every="1s", tags=["planned"], name="planned")
        self.square = self.near.cached(ttl=600)(lambda n: n * n)
        self.stop = threading.Event()
        self.errors: list[str] = []
        self.work = 0

    def _book(self, name: str, delay: float) -> WriteBack:
        def store_many(rows: Mapping[Any, Any]) -> None:
            line = "".join(f"{os.getpid()} {name} {id}\n" for id in rows)
            with self.written.open("a") as file:
                file.write(line)

        return WriteBack(
            self.cache, store_many=store_many, key=name + ":{id}", log="memory", delay=delay
        )

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.written.read_text().splitlines()]

    # -- load --------------------------------------------------------------------------------

    def check(self, key: str, value: Any, expected: Any) -> None:
        if value != expected:
            self.errors.append(f"{os.getpid()}: {key} gave {value!r}")

    def use(self, first: int) -> None:
        for n in range(first, first + 8):
            key = f"k{n % KEYS}"
            value = self.cache.get_or_set(key, lambda n=n: n % KEYS, ttl=60, tags=["all"])
            self.check(key, value, n % KEYS)
            if n % 4 == 0:
                self.cache.invalidate(keys=[key])
            self.check("square", self.square(n), n * n)

    async def use_async(self, first: int) -> None:
        for n in range(first, first + 8):
            key, face = f"k{n % KEYS}", self.cache.aio
            got = await asyncio.gather(
                face.get_or_set(key, lambda n=n: n % KEYS, ttl=60, tags=["all"]),
                face.get_or_set("alone", lambda: "alone", ttl=60),
            )
            self.check(key, got, [n % KEYS, "alone"])
            if n % 4 == 2:
                await face.invalidate(keys=[key])

    def busy(self, number: int) -> None:
        try:
            while not self.stop.is_set():
                self.use(number + self.work)
                self.work += 1
                self.soon.put(f"{number}", self.work)
        except BaseException as error:
            self.errors.append(f"busy thread: {error!r}")

    def busy_loop(self) -> None:
        async def turn() -> None:
            while not self.stop.is_set():
                await self.use_async(self.work)
                self.work += 1
            await self.cache.aio.close()

        try:
            asyncio.run(turn())
        except BaseException as error:
            self.errors.append(f"busy loop: {error!r}")

    def slow_loads(self) -> None:
        try:
            while not self.stop.is_set():
                self.cache.get_or_set("slow", self._slow, ttl=0.01, lease=0.4)
        except BaseException as error:
            self.errors.append(f"slow loads: {error!r}")

    @staticmethod
    def _slow() -> str:
        time.sleep(0.5)
        return "slow"

    # -- a child -----------------------------------------------------------------------------

    def serve(self, number: int, parents: set[int], talk: Callable[[str], None]) -> dict[str, Any]:
        before = self.counts("backend_errors")
        ears = [overhear(fd) for fd, inode in sockets().items() if inode in parents]
        self.use(number)
        self.cache.set(f"mine:{number}", number, ttl=60)
        self.check("mine", self.cache.get(f"mine:{number}"), number)
        asyncio.run(self.use_async(number))
        self.soon.put(f"child-{number}", number)
        report: dict[str, Any] = {
            "flushed": wait(lambda: [str(os.getpid()), "soon", f"child-{number}"] in self.lines()),
            "unwritten": self.cache.stats().unwritten,
        }
        if number % 10 == 0:
            report |= self.listen(number, talk)
        self.cache.flush(1.0)
        names = {thread.name for thread in threading.enumerate()}
        report["schedules"] = "cachekit-schedules" in names
        self.cache.close()
        self.near.close()
        report["used"] = [heard for heard in map(has_heard, ears) if heard not in ("", "b''")]
        report["errors"] = self.errors
        report["backend_errors"] = self.counts("backend_errors") - before
        return report

    def listen(self, number: int, talk: Callable[[str], None]) -> dict[str, Any]:
        key, cache = f"heard:{number}", self.cache
        cache.set(key, "old", ttl=600)

        def near() -> bool:
            hits = cache.stats().hits
            return (
                cache.get(key) == "old"
                and cache.stats().hits > hits
                and cache.stats().coherence == "push"
            )

        joined = wait(near)
        renewed, received = self.counts("leases_renewed"), self.counts("events_received")
        talk("ready")
        return {
            "joined": joined,
            "heard": wait(lambda: cache.get(key) == "new"),
            "event": not self.streams or wait(lambda: self.counts("events_received") > received),
            "slow": cache.get_or_set(f"slow:{number}", self._slow, ttl=60, lease=0.4),
            "renewed": self.counts("leases_renewed") - renewed,
        }

    def counts(self, name: str) -> int:
        return self.cache.stats().counts.get(name, 0)

    def fork(self, number: int, parents: set[int]) -> tuple[int, int]:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid:
            os.close(writing)
            return pid, reading
        code = 1
        try:
            os.close(reading)
            # What other threads of the parent found is theirs.
            self.errors = []
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            faulthandler.dump_traceback_later(PATIENCE - 2)
            signal.alarm(PATIENCE)
            told = self.serve(number, parents, lambda word: tell(writing, {"word": word}))
            tell(writing, told)
            code = 0
            if number % 10 == 5:
                sys.exit(0)  # through the interpreter's end, with its hooks
        except SystemExit:
            raise
        except BaseException as error:
            tell(writing, {"raised": repr(error)})
        finally:
            if number % 10 != 5 or code:
                os._exit(code)
        raise AssertionError("not reached")

    # -- the parent --------------------------------------------------------------------------

    def run(self, forks: int) -> dict[str, Any]:
        for n in range(5):
            self.late.put(f"late-{n}", n)
        threads = [threading.Thread(target=self.busy, args=(n * 7,)) for n in range(3)]
        threads += [
            threading.Thread(target=self.busy_loop),
            threading.Thread(target=self.slow_loads),
        ]
        for thread in threads:
            thread.start()
        wait(lambda: self.work > 50 and self.cache.stats().coherence == "push")
        children: list[dict[str, Any]] = []
        pooled: list[Any] = []
        for first in range(0, forks, AT_ONCE):
            several = [self.fork(n, set(sockets().values())) for n in range(first, first + AT_ONCE)]
            children += [self.follow(n, *one) for n, one in enumerate(several, first)]
            if any(child["status"] for child in children):
                break  # the rest would only cost time
        else:
            pooled = self.pooled()
        self.stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        stuck = sum(thread.is_alive() for thread in threads)
        stats = self.cache.stats()
        self.cache.close()
        others = [line for line in self.lines() if int(line[0]) != os.getpid()]
        return {
            "children": children,
            "pooled": pooled,
            "errors": self.errors,
            "stuck": stuck,
            "work": self.work,
            "backend_errors": stats.counts.get("backend_errors", 0),
            "breaker": stats.breaker,
            "late": sorted(line[2] for line in self.lines() if line[1] == "late"),
            "of the parent's, by others": [
                line for line in others if not line[2].startswith("child-")
            ],
        }

    def follow(self, number: int, pid: int, reading: int) -> dict[str, Any]:
        report: dict[str, Any] = {}
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            data = b""
            while b"\n" in data or select.select([pipe], [], [], PATIENCE + 5)[0]:
                if b"\n" not in data:
                    more = pipe.read(65536)
                    if not more:
                        break
                    data += more
                    continue
                line, _, data = data.partition(b"\n")
                told = json.loads(line)
                if "word" in told:
                    self.cache.set(f"heard:{number}", "new", ttl=600)
                    self.cache.emit(Renamed(number))
                else:
                    report = told
        return report | {"status": os.waitpid(pid, 0)[1]}

    def pooled(self) -> list[Any]:
        """The same through ``multiprocessing``: two workers, four tasks."""
        with multiprocessing.get_context("fork").Pool(2) as pool:
            waiting = [pool.apply_async(_task, (n,)) for n in range(4)]
            return [answer.get(PATIENCE) for answer in waiting]


_here: list[Preloaded] = []


def _task(number: int) -> list[Any]:
    here = _here[0]
    here.errors = []
    here.use(number)
    return [here.cache.get_or_set(f"pooled:{number}", lambda: number, ttl=60), here.errors]


def tell(pipe: int, what: dict[str, Any]) -> None:
    os.write(pipe, json.dumps(what).encode() + b"\n")


def sockets() -> dict[int, int]:
    """Descriptor -> inode of every open socket."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            about = os.fstat(int(name))
            if stat.S_ISSOCK(about.st_mode):
                found[int(name)] = about.st_ino
    return found


def overhear(descriptor: int) -> socket.socket:
    """Put another socket in place of one of the parent's; gives the end that hears its use."""
    theirs, ours = socket.socketpair()
    os.dup2(theirs.fileno(), descriptor)
    theirs.close()
    ours.setblocking(False)
    return ours


def has_heard(ear: socket.socket) -> str:
    """What was said there."""
    try:
        return repr(ear.recv(100))
    except BlockingIOError:
        return ""


def wait(condition: Callable[[], bool], seconds: float = 8.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def main(url: str, folder: str, forks: str) -> None:
    _here.append(Preloaded(url, Path(folder)))
    print(json.dumps(_here[0].run(int(forks))), flush=True)
    if multiprocessing.active_children():
        os._exit(1)
