"""The client that signs and parses: made at first use, in a thread, with the table if asked."""

from __future__ import annotations

import os
import ssl
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ...core.deadline import Deadline
from ...core.eventcount import Flag
from ...core.threads import begin
from ...errors import BackendError, BackendRefused, BackendTimeout, BackendUnavailable
from .faults import code_of, translated
from .items import KEY, TTL
from .transport import Transport

OPENING = 60.0
"""Seconds after which the making of a client, and of its table, is given up."""
POLL = 0.2
PATIENCE = 10.0  # seconds for one request while opening

_local = threading.local()  # the deadline, transport and TLS of the call that this thread makes


class Account:
    """One client of a backend, shared by all its stores; another one after a fork.

    The client is made by a daemon thread: reading botocore's models and finding credentials takes
    0.1 s to several seconds, and callers are let go at their deadline meanwhile."""

    def __init__(
        self,
        table: str,
        *,
        region: str | None,
        endpoint: str | None,
        create: bool,
        make: Callable[[Any], Any] | None,
        connections: int,
    ) -> None:
        self.table = table
        self._region = region
        self._endpoint = endpoint
        self._create = create
        self._make = make
        self._connections = connections
        self._client: Any = None
        self._tls: ssl.SSLContext | None = None
        self._opening: _Opening | None = None
        self._users = 0
        self._lock = threading.Lock()
        _accounts.add(self)

    def enter(self) -> Transport:
        """For a store that opens: its connections."""
        with self._lock:
            self._users += 1
        return Transport(self._connections)

    def leave(self) -> None:
        """For a store that closes. With the last one the client goes; a later use makes another."""
        with self._lock:
            self._users -= 1
            client = None
            if not self._users:
                client, self._client, self._opening = self._client, None, None
        if client is not None:
            client.close()

    def request(
        self, operation: str, transport: Transport, deadline: Deadline, **given: Any
    ) -> dict[str, Any]:
        """One request, under the deadline; raises whatever botocore or the transport raises.

        ``operation`` is a method of the client."""
        client = self._client
        if client is None:
            client = self._opened(deadline)
        before = getattr(_local, "call", None)
        _local.call = (deadline, transport, self._tls)
        try:
            answer: dict[str, Any] = getattr(client, operation)(**given)
            return answer
        finally:
            _local.call = before

    # -- opening --------------------------------------------------------------------------

    def _opened(self, deadline: Deadline) -> Any:
        with self._lock:
            if self._client is not None:
                return self._client
            opening = self._opening
            if opening is None:
                opening = self._opening = _Opening(self._open)
                if not opening.start(self._not_opening):
                    raise BackendUnavailable("the interpreter is ending")
        if not opening.done.wait(deadline.left()):
            raise TimeoutError("the client is not ready yet")
        if (failed := opening.error) is not None:
            raise type(failed)(str(failed), backend=failed.backend, operation="open") from failed
        return opening.client

    def _not_opening(self) -> None:
        self._opening = None

    def _open(self, opening: _Opening) -> None:
        transport = Transport(2)
        client: Any = None
        try:
            client = self._new_client()
            if self._create:
                make_table(client, self.table, Asking(transport, self._tls))
            opening.client, opening.error = client, None
        except Exception as error:
            opening.error = translated(error, "open", self.table)
        finally:
            transport.close()
            with self._lock:
                if self._opening is opening:
                    self._opening = None
                    if self._users:
                        self._client = opening.client
            opening.done.set()
            if opening.client is None and client is not None:
                client.close()

    def _new_client(self) -> Any:
        config = import_module("botocore.config").Config(
            connect_timeout=2,
            read_timeout=5,
            # A repeated request may land after its answer: every repetition is decided here.
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=self._connections,
            tcp_keepalive=True,
        )
        if self._make is not None:
            client = self._make(config)
            check_retries(client)
        else:
            session = import_module("botocore.session").get_session()
            client = session.create_client(
                "dynamodb", region_name=self._region, endpoint_url=self._endpoint, config=config
            )
        if not _has_proxy(client.meta.endpoint_url):
            self._tls = _tls(client.meta.endpoint_url)
            # By a name of its own: a client that ``make`` gives twice must not send twice.
            client.meta.events.register("before-send.dynamodb", _send, unique_id="cachekit")
        return client

    def _after_fork(self) -> None:
        self._lock = threading.Lock()  # the parent may have held it
        # Left to itself: a lock of the client may have been held by a thread of the parent.
        self._client = self._opening = None


def _send(request: Any, **_: Any) -> Any:
    """Botocore's event: what it answers is taken for what the server did."""
    call = getattr(_local, "call", None)
    if call is None:
        return None
    deadline, transport, tls = call
    answer = transport.send(request, tls, deadline)
    response = import_module("botocore.awsrequest").AWSResponse
    return response(request.url, answer.status, dict(answer.headers), answer)


class _Opening:
    """One attempt to make a client."""

    def __init__(self, work: Callable[[_Opening], None]) -> None:
        self.done = Flag()
        self.client: Any = None
        self.error: BackendError | None = BackendUnavailable("dynamodb: it was broken off")
        self._work = work

    def start(self, undo: Callable[[], None]) -> bool:
        thread = threading.Thread(
            target=self._work, args=(self,), name="cachekit-dynamodb-open", daemon=True
        )
        return begin(thread, undo)


def check_retries(client: Any) -> None:
    """Raises BackendRefused for a client that repeats what it sent."""
    retries = getattr(client.meta.config, "retries", None) or {}
    if retries.get("total_max_attempts") != 1:
        raise BackendRefused(
            "dynamodb: this client retries by itself, which can undo an invalidation: make it "
            "with the config that the function is given",
            backend="dynamodb",
            operation="open",
        )


# -- the table ---------------------------------------------------------------------------


class Asking(NamedTuple):
    """How requests travel while opening."""

    transport: Transport
    tls: ssl.SSLContext | None


def make_table(client: Any, table: str, how: Asking) -> None:
    """Make the table where it is missing, wait until it can be used, switch its time to live on.

    Raises BackendRefused where one of another key is there."""
    end = time.monotonic() + OPENING
    asked = False
    while True:
        try:
            told = _ask(client, "describe_table", how, TableName=table)["Table"]
        except Exception as error:
            if code_of(error) != "ResourceNotFoundException":
                raise
            if not asked:
                asked = True
                _create(client, table, how)
        else:
            _check(table, told)
            if told.get("TableStatus") in ("ACTIVE", "UPDATING"):
                break
        if time.monotonic() > end:
            raise BackendTimeout(f"dynamodb: table {table!r} is not ready", backend="dynamodb")
        time.sleep(POLL)
    _switch_on_ttl(client, table, how)


def _create(client: Any, table: str, how: Asking) -> None:
    try:
        _ask(
            client,
            "create_table",
            how,
            TableName=table,
            KeySchema=[{"AttributeName": KEY, "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": KEY, "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
    except Exception as error:
        if code_of(error) != "ResourceInUseException":  # another process makes it
            raise


def _check(table: str, told: dict[str, Any]) -> None:
    names = [part["AttributeName"] for part in told["KeySchema"]]
    kinds = {each["AttributeName"]: each["AttributeType"] for each in told["AttributeDefinitions"]}
    if names != [KEY] or kinds.get(KEY) != "S":
        raise BackendRefused(
            f"dynamodb: table {table!r} has another key: the cache needs a table of its own, with "
            f"the partition key {KEY!r} (a string) and no sort key",
            backend="dynamodb",
            operation="open",
        )


def _switch_on_ttl(client: Any, table: str, how: Asking) -> None:
    """Without it, what expired stays until it is written over: it costs room, nothing else."""
    try:
        told = _ask(client, "describe_time_to_live", how, TableName=table)
        if told["TimeToLiveDescription"].get("TimeToLiveStatus") in ("ENABLED", "ENABLING"):
            return
        _ask(
            client,
            "update_time_to_live",
            how,
            TableName=table,
            TimeToLiveSpecification={"Enabled": True, "AttributeName": TTL},
        )
    except Exception as error:
        # Another process does it, the account may not, or the server knows no such thing.
        if not code_of(error):
            raise


def _ask(client: Any, operation: str, how: Asking, **given: Any) -> Any:
    _local.call = (Deadline(PATIENCE, time.monotonic), *how)
    try:
        return getattr(client, operation)(**given)
    finally:
        _local.call = None


# -- surroundings ------------------------------------------------------------------------


def _has_proxy(url: str) -> bool:
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    return bool(proxies.get(parts.scheme)) and not urllib.request.proxy_bypass(parts.hostname or "")


def _tls(url: str) -> ssl.SSLContext | None:
    """Certificate and host name verified, by the authorities that botocore would trust."""
    if not url.startswith("https:"):
        return None
    session = import_module("botocore.session").get_session()
    path = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    if not path:
        path = import_module("botocore.httpsession").get_cert_path(True)
    return ssl.create_default_context(cafile=path)


_accounts: weakref.WeakSet[Account] = weakref.WeakSet()


def _child() -> None:
    for account in list(_accounts):
        account._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_child)
