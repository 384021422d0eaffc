"""A private Redis Cluster of three nodes whose nodes may be killed, and where its keys lie."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest
import redis
from redis_faults import free_port

from cachekit.testing.servers import RedisServer


def within(seconds: float, is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_whole(client: redis.Redis) -> bool:
    told = client.cluster("info")
    return (told["cluster_state"], told["cluster_slots_ok"]) == ("ok", "16384")


def are_whole(nodes: Sequence[RedisServer]) -> bool:
    """Whether each of them says so, and that it hears from all others."""
    for node in nodes:
        with redis.Redis(port=node.port) as client:
            if not is_whole(client):
                return False
            if any("fail" in seen["flags"] for seen in client.cluster("nodes").values()):
                return False
    return True


def node_options() -> list[str]:
    # The bus's default port, the node's + 10000, may lie beyond 65535.
    options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--save", ""]
    options += ["--cluster-require-full-coverage", "no", "--cluster-node-timeout", "600"]
    return [*options, "--repl-diskless-sync-delay", "0"]


@contextmanager
def three_nodes() -> Iterator[list[RedisServer]]:
    if not shutil.which("redis-cli"):
        pytest.skip("no redis-cli on PATH to put a cluster together")
    with ExitStack() as stack:
        nodes = [stack.enter_context(RedisServer(node_options())) for _ in range(3)]
        addresses = [f"127.0.0.1:{node.port}" for node in nodes]
        subprocess.run(
            ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        within(30, lambda: are_whole(nodes))
        yield nodes


def node_of(nodes: Sequence[RedisServer], name: bytes) -> int:
    """Which node has the slot of this physical key, by the nodes' own word."""
    with redis.Redis(port=nodes[0].port) as client:
        slot = client.cluster("keyslot", name)
        for first, last, master, *_ in client.execute_command("CLUSTER SLOTS"):
            if first <= slot <= last:
                return [node.port for node in nodes].index(master[1])
    raise AssertionError("no node has the slot")


@contextmanager
def killed(nodes: Sequence[RedisServer], lost: int) -> Iterator[None]:
    """A node is dead (kill -9) for a while; whole again afterwards, its memory empty."""
    nodes[lost].kill()
    try:
        yield
    finally:
        nodes[lost].start()
        within(20, lambda: are_whole(nodes))
