"""The atomic steps on one item, each a conditional write on what was read, or guessed.

Most are one request: the condition names the state in which the step has its usual effect, and
where it fails DynamoDB brings the item along, so the next try is conditional on exactly that
(``v``). A try is repeated only after an answer that it failed; loops end at the deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...core.deadline import Deadline
from ...protocols import NOTHING, Grant, SlotState
from . import items
from .items import KEY, TTL, Attributes, Row
from .sightings import Sightings
from .table import Table

_ABSENT = f"attribute_not_exists({KEY})"
_NO_BLOCK = "attribute_not_exists(w)"
_HOLDING = "h = :h AND u > :now"


class Steps:
    """``verb`` is for errors. A name is a slot's, unless it says that it is a tag's."""

    def __init__(self, table: Table, sightings: Sightings) -> None:
        self.table = table
        self.sightings = sightings

    # -- the loader's side

    def acquire(
        self, name: str, token: bytes, lease: float, deadline: Deadline, *, over: bytes, keep: bool
    ) -> Grant:
        verb, put = "acquire", self._put
        while True:
            made = items.token(name, token, lease, self.sightings.now())
            if over and keep:
                found = self._refresh(name, over, made, deadline)
            elif over:
                condition = f"{_ABSENT} OR n = :n"
                found = put(name, made, verb, deadline, condition, {":n": {"B": over}})
            else:
                found = put(name, made, verb, deadline, _ABSENT)
            if found is None:
                break
            row = Row.of(found)
            present = self.sightings.present(row)
            slot = present.slot()
            if slot.state is not SlotState.NOTHING:
                if not over or slot.stamp != over:
                    return Grant(False, slot)
                if keep and slot.state is SlotState.REFRESHING:
                    return Grant(False, slot)
            made = items.token(name, token, lease, self.sightings.now())
            if slot.state is SlotState.NOTHING or not keep:
                found = put(name, made, verb, deadline, *_as_seen(row))
            else:
                found = self._refresh(name, over, made, deadline, row)
            if found is None:
                break
        self.sightings.note(made["v"]["B"])
        return Grant(True, NOTHING)

    def _refresh(
        self,
        name: str,
        over: bytes,
        token: Attributes,
        deadline: Deadline,
        row: Row | None = None,
    ) -> Attributes | None:
        """Put a refresh token beside the entry: over none, or over the one of ``row``, whose lease
        is over."""
        condition, values = (
            "n = :n AND (attribute_not_exists(e) OR e > :now)",
            {
                ":n": {"B": over},
                ":now": items.number(self.sightings.now()),
            },
        )
        if row is None:
            condition += " AND attribute_not_exists(h)"
        else:
            condition += " AND v = :seen"
            values[":seen"] = {"B": row.version}
        return self._set(
            name, {x: token[x] for x in "hluv"}, "acquire", deadline, condition, values
        )

    def renew(self, name: str, token: bytes, lease: float, deadline: Deadline) -> bool:
        now = self.sightings.now()
        changed = items.lease_of(items.millis(lease), now + items.millis(lease))
        changed["v"] = {"B": items.version()}
        found = self._set(name, changed, "renew", deadline, _HOLDING, self._holding(token))
        if found is not None:
            return False
        self.sightings.note(changed["v"]["B"])
        return True

    def fill(
        self, name: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        made = items.entry(name, token, data, ttl, self.sightings.now())
        found = self._put(name, made, "fill", deadline, _HOLDING, self._holding(token))
        return found is None

    def release(self, name: str, token: bytes, deadline: Deadline) -> None:
        mine = {":h": {"B": token}}
        while True:
            condition = "h = :h AND attribute_not_exists(n)"
            found = self._delete(name, "release", deadline, condition, mine)
            if found is None or Row.of(found).holder != token:
                return
            found = self.table.attempt(
                "update_item",
                name,
                "release",
                deadline,
                harmless=True,
                UpdateExpression="REMOVE h, l, u SET v = :v",
                ConditionExpression="h = :h AND attribute_exists(n)",
                ExpressionAttributeValues={**mine, ":v": {"B": items.version()}},
            )
            if found is None or Row.of(found).holder != token:
                return

    # -- the writer's side

    def put(
        self, name: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        made = items.entry(name, stamp, data, ttl, self.sightings.now())
        found = self._put(name, made, "put", deadline, _NO_BLOCK)
        while found is not None:
            row = Row.of(found)
            if self.sightings.present(row).writers:
                if self._contest(name, row, "put", deadline):
                    return False
                found = self._put(name, made, "put", deadline, _NO_BLOCK)
            else:
                found = self._put(name, made, "put", deadline, *_as_seen(row))
        return True

    def void(self, name: str, deadline: Deadline) -> None:
        found = self._delete(name, "void", deadline, _NO_BLOCK)
        while found is not None:
            row = Row.of(found)
            if not self.sightings.present(row).writers:
                found = self._delete(name, "void", deadline, *_as_seen(row))
            elif self._contest(name, row, "void", deadline):
                return
            else:
                found = self._delete(name, "void", deadline, _NO_BLOCK)

    def seize(
        self, name: str, writer: bytes, lease: float, deadline: Deadline, *, verb: str = "seize"
    ) -> None:
        condition: tuple[Any, ...] = (_NO_BLOCK,)
        row = items.EMPTY
        while True:
            now, length = self.sightings.now(), items.millis(lease)
            until = now + length
            if self.sightings.present(row).writers:
                writers, contested = row.joined(writer), True
                # What is left of the others' lease, as this process has seen it: their own
                # clocks may be anywhere.
                length = max(length, self.sightings.left(row))
                until = max(row.until, until)
            else:
                writers, contested = writer, False
            made = items.block(name, writers, contested=contested, lease=length, until=until)
            found = self._put(name, made, verb, deadline, *condition)
            if found is None:
                self.sightings.note(made["v"]["B"])
                return
            row = Row.of(found)
            condition = _as_seen(row) if row.writers else (_NO_BLOCK,)

    def commit(
        self, name: str, writer: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        made = items.entry(name, writer, data, ttl, self.sightings.now())
        condition = "w = :w AND attribute_not_exists(c) AND u > :now"
        while True:
            now = self.sightings.now()
            values = {":w": {"B": writer}, ":now": items.number(now)}
            found = self._put(name, made, "commit", deadline, condition, values)
            if found is None:
                return True
            # What stands is ended exactly as it was seen: at no other moment was it refused.
            row = Row.of(found)
            if row.writers == writer and not row.contested and row.until > now:
                continue
            if not row.version or self._end_seen(name, row, writer, "commit", deadline) is None:
                return False

    def end(self, name: str, writer: bytes, deadline: Deadline) -> None:
        self._end(name, writer, "end", deadline, contest=True)

    def end_tag(self, name: str, writer: bytes, deadline: Deadline) -> None:
        self._end(name, writer, "end_tags", deadline, contest=False)

    def _end(
        self, name: str, writer: bytes, verb: str, deadline: Deadline, *, contest: bool
    ) -> None:
        mine = {":w": {"B": writer}}
        found = self._delete(name, verb, deadline, f"{_NO_BLOCK} OR w = :w", mine)
        while found:
            found = self._end_seen(name, Row.of(found), writer, verb, deadline, contest=contest)

    def _end_seen(
        self,
        name: str,
        row: Row,
        writer: bytes,
        verb: str,
        deadline: Deadline,
        *,
        contest: bool = True,
    ) -> Attributes | None:
        """End where ``row`` stands; what stands there by now instead, or None when that was it."""
        seen = _as_seen(row)
        if not self.sightings.present(row).writers or row.writers == writer:
            return self._delete(name, verb, deadline, *seen)
        if row.has(writer):
            left = items.block(
                name, row.without(writer), contested=True, lease=row.lease, until=row.until
            )
            since = self.sightings.first(row.version)
            found = self._put(name, left, verb, deadline, *seen)
            if found is None:
                self.sightings.note(left["v"]["B"], since)
            return found
        if row.contested or not contest:
            return None
        condition, values = seen
        return self._mark(name, verb, deadline, condition, values or {})

    def _contest(self, name: str, row: Row, verb: str, deadline: Deadline) -> bool:
        """Have the block there contested; False when none is there any more."""
        return row.contested or self._mark(name, verb, deadline, "attribute_exists(w)", {}) is None

    def _mark(
        self, name: str, verb: str, deadline: Deadline, condition: str, values: Attributes
    ) -> Attributes | None:
        # The version stays: how long the block has been seen does not begin anew.
        marked = {"c": {"BOOL": True}}
        return self._set(name, marked, verb, deadline, condition, values, True)

    # -- tags and nonces

    def drop_tag(self, name: str, deadline: Deadline) -> None:
        found = self._delete(name, "drop_tags", deadline, _NO_BLOCK)
        while found is not None:
            row = Row.of(found)
            if self.sightings.present(row).writers:
                return
            found = self._delete(name, "drop_tags", deadline, *_as_seen(row))

    def nonce(
        self,
        name: str,
        found: Attributes | None,
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> bytes | None:
        """The nonce there, ``found`` or made; None where a block stands. One that has less than
        half of ``ttl`` left is prolonged, which can not bring back what was dropped."""
        while True:
            row = Row.of(found)
            present = self.sightings.present(row)
            if present.writers:
                return None
            now = self.sightings.now()
            if present.nonce is not None:
                if row.expires is not None and (
                    ttl is None or row.expires - now < items.millis(ttl) / 2
                ):
                    self._prolong(name, present.nonce, ttl, now, deadline)
                return present.nonce
            made = fresh()
            item = items.nonce(name, made, ttl, now)
            found = self._put(name, item, "nonces", deadline, *_as_seen(row))
            if found is None:
                return made

    def _prolong(
        self, name: str, nonce: bytes, ttl: float | None, now: int, deadline: Deadline
    ) -> None:
        values = {":n": {"B": nonce}}
        if ttl is not None:
            changed = items.expiry(ttl, now)
            self._set(name, changed, "nonces", deadline, "n = :n", values, True)
            return
        self.table.attempt(
            "update_item",
            name,
            "nonces",
            deadline,
            harmless=True,
            UpdateExpression=f"REMOVE e, {TTL}",
            ConditionExpression="n = :n",
            ExpressionAttributeValues=values,
        )

    # -- requests

    def _holding(self, token: bytes) -> Attributes:
        return {":h": {"B": token}, ":now": items.number(self.sightings.now())}

    def _put(
        self,
        name: str,
        item: Attributes,
        verb: str,
        deadline: Deadline,
        condition: str,
        values: Attributes | None = None,
    ) -> Attributes | None:
        given: Attributes = {"ExpressionAttributeValues": values} if values else {}
        return self.table.attempt(
            "put_item", name, verb, deadline, Item=item, ConditionExpression=condition, **given
        )

    def _delete(
        self,
        name: str,
        verb: str,
        deadline: Deadline,
        condition: str,
        values: Attributes | None = None,
    ) -> Attributes | None:
        given: Attributes = {"ExpressionAttributeValues": values} if values else {}
        return self.table.attempt(
            "delete_item",
            name,
            verb,
            deadline,
            harmless=True,
            ConditionExpression=condition,
            **given,
        )

    def _set(
        self,
        name: str,
        changed: Attributes,
        verb: str,
        deadline: Deadline,
        condition: str,
        values: Attributes,
        harmless: bool = False,
    ) -> Attributes | None:
        expression = ", ".join(f"{attribute} = :to_{attribute}" for attribute in changed)
        return self.table.attempt(
            "update_item",
            name,
            verb,
            deadline,
            harmless=harmless,
            UpdateExpression=f"SET {expression}",
            ConditionExpression=condition,
            ExpressionAttributeValues={
                **values,
                **{f":to_{attribute}": value for attribute, value in changed.items()},
            },
        )


def _as_seen(row: Row) -> tuple[str, Attributes | None]:
    """The condition that the item is still the one that was read."""
    if not row.version:
        return _ABSENT, None
    if row is items.STRANGE:
        return "attribute_not_exists(v)", None
    return "v = :seen", {":seen": {"B": row.version}}
