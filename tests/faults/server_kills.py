"""A campaign of kills of redis-server itself, under load, each followed by a start on its data."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from checks import Verdict, lost_calls
from fault_sources import SQLiteSource
from history import Call, read_trails
from kills import Campaign

from cachekit.testing.servers import RedisServer

# Seconds: a server that syncs every second puts a write off for two, while a sync goes on.
MOST_LOST = 4.0
# What stands between a write in the page cache and the disk: its time, made long.
SLOW_SYNC = """
#include <unistd.h>
int fdatasync(int file) { (void)file; usleep(1500000); return 0; }
int fsync(int file) { (void)file; usleep(1500000); return 0; }
"""


@cache
def slow_disk() -> str | None:
    """A library that makes every fsync take 1.5 s where it is preloaded; None without a compiler.
    Under it a server that syncs every second holds writes back in its own memory (up to 2 s)
    while it has answered its clients."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="cachekit-slow-disk-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source, library = folder / "slow.c", folder / "slow.so"
    source.write_text(SLOW_SYNC)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


class Away(NamedTuple):
    """One death of the server: no call that began and ended within can have been accepted."""

    killed: float
    begin: float
    end: float


class ServerCampaign:
    """``fsync``: the server's ``appendfsync``; "never": it keeps nothing at all. ``drained``: a
    worker writes batches meanwhile, so that little waits in the log when its server dies."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        fsync: str,
        *,
        slow: bool = False,
        drained: bool = True,
        level: str | None = None,
    ) -> None:
        self._rng = random.Random(seed)
        self._slow = slow
        self._fsync = fsync
        options = ("--appendonly", "yes", "--appendfsync", fsync)
        self._server = RedisServer(() if fsync == "never" else options)
        self._source = SQLiteSource.made(folder)
        self._given = {
            "log": "",
            "level": level,
            "lease": 1.0,
            "worker": drained,
            "most": 1_000_000,
        }
        self._folder = folder
        self._seed = seed
        self.away: list[Away] = []
        self.verdict = Verdict()
        self.calls: list[Call] = []
        self.lost: list[Call] = []

    def run(self, kills: int, load: float = 0.6) -> None:
        """``load``: seconds of load before a kill, on average."""
        self._start()
        with self._server:
            self._given["log"] = self._server.url
            campaign = Campaign(
                self._folder / "trails",
                self._given,
                self._source,
                self._seed,
                grace=1.0,
                pause=0.001,
            )
            with campaign.kept():
                writers = [campaign.start(slot) for slot in range(2)]
                for _ in range(kills):
                    time.sleep(load * self._rng.uniform(0.5, 1.5))
                    self._kill_and_start()
                time.sleep(load)
                for writer in writers:
                    campaign.bury(writer)
            campaign.kills += kills
            campaign.drain()
            self.verdict = campaign.verdict()
            self.calls = read_trails(campaign.folder, campaign.ends).calls
            self.lost = lost_calls(self.calls, self._source.rows())

    def _start(self) -> None:
        library = slow_disk() if self._slow else None
        if library:
            os.environ["LD_PRELOAD"] = library
        try:
            self._server.start()
        finally:
            if library:
                del os.environ["LD_PRELOAD"]

    def _kill_and_start(self) -> None:
        killed = time.monotonic()
        self._server.kill()
        begin = time.monotonic()
        time.sleep(self._rng.uniform(0.0, 0.4))
        end = time.monotonic()
        self._start()
        self.away.append(Away(killed, begin, end))

    # -- what came of it ------------------------------------------------------------------

    def lost_per_kill(self) -> list[int]:
        """Acknowledged writes that are nowhere, by the death that must have taken them."""
        counts: Counter[int] = Counter()
        for call in self.lost:
            counts[sum(1 for away in self.away if away.begin < (call.end or 0.0))] += 1
        return [counts[i] for i in range(len(self.away))]

    def window(self) -> float:
        """The longest time, in seconds, by which a lost write was acknowledged before its kill."""
        longest = 0.0
        for call in self.lost:
            later = [a.begin for a in self.away if call.end is not None and a.begin >= call.end]
            if later and call.end is not None:
                longest = max(longest, later[0] - call.end)
        return longest

    def acknowledged_while_away(self) -> list[Call]:
        return [
            call
            for call in self.calls
            for away in self.away
            if call.end is not None and away.begin < call.begin and call.end < away.end
        ]

    def violations(self) -> list[str]:
        found = [
            f"{call.value} was acknowledged by nobody" for call in self.acknowledged_while_away()
        ]
        if self._fsync != "everysec":
            found += self.verdict.violations
        elif self.window() > MOST_LOST:
            found.append(f"what was acknowledged {self.window():.1f} s before a kill was lost")
        return found

    def __str__(self) -> str:
        verdict, lost = self.verdict, self.lost_per_kill()
        return (
            f"server kills={len(self.away)} acknowledged={verdict.acknowledged} "
            f"raised={verdict.raised} keys={verdict.keys} lost keys={verdict.lost} "
            f"lost writes={sum(lost)} (per kill {lost}, acknowledged at most "
            f"{self.window():.2f} s before it) replayed={verdict.replayed} "
            f"violations={len(self.violations())}"
        )
