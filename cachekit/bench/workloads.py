"""The operations to run: YCSB core workloads or a trace, drawn before the clock starts."""

from __future__ import annotations

import bisect
import random
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

READ, UPDATE, INSERT, MODIFY = range(4)

THETA = 0.99  # YCSB's "zipfian constant"
DRAWN = 200_000  # operations drawn for a run bounded by time; it goes round them again


@dataclass(frozen=True, slots=True)
class Workload:
    """One of the core workloads of YCSB (Cooper et al., SoCC 2010, table 2)."""

    name: str
    about: str
    shares: tuple[tuple[int, float], ...]
    keys: str  # the distribution the paper gives it


WORKLOADS = {
    w.name: w
    for w in (
        Workload("a", "update heavy: 50 % reads, 50 % updates",
                 ((READ, 0.5), (UPDATE, 0.5)), "zipfian"),
        Workload("b", "read mostly: 95 % reads, 5 % updates",
                 ((READ, 0.95), (UPDATE, 0.05)), "zipfian"),
        Workload("c", "read only", ((READ, 1.0),), "zipfian"),
        Workload("d", "read latest: 95 % reads, 5 % inserts",
                 ((READ, 0.95), (INSERT, 0.05)), "latest"),
        Workload("f", "read-modify-write: 50 % reads, 50 % read-modify-writes",
                 ((READ, 0.5), (MODIFY, 0.5)), "zipfian"),
    )
}  # fmt: skip


class Zipfian:
    """Ranks 0 .. n-1, rank r with probability (1/(r+1)^theta) / zeta(n).

    The generator of Gray et al., "Quickly Generating Billion-Record Synthetic Databases"
    (SIGMOD 1994), as in YCSB: exact for the two most popular ranks, a continuous approximation
    for the rest. Building costs O(n), drawing O(1).
    """

    def __init__(self, n: int, rng: random.Random, theta: float = THETA) -> None:
        self._n = n
        self._uniform = rng.random
        self._zeta = sum(1.0 / (i**theta) for i in range(1, n + 1))
        self._second = 1.0 + 0.5**theta
        self._alpha = 1.0 / (1.0 - theta)
        scale = 1.0 - self._second / self._zeta
        self._eta = (1.0 - (2.0 / n) ** (1.0 - theta)) / scale if scale > 0 else 0.0

    def draw(self) -> int:
        u = self._uniform()
        uz = u * self._zeta
        if uz < 1.0:
            return 0
        if uz < self._second:
            return min(1, self._n - 1)
        return min(self._n - 1, int(self._n * (self._eta * u - self._eta + 1.0) ** self._alpha))


@dataclass(frozen=True, slots=True)
class Plan:
    """The operations in order. Under ``latest`` a key is a distance from the newest record.

    ``records`` are in the source beforehand, numbered from 0. An INSERT's key is given at run
    time. A plan that ``repeats`` is gone round again until time or count is reached.
    """

    name: str
    about: str
    records: int
    kinds: bytes
    keys: array[int]
    latest: bool
    repeats: bool

    def __len__(self) -> int:
        return len(self.kinds)


def draw(workload: Workload, *, keys: str, records: int, count: int | None, seed: int) -> Plan:
    """A plan of ``count`` operations (None: enough to go round for any time).

    The popular records are scattered over the id space by a seeded permutation, where YCSB
    takes a hash modulo n: no two ranks fall on one record, so the frequencies are Zipf's.
    """
    rng = random.Random(seed)
    length = count or DRAWN
    bounds: list[float] = []
    for _, share in workload.shares:
        bounds.append((bounds[-1] if bounds else 0.0) + share)
    bounds[-1] = 1.0
    kind_of = [kind for kind, _ in workload.shares]
    if len(kind_of) == 1:
        kinds = bytes(kind_of) * length
    else:
        kinds = bytes(kind_of[bisect.bisect_right(bounds, rng.random())] for _ in range(length))
    drawn: array[int]
    if keys == "uniform":
        drawn = array("q", (rng.randrange(records) for _ in range(length)))
    else:
        zipf = Zipfian(records, rng)
        if keys == "latest":
            drawn = array("q", (zipf.draw() for _ in range(length)))
        else:
            place = list(range(records))
            rng.shuffle(place)
            drawn = array("q", (place[zipf.draw()] for _ in range(length)))
    return Plan(
        name=f"YCSB {workload.name.upper()}, {keys} keys",
        about=workload.about,
        records=records,
        kinds=kinds,
        keys=drawn,
        latest=keys == "latest",
        repeats=count is None,
    )


def replay(
    accesses: Iterable[object], *, name: str, limit: int, write_ratio: float, seed: int
) -> Plan:
    """A plan from the first ``limit`` accesses of a trace; distinct keys are numbered as met.

    Rows are reads, except a seeded share of ``write_ratio`` that become updates."""
    numbers: dict[object, int] = {}
    keys = array("q")
    for access in accesses:
        keys.append(numbers.setdefault(access, len(numbers)))
        if len(keys) >= limit:
            break
    rng = random.Random(seed)
    if write_ratio:
        kinds = bytes(UPDATE if rng.random() < write_ratio else READ for _ in range(len(keys)))
    else:
        kinds = bytes([READ]) * len(keys)
    about = f"{len(keys):,} accesses to {len(numbers):,} distinct keys"
    if write_ratio:
        about += f", {write_ratio:.0%} of them turned into updates"
    return Plan(
        name=name, about=about, records=len(numbers), kinds=kinds, keys=keys,
        latest=False, repeats=False,
    )  # fmt: skip
