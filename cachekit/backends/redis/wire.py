"""What both wires share: addresses, the login, commands, replies, and the contract of a wire.

A wire carries commands to servers and brings the replies back in order, within a point in
``time.monotonic()`` (``until``) that covers waiting for a connection, connecting, logging in,
sending and the last byte of the reply. It never repeats a command.
"""

from __future__ import annotations

import os
import re
import ssl
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import hiredis

from .layout import RUN_BYTES

Command = tuple[Any, ...]  # of bytes, str and int
Reply = Any  # bytes, int, None, a list of these, or an ErrorReply

_RUN = re.compile(rb"run_id:([0-9A-Fa-f]{%d})" % RUN_BYTES)

NOT_ENOUGH = object()
MAX_ERROR_TEXT = 200

# After one of these the connection leads to a server that can not serve us now.
CLOSING_CODES = frozenset({"READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "UNBLOCKED"})
NOT_SERVING = frozenset({"LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY"})


_reading = threading.Lock()


class Replies(list[Reply]):
    """Replies in the order of the commands. ``run`` is the server process that sent them: the
    first characters of its ``run_id``, or empty where it is not known or not asked for."""

    __slots__ = ("run",)
    run: bytes  # who makes one sets it: a default would cost the hot read a dictionary

    def run_of(self, i: int) -> bytes:
        """The run that sent the ``i``-th reply."""
        return self.run


class NodeReplies(Replies):
    """Replies of several nodes, each with a run of its own."""

    __slots__ = ("runs",)

    def __init__(self, count: int) -> None:
        super().__init__([None] * count)
        self.run = b""
        self.runs = [b""] * count

    def run_of(self, i: int) -> bytes:
        return self.runs[i]


class ErrorReply(Exception):
    """The server answered with an error; ``code`` is its first word."""

    def __init__(self, text: str) -> None:
        # "unknown command" quotes the arguments: a value could end up in a log
        text = text.partition(", with args beginning with")[0]
        super().__init__(text[:MAX_ERROR_TEXT])
        self.code = text.partition(" ")[0]

    @property
    def unavailable(self) -> bool:
        """Whether the server is not ready, as opposed to refusing this command."""
        return self.code in NOT_SERVING or "max number of clients" in str(self)


class ProtocolViolation(ConnectionError):
    """The peer sent something that is not an answer to what was asked."""


class NodeDown(ConnectionError):
    """A node of the cluster failed, or did so lately and was not asked; others may well answer."""


class InPart(NodeDown):
    """Some nodes gave the ``values`` that they have, with their ``runs``; the values at the places
    ``lost`` are not known, because of ``error``."""

    def __init__(
        self, values: list[Reply], runs: list[bytes], lost: Iterable[int], error: Exception
    ) -> None:
        super().__init__(f"{len(values)} keys, not all of them: {error}")
        self.values = values
        self.runs = runs
        self.lost = frozenset(lost)


class NotTried(TimeoutError):
    """Another server of the same call used up the time: nothing is known of this one."""


class NotMaster(ConnectionError):
    """The server that Sentinel named is not the master (any more); nothing was sent to it."""


class Address(NamedTuple):
    """A server: TCP host and port, or the path of a socket with port 0."""

    host: str
    port: int

    def __str__(self) -> str:
        if self.port == 0:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class TLS:
    """Certificate and host name are checked unless the URL says otherwise."""

    ca_file: str | None = None
    ca_path: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    key_password: str | None = field(default=None, repr=False)
    verify: bool = True
    check_hostname: bool = True

    @cached_property
    def context(self) -> ssl.SSLContext:
        # One for all who connect at once: to read the authorities takes 20 ms of a deadline.
        with _reading:
            found: ssl.SSLContext | None = self.__dict__.get("context")
            if found is None:
                found = self.__dict__["context"] = self._made()
            return found

    def _made(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca_file, capath=self.ca_path)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif not self.check_hostname:
            context.check_hostname = False
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file, self.key_password)
        return context


@dataclass(frozen=True)
class Login:
    """What a new connection says before anything else. ``ask_run``: learn the server's run."""

    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    db: int = 0
    client_name: str | None = None
    tls: TLS | None = None
    master_only: bool = False
    ask_run: bool = False
    max_connections: int = 50

    @cached_property
    def greeting(self) -> tuple[Command, ...]:
        commands: list[Command] = []
        if self.password is not None:
            name = () if self.username is None else (self.username,)
            commands.append(("AUTH", *name, self.password))
        if self.db:
            commands.append(("SELECT", self.db))
        if self.client_name:
            commands.append(("CLIENT", "SETNAME", self.client_name))
        if self.master_only:
            commands.append(("ROLE",))
        if self.ask_run:
            commands.append(("INFO", "server"))
        return tuple(commands)

    def check(self, replies: Sequence[Reply]) -> bytes:
        """The server's run, empty where it did not tell; raises what the replies object to."""
        run = b""
        for command, reply in zip(self.greeting, replies, strict=True):
            if command[0] == "INFO":
                run = _run_in(reply)
            elif isinstance(reply, ErrorReply):
                if command[0] == "ROLE" and reply.code == "NOPERM":
                    continue  # a least-privilege user may not ask; Sentinel's word counts
                raise reply
            elif command[0] == "ROLE" and reply[0] != b"master":
                raise NotMaster("the server named by Sentinel is not a master")
        return run


def _run_in(reply: Reply) -> bytes:
    """A server that is not ready raises: its run would stay unknown as long as it is connected."""
    if isinstance(reply, ErrorReply) and reply.unavailable:
        raise reply
    found = _RUN.search(reply) if isinstance(reply, bytes) else None
    return b"" if found is None else found[1]


def pack(commands: Sequence[Command]) -> bytes:
    if len(commands) == 1:
        return hiredis.pack_command(commands[0])  # type: ignore[no-any-return]  # untyped C
    return b"".join([hiredis.pack_command(command) for command in commands])


def new_reader() -> Any:
    """A parser of replies; damaged input raises ProtocolViolation."""
    return hiredis.Reader(
        protocolError=ProtocolViolation, replyError=ErrorReply, notEnoughData=NOT_ENOUGH
    )


def width(command: Command) -> int:
    """How many values answer a command; 0 where any reply will do."""
    return len(command) - 1 if command[0] == b"MGET" else 0


def check_width(reply: Reply, wanted: int) -> None:
    """Raises ProtocolViolation for a reply of another shape: then the stream of replies is off by
    some, and the next ones would answer the wrong calls."""
    if not wanted or (isinstance(reply, list) and len(reply) == wanted):
        return
    if not isinstance(reply, ErrorReply):
        raise ProtocolViolation("the reply has another number of values than were asked for")


def closes(replies: Sequence[Reply]) -> bool:
    """Whether the connection that brought these must not be used again."""
    for reply in replies:
        if isinstance(reply, ErrorReply) and (
            reply.code in CLOSING_CODES or "max number of clients" in str(reply)
        ):
            return True
    return False


def remaining(until: float) -> float:
    """Seconds left, always > 0; raises TimeoutError when there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the call's deadline passed")
    return left


Batch = tuple[Address, Sequence[Command]]


class Wire(Protocol):
    """Blocking (never suspends) or asyncio. Errors: OSError and its children (TimeoutError when
    ``until`` passed), ErrorReply for a refused login; an error *reply* is returned in place."""

    async def call(
        self, address: Address, commands: Sequence[Command], until: float
    ) -> Replies: ...

    async def call_many(self, batches: Sequence[Batch], until: float) -> list[Replies | Exception]:
        """Several servers at once; one's failure is its own. NotTried: it had no time left, or
        less than half of it to begin with."""

    async def close(self) -> None: ...


def _child() -> None:
    global _reading
    _reading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_child)
