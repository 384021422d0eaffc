"""BatchGetItem: keys that are known leave the request, the rest goes in one call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import answers
from .expressions import NotUnderstood
from .protocol import Look
from .reads import Step
from .store import Scope, Store, TableState
from .values import ABSENT, Image, Key, key_from, key_of, plain_atom, to_wire, wire_atom

MOST_KEYS = 100
_ENTRY = frozenset({"Keys", "ConsistentRead"})


class _Wanted:
    """One key that has to be asked for."""

    __slots__ = ("asked", "key", "look", "state", "strong", "table")

    def __init__(self, state: TableState, table: str, key: Key, asked: Any, look: Look) -> None:
        self.state = state
        self.table = table
        self.key = key
        self.asked = asked
        self.look = look
        self.strong = False


class BatchGet(Step):
    """Raises :class:`NotUnderstood` for what must pass whole: duplicates, more than 100 keys,
    keys that can not be ones."""

    def __init__(
        self, store: Store, params: Mapping[str, Any], scope: Scope, *, plain: bool
    ) -> None:
        super().__init__(store, params, plain=plain)
        requests = params.get("RequestItems")
        if not isinstance(requests, dict) or not requests:
            raise NotUnderstood("RequestItems")
        if not {"RequestItems", "ReturnConsumedCapacity"}.issuperset(params):
            raise NotUnderstood("parameters")
        if not answers.may_be_answered(params):
            raise NotUnderstood("ReturnConsumedCapacity")
        self._atom = plain_atom if plain else wire_atom
        self._known: dict[str, list[Any]] = {}
        self._wanted: list[_Wanted] = []
        self._answered: list[str] = []
        keys = {table: self._keys(table, request) for table, request in requests.items()}
        if sum(map(len, keys.values())) > MOST_KEYS:
            raise NotUnderstood("too many keys")
        try:
            rest = {
                table: left
                for table, request in requests.items()
                if (left := self._left(scope, table, request, keys[table])) is not None
            }
        except BaseException:
            self.failed(None)
            raise
        if rest:
            self.params = {**params, "RequestItems": rest}
        else:
            self.answer = self._whole({"Responses": {}, "UnprocessedKeys": {}})
            self.answer["ResponseMetadata"] = answers.metadata()

    def _keys(self, table: Any, request: Any) -> list[tuple[Key, Any]]:
        if type(table) is not str or ":" in table or not isinstance(request, dict):
            raise NotUnderstood("a table by its ARN")
        given = request.get("Keys")
        if not isinstance(given, list) or not given:
            raise NotUnderstood("Keys")
        found = [(key, each) for each in given if (key := key_of(each, self._atom)) is not None]
        if len(found) != len(given) or len({key for key, _ in found}) != len(given):
            raise NotUnderstood("keys")
        return found

    def _left(
        self, scope: Scope, table: str, request: Any, keys: list[tuple[Key, Any]]
    ) -> Any | None:
        """What of one table's request has to be sent; None: nothing."""
        state, store = scope.table(table), self.store
        strong = request.get("ConsistentRead", False)
        if state is None or not _ENTRY.issuperset(request) or type(strong) is not bool:
            return request
        if strong and not state.settings.fill_from_strong:
            return request
        hits, left = [], []
        for key, asked in keys:
            kept = None if strong else store.item(state, key)
            if kept is None:
                with store.gate:
                    look = store.look([state.key_spot(key), state.table_spot])
                wanted = _Wanted(state, table, key, asked, look)
                left.append(wanted)
                self._wanted.append(wanted)  # at once: it must be let go of whatever happens
            elif kept is not ABSENT:
                hits.append(kept.read(self.plain))
                if kept.wants_promotion(self.plain):
                    store.promote(state, kept, key, plain=self.plain)
        self._known[table] = hits
        store.meter.count("item_misses", len(left))
        if not left:
            self._answered.append(table)
            return None
        make_strong = state.settings.read_strongly and any(
            wanted.look.strong and not wanted.look.held for wanted in left
        )
        for wanted in left:
            wanted.strong = strong or make_strong
        sent = {**request, "Keys": [wanted.asked for wanted in left]}
        if make_strong and not strong:
            sent["ConsistentRead"] = True
            store.meter.count("reads_made_strong")
        return sent

    def _whole(self, response: dict[str, Any]) -> dict[str, Any]:
        """The response with what was known put in."""
        responses = response.setdefault("Responses", {})
        for table, hits in self._known.items():
            responses[table] = [*hits, *responses.get(table, [])]
        if answers.asks_capacity(self.params):
            used = response.setdefault("ConsumedCapacity", [])
            used += [answers.capacity(self.params, table) for table in self._answered]
        return response

    def landed(self, response: dict[str, Any]) -> dict[str, Any]:
        try:
            self._fill(response)
        finally:
            self.failed(None)
        return self._whole(response)

    def _fill(self, response: Mapping[str, Any]) -> None:
        unprocessed = response.get("UnprocessedKeys") or {}
        for table in {wanted.table for wanted in self._wanted}:
            wanted = {each.key: each for each in self._wanted if each.table == table}
            names = next(iter(wanted))[0::3]
            left = unprocessed.get(table, {}).get("Keys", [])
            for given in left:
                wanted.pop(key_of(given, self._atom) or (), None)
            kept: dict[Key, Any] = dict.fromkeys(wanted, ABSENT)
            for item in response.get("Responses", {}).get(table, []):
                key = key_from(item, names, self._atom)
                if key not in kept:
                    kept.clear()  # an answer to something else: nothing is certain
                    break
                kept[key] = self._image(item)
            for key, image in kept.items():
                self._keep(wanted[key], image)

    def _image(self, item: Any) -> Image | None:
        try:
            return Image(to_wire(item) if self.plain else item)
        except (ValueError, TypeError):
            return None

    def _keep(self, wanted: _Wanted, image: Any) -> None:
        store = self.store
        if image is None:
            return
        with store.gate:
            if store.protocol.may_fill(wanted.look, was_strong=wanted.strong):
                store.keep_item(wanted.state, wanted.key, image, wanted.look.at)

    def failed(self, error: BaseException | None) -> None:
        wanted, self._wanted = self._wanted, []
        with self.store.gate:
            for each in wanted:
                self.store.protocol.leave(each.look)
