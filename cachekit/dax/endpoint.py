"""A real DAX cluster behind the cache: what is not answered here goes to the cluster where it can
take it, and to DynamoDB else.

The cluster can not be told of writes that pass it by. So a table written around it is read from
DynamoDB until what the cluster may keep of it has expired.
"""

from __future__ import annotations

import inspect
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple

from ..core.outcome import Outcome
from ..observe import Meter
from ..runtime import AnyWorld
from .endpoint_link import ClusterLink, EndpointSettings, require_client
from .endpoint_shapes import (
    METHODS,
    READS,
    answer,
    body_of,
    own_copy,
    refusal,
    tables_of,
    takes,
    was_unsent,
)
from .intercept import principal_of
from .sent import Sent, sending

Send = Callable[[str, Mapping[str, Any]], Awaitable[Outcome]]

MOST_LINKS: Final = 64  # connections, one for each set of credentials
MOST_TABLES: Final = 1000  # remembered one by one as written around the cluster
RETRIES: Final = 2  # of what was throttled, as the cluster's own clients have it
BACKOFF: Final = 0.07  # seconds, doubled by every retry, with equal jitter
_THROTTLED: Final = frozenset({
    "ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded",
    "LimitExceededException",
})  # fmt: skip
_PARTIQL: Final = frozenset({"ExecuteStatement", "BatchExecuteStatement", "ExecuteTransaction"})
_SELECT: Final = re.compile(r"\s*SELECT\b", re.IGNORECASE)


class _Told(NamedTuple):
    """What a cluster said: a response, a refusal in boto3's form, or nothing for an error that
    left it ``unsent`` for certain or not. ``refused``: what it said to attempts before."""

    response: dict[str, Any] | None = None
    refusal: dict[str, Any] | None = None
    error: BaseException | None = None
    unsent: bool = False
    refused: tuple[dict[str, Any], ...] = ()


class Endpoint:
    """One cluster, for all clients of a handle. Safe for threads; connects at its first use.

    ``queries(table)``: whether Query and Scan may go to the cluster, whose pages no write
    invalidates. Raises MissingDependencyError without the cluster's client."""

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        queries: Callable[[str], bool] = lambda table: True,
        clock: Callable[[], float] = time.monotonic,
        meter: Meter | None = None,
    ) -> None:
        require_client()
        self.settings = settings
        self._queries = queries
        self._clock = clock
        self._meter = meter or Meter()
        self._lock = threading.Lock()
        self._links: dict[Hashable, ClusterLink] = {}
        self._around: dict[str, float] = {}
        self._all_around = -float("inf")
        self._closed = False

    def __repr__(self) -> str:
        return f"<Endpoint {self.settings.url}>"

    def over(self, send: Send, client: Any, world: AnyWorld) -> Send:
        """What the engine sends with for ``client``, a client of boto3 or aiobotocore; ``send``
        asks DynamoDB."""

        async def through(operation: str, params: Mapping[str, Any]) -> Outcome:
            return await self._send(world, client, send, (operation, params))

        return through

    def close(self) -> None:
        """Close what is open; everything goes to DynamoDB from now on. Twice is fine."""
        with self._lock:
            self._closed = True
            links = list(self._links.values())
            self._links.clear()
        for link in links:
            link.close()

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        for link in self._links.values():
            link.reset_after_fork()

    # -- which way -----------------------------------------------------------------------

    async def _send(
        self, world: AnyWorld, client: Any, send: Send, request: tuple[str, Mapping[str, Any]]
    ) -> Outcome:
        operation, given = request
        link = self._link(client) if self._may_take(operation, given) else None
        if link is None or not link.ready():
            return await self._pass(send, operation, given, counts=link is not None)
        try:
            params = await self._shaped(client, operation, given)
        except Exception as error:  # of a handler of the client's, as it would be raised there
            return Outcome(error=error)
        if not takes(operation, params):
            return await self._pass(send, operation, given)
        sent = sending.get() if operation not in READS else None
        before = None if sent is None else sent.request
        if sent is not None:
            # From here on it may be on its way, whatever happens to the one who waits.
            sent.request = _request(params)
        told: _Told = await world.aside(self._ask, link, operation, params)
        _note(sent, told)
        if told.response is not None:
            self._meter.count("cluster_answers")
            return await self._landed(client, operation, told.response)
        if told.refusal is not None:
            self._meter.count("cluster_answers")
            code = told.refusal["Error"]["Code"]
            error_class = client.exceptions.from_code(code)
            return Outcome(error=error_class(told.refusal, operation))
        if operation in READS or told.unsent:
            if sent is not None:
                sent.request = before
            return await self._pass(send, operation, given, counts=True)
        self._mark(tables_of(operation, params))
        return Outcome(error=self._lost(told.error))

    def _may_take(self, operation: str, params: Mapping[str, Any]) -> bool:
        if operation not in METHODS or not takes(operation, params):
            return False
        if operation not in READS:
            return True
        now = self._clock()
        tables = tables_of(operation, params) or []
        if now < self._all_around or any(
            now < self._around.get(t, self._all_around) for t in tables
        ):
            return False
        return operation not in ("Query", "Scan") or self._queries(tables[0])

    async def _pass(
        self, send: Send, operation: str, params: Mapping[str, Any], *, counts: bool = False
    ) -> Outcome:
        """Ask DynamoDB instead; what it writes, the cluster does not learn."""
        if counts:
            self._meter.count("cluster_fallbacks")
        changed: list[str] | None = []
        if operation in METHODS:
            if operation not in READS:
                changed = tables_of(operation, params)
        elif operation == "DeleteTable":
            changed = tables_of(operation, params)
        elif operation in _PARTIQL and not _only_reads(params):
            changed = None
        if changed == []:
            return await send(operation, params)
        self._mark(changed)
        try:
            return await send(operation, params)
        finally:
            self._mark(changed)

    def _mark(self, tables: list[str] | None) -> None:
        """These tables (None: all) are written around the cluster."""
        until = self._clock() + self.settings.cluster_ttl
        with self._lock:
            if tables is None or len(self._around) + len(tables) > MOST_TABLES:
                self._all_around = until
                self._around.clear()
                return
            for table in tables:
                self._around[table.rpartition("/")[2]] = until  # of an ARN the name

    def _link(self, client: Any) -> ClusterLink | None:
        key = (principal_of(client), client.meta.region_name)
        link = self._links.get(key)
        if link is None:
            credentials = getattr(getattr(client, "_request_signer", None), "_credentials", None)
            if credentials is None or not client.meta.region_name:
                return None
            with self._lock:
                link = self._links.get(key)
                if link is None and not self._closed and len(self._links) < MOST_LINKS:
                    link = self._links[key] = ClusterLink(
                        self.settings, client.meta.region_name, credentials, self._clock
                    )
        return link

    # -- asking the cluster --------------------------------------------------------------

    def _ask(self, link: ClusterLink, operation: str, params: Mapping[str, Any]) -> _Told:
        """Blocks for as long as the cluster may take."""
        refused: tuple[dict[str, Any], ...] = ()
        cluster = link.client()
        if cluster is None:
            return _Told(unsent=True)
        while True:
            try:
                got = getattr(cluster, METHODS[operation])(**own_copy(operation, params))
                link.answered()
                return _Told(answer(operation, params, got, len(refused)), refused=refused)
            except Exception as error:
                said = refusal(error, operation)
                if said is None:
                    unsent = was_unsent(error)
                    if not unsent or _out_of_reach(error):
                        link.failed(cluster)
                    return _Told(error=error, unsent=unsent, refused=refused)
            link.answered()
            said["ResponseMetadata"]["RetryAttempts"] = len(refused)
            if said["Error"]["Code"] not in _THROTTLED or len(refused) >= RETRIES:
                return _Told(refusal=said, refused=refused)
            refused += (said,)
            time.sleep(BACKOFF * 2 ** len(refused) * (0.5 + random.random() / 2))

    def _lost(self, cause: BaseException | None) -> Exception:
        """As botocore tells of a request whose reply was lost."""
        errors = import_module("botocore.exceptions")
        kind = "ReadTimeoutError" if isinstance(cause, TimeoutError) else "ConnectionClosedError"
        error: Exception = getattr(errors, kind)(endpoint_url=self.settings.url, error=cause)
        error.__cause__ = cause
        return error

    # -- the client's own events ---------------------------------------------------------

    async def _shaped(
        self, client: Any, operation: str, params: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Parameters as the client's handlers make them: those of a resource give values their
        types."""
        model = client.meta.service_model.operation_model(operation)
        about = {"model": model, "context": _context(client, model)}
        events = client.meta.events
        replies = await _awaited(
            events.emit(f"provide-client-params.dynamodb.{operation}", params=params, **about)
        )
        shaped = next((reply for _, reply in replies if reply is not None), params)
        await _awaited(
            events.emit(f"before-parameter-build.dynamodb.{operation}", params=shaped, **about)
        )
        return dict(shaped)

    async def _landed(self, client: Any, operation: str, response: dict[str, Any]) -> Outcome:
        model = client.meta.service_model.operation_model(operation)
        headers = response["ResponseMetadata"]["HTTPHeaders"]
        http = import_module("botocore.awsrequest").AWSResponse(
            self.settings.url, 200, headers, None
        )
        try:
            await _awaited(
                client.meta.events.emit(
                    f"after-call.dynamodb.{operation}",
                    http_response=http,
                    parsed=response,
                    model=model,
                    context=_context(client, model),
                )
            )
        except Exception as error:
            return Outcome(error=error)
        return Outcome(response)


def _context(client: Any, model: Any) -> dict[str, Any]:
    return {
        "client_region": client.meta.region_name,
        "client_config": client.meta.config,
        "has_streaming_input": model.has_streaming_input,
        "auth_type": model.auth_type,
    }


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _request(params: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"body": body_of(params)}
    except (TypeError, ValueError):  # values that the cluster's client will refuse
        return {}


def _note(sent: Sent | None, told: _Told) -> None:
    """Every attempt, so that what was refused and then applied is known as such."""
    if sent is not None:
        last = told.response or told.refusal
        for said in (*told.refused, *([last] if last is not None else ())):
            sent.note_attempt((None, said), None)


def _out_of_reach(error: BaseException) -> bool:
    code = getattr(error, "code", None)
    return isinstance(error, OSError) or code in ("NoRouteException", "ConnectionException")


def _only_reads(params: Mapping[str, Any]) -> bool:
    texts = [params.get("Statement")]
    for name in ("Statements", "TransactStatements"):
        if name in params:
            texts = [each.get("Statement") for each in params[name]]
    return all(type(text) is str and _SELECT.match(text) is not None for text in texts)
