"""One schedule: who does what, what befalls them, in which order; and what must hold at its end."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import actors
import decorated
from oracle import Demand, Oracle, Read, Register
from world import Actor, Stuck

MOST_STEPS = 20_000
PLAYS = [*actors.PLAYS, *decorated.PLAYS]
FAULTS = ("time", "time", "cancel", "cancel", "crash", "evict", "evict", "away", "flush")


class Play:
    """One schedule: who does what on which keys, what befalls them, in which order."""

    def __init__(self, stand: Any, seed: int) -> None:
        self.stand = stand
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.scheduler = stand.scheduler
        self.scheduler.rng = rng
        self.scheduler.trace, self.scheduler.steps, self.scheduler.calm = [], 0, False
        self.scheduler.on_end = self.ended
        self.counts = stand.counts
        self.oracle = Oracle(self.scheduler.clock, stand.bound, self.tags_of, stand.heard_by_all)
        self.source = actors.Source(self)
        self.tagging = rng.choice(("none", "declared", "declared", "discovered"))
        self.tagging = stand.bias.get("tagging", self.tagging)
        self.drops = self.tagging == "declared" and rng.random() < 0.3
        self.grace = stand.bias.get("grace", rng.random() < 0.5)
        self.reader = rng.choice(actors.READERS)
        self.number = 0
        self.ids = [f"{seed}.{i}" for i in range(stand.bias.get("keys", rng.choice((1, 1, 2))))]
        self.registers = {}
        for id in self.ids:
            key = self.source.key(id)
            self.registers[key] = self.oracle.registers[key] = Register(key, self.fresh(id))
        self.landings: list[actors.Write] = []
        self.saves: list[actors.Save] = []
        self.grave: list[Actor] = []
        self.buried: list[Any] = []
        faulty = rng.random() < 0.6
        self.load_fails = 0.05 if faulty else 0.0
        self.write_refused = 0.1 if faulty else 0.0
        self.write_silent = stand.bias.get("silent", 0.2 if faulty else 0.0)
        self.lost = rng.choice((0.0, 0.03, 0.1)) if faulty else 0.0
        self.fault_rate = rng.choice((0.01, 0.03, 0.1)) if faulty else 0.0
        # Swarm testing: fewer kinds of plays at once meet each other more often.
        wanted = stand.bias.get("plays")
        if wanted is None:
            many = rng.choice((3, 5, 8, len(PLAYS)))
            wanted = {p[2] for p in rng.sample(PLAYS, many)}
        self.plays = [p for p in PLAYS if p[2] in wanted or p[2] == "get"]
        self.fault_rate = stand.bias.get("rate", self.fault_rate)
        self.sticky = rng.choice((0.0, 0.5, 0.8))
        self.mortal = stand.ground.name != "embedded"
        # One server restart with older memory: when it is remembered, and when it comes.
        self.outages: list[tuple[int, str]] = []
        if stand.bias.get("restarts"):
            first = rng.randrange(5, 60)
            self.outages = [(first, "snapshot"), (first + rng.randrange(3, 90), "restart")]

    # -- names and values

    def fresh(self, id: str) -> tuple[int, str]:
        self.number += 1
        return self.number, f"{id}.{self.number % 2}"

    def tags(self, id: str, value: Any = None) -> list[str]:
        if self.tagging == "declared":
            return ["all", f"g:{id}"]
        if self.tagging == "discovered":
            return [f"d:{id}.0", f"d:{id}.1"] if value is None else decorated.discover(value)
        return []

    def tags_of(self, key: str, value: Any) -> list[str]:
        if self.tagging == "discovered":
            return decorated.discover(value)
        return self.tags(key[3:-1])

    def excuses(self, demand: Demand, read: Read, actor: Actor) -> bool:
        """A process that could not ask the far tier knows its own invalidations only: it may keep
        what it loaded for the bound, and share a load (stated). ``push``: the bound begins to
        count when the far tier is away."""
        if demand.process is read.process or not read.process.fault_tick:
            return False
        if not self.stand.near:
            return False
        trusted = self.scheduler.now < demand.at + self.stand.near - self.stand.bound
        excused = actor.joined or trusted
        self.counts["excused: far tier away"] += excused
        return excused

    # -- the run

    def run(self) -> None:
        rng, stand = self.rng, self.stand
        for process in stand.processes:
            process.faults.lost = self.lost
            process.offset = rng.choice((0.0, 0.0, 1.0, -1.0, 600.0, -600.0))
        if stand.ground.name in ("embedded", "sqlite"):
            for process in stand.processes:  # one host: one wall clock
                process.offset = 0.0
        many = rng.randrange(1, len(stand.processes) + 1)
        for number in range(rng.randrange(2, 6)):
            self.cast(number, rng.randrange(many))
        self.loop(faults=True)
        for _, what in self.outages:
            self.befall(what)
        self.outages.clear()
        self.quiet()

    def cast(self, number: int, at: int) -> None:
        rng, process = self.rng, self.stand.processes[at]
        world = process.runtime.worlds()[rng.random() < 0.3]
        weights = [weight for weight, *_ in self.plays]
        scenes = []
        for _, verb, how, most in rng.choices(self.plays, weights, k=rng.randrange(1, 5)):
            ids = list(self.ids)
            rng.shuffle(ids)
            scenes.append((verb, how, ids[:most]))

        async def script() -> None:
            for verb, how, ids in scenes:
                actor.faults.clear()
                actor.joined = False
                self.counts[f"play: {how}"] += 1
                self.scheduler.trace.append((actor.name, f"> {how} {' '.join(ids)}"))
                try:
                    await verb(self, process, world, how, ids)
                except asyncio.CancelledError:
                    if not actor.cancelled:
                        raise
                actor.play = None

        actor = Actor(f"{process.name}.{number}", process, script())
        actor.world = world
        self.scheduler.start(actor)

    def loop(self, *, faults: bool) -> None:
        scheduler, rng = self.scheduler, self.rng
        last: Actor | None = None
        while True:
            if faults:
                if rng.random() < self.fault_rate:
                    self.befall(rng.choice(self.stand.bias.get("faults", FAULTS)))
                if self.outages and scheduler.steps >= self.outages[0][0]:
                    self.befall(self.outages.pop(0)[1])
            movable = scheduler.movable()
            if self.landings and (not movable or rng.random() < 0.15):
                self.land(rng.randrange(len(self.landings)))
            elif movable:
                if len(movable) == 1:
                    last = movable[0]
                elif last not in movable or rng.random() >= self.sticky:
                    last = movable[int(rng.random() * len(movable))]
                scheduler.move(last)
            elif not scheduler.wake_next():
                break
            if scheduler.steps > MOST_STEPS:
                raise Stuck("the actors move for ever")
        if scheduler.actors:
            waiting = [(a.name, a.waiting.label if a.waiting else "") for a in scheduler.actors]
            raise Stuck(f"nobody can move: {waiting}")

    def ended(self, actor: Actor, error: BaseException | None) -> None:
        self.oracle.reading.discard(actor)
        if isinstance(error, asyncio.CancelledError) and actor.cancelled:
            return
        if error is not None:
            raise error

    def land(self, number: int) -> None:
        write = self.landings.pop(number)
        save = write.save
        if save.end is not None and (self.scheduler.now >= save.until or self.rng.random() < 0.3):
            self.counts["write never landed"] += 1
            return
        write.version = self.registers[write.key].land(write.value)
        write.landed = True
        self.scheduler.trace.append(("source", f"{write.key} is {write.value}"))
        if save.end is not None:
            self.counts["landed late, block standing" if save.stands() else "landed late"] += 1
            save.claim(write, late=True)

    # -- faults

    def befall(self, what: str) -> None:
        done = getattr(self, f"_{what}")()
        if done:
            self.counts[f"fault: {what}"] += 1
            self.scheduler.trace.append(("fault", f"{what} {done}"))

    def _time(self) -> str:
        seconds = self.rng.choice((0.25, 2.0, 5.0, 17.0, 40.0))
        self.scheduler.advance(seconds)
        return f"+{seconds}"

    def _cancel(self) -> str:
        able = [
            a for a in self.scheduler.actors if not (a.background or a.cancelled) and a.waiting
        ] or [a for a in self.scheduler.actors if not (a.background or a.cancelled)]
        if not able:
            return ""
        actor = self.rng.choice(able)
        actor.cancelled = True
        actor.faults.append(actor.at.partition(" ")[0])  # that step may not have taken place
        self.scheduler.move(actor, asyncio.CancelledError())
        return actor.name

    def _crash(self) -> str:
        if not self.mortal or self.rng.random() < 0.5:
            return ""
        number = self.rng.randrange(len(self.stand.processes))
        process = self.stand.processes[number]
        process.dead = True
        self.buried.append(process)
        for actor in [a for a in self.scheduler.actors if a.process is process]:
            self.scheduler.actors.remove(actor)
            self.grave.append(actor)
            self.oracle.reading.discard(actor)
            if isinstance(actor.play, actors.Save) and actor.play.end is None:
                actor.play.finish("crashed")
        self.oracle.reading -= {
            r for r in self.oracle.reading if isinstance(r, Read) and r.process is process
        }
        self.oracle.drop_owed(process)
        new = self.stand.processes[number] = self.stand.process(number)
        new.name = f"{process.name.partition('~')[0]}~{len(self.buried)}"
        new.offset, new.faults.lost = process.offset, self.lost
        self.cast(100 + len(self.buried), number)
        return process.name

    def _evict(self) -> str:
        things = self.stand.ground.things()
        if not things:
            return ""
        thing = self.rng.choice(things)
        if thing.blocks:
            if any(write.save.end is not None for write in self.landings):
                return ""  # it guards a write that may still land
            self.unguard()
        thing.take()
        return thing.name

    def _flush(self) -> str:
        if not self.mortal or self.rng.random() < 0.5:
            return ""
        self.unguard()
        self.stand.ground.flush()
        return "all"

    def _away(self) -> str:
        process = self.rng.choice(self.stand.processes)
        process.faults.away = not process.faults.away
        return f"{process.name} {process.faults.away}"

    def _snapshot(self) -> str:
        self.stand.ground.snapshot()
        return "all"

    def _restart(self) -> str:
        """The server comes back with what it remembers: blocks that were put since are gone."""
        self.unguard()
        self.stand.ground.restart()
        return "the server"

    def unguard(self) -> None:
        for save in self.saves:
            save.guarded = False

    # -- the end

    def quiet(self) -> None:
        """All faults over: every process reads every key, now and once all leases have ended."""
        for process in self.stand.processes:
            process.faults.away, process.faults.lost = False, 0.0
        self.load_fails, self.scheduler.calm = 0.0, True
        self.loop(faults=False)
        for later in (False, True):
            if later:
                self.scheduler.advance(actors.WRITE_LEASE + 1.0)
                if not self.stand.ground.timed:
                    for thing in self.stand.ground.things():
                        if thing.blocks:
                            thing.take()
            everybody = self.stand.processes
            if later and self.stand.options.get("coherence") == "strict":
                everybody = [self.rng.choice(everybody)]  # who keeps nothing sees what all see
            for process in everybody:
                for id in self.ids:
                    world = self.rng.choice(process.runtime.worlds())
                    coro = actors.read(self, process, world, "get", [id])
                    self.scheduler.start(Actor(f"{process.name}.quiet", process, coro))
                    self.loop(faults=False)
        for process in self.stand.processes:
            assert not process.owes(), f"{process.name} still owes an invalidation"
            for world in process.runtime.worlds():
                assert not len(world.flights), f"{process.name} has a flight that never landed"

    def clean(self) -> None:
        """Let what was left behind end where it can touch nothing."""
        self.grave += self.scheduler.actors
        self.scheduler.actors = []
        for process in [*self.stand.processes, *self.buried]:
            process.faults.over = True
        while self.grave:
            actor = self.grave.pop()
            try:
                actor.context.run(actor.coro.close)
            except BaseException:
                continue
            finally:
                self.grave += self.scheduler.actors  # what its own end started
                self.scheduler.actors = []
        for process in [*self.stand.processes, *self.buried]:
            process.rest()
        self.stand.spare += self.buried
        self.stand.ground.reset()
