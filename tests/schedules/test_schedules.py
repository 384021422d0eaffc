"""A slice of the schedule checker on every backend, fresh seeds each time; ``run.py`` plays any
number of them. What once went wrong is kept as variants in ``naive``."""

from __future__ import annotations

import os
import random

import pytest
from run import ALL, Player, play_many

from cachekit.testing.servers import ServerMissing

SECONDS = float(os.environ.get("CACHEKIT_SCHEDULE_SECONDS", "2"))

# Where one of these never happens, the races that matter were never played.
MET = (
    "fill refused",
    "commit contested",
    "lease refused",
    "tag nonce missing",
    "tags remembered",
    "replayed",
    "joined",
    "fault: crash",
    "fault: cancel",
    "landed late, block standing",
    "reads bound by a demand",
    "play: call many",
    "play: call refresh",
    "play: invalidates",
    "play: save new",
)


def _player(backend: str, first: int, seconds: float, count: int = 10**9) -> tuple[Player, str]:
    try:
        return play_many(backend, range(first, first + count), seconds)
    except ServerMissing as missing:
        if os.environ.get("CACHEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.mark.parametrize("backend", ALL)
def test_no_schedule_reads_what_is_outdated(backend: str) -> None:
    first = random.SystemRandom().randrange(2**40)
    player, told = _player(backend, first, SECONDS)
    assert not told, told
    assert player.schedules


def test_the_races_that_matter_are_played() -> None:
    player, told = _player("memory", 7_000_000, 30.0 if SECONDS > 30 else 4.0)
    assert not told, told
    missing = [name for name in MET if not player.counts[name]]
    assert not missing or player.schedules < 1000, f"never in {player.schedules}: {missing}"


def test_a_seed_is_the_whole_schedule() -> None:
    """The same seed gives the same steps, whatever was played before on the same stand."""
    traces = []
    for before in ((), (11, 12, 13)):
        player = Player("memory")
        try:
            for seed in before:
                player.play(seed)
            player.play(4711)
            (stand,) = [s for s in player._stands.values() if s.source.play.seed == 4711]
            traces.append([what for _, what in stand.scheduler.trace])
        finally:
            player.close()
    assert traces[0] == traces[1]
