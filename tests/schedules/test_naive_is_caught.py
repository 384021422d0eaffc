"""The checker sees what simpler designs get wrong; else its silence would mean nothing."""

from __future__ import annotations

import random

import pytest
from naive import NAIVE
from run import play_many

WITHIN = 40_000
SECONDS = 60.0


@pytest.mark.parametrize("name", NAIVE)
def test_a_naive_variant_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    backend, slots, patch, bias = NAIVE[name]
    first = random.SystemRandom().randrange(2**40)
    with patch():
        player, told = play_many(
            backend, range(first, first + WITHIN), SECONDS, slots_class=slots, bias=bias
        )
    with capsys.disabled():
        print(f"\n{name}: caught after {player.schedules} schedules (from seed {first})")
    assert told, f"{name}: not seen in {player.schedules} schedules from seed {first}"
    assert told.startswith("Stale"), told
