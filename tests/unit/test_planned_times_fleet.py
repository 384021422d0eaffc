"""Processes that share a far tier carry out each planned time once, whoever dies or fails."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from schedule_stage import Stage, wait_until

from cachekit.errors import ConfigurationError
from cachekit.schedules import Schedule
from cachekit.schedules import scheduler as scheduling
from cachekit.testing.servers import RedisServer

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def fleet(redis_server: RedisServer) -> Iterator[Callable[[], Stage]]:
    namespace = f"fleet-{uuid4().hex[:8]}"
    made: list[Stage] = []

    def join() -> Stage:
        made.append(Stage(redis_server.url, namespace=namespace))
        return made[-1]

    yield join
    for stage in made:
        stage.scheduler.close()
        stage.cache.close()


@pytest.mark.server
def test_of_two_processes_one_fires_and_both_see_it(fleet: Callable[[], Stage]) -> None:
    a, b = fleet(), fleet()
    for stage in (a, b):
        stage.scheduler.add(keys=["k"], every=60)
    for planned in range(1, 4):
        a.cache.set("k", planned)
        assert (a.turn(60), b.turn(60)) == (1, 0)
        assert a.cache.get("k") is None
        assert b.turn() == 0
    assert b.turn(60) == 1
    assert a.turn(60) == 0


@pytest.mark.server
@pytest.mark.parametrize("cleared", [False, True])
def test_who_looks_after_the_claim_ended_sees_that_it_was_carried_out(
    fleet: Callable[[], Stage], monkeypatch: pytest.MonkeyPatch, cleared: bool
) -> None:
    monkeypatch.setattr(scheduling, "CLAIM_LEASE", 0.2)
    a, b = fleet(), fleet()
    for stage in (a, b):
        stage.scheduler.add(everything=True, every=60, name="all")
    assert a.turn(60) == 1
    if cleared:
        a.cache.clear()
    time.sleep(0.4)
    assert b.turn(60) == 0
    assert b.turn(60) == 1


@pytest.mark.server
def test_a_winner_that_fails_leaves_the_planned_time_to_the_others(
    fleet: Callable[[], Stage],
) -> None:
    a, b = fleet(), fleet()
    for stage in (a, b):
        stage.scheduler.add(keys=["k"], every=600)
    a.failing = 1
    assert a.turn(600) == 0
    b.wall += 600
    wait_until(lambda: b.turn() == 1, 3)  # the claim is given back in the background
    assert b.turn() == 0
    time.sleep(1.0)
    assert a.turn() == 0


@pytest.mark.server
def test_while_the_far_tier_is_away_nothing_fires_and_afterwards_the_latest_does() -> None:
    with RedisServer() as server:
        stage = Stage(server.url, breaker_reset=0.2)
        stage.scheduler.add(keys=["k"], every=60)
        server.stop()
        assert stage.turn(60) == 0
        assert stage.turn(60) == 0
        assert stage.cache.stats().counts["schedule_failed"] >= 1
        server.start()
        wait_until(lambda: stage.turn() == 1, 10)
        assert stage.turn() == 0
        stage.scheduler.close()
        stage.cache.close()


@pytest.mark.server
def test_a_function_without_a_lasting_name_needs_one(fleet: Callable[[], Stage]) -> None:
    stage = fleet()
    with pytest.raises(ConfigurationError, match="name="):
        stage.scheduler.add(tags=lambda: ["t"], every=60)
    schedule = stage.scheduler.add(tags=lambda: ["t"], every=60, name="t")
    assert isinstance(schedule, Schedule)


WORKER = """
import sys, time
import cachekit
from cachekit.schedules import Scheduler, scheduler as scheduling

scheduling.CLAIM_LEASE = 3.0
url, namespace, period, dies = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4] == "dies"
cache = cachekit.Cache(url, namespace=namespace)

def invalidate(keys, tags, everything):
    print(f"fires {schedule._due // 1000}", flush=True)
    if dies:
        time.sleep(60)
    cache.invalidate(keys=keys)

scheduler = Scheduler(cache.parts, invalidate)
print("ready", flush=True)
sys.stdin.readline()
schedule = scheduler.add(keys=["k"], every=period, name="s")
sys.stdin.readline()
scheduler.close()
cache.close()
"""


class Worker:
    def __init__(self, url: str, namespace: str, period: float, does: str = "works") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, url, namespace, str(period), does],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )

    def line(self, timeout: float = 30.0) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], timeout)[0], "nothing was said"
        return self.process.stdout.readline().decode().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def fired(self) -> list[int]:
        told = self.process.communicate(timeout=20)[0].decode().split("\n")
        return [int(line.split()[1]) for line in told if line.startswith("fires")]

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.mark.server
def test_three_processes_fire_each_planned_time_once(redis_server: RedisServer) -> None:
    namespace = f"three-{uuid4().hex[:8]}"
    workers = [Worker(redis_server.url, namespace, 1.0) for _ in range(3)]
    try:
        for worker in workers:
            assert worker.line() == "ready"
        time.sleep(1.3 - time.time() % 1)  # all begin between two planned times
        for worker in workers:
            worker.go()
        time.sleep(3.5)
        for worker in workers:
            worker.go()
        fired = sorted(planned for worker in workers for planned in worker.fired())
    finally:
        for worker in workers:
            worker.kill()
    assert fired == sorted(set(fired))
    assert len(fired) >= 3


@pytest.mark.server
def test_a_winner_killed_before_it_invalidates_is_replaced_when_its_claim_ends(
    redis_server: RedisServer,
) -> None:
    namespace = f"killed-{uuid4().hex[:8]}"
    dying = Worker(redis_server.url, namespace, 2.0, "dies")
    survivor = Stage(redis_server.url, namespace=namespace)
    survivor.scheduler.add(keys=["k"], every=2, name="s")
    try:
        assert dying.line() == "ready"
        dying.go()
        claimed = int(dying.line().split()[1])
        dying.kill()
        # The same planned time, and no later one: this clock stands still from here on.
        survivor.wall = claimed + 0.5
        assert survivor.turn() == 0
        began = time.monotonic()
        wait_until(lambda: survivor.turn() == 1, 3.0 + 2)
        assert time.monotonic() - began > 1, "nobody held a claim"
    finally:
        dying.kill()
        survivor.scheduler.close()
        survivor.cache.close()
