"""Private Redis topologies: a master with a replica under a Sentinel, and a cluster of three."""

from __future__ import annotations

import contextlib
import subprocess
import time
from contextlib import ExitStack
from typing import Self

import redis
from plights import free_port, wait_for

from cachekit.testing.servers import HOST, RedisServer, redis_program

SLOTS = 16384


class Sentinels(contextlib.AbstractContextManager["Sentinels"]):
    """A master, its replica, and one Sentinel whose word is enough."""

    def __enter__(self) -> Self:
        self._stack = stack = ExitStack()
        with contextlib.ExitStack() as undo:
            undo.push(stack)
            quick = ("--repl-diskless-sync-delay", "0")
            first = stack.enter_context(RedisServer(quick))
            of = ("--replicaof", HOST, str(first.port))
            second = stack.enter_context(RedisServer((*quick, *of)))
            self.servers = {server.port: server for server in (first, second)}
            replica = stack.enter_context(redis.Redis(port=second.port))
            wait_for(lambda: replica.info("replication")["master_link_status"] == "up")
            port = free_port()
            file = first.folder / "sentinel.conf"
            file.write_text(
                f"port {port}\nbind {HOST}\ndir {first.folder}\n"
                f"sentinel monitor main {HOST} {first.port} 1\n"
                "sentinel down-after-milliseconds main 400\n"
                "sentinel failover-timeout main 2000\n"
            )
            process = stack.enter_context(
                subprocess.Popen(
                    [redis_program(), str(file), "--sentinel"], stdout=subprocess.DEVNULL
                )
            )
            stack.callback(process.terminate)
            self.sentinel = stack.enter_context(redis.Redis(port=port))
            wait_for(lambda: self.sentinel.sentinel_master("main")["num-slaves"] == 1)
            # It waits four of these before it makes a replica of an old master: 8 s.
            self.sentinel.execute_command("SENTINEL", "DEBUG", "PUBLISH-PERIOD", "100")
            self.sentinel.execute_command("SENTINEL", "DEBUG", "INFO-PERIOD", "300")
            self.url = f"redis+sentinel://{HOST}:{port}/main"
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def master(self) -> int:
        """The port of the master that the Sentinel names."""
        return int(self.sentinel.sentinel_get_master_addr_by_name("main")[1])

    def wait_for_another_than(self, port: int) -> None:
        def is_there() -> bool:
            named = self.master
            with redis.Redis(port=named) as client:
                return named != port and client.role()[0] == b"master"

        wait_for(is_there, 20)


class Cluster(contextlib.AbstractContextManager["Cluster"]):
    """Three nodes without replicas; a node that is gone takes only its own slots with it."""

    def __enter__(self) -> Self:
        self._stack = stack = ExitStack()
        with contextlib.ExitStack() as undo:
            undo.push(stack)
            self.nodes: list[RedisServer] = []
            self.clients: list[redis.Redis] = []
            buses = [free_port() for _ in range(3)]
            for i, bus in enumerate(buses):
                # the default bus port, port + 10000, may lie beyond 65535
                options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
                options += ["--cluster-require-full-coverage", "no"]
                options += ["--cluster-node-timeout", "1000"]
                node = stack.enter_context(RedisServer(options))
                client = stack.enter_context(redis.Redis(port=node.port))
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
                first, last = SLOTS * i // 3, SLOTS * (i + 1) // 3 - 1
                client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
                if i:
                    client.execute_command("CLUSTER MEET", HOST, self.nodes[0].port, buses[0])
                self.nodes.append(node)
                self.clients.append(client)
            self.ids = [client.cluster("myid").decode() for client in self.clients]
            wait_for(lambda: all(self._is_whole(client) for client in self.clients), 20)
            self.url = f"redis+cluster://{HOST}:{self.nodes[0].port},{HOST}:{self.nodes[1].port}"
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def _is_whole(client: redis.Redis) -> bool:
        told = client.cluster("info")
        return (told["cluster_state"], told["cluster_slots_ok"]) == ("ok", str(SLOTS))

    def slots(self, node: int) -> list[int]:
        """Those of the node that have keys."""
        found = set()
        for key in self.clients[node].scan_iter(count=1000):
            found.add(self.clients[node].cluster("keyslot", key))
        return sorted(found)

    def move(self, slot: int, source: int, target: int) -> int:
        """As ``redis-cli --cluster reshard`` does, key by key and slowly, so that many calls meet
        a slot whose keys lie in two places; how many keys went."""
        giver, taker = self.clients[source], self.clients[target]
        taker.cluster("setslot", slot, "importing", self.ids[source])
        giver.cluster("setslot", slot, "migrating", self.ids[target])
        count = 0
        while keys := giver.execute_command("CLUSTER GETKEYSINSLOT", slot, 1):
            port = self.nodes[target].port
            giver.execute_command("MIGRATE", HOST, port, "", 0, 1000, "REPLACE", "KEYS", *keys)
            count += 1
            time.sleep(0.01)
        for client in (taker, giver):
            client.cluster("setslot", slot, "node", self.ids[target])
        return count
