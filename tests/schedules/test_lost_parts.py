"""Schedules in which processes lose a part of the far tier: what they still owe for it binds them,
and the checker sees it where it does not."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from parts import PartSlots
from run import BACKENDS, REPLAY, play_many

from cachekit import pending_reads
from cachekit.invalidation import Invalidator
from cachekit.pending import Pending

SECONDS = float(os.environ.get("CACHEKIT_SCHEDULE_SECONDS", "2"))
FAULTS = ("time", "cancel", "crash", "evict", "away", "away", "away")
BIAS: dict[str, Any] = {"faults": FAULTS, "rate": 0.1, "keys": 2}
TOLD = {"faults": ("away",), "rate": 0.1, "plays": ("tag", "tell tag", "get_many")}


@pytest.mark.parametrize("backend", ["memory", "tiered"])
def test_no_schedule_reads_what_is_outdated_while_a_part_is_lost(backend: str) -> None:
    first = random.SystemRandom().randrange(2**40)
    seeds = range(first, first + 10**9)
    player, told = play_many(backend, seeds, SECONDS, slots_class=PartSlots, bias=BIAS)
    assert not told, told
    assert player.schedules


def _never_due(invalidator: Invalidator, *args: Any) -> bool:
    return False


def _own_names_only(pending: Pending, keys: Any, tags: Any) -> dict[Any, int]:
    wanted = [("key", key) for key in keys]
    return {name: pending._names[name] for name in wanted if name in pending._names}


NAIVE: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "nothing is due": lambda patch: patch.setattr(Invalidator, "due", _never_due),
    "keys are due, tags are not": lambda patch: patch.setattr(Pending, "owed", _own_names_only),
    "an entry's own tags are not looked at": lambda patch: patch.setattr(
        pending_reads, "_overtaken", lambda *args: False
    ),
}


@pytest.mark.parametrize("name", NAIVE)
def test_a_process_that_forgets_what_it_owes_is_caught(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    NAIVE[name](monkeypatch)
    first = random.SystemRandom().randrange(2**40)
    seeds = range(first, first + 40_000)
    bias = {**TOLD, "tagging": "discovered" if "entry" in name else "declared"}
    monkeypatch.setitem(BACKENDS, "owing", [("memory", REPLAY)])
    player, told = play_many("owing", seeds, 60.0, slots_class=PartSlots, bias=bias)
    print(f"{name}: after {player.schedules} schedules")
    assert told, f"{name}: not seen in {player.schedules} schedules from seed {first}"
    assert told.startswith("Stale"), told
