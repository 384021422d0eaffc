"""What is kept: items and pages in the near tier, beside the protocol that says who may fill.

A *place* is one endpoint and region: what is written there is evicted for every caller. A *scope*
is a place as one set of credentials sees it: nothing is shared between scopes. One lock, the
gate, joins the protocol's steps with evictions and fills; hits do not take it.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final
from typing import Protocol as Shape

from ..core.entry import Entry, Verdict
from ..core.near import Near
from ..core.place import Place, Table
from ..core.policy import Span
from ..errors import KeyEncodingError
from ..observe import Meter
from ..runtime import Runtime
from .expressions import table_name
from .notes import place_name, table_mark
from .protocol import Look, Protocol
from .settings import Settings, TableSettings
from .values import ABSENT, ENTRY_BYTES, Absent, Kept, Key, weigh

MOST_PROVEN: Final = 256
MOST_SCOPES: Final = 64
MOST_TABLES: Final = 4096
DESCRIBE_AGAIN: Final = 60.0  # seconds until a table that could not be described is asked for again


@dataclass(frozen=True, slots=True)
class Schema:
    """Key attributes of a table, partition first, and its local indexes."""

    names: tuple[str, ...]
    local: frozenset[str]
    arn: str | None

    @classmethod
    def of(cls, description: Any) -> Schema | None:
        """From a TableDescription; None if it is not one."""
        try:
            keys = sorted(description["KeySchema"], key=lambda k: str(k["KeyType"]))  # HASH, RANGE
            local = description.get("LocalSecondaryIndexes") or ()
            return cls(
                tuple(str(key["AttributeName"]) for key in keys),
                frozenset(str(index["IndexName"]) for index in local),
                description.get("TableArn"),
            )
        except (KeyError, TypeError, AttributeError):
            return None


class Follows(Shape):
    """Whether what others write to a table is told of now."""

    open: bool


class Trusts(Shape):
    """For how many seconds what was asked for at a moment may be kept."""

    def most(self, asked: float) -> float: ...


class TableState:
    """One table of one scope."""

    __slots__ = (
        "describe_at", "follows", "hot", "images_refused", "items", "mark", "name", "pages",
        "place", "proven", "schema", "settings", "tag",
    )  # fmt: skip

    def __init__(
        self, place: int, scope: int, name: str, settings: TableSettings, mark: bytes
    ) -> None:
        self.name = name
        self.place = place
        self.mark = mark  # of place and name, the same in every process
        self.follows: Follows | None = None
        self.settings = settings
        self.tag = f"{place}:{name}:"
        self.items = Table(f"dax:{scope}:{name}", ("key",), _no_text, indexed=False,
                           text_required=False)  # fmt: skip
        self.pages = Table(
            f"dax:{scope}:{name}:pages",
            ("request",),
            _no_text,
            indexed=False,
            text_required=False,
            carries=lambda tag, start=self.tag: tag.startswith(start),  # type: ignore[misc]  # bound
        )
        self.hot: dict[Any, Entry] = self.items.shelf.hot
        self.proven: set[Hashable] = set()  # projections that DynamoDB accepted
        self.schema: Schema | None = None
        self.describe_at = -math.inf
        self.images_refused = False

    # -- names of spots and tags --------------------------------------------------------

    def key_spot(self, key: Key) -> Hashable:
        return ("item", self.mark, key)

    def partition_spot(self, partition: Key) -> Hashable:
        return ("partition", self.mark, partition)

    @property
    def any_spot(self) -> Hashable:
        """Moved by every write: scans and global indexes depend on it."""
        return ("any", self.mark)

    @property
    def table_spot(self) -> Hashable:
        """Moved by what changes a table in ways that are not known per item."""
        return ("table", self.mark)

    def partition_tag(self, partition: Key) -> str:
        return f"{self.tag}{partition!r}"

    @property
    def any_tag(self) -> str:
        return f"{self.tag}*"

    def prove(self, projection: Hashable) -> None:
        if len(self.proven) < MOST_PROVEN:
            self.proven.add(projection)


_TOO_MANY: Final = object()


def _no_text(values: tuple[Any, ...]) -> str:
    raise KeyEncodingError("requests have no text key")


class Scope:
    """The tables of one place as one set of credentials sees them. Without ``reads`` it is shared
    by those that came when there were too many: nothing is kept or read, writes still evict."""

    def __init__(
        self, store: Store, place: Hashable, number: int, place_number: int, *, reads: bool = True
    ) -> None:
        self.store = store
        self.reads = reads
        self.place = place
        self.number = number
        self.place_number = place_number
        self.client: weakref.ref[Any] | None = None  # one that asks so
        self.tables: dict[str, TableState] = {}

    def table(self, name: str) -> TableState | None:
        """The state of a table; None: it is not cached."""
        state = self.tables.get(name)
        if state is None:
            settings = self.store.settings.of(name)
            if settings is None:
                return None
            if not self.reads or len(self.tables) >= MOST_TABLES:
                settings = replace(settings, item_ttl=0.0, negative_ttl=0.0, query_ttl=0.0)
            mark = table_mark(self.place, name)
            if len(self.tables) >= MOST_TABLES:  # names that callers make up, perhaps
                return TableState(self.place_number, self.number, name, settings, mark)
            with self.store.gate:
                state = self.tables.get(name)
                if state is None:
                    state = TableState(self.place_number, self.number, name, settings, mark)
                    self.store.near.enlist(state.items)
                    self.store.near.enlist(state.pages)
                    for meet in self.store.on_table:
                        meet(self, state)
                    self.store.by_mark.setdefault(mark, []).append(state)
                    self.tables[name] = state
        return state

    def resolve(self, table: Any) -> tuple[TableState | None, bool]:
        """The state that a ``TableName`` means, and whether it is that table for certain: an ARN
        may name a table of another account. Raises :class:`NotUnderstood`."""
        name, is_arn = table_name(table)
        state = self.table(name)
        if state is None or not is_arn:
            return state, True
        return state, state.schema is not None and state.schema.arn == table


class Store:
    """Everything one handle keeps."""

    def __init__(self, settings: Settings, runtime: Runtime, meter: Meter) -> None:
        self.settings = settings
        self.runtime = runtime
        self.clock: Callable[[], float] = runtime.clock
        self.meter = meter
        self.gate = threading.RLock()
        self.near = self._new_near()
        self.protocol = self._new_protocol()
        self.flights = runtime.threads.flights
        self.scopes: dict[Hashable, Scope] = {}
        self.by_mark: dict[bytes, list[TableState]] = {}  # a table in all scopes of its place
        self.on_table: list[Callable[[Scope, TableState], None]] = []  # at the first use of one
        self.trusts: Trusts | None = None
        self.before_look: list[Callable[[], None]] = []
        self._places: dict[Hashable, int] = {}

    def _new_near(self) -> Near:
        most = self.settings.max_bytes
        return Near(
            self.clock,
            max_entries=max(16, most // ENTRY_BYTES),
            max_weight=float(most),
            weigh=weigh,
        )

    def _new_protocol(self) -> Protocol:
        return Protocol(self.clock, settle=self.settings.settle, hold=self.settings.quarantine)

    def reset_after_fork(self) -> None:
        """In a forked child: empty; what the parent's threads were writing may still land."""
        self.gate = threading.RLock()
        self.near.reset_after_fork()
        self.flights = self.runtime.threads.flights
        self.protocol = self._new_protocol()
        self.protocol.disturb_all()

    def scope(self, place: Hashable, principal: Hashable, client: Any = None) -> Scope:
        """``client``: who asks so."""
        with self.gate:
            found = self.scopes.get((place, principal))
            if found is None:
                number = self._places.setdefault(place_name(place), len(self._places))
                reads = len(self.scopes) < MOST_SCOPES
                if not reads:
                    principal = _TOO_MANY
                    self.meter.count("not_served")
                found = self.scopes.get((place, principal))
                if found is None:
                    found = Scope(self, place, len(self.scopes), number, reads=reads)
                    self.scopes[(place, principal)] = found
            if client is not None:
                found.client = weakref.ref(client)
            return found

    def siblings(self, state: TableState) -> Iterator[TableState]:
        """The same table in every scope of its place."""
        yield from self.by_mark.get(state.mark, ())

    # -- looking -------------------------------------------------------------------------

    def look(self, spots: Iterable[Hashable]) -> Look:
        """A read begins. With the gate held."""
        for each in self.before_look:
            each()
        return self.protocol.look(spots)

    def item(self, state: TableState, key: Key) -> Any:
        """The image of an item, ABSENT, or None. Counts the hit; takes no lock."""
        entry = state.hot.get(key)
        if entry is None or self.clock() >= entry.deadline:
            return None
        entry.uses += 1.0
        return entry.value

    def page(self, state: TableState, ident: str) -> Any:
        place = Place(state.pages, state.pages.shelf, (ident,))
        verdict, entry = self.near.find(place)
        if verdict is not Verdict.FRESH or entry is None:
            return None
        entry.uses += 1.0
        return entry.value

    def promote(self, state: TableState, kept: Any, key: Any, *, plain: bool) -> None:
        """Make the ready form of a kept value, and charge for it."""
        with self.gate:
            table = state.items if isinstance(key, tuple) else state.pages
            entry = table.shelf.hot.get(key)
            if entry is None or entry.value is not kept:
                return
            left = entry.deadline - self.clock()
            if left <= 0:
                return
            kept.promote(plain)
            extra = entry.extra
            tags, seq = (extra.tags, extra.seq) if extra is not None else ((), 0)
            place = Place(table, table.shelf, key if isinstance(key, tuple) else (key,))
            self.near.store(place, kept, Span(left, left), tags=tags, seq=seq)

    # -- filling and dropping: with the gate held ----------------------------------------

    def keep_item(self, state: TableState, key: Key, kept: Kept, asked: float) -> None:
        """``asked``: when the request began that brought it."""
        settings = state.settings
        ttl = settings.negative_ttl if isinstance(kept, Absent) else settings.item_ttl
        place = Place(state.items, state.items.shelf, key)
        self._keep(place, kept, ttl, self._most(state, asked))

    def keep_page(
        self,
        state: TableState,
        ident: str,
        kept: Kept,
        asked: float,
        *,
        tags: tuple[str, ...],
        seq: int,
    ) -> None:
        place = Place(state.pages, state.pages.shelf, (ident,))
        most = self._most(state, asked)
        self._keep(place, kept, state.settings.query_ttl, most, tags=tags, seq=seq)

    def _most(self, state: TableState, asked: float) -> float:
        """For how many seconds it may be kept, as far as others are heard of."""
        if state.follows is not None and not state.follows.open:
            return 0.0
        return math.inf if self.trusts is None else self.trusts.most(asked)

    def _keep(
        self,
        place: Place,
        kept: Kept,
        ttl: float | None,
        most: float,
        *,
        tags: tuple[str, ...] = (),
        seq: int = 0,
    ) -> None:
        if ttl == 0:
            return
        if most <= 0:
            self.meter.count("not_trusted")
            return
        span = min(math.inf if ttl is None else ttl, most)
        if self.near.store(place, kept, Span(span, span), tags=tags, seq=seq):
            self.meter.count("fills")
        else:
            self.meter.count("fills_refused")

    def evict(self, state: TableState, keys: Iterable[Key], tags: Iterable[str]) -> None:
        """Drop items and pages of a table for every caller, and detach who is loading them."""
        wanted, marked = list(keys), list(tags)
        for each in self.siblings(state):
            shelf = each.items.shelf
            self.near.kill([Place(each.items, shelf, key) for key in wanted])
        if marked:
            self.near.kill_tags(marked)
        self.detach(state, wanted, marked)

    def detach(self, state: TableState, keys: Iterable[Key], tags: Iterable[str]) -> None:
        """Nobody who comes from now on is given what is being loaded."""
        if not len(self.flights):
            return
        for each in self.siblings(state):
            for key in keys:
                self.flights.detach((each.items.name, key))
        self.flights.detach_tagged(tags)

    def empty(self, state: TableState) -> None:
        """Drop all of a table for every caller."""
        for each in self.siblings(state):
            self.near.kill_table(each.items)
            self.near.kill_table(each.pages)
        self.flights.detach_all()

    def empty_all(self) -> None:
        self.near.clear()
        self.flights.detach_all()


__all__ = ["ABSENT", "Schema", "Scope", "Store", "TableState"]
