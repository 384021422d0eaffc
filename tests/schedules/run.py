"""Play randomized schedules over the real code: ``python tests/schedules/run.py --help``."""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import dynamodb_ground  # noqa: F401  # adds its ground
from stand import SCHEDULES_PER_STAND, Stand

STRICT: dict[str, Any] = {"coherence": "strict"}
REPLAY = {**STRICT, "invalidation": "replay"}
LOUD = {**STRICT, "strict": True}


def _far(ground: str) -> list[tuple[str, dict[str, Any]]]:
    return [(ground, STRICT), (ground, REPLAY), (ground, LOUD)]


# What a seed may be played on, by the word on the command line; "all" are those in ALL.
ALL = ("memory", "tiered", "sqlite", "redis", "memcached", "dynamodb", "bus", "restarts")
BACKENDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "memory": [*_far("memory"), ("embedded", {})],
    "embedded": [("embedded", {})],
    "far": [("memory", STRICT)],
    "push": [("memory", {"coherence": "push"})],
    "sqlite": _far("sqlite"),
    "redis": _far("redis"),
    "memcached": _far("memcached"),
    "dynamodb": _far("dynamodb"),
    "dynamodb near": [("dynamodb", {"coherence": 1.0})],
    "tiered": [
        ("memory", {"coherence": 1.0}),
        ("memory", {"coherence": 1.0, "invalidation": "replay"}),
        ("memory", {"coherence": "push"}),
        ("memory", {"coherence": "push", "invalidation": "replay"}),
    ],
    "bound": [("memory", {"coherence": 1.0})],
    "bus": [
        ("redis", {"coherence": "push"}),
        ("redis", {"coherence": "push", "invalidation": "replay"}),
        ("sqlite", {"coherence": "push"}),
    ],
    "restarts": [("redis", STRICT), ("redis", REPLAY), ("memcached", STRICT)],
    "redis restarts": [("redis", STRICT)],
}
# Of these, "all" plays one in so many: they wait for real threads and real servers.
FEWER = {"dynamodb": 100, "bus": 20, "restarts": 500}
BIASES: dict[str, dict[str, Any]] = {
    "restarts": {"restarts": True},
    "redis restarts": {"restarts": True},
}


class Failure(Exception):
    """A schedule that went wrong, told so that it can be played again."""


class Player:
    """Plays seeds on one backend; keeps its stands and renews them now and then."""

    def __init__(self, backend: str, **stand_options: Any) -> None:
        self.backend = backend
        self.counts: Counter[str] = Counter()
        self.schedules = self.steps = 0
        bias = {**BIASES.get(backend, {}), **stand_options.pop("bias", {})}
        self._more = {**stand_options, "bias": bias}
        self._stands: dict[int, Stand] = {}

    def play(self, seed: int) -> None:
        """Raises :class:`Failure`."""
        number = random.Random(seed * 31 + 7).randrange(len(BACKENDS[self.backend]))
        stand = self._stands.get(number)
        if stand is None or stand.played >= SCHEDULES_PER_STAND:
            if stand is not None:
                stand.close()
            ground, options = BACKENDS[self.backend][number]
            stand = self._stands[number] = Stand(ground, options, self.counts, **self._more)
        try:
            play = stand.play(seed)
        except Exception as error:  # whatever it is, its schedule is worth seeing
            raise Failure(self._told(stand, seed, error)) from error
        self.schedules += 1
        self.steps += stand.scheduler.steps
        self.counts["reads judged"] += play.oracle.judged
        self.counts["reads bound by a demand"] += play.oracle.bound_by_demand

    def _told(self, stand: Stand, seed: int, error: BaseException) -> str:
        trace = "\n".join(f"  {name:<14} {label}" for name, label in stand.scheduler.trace[-400:])
        return (
            f"{type(error).__name__}: {error}\n"
            f"backend {self.backend}: {stand.ground.name} {stand.options}, seed {seed}; again with"
            f"\n  python tests/schedules/run.py --backend '{self.backend}' --seed {seed}"
            f" --schedules 1\n{trace}"
        )

    def close(self) -> None:
        for stand in self._stands.values():
            stand.close()
        self._stands.clear()


def play_many(
    backend: str, seeds: Iterable[int], seconds: float, **options: Any
) -> tuple[Player, str]:
    """Play until the seeds, the time or the first failure end it; says what failed."""
    player = Player(backend, **options)
    end = time.monotonic() + seconds
    told = ""
    try:
        for seed in seeds:
            if time.monotonic() >= end:
                break
            player.play(seed)
    except Failure as failure:
        told = str(failure)
    finally:
        player.close()
    return player, told


def _job(given: tuple[str, int, int, int, float]) -> tuple[int, int, Counter[str], float, str]:
    backend, first, count, stride, seconds = given
    began = time.monotonic()
    player, told = play_many(backend, range(first, first + count * stride, stride), seconds)
    return player.schedules, player.steps, player.counts, time.monotonic() - began, told


def report(backend: str, results: list[tuple[int, int, Counter[str], float, str]]) -> bool:
    schedules = sum(r[0] for r in results)
    rate = sum(r[0] / r[3] for r in results if r[3])
    failures = [r[4] for r in results if r[4]]
    counts: Counter[str] = Counter()
    for r in results:
        counts.update(r[2])
    print(
        f"{backend}: {schedules} schedules, {sum(r[1] for r in results)} steps, "
        f"{len(failures)} failed; {rate:.0f} schedules/s"
    )
    for name, count in sorted(counts.items()):
        print(f"  {name:<44} {count:>10}")
    for told in failures:
        print(told)
    return not failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=[*BACKENDS, "all"], default="memory")
    parser.add_argument("--schedules", type=int, default=10_000, help="per backend")
    parser.add_argument("--seed", type=int, default=None, help="the first one; random if left out")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="per backend, at most")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(2**40)
    print(f"first seed {seed}")
    well = True
    every = given.backend == "all"
    for backend in ALL if every else [given.backend]:
        count = max(1, given.schedules // FEWER.get(backend, 1)) if every else given.schedules
        jobs = min(given.jobs, count)
        shares = [
            (backend, seed + i, (count + jobs - 1 - i) // jobs, jobs, given.seconds)
            for i in range(jobs)
        ]
        if jobs == 1:
            results = [_job(shares[0])]
        else:
            with multiprocessing.get_context("spawn").Pool(jobs) as pool:
                results = pool.map(_job, shares)
        well = report(backend, results) and well
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
