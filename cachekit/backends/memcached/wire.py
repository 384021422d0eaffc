"""One connection to one node, under one total deadline."""

from __future__ import annotations

import re
import select
import socket
import ssl
from collections.abc import Collection, Sequence
from typing import Any

from ...core.deadline import Deadline
from ...errors import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    MissingDependencyError,
)

try:
    from pymemcache.client.base import Client
    from pymemcache.exceptions import (
        MemcacheClientError,
        MemcacheServerError,
        MemcacheUnexpectedCloseError,
    )
except ImportError as missing:
    raise MissingDependencyError(
        "the memcached backend needs pymemcache: pip install 'cachekit-strategies[memcached]'"
    ) from missing

RECEIVE = 65536
MAX_VALUE = 128 * 2**20
MAX_LINE = 2048
SENT_AT_ONCE = 2048
KEYS_AT_ONCE = 256

NOT_A_NUMBER = b"CLIENT_ERROR cannot increment or decrement non-numeric value"

_item = re.compile(rb"VALUE ([!-~]+) \d+ (\d{1,10}) (\d+)\r\n").match

_ERRORS = (b"SERVER_ERROR", b"CLIENT_ERROR", b"ERROR")

Address = tuple[str, int] | str
"""(host, port), or the path of a Unix socket."""

Found = dict[bytes, tuple[bytes, bytes]]
"""Name -> (value, cas number) of the items that are there."""


class DeadlineSocket:
    """A socket that gives each send and each receive only what is left of the whole call.

    A plain socket timeout starts anew with every byte, so a server that drips would hold a
    caller for ever."""

    __slots__ = ("_armed", "_socket", "deadline", "poll")

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._socket = sock
        self._armed = False
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        self.poll = poll.poll
        self.deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._arm()
        self._socket.sendall(data)
        # So little goes into the empty buffer of the socket at once: the first receive may use
        # the timeout just set.
        self._armed = len(data) <= SENT_AT_ONCE

    def recv(self, size: int) -> bytes:
        if not self._armed:
            self._arm()
        self._armed = False
        return self._socket.recv(size)

    def close(self) -> None:
        self._socket.close()

    def _arm(self) -> None:
        left = self.deadline.left()
        if left <= 0.0:
            raise TimeoutError("the deadline passed")
        self._socket.settimeout(left)


def dial(address: Address, tls: ssl.SSLContext | None, deadline: Deadline) -> socket.socket:
    """A connected socket: every address of the host is tried while there is time."""
    if isinstance(address, str):
        return _connect(socket.AF_UNIX, address, None, "", deadline)
    host, port = address
    failure: OSError | None = None
    for family, _, _, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            return _connect(family, where, tls, host, deadline)
        except OSError as error:
            failure = error
    raise failure or OSError(f"{host} has no address")


def _connect(
    family: int, where: Any, tls: ssl.SSLContext | None, host: str, deadline: Deadline
) -> socket.socket:
    left = deadline.left()
    if left <= 0.0:
        raise TimeoutError("the deadline passed")
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(left)
        sock.connect(where)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            sock.settimeout(max(deadline.left(), 0.001))
            sock = tls.wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise
    return sock


class Connection:
    """A pymemcache client on a socket of our own. It never reconnects: one fault ends it."""

    def __init__(self, address: Address, tls: ssl.SSLContext | None, deadline: Deadline) -> None:
        self.socket = DeadlineSocket(dial(address, tls, deadline), deadline)
        self._client: Any = Client(address, default_noreply=False, ignore_exc=False)
        self._client.sock = self.socket

    def ready(self, deadline: Deadline) -> bool:
        """Start a new call's deadline; False when the connection can not be used any more."""
        self.socket.deadline = deadline
        # Readable means that the server closed it, or sent a byte nobody asked for.
        return not self.socket.poll(0)

    def close(self) -> None:
        self._client.close()

    def get(self, names: Sequence[bytes]) -> Found:
        """The items that are there, with their cas numbers: one round trip for 256 names."""
        found: Found = {}
        for start in range(0, len(names), KEYS_AT_ONCE):
            part = names[start : start + KEYS_AT_ONCE]
            found.update(self.ask(b"gets %b\r\n" % b" ".join(part), frozenset(part)))
        return found

    def get_then(self, names: Sequence[bytes], command: bytes) -> tuple[Found, bytes]:
        """``get``, and the answer to one more command sent behind it in the same request."""
        last, found = names, None
        if len(names) > KEYS_AT_ONCE:  # the command comes behind every look
            last, found = names[-KEYS_AT_ONCE:], self.get(names[:-KEYS_AT_ONCE])
        behind: list[bytes] = []
        seen = self.ask(b"gets %b\r\n%b" % (b" ".join(last), command), frozenset(last), behind)
        return {**found, **seen} if found else seen, self._answers(behind.pop(), 1)[0]

    def ask(
        self, request: bytes, names: Collection[bytes], behind: list[bytes] | None = None
    ) -> Found:
        """What a ``gets`` command for these names answers; ``behind`` takes the bytes that came
        after that, where more was asked in the same request."""
        # Our own reading of the reply: pymemcache's copies what is left of the buffer for every
        # line, which costs more than all else in a read of an entry and its nonces.
        found: Found = {}
        self.socket.sendall(request)
        buffer, at = self.socket.recv(RECEIVE), 0
        while True:
            head = _item(buffer, at)
            if head is None:
                if buffer.startswith(b"END\r\n", at):
                    if behind is not None:
                        behind.append(buffer[at + 5 :])
                        return found
                    if len(buffer) == at + 5:
                        return found
                buffer, at = self._more(_unfinished(buffer[at:]), 1), 0
                continue
            name, size, cas = head.groups()
            start = head.end()
            at = start + int(size) + 2
            if at - start > MAX_VALUE or name not in names:
                raise ValueError("a reply to something never asked")
            if len(buffer) < at:
                buffer = self._more(buffer[start:], at - len(buffer))
                start, at = 0, at - start
            if not buffer.startswith(b"\r\n", at - 2):
                raise ValueError("a value of another length than announced")
            found[name] = (buffer[start : at - 2], cas)

    def add(self, name: bytes, value: bytes, expiry: int) -> bool:
        return bool(self._client.add(name, value, expire=expiry))

    def cas(self, name: bytes, value: bytes, cas: bytes, expiry: int) -> bool:
        """False: the item changed or is gone."""
        return bool(self._client.cas(name, value, cas, expire=expiry))

    def set(self, name: bytes, value: bytes, expiry: int) -> None:
        self._client.set(name, value, expire=expiry)

    def set_many(self, values: dict[bytes, bytes], expiry: int) -> None:
        self._client.set_many(values, expire=expiry)

    def delete(self, names: Sequence[bytes]) -> None:
        for answer in self.run([b"delete %b\r\n" % name for name in names]):
            # An answer not known must not pass for "not found": an invalidation would be lost.
            if answer not in (b"DELETED", b"NOT_FOUND"):
                raise ValueError("a reply that is not memcached's")

    def run(self, commands: Sequence[bytes]) -> list[bytes]:
        """The answers to commands that are answered in one line each: one round trip for 256.

        The server works them off in order. Raises at the first error among the answers."""
        answers: list[bytes] = []
        for start in range(0, len(commands), KEYS_AT_ONCE):
            part = commands[start : start + KEYS_AT_ONCE]
            self.socket.sendall(b"".join(part))
            answers += self._answers(b"", len(part))
        return answers

    def _answers(self, buffer: bytes, count: int) -> list[bytes]:
        """That many lines, of which ``buffer`` was received already."""
        while True:
            *lines, rest = buffer.split(b"\r\n")
            for line in lines:
                if line.startswith(_ERRORS) and line != NOT_A_NUMBER:
                    raise _answered(line)
            if len(lines) == count and not rest:
                return lines
            if len(lines) >= count or len(rest) > MAX_LINE:
                raise ValueError("a reply to something never asked")
            buffer = self._more(buffer, 1)

    def _more(self, unread: bytes, need: int) -> bytes:
        """The unread part of the buffer and at least ``need`` bytes more."""
        parts = [unread]
        while need > 0:
            part = self.socket.recv(max(RECEIVE, min(need, 2**20)))
            if not part:
                raise MemcacheUnexpectedCloseError
            parts.append(part)
            need -= len(part)
        return b"".join(parts)


def _unfinished(line: bytes) -> bytes:
    """The beginning of a line that may still become an item or the end; else raises."""
    if b"\r\n" in line:
        raise _answered(line[: line.index(b"\r\n")])
    if len(line) > MAX_LINE:
        raise ValueError("a reply line that never ends")
    return line


def _answered(line: bytes) -> Exception:
    error: Exception = ValueError("a reply that is not memcached's")
    if line.startswith(b"SERVER_ERROR"):
        error = MemcacheServerError(line)
    elif line.startswith((b"ERROR", b"CLIENT_ERROR")):
        error = MemcacheClientError(line)
    return error


def translated(error: Exception, backend: str, node: str, operation: str) -> BackendError:
    """A driver's error as ours; what the server answered is quoted, never a value."""
    kind: type[BackendError] = BackendUnavailable
    if isinstance(error, TimeoutError):
        kind, what = BackendTimeout, "did not answer within the deadline"
    elif isinstance(error, MemcacheUnexpectedCloseError):
        what = "closed the connection"
    elif isinstance(error, (MemcacheServerError, MemcacheClientError)):
        kind, what = BackendRefused, f"refused: {_quoted(error)}"
    elif isinstance(error, OSError):
        what = f"can not be reached ({error.strerror or type(error).__name__})"
    else:
        what = f"gave an answer that can not be read ({type(error).__name__})"
    message = f"{backend}: {node} {what} ({operation})"
    return kind(message, backend=backend, operation=operation)


def _quoted(error: Exception) -> str:
    text = error.args[0] if error.args else b""
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    return "".join(c for c in str(text)[:120] if c.isprintable()) or type(error).__name__
