"""P08: whatever error a Redis server answers, the caller gets the value, and hits come back.
P09: so it is while data, scripts and connections are dropped, masters change and slots move."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis
from callers import WORLDS, Caller
from erring import Erring
from plights import REAL, USER, free_port, told, wait_for
from topologies import Cluster, Sentinels

from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server

BOTH = pytest.mark.parametrize("world", WORLDS)

# -- errors of a scripted server, each at any step of a call -----------------------------------

TEXTS = {
    "LOADING": "LOADING Redis is loading the dataset in memory",
    "READONLY": "READONLY You can't write against a read only replica.",
    "OOM": "OOM command not allowed when used memory > 'maxmemory'.",
    "NOSCRIPT": "NOSCRIPT No matching script. Please use EVAL.",
    "BUSY": "BUSY Redis is busy running a script. You can only call SCRIPT KILL.",
    "MASTERDOWN": "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is 'no'.",
    "CLUSTERDOWN": "CLUSTERDOWN The cluster is down",
    "NOAUTH": "NOAUTH Authentication required.",
    "NOPERM": "NOPERM this user has no permissions to run the 'mget' command",
    "WRONGTYPE": "WRONGTYPE Operation against a key holding the wrong kind of value",
    "MISCONF": "MISCONF Redis is configured to save RDB snapshots, but can't persist on disk.",
    "TRYAGAIN": "TRYAGAIN Multiple keys request during rehashing of slot",
    "MOVED": "MOVED 1 127.0.0.1:{port}",
    "MOVED away": "MOVED 1 127.0.0.1:1",
    "MOVED nowhere": "MOVED",
    "ASK": "ASK 1 127.0.0.1:{port}",
    "ASK away": "ASK 1 127.0.0.1:1",
    "too many clients": "ERR max number of clients reached",
    "unheard of": "\xff what's this?",
}
SCRIPTS = (b"EVALSHA", b"EVAL")
STEPS: dict[str, Callable[[list[bytes]], bool]] = {
    "everything": lambda command: True,
    "reads": lambda command: command[0] == b"MGET",
    "scripts": lambda command: command[0] in SCRIPTS,
    "all but reads": lambda command: command[0] != b"MGET",
}


@pytest.fixture(scope="module")
def behind() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


# What a cluster's client acts on; its pauses between redirections make these slow.
OF_A_CLUSTER = {"READONLY", "CLUSTERDOWN", "TRYAGAIN"} | {
    text for text in TEXTS if text.startswith(("MOVED", "ASK"))
}
CASES = [("redis", text) for text in TEXTS]
CASES += [("redis+cluster", text) for text in sorted(OF_A_CLUSTER)]


@BOTH
@pytest.mark.parametrize(("scheme", "text"), CASES)
def test_p08_an_error_reply_at_any_step_costs_no_caller_his_value(
    behind: RedisServer, world: str, scheme: str, text: str
) -> None:
    steps = STEPS if scheme == "redis" else {"everything": STEPS["everything"]}
    with Erring(behind.port) as server:
        reply = b"-" + TEXTS[text].format(port=server.port).encode("latin-1") + b"\r\n"
        url = f"{scheme}://127.0.0.1:{server.port}"
        caller = Caller(url, world, namespace=f"{world}{scheme}{text}", timeout=0.5)
        for at, chosen in enumerate(steps.values()):
            caller.call([5 * at])  # warm: later errors meet entries too
            before = server.count

            def choose(command: list[bytes], chosen: Callable[..., bool] = chosen) -> bytes | None:
                return reply if chosen(command) else None

            server.choose = choose
            caller.call([5 * at], writes=scheme == "redis")
            if scheme == "redis":
                caller.call([5 * at + 1])
            assert server.count > before
            server.choose = lambda command: None
        assert caller.problems == []
        assert caller.events["backend_errors"] >= len(steps)
        caller.hits([0, 7])
        caller.cache.close()


# -- errors of real servers --------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("plight", REAL)
def test_p08_a_real_server_that_will_not_serve_costs_no_caller_his_value(
    world: str, plight: str
) -> None:
    bring_about, command, expected = REAL[plight]
    options = ["--user", *USER]
    if plight == "CLUSTERDOWN":
        bus = free_port()
        options += ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
        options += ["--cluster-node-timeout", "500"]
    with RedisServer(options) as server, redis.Redis(port=server.port) as control:
        if plight == "CLUSTERDOWN":
            control.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            wait_for(lambda: control.cluster("info")["cluster_state"] == "ok")
        scheme = "redis+cluster" if plight == "CLUSTERDOWN" else "redis"
        user = "" if plight == "NOAUTH" else "app:pw@"
        caller = Caller(f"{scheme}://{user}127.0.0.1:{server.port}", world)
        caller.call([0, 5])
        assert caller.hits([0, 5]) < 10
        with bring_about(server, control):
            assert expected in told(server, command, bool(user))
            caller.call([0, 5, 10])
            assert expected in told(server, command, bool(user))  # all the time
        assert caller.problems == []
        if plight not in ("WRONGTYPE", "MASTERDOWN"):
            assert caller.events["backend_errors"] >= 1
        assert caller.hits([0, 5, 10]) < 10
        caller.cache.close()


# -- P09 ---------------------------------------------------------------------------------------


@contextmanager
def _under_load(caller: Caller) -> Iterator[None]:
    """A crowd of 8 threads or 50 tasks calls all the while; it had no problem at the end."""
    caller.call(range(5))
    end = threading.Event()
    crowd = caller.crowd(8 if caller.world == "plain" else 50, end)
    try:
        wait_for_hits(caller)
        yield
    finally:
        end.set()
        crowd.join(60)
    assert not crowd.is_alive()
    assert caller.problems == []
    assert caller.calls > 200


DISTURBANCES = (
    ("FLUSHALL",),
    ("SCRIPT", "FLUSH"),
    ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),
    ("CLIENT", "KILL", "TYPE", "pubsub"),
)


@BOTH
def test_p09_flushes_and_killed_connections_under_load_reach_no_caller(
    behind: RedisServer, world: str
) -> None:
    caller = Caller(behind.url, world, namespace=f"p09-{world}")
    with redis.Redis(port=behind.port) as control, _under_load(caller):
        control.config_resetstat()
        for turn in range(60):
            control.execute_command(*DISTURBANCES[turn % len(DISTURBANCES)])
            time.sleep(0.015)
        errors = control.info("errorstats")
    assert errors.get("errorstat_NOSCRIPT", {"count": 0})["count"] >= 5  # the flushes were felt
    assert caller.hits(range(20)) < 10
    caller.cache.close()


@BOTH
def test_p09_planned_and_crash_failovers_by_sentinel_reach_no_caller(world: str) -> None:
    with Sentinels() as topology:
        caller = Caller(topology.url, world, timeout=0.25)
        with _under_load(caller):
            first = topology.master
            topology.servers[first].kill()
            topology.wait_for_another_than(first)
            assert caller.events["backend_errors"] >= 1
            wait_for_hits(caller, 15)
            topology.servers[first].start()
            second = topology.master
            wait_for(lambda: topology.sentinel.sentinel_failover("main"), 20)
            topology.wait_for_another_than(second)
            wait_for_hits(caller, 15)
        assert caller.hits(range(20)) < 10
        caller.cache.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@BOTH
def test_p09_slots_that_move_under_load_reach_no_caller(cluster: Cluster, world: str) -> None:
    caller = Caller(cluster.url, world, namespace=f"slots-{world}", timeout=5.0)
    with _under_load(caller):
        time.sleep(0.3)
        slots = cluster.slots(0)
        moved = [cluster.move(slot, 0, 1) for slot in slots]
        assert sum(moved) >= 5
        assert not set(slots) & set(cluster.slots(0))
    assert caller.events["backend_errors"] == 0  # redirections were followed
    assert caller.hits(range(20)) < 10
    caller.cache.close()


@BOTH
def test_p09_a_cluster_that_loses_a_node_costs_only_hits(cluster: Cluster, world: str) -> None:
    caller = Caller(cluster.url, world, namespace=f"node-{world}")
    asked = cluster.clients[1]
    with _under_load(caller):
        cluster.nodes[2].kill()
        wait_for(lambda: asked.cluster("info")["cluster_slots_fail"] != "0", 20)
        wait_for_hits(caller)  # of the slots of the others
        assert caller.events["backend_errors"] >= 1
        cluster.nodes[2].start()
        wait_for(lambda: asked.cluster("info")["cluster_slots_fail"] == "0", 20)
    assert caller.hits(range(20)) < 10
    caller.cache.close()


def wait_for_hits(caller: Caller, seconds: float = 10) -> None:
    before = caller.cache.stats().far_hits
    wait_for(lambda: caller.cache.stats().far_hits > before + 20, seconds)
