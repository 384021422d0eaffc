"""A private DynamoDB for a whole test module, and a desk before it that loses, refuses and counts.

The desk is a real HTTP server. For each operation it follows a plan, one action per request:

- ``"throttle"``, ``"down"``: answers so, and passes nothing on;
- ``"lose request"``: cuts the connection; ``"lose reply"``: passes the request on, then cuts;
- a function: gets the server's answer, as parsed JSON, and may change it;
- None, or no plan: the request is passed on and the answer given.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cachekit.backends.dynamodb import DynamoDBBackend
from cachekit.backends.dynamodb.sightings import Sightings
from cachekit.core.deadline import Deadline
from cachekit.runtime import drive
from cachekit.testing import ManualClock
from cachekit.testing.dynamodb import CREDENTIALS, DynamoDBServer
from cachekit.testing.servers import ServerMissing

BEGAN = time.time()

Action = str | Callable[[dict[str, Any]], None] | None


def started(server: DynamoDBServer) -> Iterator[DynamoDBServer]:
    """For a fixture: the server runs, and the environment has credentials for it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name.upper(), value)
        try:
            server.start()
        except ServerMissing as missing:
            if os.environ.get("CACHEKIT_REQUIRE_SERVERS") == "1":
                pytest.fail(str(missing))
            pytest.skip(str(missing))
        with server:
            yield server


def backend_at(
    endpoint: str, namespace: str = "", *, clock: ManualClock | None = None, skew: float = 0.0
) -> DynamoDBBackend:
    """One on the table "cache", made if missing. With a clock that is moved by hand: its wall clock
    is wrong by ``skew`` seconds."""
    backend = DynamoDBBackend(
        f"dynamodb://cache?region=us-east-1&create=true&endpoint={endpoint}", namespace=namespace
    )
    if clock is not None:
        backend._sightings = Sightings(lambda: BEGAN + skew + clock(), clock)
    return backend


def late(seconds: float = 20.0) -> Deadline:
    return Deadline(seconds, time.monotonic)


class Plain:
    """A store's verbs as plain calls; ``deadline`` may be left out."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        def call(*given: Any, deadline: Deadline | None = None, **options: Any) -> Any:
            return drive(getattr(self.store, verb)(*given, deadline or late(), **options))

        return call

    def slot(self, key: str) -> Any:
        return self.read([key], []).slots[0]

    def close(self) -> None:
        drive(self.store.close())


class Desk:
    """Stands before a server."""

    def __init__(self, server: DynamoDBServer) -> None:
        self.port = server.port
        self.plans: dict[str, deque[Action]] = {}
        self.asked: Counter[str] = Counter()
        self.bodies: list[bytes] = []  # of all requests
        # What to do where there is no plan.
        self.judge: Callable[[str, bytes], Action] = lambda operation, body: None
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def plan(self, operation: str, *actions: Action) -> None:
        self.plans[operation] = deque(actions)

    @contextmanager
    def open(self) -> Iterator[Desk]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join(5)

    def action(self, operation: str, body: bytes) -> Action:
        with self._lock:
            self.asked[operation] += 1
            self.bodies.append(body)
            plan = self.plans.get(operation)
            return plan.popleft() if plan else self.judge(operation, body)


def _handler(desk: Desk) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            return

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            action = desk.action(self.headers["X-Amz-Target"].partition(".")[2], body)
            if action == "lose request":
                self.close_connection = True
            elif action == "throttle":
                self._answer(400, _error("ThrottlingException"))
            elif action == "down":
                self._answer(500, _error("InternalServerError"))
            else:
                status, answer = self._pass_on(body)
                if action == "lose reply":
                    self.close_connection = True
                    return
                if callable(action):
                    told = json.loads(answer)
                    action(told)
                    answer = json.dumps(told).encode()
                self._answer(status, answer)

        def _pass_on(self, body: bytes) -> tuple[int, bytes]:
            server = http.client.HTTPConnection("127.0.0.1", desk.port, timeout=20)
            try:
                server.request("POST", "/", body, dict(self.headers.items()))
                answer = server.getresponse()
                return answer.status, answer.read()
            finally:
                server.close()

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _error(code: str) -> bytes:
    kind = f"com.amazonaws.dynamodb.v20120810#{code}"
    return json.dumps({"__type": kind, "message": "said the desk"}).encode()
