"""An Amazon DynamoDB table as the source of a repository.

users = cache.repository(DynamoDBTable("users", key="id"), ttl="5m")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from ..backends.dynamodb.faults import FAILED, code_of
from ..core.policy import Duration, seconds
from ..errors import ConfigurationError, MissingDependencyError
from ..sinks import DynamoDBSink
from .connection import Connection, Pauses
from .errors import VersionConflict
from .records import Shape, ToItem, ToRecord, Wire

__all__ = ["DynamoDBTable"]

MOST_READ = 100  # items of one BatchGetItem
MOST_WRITTEN = 25  # of one BatchWriteItem
PATIENCE = 5.0  # seconds


class DynamoDBTable:
    """Loads, saves and deletes the items of one table: what :meth:`cachekit.Cache.repository` looks
    for. Blocking; in an event loop the repository calls it in pool threads.

    A save replaces the whole item. Values: str, bytes, bool, None, int, Decimal, float, and lists,
    sets and mappings of them, as in :class:`cachekit.sinks.DynamoDBSink`; floats become the
    shortest decimals that read back as the same floats. Numbers are read back as int where they are
    integral, else as Decimal; tuples as lists. Fields of a dataclass that say float, Decimal, tuple
    or frozenset get that.

    Reads are strongly consistent, for what the cache promises rests on it: a load that begins
    after a save returned sees it. Each costs one read unit for 4 KB, twice an eventual one.

    Safe for threads and, but for a client of yours that another thread is using then, across fork.
    The rights it needs: GetItem, BatchGetItem, PutItem, DeleteItem, BatchWriteItem; those of
    :meth:`sink` are the sink's. In a global table all writers must use one Region.

    Errors: the client's own (no such table, no right to it, a refused value; of reads also the
    network's); :class:`Throttled`; :class:`Unsettled` for a write that may have been applied."""

    def __init__(
        self,
        table: str,
        *,
        key: str | tuple[str, str] = "id",
        record: type | ToRecord | None = None,
        to_item: ToItem | None = None,
        version: str | None = None,
        consistent: bool = True,
        client: Any = None,
        patience: Duration = PATIENCE,
    ) -> None:
        """``key``: the partition key's attribute, or a tuple of it and the sort key's; then an id
        is a tuple of both. Ids are str, bytes or int (or a Decimal that is not integral).

        ``record``: None for dicts; a dataclass; or what makes a record of a mapping, such as
        ``User.model_validate``. ``to_item``: what makes a mapping of a record that is neither a
        mapping nor a dataclass, such as ``User.model_dump``.

        ``version``: an attribute that each save must raise by one, from 1 for a new record. A save
        that does not follow on what is stored raises :class:`VersionConflict`; ``save_many`` then
        takes one request for each record and ends at the first that fails. Deletes do not look.

        ``consistent=False``: eventual reads at half the price. **A load that begins after a save
        may then bring the value before it, and the cache keeps that for its ttl.**

        ``client``: a boto3 DynamoDB client, or a function that makes one; None: of the usual
        environment, with timeouts of 2 s (connect) and 5 s (read). Bound those of yours, and switch
        off its retries: a write repeated after a lost answer may undo another's. A client that is
        given stays yours.

        ``patience``: how long a request that is throttled is sent again, with growing pauses and
        full jitter, counted from the last item that went through.

        Raises ConfigurationError for what can not fit together, MissingDependencyError without
        boto3. Does no I/O."""
        if find_spec("boto3") is None:
            raise MissingDependencyError(
                "this source needs boto3: pip install 'cachekit-strategies[dynamodb]'"
            )
        names = (key,) if isinstance(key, str) else tuple(key)
        for name in (table, *names, *(() if version is None else (version,))):
            if not isinstance(name, str) or not name:
                raise ConfigurationError(f"{name!r} can not be the name of a table or attribute")
        if not 1 <= len(names) <= 2 or len({*names, version}) != len(names) + 1:
            raise ConfigurationError(
                f"{table}: key is one attribute, or a tuple of two; and version none of them"
            )
        if not (client is None or callable(client) or hasattr(client, "batch_get_item")):
            raise ConfigurationError(
                f"{table}: client must be a boto3 DynamoDB client, or a function that makes one"
            )
        try:
            budget = seconds(patience, "patience")
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{table}: {error}") from None
        self._table = table
        self._version = version
        self._consistent = bool(consistent)
        self._shape = Shape(table, names, record, to_item)
        self._connection = Connection(table, client, budget)
        returned = self._shape.returned
        if returned is not None:
            # What a codec may have to make of bytes again is read from the loaders' annotations.
            one: Any = returned | None if isinstance(returned, type) else returned
            vars(self)["load"] = _annotated(self.load, one)
            vars(self)["load_many"] = _annotated(self.load_many, one)

    def __repr__(self) -> str:
        return f"DynamoDBTable({self._table!r}, key={self._shape.names!r})"

    def __cache_key__(self) -> str:
        """The table's name: what a repository's keys begin with, unless told otherwise. Tables of
        one name in two accounts or Regions need keys of their own."""
        return self._table

    def __cache_id__(self, record: Any) -> Any:
        """The id of a record, by its key; None where a part of that is missing."""
        return self._shape.id_of(record)

    def row_version(self, record: Any) -> int | None:
        """A record's version, for the policy's ``row_version``; None where it has none."""
        if self._version is None:
            return None
        found = self._shape.item_of(record).get(self._version)
        return found if isinstance(found, int) and not isinstance(found, bool) else None

    # -- reading --------------------------------------------------------------------------

    def load(self, id: Any) -> Any:
        """The record, or None. One GetItem."""
        connection = self._connection
        answer = connection.read(
            "get_item",
            connection.pauses(),
            TableName=self._table,
            Key=self._shape.key_of(id),
            ConsistentRead=self._consistent,
        )
        item = answer.get("Item")
        return None if item is None else self._shape.record_of(item)

    def load_many(self, ids: Iterable[Any]) -> dict[Any, Any]:
        """{id: record} of those there are. One BatchGetItem for each 100 (16 MB), one behind the
        other; an id that is given twice is read once."""
        shape = self._shape
        keys = {id: shape.key_of(id) for id in ids}
        found: dict[Any, Any] = {}
        for part in _parts(list(keys.values()), MOST_READ):
            for item in self._read_all(part):
                found[shape.id_in(item)] = shape.record_of(item)
        return {id: found[id] for id in keys if id in found}

    def _read_all(self, keys: list[Wire]) -> Iterator[Wire]:
        connection = self._connection
        pauses = connection.pauses()
        while keys:
            asked = {self._table: {"Keys": keys, "ConsistentRead": self._consistent}}
            answer = connection.read("batch_get_item", pauses, RequestItems=asked)
            found = answer.get("Responses", {}).get(self._table, [])
            yield from found
            left = answer.get("UnprocessedKeys", {}).get(self._table, {}).get("Keys", [])
            self._pause(pauses, left, progress=len(left) < len(keys))
            keys = left

    # -- writing --------------------------------------------------------------------------

    def save(self, record: Any) -> None:
        """Write one record: one PutItem, with ``version`` a conditional one."""
        shape, connection = self._shape, self._connection
        attributes = shape.item_of(record)
        item = shape.wire(attributes)
        condition, version = self._condition(attributes)
        try:
            connection.write(
                "put_item", connection.pauses(), TableName=self._table, Item=item, **condition
            )
        except Exception as error:
            if code_of(error) != FAILED:
                raise
            raise VersionConflict(self._table, shape.id_in(item), version) from error

    def save_many(self, records: Iterable[Any]) -> None:
        """Write several records, of one id the last. One BatchWriteItem for each 25; an error
        leaves the rest unwritten."""
        if self._version is not None:
            for record in records:
                self.save(record)
            return
        shape = self._shape
        items = [shape.wire(shape.item_of(record)) for record in records]
        puts = {shape.id_in(item): {"PutRequest": {"Item": item}} for item in items}
        self._write_all(list(puts.values()))

    def delete(self, id: Any) -> None:
        """Delete one record, whether it is there or not. One DeleteItem."""
        connection = self._connection
        connection.write(
            "delete_item", connection.pauses(), TableName=self._table, Key=self._shape.key_of(id)
        )

    def delete_many(self, ids: Iterable[Any]) -> None:
        """Delete several records. One BatchWriteItem for each 25; an error leaves the rest."""
        keys = {id: self._shape.key_of(id) for id in ids}
        self._write_all([{"DeleteRequest": {"Key": key}} for key in keys.values()])

    def _write_all(self, requests: list[Wire]) -> None:
        connection = self._connection
        for part in _parts(requests, MOST_WRITTEN):
            pauses, left = connection.pauses(), part
            while left:
                sent = len(left)
                answer = connection.write(
                    "batch_write_item", pauses, RequestItems={self._table: left}
                )
                left = answer.get("UnprocessedItems", {}).get(self._table, [])
                self._pause(pauses, left, progress=len(left) < sent)

    def _pause(self, pauses: Pauses, left: Sequence[Any], *, progress: bool) -> None:
        if progress:
            pauses.progress()
        if left and not pauses.wait():
            raise self._connection.throttled(f"{len(left)} of a batch were left undone")

    def _condition(self, attributes: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """What a save must find, and the version that it writes; ({}, 0) without versions."""
        name = self._version
        if name is None:
            return {}, 0
        version = attributes.get(name)
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise ValueError(
                f"{self._table}: {name!r} must be an int, 1 for a new record and one more at "
                "each save"
            )
        names = {"#version": name}
        if version == 1:
            condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(#version)"}
        else:
            before = {":before": {"N": str(version - 1)}}
            condition = {
                "ConditionExpression": "#version = :before",
                "ExpressionAttributeValues": before,
            }
        return condition | {"ExpressionAttributeNames": names}, version

    # -- write-back, end ------------------------------------------------------------------

    def sink(self, **options: Any) -> DynamoDBSink:
        """The fenced sink of this table and its records, for a write-back strategy:
        ``WriteBack(log="sqlite:///users.log", sink=users.sink())``.

        Options are :class:`cachekit.sinks.DynamoDBSink`'s: ``fence_table``, ``create_fence``,
        ``client`` (default: the one given here). Raises ConfigurationError for a table with a sort
        key, which that sink does not know, or with versions: a conflict could be told to nobody."""
        names = self._shape.names
        if len(names) > 1:
            raise ConfigurationError(
                f"{self._table}: the fenced sink does not know sort keys; without it, write-back "
                "writes by save_many and delete_many, and a worker that was paused may write late"
            )
        if self._version is not None:
            raise ConfigurationError(
                f"{self._table}: version= and write-back do not go together: the writer is gone "
                "when a conflict is found"
            )
        mine = {
            "key": names[0],
            "to_row": lambda id, value: self._shape.item_of(value),
            "client": self._connection.client.given,
        }
        return DynamoDBSink(self._table, **{**mine, **options})

    def close(self) -> None:
        """Close the connections, unless the client was given. Twice is fine; a use opens again."""
        self._connection.client.close()


def _annotated(method: Callable[[Any], Any], returned: Any) -> Callable[[Any], Any]:
    def load(id: Any) -> Any:
        return method(id)

    load.__annotations__ = {"return": returned}
    return load


def _parts(things: list[Any], most: int) -> Iterator[list[Any]]:
    for start in range(0, len(things), most):
        yield things[start : start + most]
