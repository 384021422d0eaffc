"""Random schedules of requests of several processes over one table, played on a manual clock.

Each process is a whole handle (``engine_races``) on a bus that delays what is told, loses it when
it is cut (and says so within its bound), refuses senders for a while; and any process may die at
any step of a write. Whenever nobody writes, nothing can land any more and the bus has brought what
it carries, every item and page that any process keeps must be what the table says.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import ClientError
from engine_races import HOLD, LAG, SCHEMA, TABLE, Course, Lost

from cachekit.core.notes import Note, NoteKind
from cachekit.dax import Dax
from cachekit.dax.settings import Settings
from cachekit.dax.writes import WriteStep
from cachekit.errors import BackendUnavailable
from cachekit.protocols import Ears
from cachekit.runtime import Runtime, drive

BOUND = 1.0
SLOW = 1.5  # the longest that a note is on its way


class Bus:
    """What one process hears: in order, late, and cut at times."""

    bound = BOUND
    coarse = False

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.ears: Ears | None = None
        self.coming: deque[tuple[float, Note]] = deque()
        self.cut_at: float | None = None
        self.since = -1.0  # when it joined

    def listen(self, ears: Ears) -> Callable[[], None]:
        self.ears = ears
        self.join()
        return lambda: None

    def join(self) -> None:
        self.cut_at, self.since = None, self.clock()
        if self.ears is not None:
            self.ears.joined()

    def cut(self) -> None:
        self.cut_at = self.clock()
        self.since = -1.0

    def send(self, note: Note, at: float) -> None:
        if self.ears is not None and self.cut_at is None:
            last = self.coming[-1][0] if self.coming else at
            self.coming.append((max(at, last), note))

    def step(self, *, all_of_it: bool = False) -> None:
        """Bring what is due; after a cut, say so in time."""
        if self.cut_at is not None:
            if self.coming or all_of_it or self.clock() >= self.cut_at + BOUND:
                self.coming.clear()  # never before it is said that they may be missing
                if self.ears is not None:
                    self.ears.lost()
            return
        while self.coming and (all_of_it or self.coming[0][0] <= self.clock()):
            assert self.ears is not None
            self.ears.heard([self.coming.popleft()[1]])


class Carrier:
    """The far tier and the cache of one process, as the fleet uses them."""

    def __init__(self, world: Fleet, number: int) -> None:
        self.world = world
        self.sender = number.to_bytes(8, "big")
        self.senders = {self.sender}
        self.bus = Bus(world.clock)
        self.away = False
        self.owed: list[str] = []
        self.parts = SimpleNamespace(
            far=self,
            coherence=SimpleNamespace(bus=self.bus, bound=BOUND),
            runtime=Runtime(clock=world.clock),
            invalidator=SimpleNamespace(
                postpone=lambda names: self.owed.extend(name for _, name in names),
                withdraw=self._withdraw,
            ),
        )

    def _withdraw(self, names: Sequence[tuple[str, str]]) -> None:
        gone = {name for _, name in names}
        self.owed = [name for name in self.owed if name not in gone]

    def deadline(self, _: Any) -> None:
        return None

    async def void(self, _: Any, names: Sequence[str], __: Any) -> None:
        if self.away:
            raise BackendUnavailable("away")
        self.publish(names)

    def publish(self, names: Sequence[str]) -> None:
        for name in names:
            note = Note(NoteKind.KEY, name, self.sender)
            for other in self.world.carriers:
                if other is not self:
                    late = self.world.draw.random() * self.world.slow
                    other.bus.send(note, self.world.clock() + late)

    def back(self) -> None:
        self.away = False
        owed, self.owed = self.owed, []
        self.publish(owed)


class Process(Course):
    """One process of the fleet; its clock, table and chance are the fleet's."""

    def __init__(self, fleet: Fleet, number: int, **options: Any) -> None:
        self.fleet = fleet
        self.draw, self.clock, self.source = fleet.draw, fleet.clock, fleet.source
        self.carrier = Carrier(fleet, number)
        settings = Settings.make(
            **{"settle": LAG, "quarantine": HOLD, "item_ttl": None, "query_ttl": None,
               "negative_ttl": None, "cache": self.carrier, **options}
        )  # fmt: skip
        self.dax = Dax(settings, runtime=Runtime(clock=self.clock))
        self.store, self.engine = self.dax._store, self.dax._engine
        self.scope = self.store.scope("place", "somebody")
        state = self.scope.table(TABLE)
        assert state is not None
        self.state = state
        self.engine._learned(state, SCHEMA)
        self.writing = 0
        self.wrong: list[str] = []
        self.kept = 0

    def request(self, operation: str, params: dict[str, Any]) -> Iterator[None]:
        step = self.engine._step(self.scope, operation, params, plain=False)
        assert step is not None
        if not isinstance(step, WriteStep):
            yield from self.course(step, operation)
            return
        self.writing += 1
        threads = self.dax._runtime.threads
        yield
        mark = drive(self.engine.announce(threads, step, operation))
        yield
        step.sent.request = {"body": json.dumps(step.params)}
        try:
            response = self.source.serve(operation, step.params)
        except (ClientError, Lost) as error:
            yield
            step.failed(error)
        else:
            yield
            step.landed(response)
        yield
        if mark is not None:
            drive(self.engine.conclude(threads, mark, step, operation))
        self.writing -= 1

    def trusted(self) -> bool:
        """Whether it has been on the bus for so long that it has heard of all that can land."""
        bus = self.carrier.bus
        return bus.cut_at is None and self.clock() - bus.since > 2 * HOLD + BOUND


class Fleet(Course):
    """One schedule of several processes."""

    def __init__(
        self,
        seed: int,
        processes: int = 2,
        *,
        slow: float = SLOW,
        deaths: float = 0.03,
        cuts: float = 0.02,
        **options: Any,
    ) -> None:
        super().__init__(seed)
        self.deaths, self.cuts = deaths, cuts
        self.dax.uninstall()
        self.slow = slow
        self.options = options
        self.numbers = 0
        self.processes: list[Process] = []
        for _ in range(processes):
            self.processes.append(self.started())

    @property
    def carriers(self) -> list[Carrier]:
        return [process.carrier for process in self.processes]

    def started(self) -> Process:
        self.numbers += 1
        return Process(self, self.numbers, **self.options)

    def play(self, requests: int) -> None:
        running: list[tuple[Process, Iterator[None]]] = []
        left = requests
        while left or running:
            if left and (not running or (len(running) < 5 and self.draw.random() < 0.5)):
                left -= 1
                process = self.draw.choice(self.processes)
                running.append((process, process.request(*self.drawn())))
            process, mover = one = self.draw.choice(running)
            if next(mover, self) is self:
                running.remove(one)
            elif self.draw.random() < self.deaths:
                running = [each for each in running if each[0] is not process]
                self.die(process)
            self.fail()
            if self.draw.random() < 0.5:
                self.clock.advance(self.draw.random() * self.draw.choice((0.1, 0.5, 4.0)))
            self.source.land()
            self.look()
        self.rest()

    def die(self, process: Process) -> None:
        self.wrong += process.wrong
        self.kept += process.kept
        successor = self.started()
        # As with a replay log: what it could not tell is told by the next one. Without a log
        # nobody is told, which is a limit that is stated.
        successor.carrier.owed = process.carrier.owed
        successor.carrier.away = process.carrier.away
        self.processes[self.processes.index(process)] = successor
        process.dax.uninstall()

    def fail(self) -> None:
        """Cuts and refusals come and go; what is due is brought."""
        for carrier in self.carriers:
            chance = self.draw.random()
            if chance < self.cuts and carrier.bus.cut_at is None:
                carrier.bus.cut()
            elif self.cuts < chance < 2 * self.cuts and not carrier.away:
                carrier.away = True
            elif chance < 0.2:
                if carrier.bus.cut_at is not None:
                    carrier.bus.step(all_of_it=True)
                    carrier.bus.join()
                if carrier.away:
                    carrier.back()
            carrier.bus.step()

    def rest(self) -> None:
        """All heals, all is brought, and time passes."""
        self.source.land(all_of_it=True)
        for carrier in self.carriers:
            if carrier.away:
                carrier.back()
        for carrier in self.carriers:
            carrier.bus.step(all_of_it=True)
            if carrier.bus.cut_at is not None:
                carrier.bus.join()
        self.clock.advance(LAG + 2 * HOLD + 2 * BOUND)
        self.look()
        for process in self.processes:
            if process.dax.stats()["faults"]:
                self.wrong.append("a fault of the cache")
            self.wrong += process.wrong
            self.kept += process.kept
            process.dax.uninstall()

    def look(self) -> None:
        if self.source.landing or any(process.writing for process in self.processes):
            return
        if any(each.owed for each in self.carriers):
            return
        for process in self.processes:
            if process.trusted() and not process.carrier.bus.coming:
                process.look()


def stale_fleets(seeds: range, requests: int = 24, **options: Any) -> tuple[list[str], int]:
    """What was wrong in all these schedules, and how often something was kept at rest."""
    wrong: list[str] = []
    kept = 0
    for seed in seeds:
        fleet = Fleet(seed, **options)
        copy_context().run(fleet.play, requests)  # who dies leaves what it leads behind
        wrong += [f"seed {seed}: {each}" for each in fleet.wrong]
        kept += fleet.kept
    return wrong, kept


def catches(seeds: range, **options: Any) -> bool:
    """Whether one of these schedules finds something wrong."""
    return any(stale_fleets(range(seed, seed + 1), **options)[0] for seed in seeds)
