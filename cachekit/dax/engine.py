"""One request: which step it is, and its course. Written once for both worlds; never sends itself.

A fault of ours never fails a request. Before it was sent, it passes by; after, the answer is given
as it came. A fault in a write empties everything first: what is kept may then be outdated.
"""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from ..core.breaker import Breaker
from ..core.flights import Flight
from ..core.outcome import Outcome
from ..runtime import AnyWorld
from .batch import BatchGet
from .expressions import NotUnderstood
from .fleet import Fleet, Mark
from .protocol import Outcome as WriteOutcome
from .reads import GetItem, ReadPage, Step
from .sent import sending, stop_sending
from .settings import TableSettings
from .store import DESCRIBE_AGAIN, Schema, Scope, Store, TableState
from .values import ABSENT
from .writes import (
    BatchWrite,
    Transaction,
    UpdateItem,
    WholeTable,
    WriteStep,
    batch,
    change,
    put,
    transaction,
)

Send = Callable[[str, Mapping[str, Any]], Awaitable[Outcome]]

READS: Final = frozenset({"GetItem", "BatchGetItem", "Query", "Scan"})
ITEM_WRITES: Final = frozenset({
    "PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem", "TransactWriteItems",
})  # fmt: skip
PARTIQL: Final = frozenset({"ExecuteStatement", "BatchExecuteStatement", "ExecuteTransaction"})
# They change no item and no table.
HARMLESS: Final = re.compile(
    r"(Describe|List|Tag|Untag)\w*|GetResourcePolicy|TransactGetItems|SearchVectors"
    r"|CreateBackup|DeleteBackup|ExportTableToPointInTime|\w*KinesisStreamingDestination"
    r"|Update(ContinuousBackups|ContributorInsights|TableReplicaAutoScaling|TimeToLive)"
)
_SELECT: Final = re.compile(r"\s*SELECT\b", re.IGNORECASE)


class Engine:
    """The course of the requests of one handle."""

    def __init__(self, store: Store, fleet: Fleet | None = None) -> None:
        self.store = store
        self.fleet = fleet  # the processes that are told of writes
        self.breaker = Breaker(store.clock, failures=8, reset=5.0)

    async def call(
        self,
        world: AnyWorld,
        scope: Scope,
        request: tuple[str, Mapping[str, Any], bool],
        send: Send,
    ) -> Outcome:
        """``request``: operation, parameters, and whether they are in the resource's form."""
        operation, params, plain = request
        try:
            await self._describe(world, scope, operation, params, send)
            step = self._step(scope, operation, params, plain=plain)
        except NotUnderstood:
            self.store.meter.count("passed")
            step = None
        except Exception:
            self._fault(operation)
            step = None
        if step is None:
            return self._learn(scope, operation, params, await send(operation, params))
        await self.join(world, step)
        if step.answer is not None:
            return Outcome(step.answer)
        mark = None if self.fleet is None else await self.announce(world, step, operation)
        try:
            outcome = await self._sent(step, operation, send)
        except BaseException as error:
            self._end(step, operation, error)
            self.conclude_behind(mark, step)
            raise
        if outcome.error is not None:
            self._end(step, operation, outcome.error)
        else:
            try:
                outcome = Outcome(step.landed(outcome.value))
            except Exception:
                self._end(step, operation, None)
                self._fault(operation)
        if mark is not None:
            await self.conclude(world, mark, step, operation)
        return outcome

    # -- other processes -----------------------------------------------------------------

    async def announce(self, world: AnyWorld, step: Step, operation: str) -> Mark | None:
        """Tell the others that a write begins, before it is sent."""
        names = step.writes()
        if self.fleet is None or not names:
            return None
        mark = self.fleet.mark(names)
        try:
            await self.fleet.begin(world, mark)
        except Exception:
            self._fault(operation)
            return None
        except BaseException as error:
            self._end(step, operation, error)
            self.conclude_behind(mark, step)
            raise
        return mark

    async def conclude(self, world: AnyWorld, mark: Mark, step: Step, operation: str) -> None:
        """Tell them how it ended, before its caller is told."""
        assert self.fleet is not None
        try:
            await self.fleet.end(world, mark, step.ended)
        except Exception:
            self._fault(operation)
        except BaseException:
            self.conclude_behind(mark, step)
            raise

    def conclude_behind(self, mark: Mark | None, step: Step) -> None:
        """The same for a caller that must not wait."""
        if self.fleet is not None and mark is not None:
            self.fleet.end_behind(mark, step.ended)

    async def join(self, world: AnyWorld, step: Step) -> None:
        """Wait for those who ask for the same, but not for longer than ``flight_wait``."""
        if step.flight is None:
            return
        until = self.store.clock() + self.store.settings.flight_wait
        while step.flight is not None:
            await world.join(step.flight, max(0.0, until - self.store.clock()))
            try:
                step.joined()
            except Exception:
                self._fault("join")
                return

    async def _sent(self, step: Step, operation: str, send: Send) -> Outcome:
        token = sending.set(step.sent) if isinstance(step, WriteStep) else None
        try:
            outcome = await send(operation, step.params)
            if outcome.error is not None:
                again = step.again(outcome.error)
                if again is not None:
                    outcome = await send(operation, again)
            return outcome
        finally:
            if token is not None:
                stop_sending(token)

    def _end(self, step: Step, operation: str, error: BaseException | None) -> None:
        try:
            step.failed(error)
        except Exception:
            self._fault(operation)

    def _fault(self, operation: str) -> None:
        """Something here is broken: count it; a write's evictions may not have been made."""
        store = self.store
        store.meter.count("faults")
        store.meter.warn_once(
            f"dax:{operation}",
            "cachekit.dax: a fault in %s, which passes by: %s",
            operation,
            traceback.format_exc(limit=-3),
        )
        self.breaker.failure()
        if operation not in READS and operation != "join":
            with store.gate:
                store.protocol.end(store.protocol.begin_all(), WriteOutcome.UNKNOWN)
                store.empty_all()
            if self.fleet is not None:
                self.fleet.owe_everything()

    # -- which step ----------------------------------------------------------------------

    def _step(
        self, scope: Scope, operation: str, params: Mapping[str, Any], *, plain: bool
    ) -> Step | None:
        """The step of a request, None when it passes by. Raises :class:`NotUnderstood` for reads
        that must pass by; a write that is not understood empties its tables."""
        if operation in READS:
            return self._read(scope, operation, params, plain=plain)
        if operation in ITEM_WRITES:
            try:
                return self._write(scope, operation, params, plain=plain)
            except (NotUnderstood, TypeError, AttributeError, KeyError, ValueError):
                return self._flush(scope, operation, params, plain=plain)
        if operation in PARTIQL:
            if _only_reads(params):
                return None
            return WholeTable(self.store, params, [], plain=plain)
        if HARMLESS.fullmatch(operation):
            return None
        return self._flush(scope, operation, params, plain=plain)

    def _read(
        self, scope: Scope, operation: str, params: Mapping[str, Any], *, plain: bool
    ) -> Step | None:
        if not scope.reads or not self.breaker.allow():
            return None
        try:
            step = self._understood(scope, operation, params, plain=plain)
        except NotUnderstood:
            self.breaker.success()
            raise
        self.breaker.success()
        return step

    def _understood(
        self, scope: Scope, operation: str, params: Mapping[str, Any], *, plain: bool
    ) -> Step | None:
        store = self.store
        if operation == "BatchGetItem":
            return BatchGet(store, params, scope, plain=plain)
        state, own = scope.resolve(params.get("TableName"))
        if state is None:
            return None
        if not own:
            raise NotUnderstood("an ARN")
        if operation == "GetItem":
            return GetItem(store, params, state, plain=plain)
        return ReadPage(store, operation, params, state, plain=plain)

    def _write(
        self, scope: Scope, operation: str, params: Mapping[str, Any], *, plain: bool
    ) -> Step | None:
        store = self.store
        if operation == "BatchWriteItem":
            ones = batch(scope, params, plain=plain)
            return BatchWrite(store, params, ones, plain=plain) if ones else None
        if operation == "TransactWriteItems":
            ones = transaction(scope, params, plain=plain)
            return Transaction(store, params, ones, plain=plain) if ones else None
        state, own = scope.resolve(params.get("TableName"))
        if state is None:
            return None
        if operation == "PutItem":
            one = put(state, params.get("Item"), ("Item",), plain=plain, own=own)
            return WriteStep(store, params, [one], plain=plain)
        key = params.get("Key")
        if operation == "DeleteItem":
            one = change(state, key, ABSENT, plain=plain, own=own)
            return WriteStep(store, params, [one], plain=plain)
        one = change(state, key, None, plain=plain)
        if not own:
            return WriteStep(store, params, [one], plain=plain)
        return UpdateItem(store, params, one, plain=plain)

    def _flush(
        self, scope: Scope, operation: str, params: Mapping[str, Any], *, plain: bool
    ) -> Step | None:
        """Empty the tables that the parameters name; all, where they can not be told."""
        names = _tables(operation, params)
        if names is None:
            return WholeTable(self.store, params, [], plain=plain)
        try:
            states = [state for name in names if (state := scope.resolve(name)[0]) is not None]
        except NotUnderstood:
            return WholeTable(self.store, params, [], plain=plain)
        return WholeTable(self.store, params, states, plain=plain) if states else None

    # -- what tables are -----------------------------------------------------------------

    async def _describe(
        self, world: AnyWorld, scope: Scope, operation: str, params: Mapping[str, Any], send: Send
    ) -> None:
        """Ask once for the key of a table whose writes or queries need it."""
        for table in _named(operation, params):
            state, _ = scope.resolve(table)
            if state is None or not _needs_schema(operation, state.settings):
                continue
            if state.schema is not None:
                continue
            mine = Flight((state.items.name, "describe"))
            mine.tags = ()
            try:
                flight = self.store.flights.board(mine)
                if flight is not mine:
                    await world.join(flight, self.store.settings.flight_wait)
                elif state.schema is None and self.store.clock() >= state.describe_at:
                    await self._ask(state, send)
            finally:
                self.store.flights.end(mine)

    async def _ask(self, state: TableState, send: Send) -> None:
        state.describe_at = self.store.clock() + DESCRIBE_AGAIN
        self.store.meter.count("describes")
        try:
            outcome = await send("DescribeTable", {"TableName": state.name})
        except BaseException:
            state.describe_at = -math.inf  # nobody was told anything
            raise
        if outcome.error is None:
            self._learned(state, outcome.value.get("Table"))

    def _learn(
        self, scope: Scope, operation: str, params: Mapping[str, Any], outcome: Outcome
    ) -> Outcome:
        """What a caller's own DescribeTable says about the table."""
        if operation == "DescribeTable" and outcome.error is None:
            try:
                description = outcome.value["Table"]
                state, own = scope.resolve(params.get("TableName"))
                if state is not None and (own or state.schema is None):
                    own = params["TableName"] == state.name
                    if own and description.get("TableName") == state.name:
                        self._learned(state, description)
            except Exception:
                self.store.meter.count("not_learned")
        return outcome

    def _learned(self, state: TableState, description: Any) -> None:
        schema = Schema.of(description)
        if schema is None or schema == state.schema:
            return
        with self.store.gate:
            known, state.schema = state.schema, schema
            if known is None and state.settings.query_invalidation != "partition":
                return
            # Pages kept until now, and writes that ended, did not know the partition; those that
            # are under way tell theirs when they end.
            self.store.protocol.spread(state.any_spot, state.table_spot)
            self.store.empty(state)


def _needs_schema(operation: str, settings: TableSettings) -> bool:
    if operation in ("Query", "UpdateItem", "DeleteItem"):
        return settings.query_ttl != 0 and settings.query_invalidation == "partition"
    return True


def _named(operation: str, params: Mapping[str, Any]) -> list[Any]:
    """Tables whose key has to be known for this request."""
    try:
        if operation in ("PutItem", "UpdateItem", "DeleteItem", "Query"):
            return [params.get("TableName")]
        if operation in ("BatchWriteItem", "TransactWriteItems"):
            return _tables(operation, params) or []
        if operation == "GetItem" and ":" in params["TableName"]:
            return [params["TableName"]]
    except (KeyError, TypeError):
        return []
    return []


def _tables(operation: str, params: Mapping[str, Any]) -> list[Any] | None:
    """The tables that a request names, each once; None: it can not be told."""
    try:
        if operation == "BatchWriteItem":
            return list(params["RequestItems"])
        if operation == "TransactWriteItems":
            named = [
                action["TableName"] for each in params["TransactItems"] for action in each.values()
            ]
            return list(dict.fromkeys(named))
        found = [params[n] for n in ("TableName", "TargetTableName", "GlobalTableName")
                 if n in params]  # fmt: skip
        if "TableCreationParameters" in params:
            found.append(params["TableCreationParameters"]["TableName"])
        return found or None
    except (KeyError, TypeError, AttributeError):
        return None


def _only_reads(params: Mapping[str, Any]) -> bool:
    statements = [params.get("Statement")]
    for name in ("Statements", "TransactStatements"):
        if name in params:
            statements = [each.get("Statement") for each in params[name]]
    return all(type(text) is str and _SELECT.match(text) is not None for text in statements)
