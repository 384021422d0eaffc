"""A boto3 client for DynamoDB of a sink or source: opened at first use, one per process."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any

CONNECT_TIMEOUT = 2.0  # seconds, as the next
READ_TIMEOUT = 5.0
CONNECTIONS = 16


class Client:
    """``given``: a client, which is used and left open; a function that makes one; or None for one
    of the usual environment, with bounded timeouts and without retries of its own. ``forget`` (a
    bound method) is called in a forked child."""

    def __init__(self, given: Any, forget: Callable[[], None] | None = None) -> None:
        self.given = given
        self._forget = None if forget is None else weakref.WeakMethod(forget)
        self._lock = threading.Lock()
        self._own: Any = None
        self._forked = False
        _clients.add(self)

    def get(self) -> Any:
        own = self._own
        if own is not None:
            return own
        given = self.given
        with self._lock:
            if given is not None and not callable(given):
                if self._forked:
                    given.close()  # drops its connections; the parent's stay open
                    self._forked = False
                return given
            if self._own is None:
                make: Callable[[], Any] = given or _made
                self._own = make()
            return self._own

    def close(self) -> None:
        """Close the connections, unless the client was given. A use opens again."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.close()

    def leave_parent(self) -> None:
        """Called in a forked child: another process speaks over these connections."""
        self._lock = threading.Lock()
        _inherited.append(self._own)
        self._own = None
        self._forked = True
        forget = None if self._forget is None else self._forget()
        if forget is not None:
            forget()


def _made() -> Any:
    config = import_module("botocore.config").Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=CONNECTIONS,
    )
    return import_module("boto3").session.Session().client("dynamodb", config=config)


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_inherited: list[Any] = []  # a parent's clients: neither used nor closed in the child


def _in_child() -> None:
    for client in list(_clients):
        client.leave_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
