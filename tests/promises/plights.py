"""Real servers brought to answer with errors, and back: context managers over a server."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import redis

from cachekit.testing.servers import RedisServer

USER = ("app", "on", ">pw", "~*", "&*", "+@all")


@contextmanager
def _oom(server: RedisServer, control: redis.Redis) -> Iterator[None]:
    control.config_set("maxmemory", 1)
    yield
    control.config_set("maxmemory", 0)


@contextmanager
def _readonly(server: RedisServer, control: redis.Redis) -> Iterator[None]:
    control.replicaof("127.0.0.1", 1)
    yield
    control.replicaof("NO", "ONE")


@contextmanager
def _masterdown(server: RedisServer, control: redis.Redis) -> Iterator[None]:
    control.config_set("replica-serve-stale-data", "no")
    with _readonly(server, control):
        yield


@contextmanager
def _noperm(server: RedisServer, control: redis.Redis) -> Iterator[None]:
    control.execute_command("ACL SETUSER", "app", "-@all", "+@connection")
    yield
    control.execute_command("ACL SETUSER", "app", "+@all")


@contextmanager
def _wrongpass(server: RedisServer, control: redis.Redis) -> Iterator[None]:
    control.execute_command("ACL DELUSER", "app")  # and its connections end
    yield
    control.execute_command("ACL SETUSER", *USER)


@contextmanager
def _noauth(server: RedisServer, control: redis.Redis) -> Iterator[None]:
    control.execute_command("ACL SETUSER", "default", "resetpass", ">other")
    control.client_kill_filter(_type="normal", skipme=True)
    yield
    control.execute_command("ACL SETUSER", "default", "nopass")


@contextmanager
def _wrongtype(server: RedisServer, control: redis.Redis) -> Iterator[None]:
    def all_are(kind: str) -> None:
        for name in control.scan_iter():
            control.delete(name)
            if kind == "list":
                control.lpush(name, "a list")
        control.lpush("list", "a list")

    all_are("list")
    yield
    all_are("gone")


@contextmanager
def _too_many(server: RedisServer, control: redis.Redis) -> Iterator[None]:
    control.config_set("maxclients", 1)
    control.client_kill_filter(_type="normal", skipme=True)
    yield
    control.config_set("maxclients", 100)


@contextmanager
def _misconf(server: RedisServer, control: redis.Redis) -> Iterator[None]:
    in_the_way = server.folder / "dump.rdb" / "a folder"
    in_the_way.mkdir(parents=True)
    control.config_set("save", "3600 1")
    control.set("dirty", 1)
    control.bgsave()
    wait_for(lambda: control.info("persistence")["rdb_last_bgsave_status"] == "err")
    yield
    control.config_set("save", "")


@contextmanager
def _busy(server: RedisServer, control: redis.Redis) -> Iterator[None]:
    control.config_set("busy-reply-threshold", 1)
    with socket.create_connection(("127.0.0.1", server.port)) as hog:
        hog.sendall(b'EVAL "while true do end" 0\r\n')
        wait_for(lambda: "BUSY" in told(server, "GET x"))
        yield
        control.script_kill()
        assert b"Script killed" in hog.recv(1000)


@contextmanager
def _loading(server: RedisServer, control: redis.Redis) -> Iterator[None]:
    with control.pipeline() as pipeline:
        for n in range(10_000):
            pipeline.set(f"ballast{n}", "x" * 100)
        pipeline.execute()
    control.save()
    server.kill()
    usual = server.options
    slow = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    server.options = (*usual, *slow)
    server.start()  # it answers INFO
    yield
    server.kill()
    server.options = usual
    server.start()


@contextmanager
def _clusterdown(server: RedisServer, control: redis.Redis) -> Iterator[None]:
    control.execute_command("CLUSTER DELSLOTSRANGE", 0, 16383)
    wait_for(lambda: "CLUSTERDOWN" in told(server, "GET x"))
    yield
    control.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
    wait_for(lambda: control.cluster("info")["cluster_state"] == "ok")


# How to bring it about, what shows it, and what that is answered with.
REAL: dict[str, tuple[Callable[..., AbstractContextManager[None]], str, str]] = {
    "OOM": (_oom, "SET x 1", "OOM"),
    "READONLY": (_readonly, "SET x 1", "READONLY"),
    "MASTERDOWN": (_masterdown, "GET x", "MASTERDOWN"),
    "NOPERM": (_noperm, "GET x", "NOPERM"),
    "NOAUTH": (_noauth, "GET x", "NOAUTH"),
    "WRONGPASS": (_wrongpass, "GET x", "WRONGPASS"),
    "WRONGTYPE": (_wrongtype, "GET list", "WRONGTYPE"),
    "too many clients": (_too_many, "GET x", "max number of clients"),
    "MISCONF": (_misconf, "SET x 1", "MISCONF"),
    "BUSY": (_busy, "GET x", "BUSY"),
    "LOADING": (_loading, "GET x", "LOADING"),
    "CLUSTERDOWN": (_clusterdown, "GET x", "CLUSTERDOWN"),
}


def told(server: RedisServer, command: str, login: bool = False) -> str:
    """The answers to a login and a command, by a connection of its own."""
    with socket.create_connection(("127.0.0.1", server.port), 2) as connection:
        connection.sendall(b"AUTH app pw\r\n" * login + command.encode() + b"\r\nQUIT\r\n")
        answers = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(4096):
                answers += part
    return answers.decode()


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.RedisError, KeyError):
            if condition():
                return
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
