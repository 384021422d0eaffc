"""One installation: what it is in front of, its switches, and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ..core.entry import INF
from ..observe import Meter
from ..runtime import Runtime, drive
from . import answers
from .aio import Worlds, send_by
from .endpoint import Endpoint
from .engine import Engine
from .expressions import NotUnderstood, table_name
from .fleet import Fleet
from .intercept import LINK, Link, sync_send
from .notes import EVERYTHING, table_mark
from .others import Others
from .placing import Placing
from .settings import Settings
from .store import Scope, Store, TableState
from .streams import Following
from .values import ABSENT, Key, key_of, plain_atom, wire_atom


class Dax:
    """The cache in front of what it was installed on. Made by ``install``; safe for threads and
    across fork. A context manager: it ends with :meth:`uninstall`."""

    def __init__(self, settings: Settings, *, runtime: Runtime | None = None) -> None:
        self.settings = settings
        self.meter = Meter()
        self._runtime = runtime or Runtime()
        self._runtime.take()
        self._store = Store(settings, self._runtime, self.meter)
        self._others = Others(self._store, patience=2 * settings.quarantine)
        self._store.before_look.append(self._others.expire)
        self._fleet: Fleet | None = None
        if settings.cache is not None:
            self._fleet = Fleet(settings.cache, self._others, self._runtime, self.meter)
            self._store.trusts = self._fleet
        self._follows: Following | None = None
        if settings.streams is not None:
            self._follows = Following(self._store, self._others, self._fleet)
            self._store.before_look.append(self._follows.check)
        self._store.on_table.append(self._meet)
        self._engine = Engine(self._store, self._fleet)
        self._endpoint: Endpoint | None = None
        if settings.endpoint is not None:
            self._endpoint = Endpoint(
                settings.endpoint,
                queries=settings.may_be_outdated,
                clock=self._store.clock,
                meter=self.meter,
            )
        self._bypassed: ContextVar[bool] = ContextVar("cachekit_dax_bypassed", default=False)
        self._open = True
        self._worlds = Worlds(self._runtime)
        self.placing = Placing(
            self._engine,
            self._worlds,
            call=self._call,
            call_aio=self._call_aio,
            table_hit=self._table_hit,
            serves=self._serves,
        )
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
        self._others.reset_after_fork()
        self.meter.reset_after_fork()
        self._engine.breaker.reset_after_fork()
        if self._endpoint is not None:
            self._endpoint.reset_after_fork()

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
        self._written([(mark, key) for mark in self._marks(table) for key in found])
        self.meter.count("invalidations", len(found))

    def flush(self, table: str | None = None) -> None:
        """Drop everything of one table, or of all."""
        marks = [EVERYTHING] if table is None else self._marks(table)
        self._written([(mark, None) for mark in marks])
        self.meter.count("flushes")

    def _written(self, names: list[tuple[bytes, Key | None]]) -> None:
        with self._store.gate:
            for mark, key in names:
                self._others.written(mark, key)
        if self._fleet is not None and names:
            drive(self._fleet.written(self._runtime.threads, names))

    def uninstall(self) -> None:
        """Take it off: sessions, clients and tables work as before. Twice is fine."""
        self._open = False
        self.placing.undo()
        if self._follows is not None:
            self._follows.close()
        if self._fleet is not None:
            self._fleet.close()
        if self._endpoint is not None:
            self._endpoint.close()
        with self._store.gate:
            self._store.empty_all()
        self._runtime.close()

    close = uninstall

    def _meet(self, scope: Scope, state: TableState) -> None:
        """A table is used for the first time."""
        if self._fleet is not None:
            self._fleet.listen()
        if self._follows is not None:
            self._follows.meet(scope, state)

    def _marks(self, table: str) -> list[bytes]:
        """A table of that name, wherever this handle asked so far."""
        name = _plain_name(table)
        places = [scope.place for scope in list(self._store.scopes.values())]
        return list(dict.fromkeys(table_mark(place, name) for place in places))

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
            "bus": None if self._fleet is None else self._fleet.state,
            "lag": {
                name: self.meter.timings[name].summary()
                for name in _LAGS
                if name in self.meter.timings
            },
            "streams": {} if self._follows is None else self._follows.states(),
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
            look = self._store.look([state.key_spot(found), state.table_spot])
            held, strong = look.held, look.strong
            self._store.protocol.leave(look)
        why = "not cached"
        if state.follows is not None and not state.follows.open:
            why = "its change stream is not followed now, so nothing is kept"
        elif held:
            why = "being written, or a write of unknown outcome may still land"
        elif strong:
            why = "written a moment ago: replicas may lag"
        return {**told, "answer": "DynamoDB", "why": why}

    # -- the road of every request -------------------------------------------------------

    def _call(
        self, client: Any, operation: str, params: Any, forward: Callable[[str, Any], Any]
    ) -> Any:
        found = self._look(client, operation, params)
        if found is None:
            return forward(operation, params)
        if isinstance(found, dict):
            return found
        request, send = (operation, params, found.plain), sync_send(forward)
        world = self._worlds.plain()
        if self._endpoint is not None:
            send = self._endpoint.over(send, client, world)
        outcome: Any = drive(self._engine.call(world, found.scope, request, send))
        return outcome.settle()

    async def _call_aio(
        self, client: Any, operation: str, params: Any, forward: Callable[[str, Any], Any]
    ) -> Any:
        found = self._look(client, operation, params)
        if found is None:
            return await forward(operation, params)
        if isinstance(found, dict):
            return found
        request, send = (operation, params, found.plain), send_by(forward)
        world = self._runtime.asyncio()
        if self._endpoint is not None:
            send = self._endpoint.over(send, client, world)
        outcome = await self._engine.call(world, found.scope, request, send)
        return outcome.settle()

    def _look(self, client: Any, operation: str, params: Any) -> Link | dict[str, Any] | None:
        """A hit; else by which link the engine is to be asked; None: it passes by."""
        if not self._open:
            return None
        link = client.__dict__.get(LINK) or self.placing.adopt(client)
        if link is None or link.stubbed or type(params) is not dict:
            return None
        if operation == "GetItem" and len(params) == 2:
            answer = self._hit(link, params)
            if answer is not None:
                return answer
        if self._bypassed.get() and operation in _BYPASSED:
            return None
        return link

    def _serves(self) -> bool | None:
        """Whether reads may be answered now; None: it was uninstalled."""
        return not self._bypassed.get() if self._open else None

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


_BYPASSED = frozenset({"GetItem", "BatchGetItem", "Query", "Scan"})
_LAGS = ("bus_lag", "stream_lag")
_PER_TABLE = ("item_hits", "query_hits", "items", "pages")
_COUNTED = (
    "item_misses", "query_misses", "shared", "fills", "fills_refused", "not_kept", "passed",
    "reads_made_strong", "unknown_outcomes", "invalidations", "flushes", "describes", "faults",
    "not_served", "by_events", "not_trusted", "others_told", "bus_untold", "bus_flushes",
    "stream_records", "stream_echoes", "stream_flushes", "writers_silent",
    "cluster_answers", "cluster_fallbacks",
)  # fmt: skip


def _plain_name(table: str) -> str:
    try:
        return table_name(table)[0]
    except NotUnderstood:
        raise ValueError(f"{table!r} names no table") from None
