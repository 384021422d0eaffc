"""Requests to one table: batches whole, throttling waited for, unknown outcomes told as such.

Every repetition is decided here, botocore's own are off. A request that DynamoDB *answered* with
"throttled" was not applied and is sent again, with growing pauses, while there is time. One whose
answer is missing (a timeout, a cut connection, a 5xx) may have been applied, or may be applied
later still. It is repeated only if it reads, or if it only takes away and can do no harm late. A
late second ``acquire`` could put back a token that an invalidation had removed, and let through
the fill it was to stop.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...core.deadline import Deadline
from ...errors import BackendError, BackendUnavailable
from .account import Account
from .faults import FAILED, THROTTLED, code_of, is_down, translated
from .items import KEY, Attributes, unique

GET_AT_ONCE = 100
WRITE_AT_ONCE = 25
PAUSE = 0.01
LONGEST_PAUSE = 0.2
AGAIN = 2
"""How often a request whose answer is missing is repeated, where that can do no harm."""


class Table:
    """The requests of one store. Safe for threads; errors are children of BackendError."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._transport = account.enter()
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._transport.close()
            self._account.leave()

    def look(self, names: Sequence[str], verb: str, deadline: Deadline) -> dict[str, Attributes]:
        """The items that are there, by strongly consistent reads: one request for 100 names and
        16 MB."""
        found: dict[str, Attributes] = {}
        wanted = unique(names)
        for at in range(0, len(wanted), GET_AT_ONCE):
            keys = [{KEY: {"S": name}} for name in wanted[at : at + GET_AT_ONCE]]
            pauses = _pauses()
            while keys:
                asked = {self._account.table: {"Keys": keys, "ConsistentRead": True}}
                answer = self._send(
                    "batch_get_item", verb, deadline, harmless=True, RequestItems=asked
                )
                items = answer.get("Responses", {}).get(self._account.table, [])
                found.update((item[KEY]["S"], item) for item in items)
                left = answer.get("UnprocessedKeys", {}).get(self._account.table, {})
                keys = left.get("Keys", [])
                if keys and not items:
                    self._pause(pauses, verb, deadline)
        return found

    def attempt(
        self,
        method: str,
        name: str,
        verb: str,
        deadline: Deadline,
        *,
        harmless: bool = False,
        **given: Any,
    ) -> Attributes | None:
        """One conditional write on one item: None when it was applied, else the item that stands
        there instead ({} for none).

        ``harmless``: it may be applied twice, and late."""
        if method != "put_item":
            given["Key"] = {KEY: {"S": name}}
        try:
            self._send(
                method,
                verb,
                deadline,
                harmless=harmless,
                TableName=self._account.table,
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **given,
            )
        except _Failed as failed:
            if failed.item is not None:
                return failed.item
            # There is none, or this server does not tell it.
            return self.look([name], verb, deadline).get(name, {})
        return None

    def write_all(self, requests: Sequence[dict[str, Any]], verb: str, deadline: Deadline) -> None:
        """Unconditional puts and deletes, as BatchWriteItem takes them, each item named once."""
        for at in range(0, len(requests), WRITE_AT_ONCE):
            pending = list(requests[at : at + WRITE_AT_ONCE])
            pauses = _pauses()
            while pending:
                answer = self._send(
                    "batch_write_item", verb, deadline, RequestItems={self._account.table: pending}
                )
                left = answer.get("UnprocessedItems", {}).get(self._account.table, [])
                if len(left) == len(pending):
                    self._pause(pauses, verb, deadline)
                pending = left

    # -- one request ----------------------------------------------------------------------

    def _send(
        self, method: str, verb: str, deadline: Deadline, *, harmless: bool = False, **given: Any
    ) -> dict[str, Any]:
        pauses = _pauses()
        again = AGAIN if harmless else 0
        while True:
            if deadline.passed():
                raise translated(TimeoutError(), verb, self._account.table)
            try:
                return self._account.request(method, self._transport, deadline, **given)
            except Exception as error:
                code = code_of(error)
                if code == FAILED:
                    raise _Failed(getattr(error, "response", {}).get("Item")) from None
                if code in THROTTLED:
                    self._pause(pauses, verb, deadline, error)
                elif again and is_down(error) and not isinstance(error, TimeoutError):
                    again -= 1
                    self._pause(pauses, verb, deadline, error)
                else:
                    raise self._told(error, verb) from _safe(error)

    def _pause(
        self,
        pauses: Iterator[float],
        verb: str,
        deadline: Deadline,
        error: Exception | None = None,
    ) -> None:
        """Wait before the next try; raises where that would be too late."""
        seconds = next(pauses)
        if seconds < deadline.left():
            time.sleep(seconds)
            return
        if error is not None:
            raise self._told(error, verb) from _safe(error)
        raise BackendUnavailable(
            f"dynamodb: {self._account.table} left a part of the request undone until the "
            f"deadline: too little capacity for the table, or for one item ({verb})",
            backend="dynamodb",
            operation=verb,
        )

    def _told(self, error: Exception, verb: str) -> BackendError:
        return translated(error, verb, self._account.table)


class _Failed(Exception):
    """The condition did not hold."""

    def __init__(self, item: Attributes | None) -> None:
        super().__init__(FAILED)
        self.item = item


def _pauses() -> Iterator[float]:
    """Growing pauses with full jitter (Brooker, "Exponential Backoff And Jitter", 2015)."""
    longest = PAUSE
    uniform: Callable[[], float] = random.random
    while True:
        yield longest * (0.25 + 0.75 * uniform())
        longest = min(2 * longest, LONGEST_PAUSE)


def _safe(error: Exception) -> Exception | None:
    """The cause to show: not where its message may quote what was sent."""
    quotes = ("ParamValidationError", "ValidationException", "SerializationException")
    return None if type(error).__name__ in quotes or code_of(error) in quotes else error
