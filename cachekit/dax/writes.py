"""Writes: evict first, send, then keep what is certainly the new state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .expressions import NotUnderstood, table_name
from .notes import EVERYTHING
from .protocol import Outcome, Write
from .reads import Step
from .sent import Sent, attempts_of, outcome_of
from .store import Scope, Store, TableState
from .values import (
    ABSENT,
    Image,
    Kept,
    Key,
    Uncertain,
    Wire,
    key_from,
    key_of,
    part_of,
    plain_atom,
    stored,
    to_wire,
    wire_atom,
)


class One:
    """One item that a request writes. ``image`` is what it will be if the write is applied: an
    item as sent, ABSENT, or None for not known; ``path`` is where the body has it."""

    __slots__ = ("blind", "image", "key", "partition", "path", "state")

    def __init__(
        self, state: TableState, key: Key, image: Any = None, path: Sequence[Any] = ()
    ) -> None:
        self.state = state
        self.key = key
        self.image = image
        self.path = path
        schema = state.schema
        self.partition = part_of(key, schema.names[0]) if schema is not None else None
        self.blind = self.partition is None

    def spots(self) -> list[Any]:
        state = self.state
        spots = [state.key_spot(self.key), state.any_spot]
        if self.partition is not None:
            spots.append(state.partition_spot(self.partition))
        return spots

    def tags(self) -> list[str]:
        state = self.state
        if state.settings.query_invalidation == "none":
            return []
        found = [state.any_tag]
        if self.partition is not None:
            found.append(state.partition_tag(self.partition))
        return found

    def kept(self, sent: Sent | None, *, plain: bool) -> Kept | None:
        """What to keep of it once it is applied; None: nothing."""
        if self.image is None or self.image is ABSENT:
            return ABSENT if self.image is ABSENT else None
        try:
            given = to_wire(self.image) if plain else self.image
            on_the_way = None if sent is None else sent.item(self.path)
            if on_the_way is None:
                return None
            mine = stored(given)
            if on_the_way != given and not _same(stored(on_the_way), mine):
                return None
            if key_from(mine, self.key[0::3], wire_atom) != self.key:
                return None
            return Image(mine)
        except (Uncertain, ValueError, TypeError):
            return None


def _same(one: Wire, other: Wire) -> bool:
    return one == other or _sorted(one) == _sorted(other)


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: sorted(each) if name in ("SS", "NS", "BS") else _sorted(each)
            for name, each in value.items()
        }
    return [_sorted(each) for each in value] if isinstance(value, list) else value


class WriteStep(Step):
    """Any write of items that are known before it is sent."""

    def __init__(
        self, store: Store, params: Mapping[str, Any], ones: list[One], *, plain: bool
    ) -> None:
        super().__init__(store, params, plain=plain)
        self.ones = ones
        self.sent = Sent()
        self._kept: list[Kept | None] = [None] * len(ones)
        self._write: Write | None = None
        self._begin()

    def writes(self) -> list[tuple[bytes, Key | None]]:
        return [(one.state.mark, one.key) for one in self.ones]

    def _begin(self) -> None:
        store = self.store
        spots: dict[Any, None] = {}
        for one in self.ones:
            spots.update(dict.fromkeys(one.spots()))
        self._spots = list(spots)
        with store.gate:
            watch = {one.state.table_spot: None for one in self.ones}
            self._write = write = store.protocol.begin(self._spots, watch)
            try:
                self._evict()
            except BaseException:
                self._write = None
                store.protocol.end(write, Outcome.UNKNOWN)
                raise

    def _evict(self, *, only_detach: bool = False) -> None:
        by_state: dict[tuple[int, str], tuple[TableState, list[Key], dict[str, None]]] = {}
        for one in self.ones:
            state = one.state
            found = by_state.setdefault((state.place, state.name), (state, [], {}))
            found[1].append(one.key)
            found[2].update(dict.fromkeys(one.tags()))
        evict = self.store.detach if only_detach else self.store.evict
        for state, keys, tags in by_state.values():
            evict(state, keys, tags)

    # -- what came back ------------------------------------------------------------------

    def _results(self, response: dict[str, Any]) -> list[Kept | None]:
        """What to keep of each item."""
        return [one.kept(self.sent, plain=self.plain) for one in self.ones]

    def landed(self, response: dict[str, Any]) -> dict[str, Any]:
        outcome = Outcome.UNKNOWN
        kept: list[Kept | None] = [None] * len(self.ones)
        try:
            outcome = self.sent.of_success(response)
            if outcome is Outcome.APPLIED:
                kept = self._results(response)
        finally:
            self._end(outcome, kept)
        return response

    def _end(self, outcome: Outcome, kept: list[Kept | None]) -> None:
        store, self.ended = self.store, outcome
        with store.gate:
            write, self._write = self._write, None
            if write is None:
                return
            may = dict(zip(self._spots, store.protocol.end(write, outcome), strict=True))
            # Reads that began during the write may have read what was before it.
            self._evict(only_detach=True)
            for one, image in zip(self.ones, kept, strict=True):
                if image is not None and may[one.state.key_spot(one.key)]:
                    store.keep_item(one.state, one.key, image, write.at)
                schema = one.state.schema
                if one.blind and schema is not None:
                    self._late(one, schema.names[0], outcome)

    def _late(self, one: One, hash_name: str, outcome: Outcome) -> None:
        """The table became known while this was under way: its partition learns of it now."""
        partition = part_of(one.key, hash_name)
        if partition is None:
            return
        state = one.state
        write = self.store.protocol.begin([state.partition_spot(partition)])
        self.store.evict(state, [], [state.partition_tag(partition)])
        self.store.protocol.end(write, outcome)

    def failed(self, error: BaseException | None) -> None:
        if self._write is not None:
            outcome = self.sent.of_error(error)
            if outcome is Outcome.UNKNOWN:
                self.store.meter.count("unknown_outcomes")
            self._end(outcome, [None] * len(self.ones))


class UpdateItem(WriteStep):
    """UpdateItem: the new item is known only if DynamoDB gives it."""

    def __init__(self, store: Store, params: Mapping[str, Any], one: One, *, plain: bool) -> None:
        self._changed = False
        super().__init__(store, params, [one], plain=plain)
        wanted = params.get("ReturnValues", "NONE")
        settings = one.state.settings
        self._whole = wanted == "ALL_NEW" and "AttributeUpdates" not in params
        if (
            wanted == "NONE"
            and settings.return_images
            and settings.item_ttl != 0
            and not one.state.images_refused
            and "AttributeUpdates" not in params
        ):
            self.params = {**params, "ReturnValues": "ALL_NEW"}
            self._original = params
            self._changed = self._whole = True

    def as_asked(self) -> None:
        """Send what the caller asked for, and no more."""
        if self._changed:
            self.params = self._original
            self._changed = self._whole = False

    def _results(self, response: dict[str, Any]) -> list[Kept | None]:
        item = response.get("Attributes")
        if not self._whole or not item:
            return [None]
        try:
            image = to_wire(item) if self.plain else item
            names = self.ones[0].key[0::3]
            if key_from(image, names, wire_atom) != self.ones[0].key:
                return [None]
            return [Image(image)]
        except (ValueError, TypeError):
            return [None]

    def landed(self, response: dict[str, Any]) -> dict[str, Any]:
        try:
            return super().landed(response)
        finally:
            if self._changed:
                response.pop("Attributes", None)

    def again(self, error: BaseException) -> Mapping[str, Any] | None:
        """A caller that may not read what it writes: ask for nothing from now on."""
        answer = getattr(error, "response", None)
        code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
        if not self._changed or code != "AccessDeniedException":
            return None
        self._changed = self._whole = False
        self.ones[0].state.images_refused = True
        return self._original


class BatchWrite(WriteStep):
    """BatchWriteItem: what comes back as unprocessed stays evicted."""

    def _results(self, response: dict[str, Any]) -> list[Kept | None]:
        left: set[tuple[str, Key | None]] = set()
        atom = plain_atom if self.plain else wire_atom
        for table, requests in (response.get("UnprocessedItems") or {}).items():
            name, _ = table_name(table)
            for request in requests:
                names = {one.key[0::3] for one in self.ones if one.state.name == name}
                item = request.get("PutRequest", {}).get("Item")
                given = request.get("DeleteRequest", {}).get("Key", item)
                left.update((name, key_from(given, each, atom)) for each in names)
        return [
            None if (one.state.name, one.key) in left else one.kept(self.sent, plain=self.plain)
            for one in self.ones
        ]


class Transaction(WriteStep):
    """TransactWriteItems: kept only when it was sent once, under a token of botocore's own."""

    def _begin(self) -> None:
        # Now: botocore puts one of its own into the same dictionary later.
        self._own_token = self.params.get("ClientRequestToken") is not None
        super()._begin()

    def _results(self, response: dict[str, Any]) -> list[Kept | None]:
        if attempts_of(response) != 0 or self._own_token:
            return [None] * len(self.ones)
        return super()._results(response)


class WholeTable(Step):
    """A request that may change anything in the tables; no tables: in all of them."""

    def __init__(
        self, store: Store, params: Mapping[str, Any], states: list[TableState], *, plain: bool
    ) -> None:
        super().__init__(store, params, plain=plain)
        self._states = states
        with store.gate:
            protocol = store.protocol
            spots = [spot for state in states for spot in (state.any_spot, state.table_spot)]
            self._write: Write | None = protocol.begin(spots) if spots else protocol.begin_all()
            self._empty()

    def writes(self) -> list[tuple[bytes, Key | None]]:
        return [(state.mark, None) for state in self._states] or [(EVERYTHING, None)]

    def _empty(self) -> None:
        for state in self._states:
            self.store.empty(state)
            state.schema = None
            state.describe_at = -float("inf")
            state.proven.clear()
        if not self._states:
            self.store.empty_all()
        self.store.meter.count("flushes")

    def _end(self, outcome: Outcome) -> None:
        self.ended = outcome
        with self.store.gate:
            write, self._write = self._write, None
            if write is not None:
                self.store.protocol.end(write, outcome)
                self._empty()

    def landed(self, response: dict[str, Any]) -> dict[str, Any]:
        self._end(Outcome.UNKNOWN if attempts_of(response) else Outcome.APPLIED)
        return response

    def failed(self, error: BaseException | None) -> None:
        outcome = outcome_of(error)
        again = attempts_of(getattr(error, "response", None))
        self._end(Outcome.UNKNOWN if again else outcome)


# -- from parameters to items --------------------------------------------------------------


def put(state: TableState, item: Any, path: Sequence[Any], *, plain: bool, own: bool = True) -> One:
    """Raises :class:`NotUnderstood` when the key can not be told: then the table is flushed.
    Not ``own``: it may be another account's table, so nothing is kept."""
    if state.schema is None:
        raise NotUnderstood("the table's key is not known")
    key = key_from(item, state.schema.names, plain_atom if plain else wire_atom)
    if key is None:
        raise NotUnderstood("key")
    return One(state, key, item if own else None, path)


def change(state: TableState, key: Any, image: Any, *, plain: bool, own: bool = True) -> One:
    found = key_of(key, plain_atom if plain else wire_atom)
    if found is None:
        raise NotUnderstood("Key")
    return One(state, found, image if own else None)


def batch(scope: Scope, params: Mapping[str, Any], *, plain: bool) -> list[One]:
    requests = params.get("RequestItems")
    if not isinstance(requests, dict):
        raise NotUnderstood("RequestItems")
    ones = []
    for table, each in requests.items():
        state, own = scope.resolve(table)
        if state is None:
            continue
        for at, request in enumerate(_listed(each)):
            if "PutRequest" in request:
                path = ("RequestItems", table, at, "PutRequest", "Item")
                ones.append(
                    put(state, request["PutRequest"].get("Item"), path, plain=plain, own=own)
                )
            else:
                given = request.get("DeleteRequest", {}).get("Key")
                ones.append(change(state, given, ABSENT, plain=plain, own=own))
    return ones


def transaction(scope: Scope, params: Mapping[str, Any], *, plain: bool) -> list[One]:
    ones = []
    for at, each in enumerate(_listed(params.get("TransactItems"))):
        for kind, action in each.items():
            state, own = scope.resolve(action.get("TableName"))
            if state is None or kind == "ConditionCheck":
                continue
            if kind == "Put":
                path = ("TransactItems", at, "Put", "Item")
                ones.append(put(state, action.get("Item"), path, plain=plain, own=own))
            elif kind in ("Delete", "Update"):
                image = ABSENT if kind == "Delete" else None
                ones.append(change(state, action.get("Key"), image, plain=plain, own=own))
            else:
                raise NotUnderstood(kind)
    return ones


def _listed(value: Any) -> Iterable[Mapping[str, Any]]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, dict) for each in value):
        raise NotUnderstood("a list of requests")
    return value
