"""One installation: what it is in front of, its switches, and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ..core.entry import INF
from ..errors import ConfigurationError
from ..observe import Meter
from ..runtime import Runtime, drive
from . import answers
from .engine import Engine
from .events import EventRoad
from .expressions import NotUnderstood, table_name
from .intercept import (
    LINK,
    Link,
    client_mixin,
    events_mixin,
    handler_ids,
    is_asynchronous,
    passes_through,
    place_of,
    principal_of,
    sync_send,
    unwatch,
    watch,
    with_hits,
)
from .protocol import Outcome
from .settings import Settings
from .store import Store, TableState
from .values import ABSENT, Key, key_of, part_of, plain_atom, wire_atom


class Dax:
    """The cache in front of what it was installed on. Made by ``install``; safe for threads and
    across fork. A context manager: it ends with :meth:`uninstall`."""

    def __init__(self, settings: Settings, *, runtime: Runtime | None = None) -> None:
        self.settings = settings
        self.meter = Meter()
        self._runtime = runtime or Runtime()
        self._runtime.take()
        self._store = Store(settings, self._runtime, self.meter)
        self._engine = Engine(self._store)
        self._bypassed: ContextVar[bool] = ContextVar("cachekit_dax_bypassed", default=False)
        self._open = True
        self._undo: list[Callable[[], None]] = []
        self._mixin = client_mixin(self._call)
        self._clock = self._store.clock
        self._runtime.on_fork(self._after_fork)

    def __repr__(self) -> str:
        state = "open" if self._open else "uninstalled"
        return f"<cachekit.dax {self.settings.preset!r}, {state}>"

    def __enter__(self) -> Dax:
        return self

    def __exit__(self, *_: object) -> None:
        self.uninstall()

    def _after_fork(self) -> None:
        self._store.reset_after_fork()
        self.meter.reset_after_fork()
        self._engine.breaker.reset_after_fork()

    # -- switches ------------------------------------------------------------------------

    @contextmanager
    def bypass(self) -> Iterator[None]:
        """Reads of this context are answered by DynamoDB, and keep nothing; writes still evict."""
        token = self._bypassed.set(True)
        try:
            yield
        finally:
            self._bypassed.reset(token)

    def invalidate(self, table: str, keys: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
        """Drop items, by key in either form, and the pages they may be on: something else wrote
        them. What is being read now is not kept. Raises ValueError for what is no key."""
        given = [keys] if isinstance(keys, Mapping) else list(keys)
        found = [self._key(dict(each)) for each in given]
        store, name = self._store, _plain_name(table)
        with store.gate:
            for state in self._states(name):
                tags, spots = [state.any_tag], [state.any_spot]
                for key in found:
                    spots.append(state.key_spot(key))
                    schema = state.schema
                    partition = None if schema is None else part_of(key, schema.names[0])
                    if partition is not None:
                        tags.append(state.partition_tag(partition))
                        spots.append(state.partition_spot(partition))
                write = store.protocol.begin(spots)
                store.evict(state, found, tags)
                store.protocol.end(write, Outcome.APPLIED)
        self.meter.count("invalidations", len(found))

    def flush(self, table: str | None = None) -> None:
        """Drop everything of one table, or of all."""
        store = self._store
        with store.gate:
            if table is None:
                write = store.protocol.begin_all()
                store.empty_all()
                store.protocol.end(write, Outcome.APPLIED)
            else:
                for state in self._states(_plain_name(table)):
                    write = store.protocol.begin([state.any_spot, state.table_spot])
                    store.empty(state)
                    store.protocol.end(write, Outcome.APPLIED)
        self.meter.count("flushes")

    def uninstall(self) -> None:
        """Take it off: sessions, clients and tables work as before. Twice is fine."""
        self._open = False
        while self._undo:
            self._undo.pop()()
        with self._store.gate:
            self._store.empty_all()
        self._runtime.close()

    close = uninstall

    def _states(self, name: str) -> list[TableState]:
        return [
            state
            for scope in list(self._store.scopes.values())
            if (state := scope.tables.get(name)) is not None
        ]

    def _key(self, given: dict[str, Any]) -> Key:
        key = key_of(given, wire_atom) or key_of(given, plain_atom)
        if key is None:
            raise ValueError(
                f"a key has one or two attributes of text, number or bytes; got {sorted(given)}"
            )
        return key

    # -- telling -------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counts since the installation, what is kept now, and the same per table."""
        counts = dict(self.meter.counts)
        tables: dict[str, dict[str, int]] = {}
        for scope in list(self._store.scopes.values()):
            for name, state in list(scope.tables.items()):
                row = tables.setdefault(name, dict.fromkeys(_PER_TABLE, 0))
                row["item_hits"] += state.items.hits()
                row["query_hits"] += state.pages.hits()
                row["items"] += state.items.size()
                row["pages"] += state.pages.size()
        whole = {name: sum(row[name] for row in tables.values()) for name in _PER_TABLE}
        for name in _COUNTED:
            whole[name] = counts.get(name, 0)
        evictions = sum(table.tally.evictions for table in self._store.near.tables())
        return {
            **whole,
            "evictions": evictions,
            "bytes": int(self._store.near.weight),
            "max_bytes": self.settings.max_bytes,
            "tables": tables,
        }

    def explain(self, operation: str, client: Any = None, **params: Any) -> dict[str, Any]:
        """What this call would meet now, without making it. ``operation`` as ``"GetItem"``;
        ``client``: whose; else the first that was used. Nothing is counted or changed."""
        table = params.get("TableName")
        link = client.__dict__.get(LINK) if client is not None else None
        scopes = list(self._store.scopes.values())
        scope = link.scope if link is not None else (scopes[0] if scopes else None)
        told: dict[str, Any] = {"operation": operation, "table": table}
        if scope is None:
            return {**told, "answer": "DynamoDB", "why": "nothing was asked yet"}
        try:
            name, _ = table_name(table)
        except NotUnderstood:
            return {**told, "answer": "DynamoDB", "why": "TableName is not understood"}
        state = scope.table(name)
        if state is None:
            return {**told, "answer": "DynamoDB", "why": "this table is not cached"}
        told["kept_seconds"] = state.settings.item_ttl
        if operation != "GetItem":
            return {**told, "answer": "unknown", "why": "only GetItem can be told beforehand"}
        key = params.get("Key")
        found = key_of(key, wire_atom) or key_of(key, plain_atom)
        if found is None:
            return {**told, "answer": "DynamoDB", "why": "Key is not understood"}
        if params.get("ConsistentRead"):
            return {**told, "answer": "DynamoDB", "why": "a strongly consistent read"}
        entry = state.hot.get(found)
        if entry is not None and self._clock() < entry.deadline:
            left = entry.deadline - self._clock()
            told["left_seconds"] = None if left == INF else round(left, 3)
            what = "known not to exist" if entry.value is ABSENT else "cached"
            return {**told, "answer": "cache", "why": what}
        with self._store.gate:
            look = self._store.protocol.look([state.key_spot(found), state.table_spot])
            held, strong = look.held, look.strong
            self._store.protocol.leave(look)
        why = "not cached"
        if held:
            why = "being written, or a write of unknown outcome may still land"
        elif strong:
            why = "written a moment ago: replicas may lag"
        return {**told, "answer": "DynamoDB", "why": why}

    # -- the road of every request -------------------------------------------------------

    def _call(
        self, client: Any, operation: str, params: Any, forward: Callable[[str, Any], Any]
    ) -> Any:
        if not self._open:
            return forward(operation, params)
        link = client.__dict__.get(LINK) or self._adopt(client)
        if link is None or link.stubbed or type(params) is not dict:
            return forward(operation, params)
        if operation == "GetItem" and len(params) == 2:
            answer = self._hit(link, params)
            if answer is not None:
                return answer
        if self._bypassed.get() and operation in _BYPASSED:
            return forward(operation, params)
        outcome: Any = drive(
            self._engine.call(
                self._runtime.threads,
                link.scope,
                (operation, params, link.plain),
                sync_send(forward),
            )
        )
        return outcome.settle()

    def _hit(self, link: Link, params: dict[str, Any]) -> dict[str, Any] | None:
        """The shortest road of a GetItem of only a table and a key."""
        try:
            state = link.scope.tables[params["TableName"]]
            plain = link.plain
            key = key_of(params["Key"], plain_atom if plain else wire_atom)
            entry = state.hot.get(key)
        except (KeyError, TypeError):
            return None
        if entry is None or self._clock() >= entry.deadline or self._bypassed.get():
            return None
        return self._answer(state, key, entry, plain)

    def _table_hit(self, table: Any, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """The same for ``Table.get_item(Key=...)``."""
        if len(kwargs) != 1 or not self._open:
            return None
        try:
            link = table.meta.client.__dict__[LINK]
            key = key_of(kwargs["Key"], plain_atom)
            state = link.scope.tables[table.name]
            entry = state.hot.get(key)
        except (KeyError, TypeError, AttributeError):
            return None
        if entry is None or self._clock() >= entry.deadline or self._bypassed.get():
            return None
        if link.stubbed or not link.plain:
            return None
        answer = self._answer(state, key, entry, True)
        if answer is not None:
            table.meta.data = None  # as after any action of a resource
        return answer

    def _answer(
        self, state: TableState, key: Any, entry: Any, plain: bool
    ) -> dict[str, Any] | None:
        kept = entry.value
        try:
            if kept is ABSENT:
                answer = {"ResponseMetadata": answers.metadata()}
            else:
                item = kept.plain() if plain else kept.wire()
                if kept.wants_promotion(plain):
                    self._store.promote(state, kept, key, plain=plain)
                answer = {"Item": item, "ResponseMetadata": answers.metadata()}
        except Exception:
            self.meter.count("faults")
            return None
        entry.uses += 1.0
        return answer

    # -- putting it in front -------------------------------------------------------------

    def _adopt(self, client: Any) -> Link | None:
        """The link of a client, made at its first call; None: this client can not be served."""
        ids = handler_ids(client)
        if ids is None:
            self.meter.count("not_served")
            return None
        scope = self._store.scope(place_of(client), principal_of(client))
        link = Link(scope, ids)
        watch(client.meta.events)
        client.__dict__[LINK] = link
        return link

    def _creating_client(self, class_attributes: Any, base_classes: Any, **_: Any) -> None:
        if is_asynchronous(class_attributes.get("get_item"), base_classes):
            self.meter.count("not_served")
            self.meter.warn_once("dax", "cachekit.dax: asyncio clients are not served yet")
        elif passes_through(class_attributes.get("get_item")):
            base_classes.insert(0, self._mixin)
        else:
            base_classes.insert(0, events_mixin(self._attach))

    def _attach(self, client: Any) -> None:
        """By its events: slower, but for any botocore that has them."""
        link = self._adopt(client)
        if link is not None:
            self.meter.count("by_events")
            road = EventRoad(self._engine, self._runtime, client, link, self._serves)
            self._undo.append(road.leave)

    def _serves(self) -> bool | None:
        return not self._bypassed.get() if self._open else None

    def _creating_table(self, class_attributes: Any, **_: Any) -> None:
        if "get_item" in class_attributes:
            class_attributes["get_item"] = with_hits(class_attributes["get_item"], self._table_hit)

    def on_session(self, events: Any) -> None:
        """In front of every client that this session makes from now on."""
        for name, handler in (
            ("creating-client-class.dynamodb", self._creating_client),
            ("creating-resource-class.dynamodb.Table", self._creating_table),
        ):
            ident = f"cachekit-dax-{id(self)}-{name}"
            events.register(name, handler, unique_id=ident)
            self._undo.append(
                lambda name=name, handler=handler, ident=ident: events.unregister(  # type: ignore[misc]  # bound
                    name, handler, unique_id=ident
                )
            )

    def on_client(self, client: Any) -> None:
        """In front of a client that exists."""
        own = type(client)
        if getattr(own, "_cachekit_dax", False):
            raise ConfigurationError("another cachekit.dax is installed here; uninstall it first")
        if not hasattr(own, "get_item"):
            raise ConfigurationError("this is no DynamoDB client")
        if is_asynchronous(own.get_item, [own]):
            raise ConfigurationError("asyncio clients (aioboto3, aiobotocore) are not served yet")
        if not passes_through(own.get_item):
            self._attach(client)
            return
        client.__class__ = type(own.__name__, (self._mixin, own), {"__module__": own.__module__})

        def undo() -> None:
            client.__class__ = own
            client.__dict__.pop(LINK, None)
            unwatch(client.meta.events)

        self._undo.append(undo)

    def on_resource(self, resource: Any) -> None:
        """In front of a resource or Table that exists, and of its client."""
        self.on_client(resource.meta.client)
        own = type(resource)
        if hasattr(own, "get_item"):
            reads = {"get_item": with_hits(own.get_item, self._table_hit)}
            resource.__class__ = type(own.__name__, (own,), {"__module__": own.__module__, **reads})
            self._undo.append(lambda: setattr(resource, "__class__", own))


_BYPASSED = frozenset({"GetItem", "BatchGetItem", "Query", "Scan"})
_PER_TABLE = ("item_hits", "query_hits", "items", "pages")
_COUNTED = (
    "item_misses", "query_misses", "shared", "fills", "fills_refused", "not_kept", "passed",
    "reads_made_strong", "unknown_outcomes", "invalidations", "flushes", "describes", "faults",
    "not_served", "by_events",
)  # fmt: skip


def _plain_name(table: str) -> str:
    try:
        return table_name(table)[0]
    except NotUnderstood:
        raise ValueError(f"{table!r} names no table") from None
