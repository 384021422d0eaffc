"""Random schedules of reads, others' writes and a stream that splits, rotates, throttles and loses
records, on a manual clock. The reader's thread is turned by hand.

At no time may an item be kept that was outdated for longer than the bound; and when the reader has
told everything, nothing outdated is kept at all."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cachekit.dax import Dax
from cachekit.dax.reads import Step
from cachekit.dax.settings import Settings
from cachekit.dax.streams import Follower
from cachekit.runtime import Runtime

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from stream_script import ITEMS, Script

REPLICA = 3.0  # seconds that an eventual read may be behind
MAX_LAG = 10.0
TABLE = "users"
# A page told late, a step that waits, the settling of replicas.
BOUND = 2 * MAX_LAG + 8


class Play:
    """One schedule. ``wrong``: what was kept and should not have been; ``kept``: how often
    something was."""

    def __init__(self, seed: int, *, calm: bool = False, **options: Any) -> None:
        self.calm = calm  # no gaps
        self.draw = random.Random(seed)
        self.script = script = Script()
        given = {"settle": REPLICA, "item_ttl": None, "negative_ttl": None, **options}
        streams = {TABLE: {"connect": script.client, "max_lag": MAX_LAG}}
        settings = Settings.make(**{"streams": streams, **given})
        clock = lambda: script.now  # noqa: E731  # a clock
        self.dax = Dax(settings, runtime=Runtime(clock=clock, wall=clock))
        self.scope = self.dax._store.scope("place", "somebody")
        state = self.scope.table(TABLE)
        assert state is not None
        self.state = state
        self.follower = state.follows
        self.turn_at = script.now
        self.wrong: list[str] = []
        self.kept = 0

    def play(self, steps: int = 160) -> None:
        reading: list[Iterator[None]] = []
        for _ in range(steps):
            if len(reading) < 4 and self.draw.random() < 0.6:
                reading.append(self.read(self.draw.choice(list(ITEMS))))
            if reading:
                mover = self.draw.choice(reading)
                if next(mover, self) is self:
                    reading.remove(mover)
            self.happen()
            self.pass_time(self.draw.random() * self.draw.choice((0.2, 0.5, 0.5, 3.0)))
            self.look()
        for mover in reading:
            for _ in mover:
                continue
        self.script.status, self.script.slow = "ENABLED", 0.0
        self.script.refusals.clear()
        for _ in range(80):
            self.pass_time(0.5)
        self.look(at_rest=True)
        self.dax.uninstall()

    def pass_time(self, seconds: float) -> None:
        """The reader steps when it wants to, or a little late."""
        self.script.now += seconds
        if self.script.now >= self.turn_at:
            assert isinstance(self.follower, Follower)
            self.turn_at = self.script.now + self.follower.thread._step()

    def happen(self) -> None:
        script, draw = self.script, self.draw
        kind = draw.random() * (0.45 if self.calm else 1.0)
        if kind < 0.4:
            script.put(draw.choice(list(ITEMS)))
        elif kind < 0.45:
            live = [name for name, part in script.parts.items() if not part.closed]
            script.end(draw.choice(live), split=draw.random() < 0.5)
        elif kind < 0.48:
            script.trim(draw.choice(list(script.parts)), draw.randint(1, 5))
        elif kind < 0.5:
            script.anew()
        elif kind < 0.55:
            script.refusals += ["ThrottlingException"] * draw.randint(1, 4)
        elif kind < 0.57:
            script.now += draw.choice((5.0, 15.0, 1000.0))  # it slept
        elif kind < 0.59:
            script.status = "DISABLED" if script.status == "ENABLED" else "ENABLED"

    def read(self, item: int) -> Iterator[None]:
        params = {"TableName": TABLE, "Key": {"id": {"N": str(item)}}}
        step = self.dax._engine._step(self.scope, "GetItem", params, plain=False)
        assert isinstance(step, Step)
        while step.flight is not None:
            if step.flight.landed or self.draw.random() < 0.1:
                step.joined()
            yield
        if step.answer is not None:
            return
        yield
        response = self.serve(item, strong=bool(step.params.get("ConsistentRead")))
        yield
        step.landed(response)

    def serve(self, item: int, *, strong: bool) -> dict[str, Any]:
        """The item as it is, or as a replica that lags has it."""
        at = self.script.now - (0.0 if strong else self.draw.random() * REPLICA)
        seen = [value for when, value in self.script.written[item] if when <= at]
        value = seen[-1] if seen else 0
        return {"Item": {"id": {"N": str(item)}, "v": {"N": str(value)}}}

    def look(self, *, at_rest: bool = False) -> None:
        for item in ITEMS:
            found = self.dax._store.item(self.state, ("id", "N", str(item)))
            if found is None:
                continue
            self.kept += 1
            value = int(found.wire()["v"]["N"])
            later = [when for when, v in self.script.written[item] if v > value]
            if later and (at_rest or self.script.now - later[0] > BOUND):
                self.wrong.append(f"{item}: {value}, outdated since {self.script.now - later[0]}")


def outdated_plays(seeds: range, **options: Any) -> tuple[list[str], int]:
    """What was wrong in all these schedules, and how often something was kept."""
    wrong: list[str] = []
    kept = 0
    for seed in seeds:
        play = Play(seed, **options)
        play.play()
        wrong += [f"seed {seed}: {each}" for each in play.wrong]
        kept += play.kept
    return wrong, kept


def catches(seeds: range, **options: Any) -> bool:
    """Whether one of these schedules finds something wrong."""
    return any(outdated_plays(range(seed, seed + 1), **options)[0] for seed in seeds)
