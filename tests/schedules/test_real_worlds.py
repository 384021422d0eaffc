"""The checker's questions asked of real threads and real asyncio tasks; fewer of them."""

from __future__ import annotations

import os
import random
import time

import pytest
from real import Round, eager_switching

SECONDS = float(os.environ.get("CACHEKIT_SCHEDULE_SECONDS", "3"))


@pytest.mark.parametrize("place", ["embedded", "memory"])
@pytest.mark.parametrize("world", ["threads", "tasks"])
def test_real_callers_read_nothing_older_than_what_had_returned(world: str, place: str) -> None:
    first = seed = random.SystemRandom().randrange(2**40)
    end = time.monotonic() + SECONDS
    with eager_switching():
        while time.monotonic() < end:
            play = Round(seed, plain=world == "threads", embedded=place == "embedded")
            try:
                play.play()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
            seed += 1
    assert seed > first + 10
