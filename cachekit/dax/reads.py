"""GetItem, Query and Scan: look, and else ask once for all who want the same.

A *step* is one request as the engine sees it: ``answer`` (a hit), ``flight`` (somebody asks for the
same), or ``params`` to send, and then what the response or the error does. Steps never send.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.flights import Flight, closes_circle, leads, led
from . import answers
from .expressions import Asked, NotUnderstood, partition_of, project, projection_of
from .protocol import Look, Outcome
from .store import Store, TableState
from .values import ABSENT, Image, Key, Page, key_of, plain_atom, to_plain, to_wire, wire_atom

_GET = frozenset({
    "TableName", "Key", "ConsistentRead", "ProjectionExpression", "ExpressionAttributeNames",
    "ReturnConsumedCapacity",
})  # fmt: skip


class Step:
    """One request. ``plain``: its values are in the resource's form."""

    def __init__(self, store: Store, params: Mapping[str, Any], *, plain: bool) -> None:
        self.store = store
        self.params: Mapping[str, Any] = params
        self.plain = plain
        self.answer: dict[str, Any] | None = None
        self.flight: Flight | None = None  # of another, to be waited for
        self.ended = Outcome.UNKNOWN  # of a write

    def writes(self) -> list[tuple[bytes, Key | None]]:
        """The tables and keys that it writes; None: anything in the table."""
        return []

    def joined(self) -> None:
        """The flight waited for has landed, or took too long. There may be another then."""

    def landed(self, response: dict[str, Any]) -> dict[str, Any]:
        """The response came; gives what the caller gets."""
        return response

    def failed(self, error: BaseException | None) -> None:
        """No response came. Twice, or after :meth:`landed`, does nothing."""

    def again(self, error: BaseException) -> Mapping[str, Any] | None:
        """Parameters to send once more in place of what was refused; None: raise."""
        return None


class Shared(Step):
    """A read of one thing that is kept whole: an item or a page."""

    def __init__(
        self, store: Store, params: Mapping[str, Any], state: TableState, *, plain: bool
    ) -> None:
        super().__init__(store, params, plain=plain)
        self.state = state
        self.strong = params.get("ConsistentRead") is True
        self._look: Look | None = None
        self._led: Flight | None = None
        self._context: Any = None
        self._seq = 0

    def _spots(self) -> list[Any]:
        raise NotImplementedError

    def _ident(self) -> Any:
        raise NotImplementedError

    def _tags(self) -> tuple[str, ...]:
        return ()

    def _may_be_strong(self) -> bool:
        return self.state.settings.read_strongly

    def _give(self, kept: Any) -> dict[str, Any]:
        raise NotImplementedError

    def _image(self, response: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def _keep(self, kept: Any, asked: float) -> None:
        raise NotImplementedError

    def _begin(self) -> None:
        """Lead a flight, or find one to wait for; strong reads go alone."""
        store, ident = self.store, self._ident()
        if not self.strong and not leads(ident, store.flights):
            mine = self._led = Flight(ident)
            try:
                with store.gate:
                    flight = store.flights.board(mine)
                    if flight is mine:
                        mine.tags = self._tags()
                        self._start()
                if flight is mine:
                    self._context = led.set((*led.get(), mine))
                    return
                self._led = None
            except BaseException:
                self._over(self._look, None, given_up=True)
                raise
            if not closes_circle(flight):
                self.flight = flight
                return
        self._start()

    def _start(self) -> None:
        with self.store.gate:
            look = self.store.look(self._spots())
            self._seq = self.store.near.seq
        self._look = look
        if look.strong and not look.held and not self.strong and self._may_be_strong():
            self.params = {**self.params, "ConsistentRead": True}
            self.strong = True
            self.store.meter.count("reads_made_strong")

    def joined(self) -> None:
        flight, self.flight = self.flight, None
        if flight is not None and flight.landed and not flight.handed and flight.value is not None:
            self.store.meter.count("shared")
            self.answer = self._give(flight.value)
            return
        if flight is not None and flight.handed:
            self._begin()  # whose request it was is gone: one of those who wait asks for all
            return
        if flight is not None and not flight.landed:
            self.store.flights.leave(flight)  # it takes too long to be waited for by others
        self._start()

    def landed(self, response: dict[str, Any]) -> dict[str, Any]:
        look, self._look = self._look, None
        kept = None
        try:
            kept = self._image(response)
        except (ValueError, TypeError):
            self.store.meter.count("not_kept")
        finally:
            self._over(look, kept)
        return response

    def _over(self, look: Look | None, kept: Any, *, given_up: bool = False) -> None:
        store = self.store
        try:
            if look is not None:
                with store.gate:
                    try:
                        may = store.protocol.may_fill(look, was_strong=self.strong)
                        if kept is not None and may:
                            self._keep(kept, look.at)
                    finally:
                        store.protocol.leave(look)
        finally:
            flight, self._led = self._led, None
            if flight is not None:
                if self._context is not None:
                    _forget(self._context)
                    self._context = None
                store.flights.leave(flight)
                if not given_up:
                    flight.land(kept)  # None: nothing that can be shared
                store.flights.end(flight)

    def failed(self, error: BaseException | None) -> None:
        look, self._look = self._look, None
        cancelled = error is not None and not isinstance(error, Exception)
        self._over(look, None, given_up=cancelled)


def _forget(token: Any) -> None:
    try:
        led.reset(token)
    except ValueError:  # ended in another context: that one ends with its own
        return


class GetItem(Shared):
    """One item by its key."""

    def __init__(
        self, store: Store, params: Mapping[str, Any], state: TableState, *, plain: bool
    ) -> None:
        """Raises :class:`NotUnderstood` for what must pass by."""
        super().__init__(store, params, state, plain=plain)
        if not _GET.issuperset(params) or not answers.may_be_answered(params):
            raise NotUnderstood("parameters")
        if type(params.get("ConsistentRead", False)) is not bool:
            raise NotUnderstood("ConsistentRead")
        key = key_of(params.get("Key"), plain_atom if plain else wire_atom)
        if key is None:
            raise NotUnderstood("Key")
        self.key: Key = key
        self._paths = projection_of(params)
        if self.strong and not state.settings.fill_from_strong:
            raise NotUnderstood("ConsistentRead")
        if not self.strong:
            kept = store.item(state, key)
            if kept is not None and (self._paths is None or self._projection in state.proven):
                self.answer = self._give(kept)
                return
        store.meter.count("item_misses")
        if self._paths is None:
            self._begin()

    @property
    def _projection(self) -> Any:
        names = self.params.get("ExpressionAttributeNames") or {}
        return self.params.get("ProjectionExpression"), tuple(sorted(names.items()))

    def _spots(self) -> list[Any]:
        return [self.state.key_spot(self.key), self.state.table_spot]

    def _ident(self) -> Any:
        return (self.state.items.name, self.key)

    def _give(self, kept: Any) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        if kept is not ABSENT:
            if self._paths is None:
                answer["Item"] = kept.read(self.plain)
                if kept.wants_promotion(self.plain):
                    self.store.promote(self.state, kept, self.key, plain=self.plain)
            else:
                part = project(kept.wire(), self._paths)
                answer["Item"] = to_plain(part) if self.plain else part
        if answers.asks_capacity(self.params):
            answer["ConsumedCapacity"] = answers.capacity(self.params, self.params["TableName"])
        answer["ResponseMetadata"] = answers.metadata()
        return answer

    def _image(self, response: Mapping[str, Any]) -> Any:
        if self._paths is not None:
            return None
        item = response.get("Item")
        if item is None:
            return ABSENT
        return Image(to_wire(item) if self.plain else item)

    def _keep(self, kept: Any, asked: float) -> None:
        self.store.keep_item(self.state, self.key, kept, asked)

    def landed(self, response: dict[str, Any]) -> dict[str, Any]:
        if self._paths is not None:
            self.state.prove(self._projection)
            return response
        return super().landed(response)


class ReadPage(Shared):
    """One request of Query or Scan."""

    def __init__(
        self,
        store: Store,
        operation: str,
        params: Mapping[str, Any],
        state: TableState,
        *,
        plain: bool,
    ) -> None:
        """Raises :class:`NotUnderstood` for what must pass by."""
        super().__init__(store, params, state, plain=plain)
        if state.settings.query_ttl == 0 or not answers.may_be_answered(params):
            raise NotUnderstood("parameters")
        if self.strong and not state.settings.fill_from_strong:
            raise NotUnderstood("ConsistentRead")
        asked = Asked(operation, params, plain=plain)
        self.ident = asked.ident
        self._partition = self._own_partition(operation, asked)
        if not self.strong:
            kept = store.page(state, self.ident)
            if kept is not None:
                self.answer = self._give(kept)
                return
        store.meter.count("query_misses")
        self._begin()

    def _own_partition(self, operation: str, asked: Asked) -> Key | None:
        """The partition whose writes alone change this page; None: any write of the table may."""
        schema = self.state.schema
        if schema is None or operation != "Query":
            return None
        if self.state.settings.query_invalidation != "partition":
            return None
        if asked.index is not None and asked.index not in schema.local:
            return None
        return partition_of(asked, schema.names[0], wire_atom)

    def _spots(self) -> list[Any]:
        state = self.state
        if state.settings.query_invalidation == "none":
            return [state.table_spot]
        if self._partition is not None:
            return [state.partition_spot(self._partition), state.table_spot]
        return [state.any_spot]

    def _tags(self) -> tuple[str, ...]:
        state = self.state
        if state.settings.query_invalidation == "none":
            return ()
        if self._partition is not None:
            return (state.partition_tag(self._partition),)
        return (state.any_tag,)

    def _may_be_strong(self) -> bool:
        return self._partition is not None and super()._may_be_strong()

    def _ident(self) -> Any:
        return (self.state.pages.name, self.ident)

    def _give(self, kept: Any) -> dict[str, Any]:
        answer: dict[str, Any] = kept.read(self.plain)
        if kept.wants_promotion(self.plain):
            self.store.promote(self.state, kept, self.ident, plain=self.plain)
        if answers.asks_capacity(self.params):
            answer["ConsumedCapacity"] = answers.capacity(self.params, self.params["TableName"])
        answer["ResponseMetadata"] = answers.metadata()
        return answer

    def _image(self, response: Mapping[str, Any]) -> Any:
        known = {"Items", "Count", "ScannedCount", "LastEvaluatedKey"}
        if not (known | {"ConsumedCapacity", "ResponseMetadata"}).issuperset(response):
            return None
        items, last = response.get("Items"), response.get("LastEvaluatedKey")
        if self.plain:
            items = None if items is None else [to_wire(item) for item in items]
            last = None if last is None else to_wire(last)
        rest = {n: response[n] for n in ("Count", "ScannedCount") if n in response}
        return Page(items, last, rest)

    def _keep(self, kept: Any, asked: float) -> None:
        tags = self._tags()
        self.store.keep_page(self.state, self.ident, kept, asked, tags=tags, seq=self._seq)
