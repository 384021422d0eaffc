"""How botocore's requests travel: over connections of our own, under the deadline of one call.

botocore bounds a connect and each single receive, by numbers fixed when a client is made. So its
``before-send`` event, which may answer a request in its place, hands the signed request to a
:class:`Transport`, that gives each send and receive only what is left of the whole call.
"""

from __future__ import annotations

import functools
import io
import select
import socket
import ssl
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ...core.deadline import Deadline
from ..pool import Pool

PORTS = {"http": 80, "https": 443}
MAX_ANSWER = 64 * 2**20
"""Bytes; DynamoDB's largest is 16 MB of items, here in base64."""
RECEIVE = 65536


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        parts = urlsplit(url)
        return cls(parts.scheme, parts.hostname or "", parts.port or PORTS[parts.scheme])


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def stream(self) -> Iterator[bytes]:
        """What botocore reads a raw answer by."""
        yield self.body


class Transport:
    """Keep-alive connections to each origin, at most ``connections``; safe for threads and across
    fork. A connection whose use raised anything is closed."""

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._pools: dict[Origin, Pool[Connection]] = {}

    def send(self, request: Any, tls: ssl.SSLContext | None, deadline: Deadline) -> Answer:
        """Raises TimeoutError, OSError or http.client.HTTPException."""
        origin = Origin.of(request.url)
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools.setdefault(origin, self._pool(origin, tls))
        return pool.use(deadline, Connection.exchange, request)

    def close(self) -> None:
        """Close the idle connections now, others when they come back. Twice is fine."""
        for pool in list(self._pools.values()):
            pool.close()

    def _pool(self, origin: Origin, tls: ssl.SSLContext | None) -> Pool[Connection]:
        return Pool(
            functools.partial(Connection, origin, tls if origin.scheme == "https" else None),
            Connection.close,
            limit=self._connections,
            ready=Connection.ready,
        )


class Connection:
    """One HTTP connection. It never reconnects: one fault ends it."""

    def __init__(self, origin: Origin, tls: ssl.SSLContext | None, deadline: Deadline) -> None:
        self._wire = Wire(dial(origin, tls, deadline), deadline)
        self._http = HTTPConnection(origin.host, origin.port)
        self._http.default_port = PORTS[origin.scheme]  # else the Host header names the port
        self._http.auto_open = 0
        self._http.sock = self._wire
        self._done = False

    def ready(self, deadline: Deadline) -> bool:
        """Start a new call's deadline; False when the connection can not be used any more."""
        self._wire.deadline = deadline
        # Readable means that the server closed it, or sent a byte nobody asked for.
        return not self._done and not self._wire.readable_now()

    def exchange(self, request: Any) -> Answer:
        parts = urlsplit(request.url)
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        self._http.request(request.method, path, request.body, dict(request.headers.items()))
        with self._http.getresponse() as response:
            body = response.read(MAX_ANSWER + 1)
            if len(body) > MAX_ANSWER:
                raise HTTPException("an answer larger than any of DynamoDB's")
            if response.length:
                raise HTTPException("an answer that breaks off")
            self._done = bool(response.will_close)
            return Answer(response.status, response.getheaders(), body)

    def close(self) -> None:
        self._http.close()
        self._wire.hang_up()


class Wire:
    """A socket, for ``http.client``, that ends every send and receive at the call's deadline.

    A plain timeout starts anew with every byte: a server that drips would hold a caller for
    ever."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._socket = sock
        self.deadline = deadline
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def readable_now(self) -> bool:
        return bool(self._poll.poll(0))

    def sendall(self, data: bytes) -> None:
        self._arm()
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Receiver(self), RECEIVE)

    def receive_into(self, buffer: memoryview) -> int:
        self._arm()
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        """By http.client, which calls it before it has read an answer that says "close"."""

    def hang_up(self) -> None:
        self._socket.close()

    def _arm(self) -> None:
        left = self.deadline.left()
        if left <= 0.0:
            raise TimeoutError("the deadline passed")
        self._socket.settimeout(left)


class _Receiver(io.RawIOBase):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._wire.receive_into(buffer)


def dial(origin: Origin, tls: ssl.SSLContext | None, deadline: Deadline) -> socket.socket:
    """A connected socket: every address of the host is tried while there is time. The system's
    resolver keeps no deadline."""
    failure: OSError | None = None
    for family, _, _, _, where in socket.getaddrinfo(
        origin.host, origin.port, type=socket.SOCK_STREAM
    ):
        try:
            return _connect(family, where, origin.host, tls, deadline)
        except OSError as error:
            failure = error
    raise failure or OSError(f"{origin.host} has no address")


def _connect(
    family: int, where: Any, host: str, tls: ssl.SSLContext | None, deadline: Deadline
) -> socket.socket:
    left = deadline.left()
    if left <= 0.0:
        raise TimeoutError("the deadline passed")
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(left)
        sock.connect(where)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            sock.settimeout(max(deadline.left(), 0.001))
            sock = tls.wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise
    return sock
