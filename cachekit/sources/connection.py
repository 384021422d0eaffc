"""One table's boto3 client: opened at first use, one per process, with what is tried again."""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..backends.dynamodb.faults import THROTTLED, code_of, is_down
from ..sinks.dynamodb import CONNECT_TIMEOUT, CONNECTIONS, READ_TIMEOUT
from .errors import Throttled, Unsettled

READS = 3  # attempts of one that the service or the network failed
PAUSE = 0.05  # seconds, as the next
LONGEST_PAUSE = 1.0
_LOST_ANSWERS = frozenset({"ResponseParserError", "IncompleteReadError"})


class Pauses:
    """Growing pauses with full jitter (Brooker, "Exponential Backoff And Jitter", 2015), until
    nothing has gone through for ``patience`` seconds."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.progress()

    def progress(self) -> None:
        self._end = time.monotonic() + self._patience
        self._longest = PAUSE

    def wait(self) -> bool:
        """False at once, instead of a pause, where the patience is over."""
        left = self._end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(left, random.uniform(0, self._longest)))
        self._longest = min(2 * self._longest, LONGEST_PAUSE)
        return True


class Connection:
    """``client``: one that is used and left open, a function that makes one, or None for one of
    the usual environment, without retries of its own."""

    def __init__(self, table: str, client: Any, patience: float) -> None:
        self.table = table
        self.given = client
        self._patience = patience
        self._lock = threading.Lock()
        self._client: Any = None
        self._forked = False
        _connections.add(self)

    def pauses(self) -> Pauses:
        return Pauses(self._patience)

    def read(self, verb: str, pauses: Pauses, **asked: Any) -> Any:
        """What the client's method answers. Throttled, it is asked again for the patience; failed
        by the service or the network, twice more within it."""
        failed = 0
        while True:
            try:
                return getattr(self._connected(), verb)(**asked)
            except Exception as error:
                if is_down(error):
                    failed += 1
                    if failed == READS or not pauses.wait():
                        raise
                elif code_of(error) not in THROTTLED:
                    raise
                elif not pauses.wait():
                    raise self.throttled(code_of(error)) from error

    def write(self, verb: str, pauses: Pauses, **asked: Any) -> Any:
        """The same, but only what was certainly not applied is sent again: a write that was, and
        one that comes late, could undo what another writer did in between."""
        while True:
            try:
                return getattr(self._connected(), verb)(**asked)
            except Exception as error:
                if is_down(error) or type(error).__name__ in _LOST_ANSWERS:
                    raise Unsettled(
                        f"{self.table}: nobody knows whether this was written: {error}"
                    ) from error
                if code_of(error) not in THROTTLED:
                    raise
                if not pauses.wait():
                    raise self.throttled(code_of(error)) from error

    def throttled(self, what: str) -> Throttled:
        return Throttled(
            f"{self.table}: {what} for {self._patience:g} s: too little capacity for the table, "
            "or for one item"
        )

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def leave_parent(self) -> None:
        """Called in a forked child: another process speaks over these connections."""
        self._lock = threading.Lock()
        _inherited.append(self._client)
        self._client = None
        self._forked = True

    def _connected(self) -> Any:
        client = self._client
        if client is not None:
            return client
        given = self.given
        with self._lock:
            if given is not None and not callable(given):
                if self._forked:
                    given.close()  # drops its connections; the parent's stay open
                    self._forked = False
                return given
            if self._client is None:
                make: Callable[[], Any] = given or _client
                self._client = make()
            return self._client


def _client() -> Any:
    config = import_module("botocore.config").Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=CONNECTIONS,
    )
    return import_module("boto3").session.Session().client("dynamodb", config=config)


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()
_inherited: list[Any] = []  # a parent's clients: neither used nor closed in the child


def _in_child() -> None:
    for connection in list(_connections):
        connection.leave_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
