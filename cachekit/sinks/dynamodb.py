"""A fenced sink over Amazon DynamoDB.

    sink = DynamoDBSink("items", key="id")

The fence is an item for each lane. A batch raises it in the transaction of its first 99 rows; the
transactions of later rows go through only while it still stands at the batch's epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from ..core.ops import Op
from ..errors import ConfigurationError, FencedOut, MissingDependencyError
from .clients import Client
from .fence import FENCE_TABLE, fenced_out
from .items import Serialize, Write, delete, key_of, parts, put, update, value_of
from .rows import Batch, Rows, ToRow
from .verdicts import SourceUnready

__all__ = ["DynamoDBSink"]

_LANE, _EPOCH = "lane", "epoch"
_RESERVED = "cachekit_fence/"  # keys of the fence's items where they lie among the rows
# Everything else says nothing about the rows: throttled, in conflict, without the table or the
# right to it. Where a request is refused as a whole, some row of it may be the reason.
_REQUESTS_FAULT = frozenset({"ValidationException", "SerializationException"})
_ROWS_FAULT = frozenset({"ValidationError", "ItemCollectionSizeLimitExceeded"})


class _Every:
    """The attributes that a table may have."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Source(NamedTuple):
    """What is known of the tables, and what speaks to them."""

    client: Any
    kind: str  # of the table's key: S, N or B
    fence_key: str
    serialize: Serialize


class DynamoDBSink:
    """Writes a batch as puts (or updates) and deletes of one table's items, with its fence.

    A batch is atomic for each 99 rows (4 MB), not as a whole. A writer that is overtaken between
    two transactions is refused the rest; its successor writes all of it again, and a batch that
    was broken off is whole once it has come again, under its next epoch.

    Safe for threads and, but for a client of yours that another thread is using then, across fork.
    The rights it needs: DescribeTable, GetItem, PutItem, UpdateItem, DeleteItem, ConditionCheckItem
    (with ``create_fence``, CreateTable). All writers must use one Region: the replicas of a global
    table do not share transactions. A row costs twice the write units of a plain one.

    Errors: a ConnectionError where the outcome is not known or nothing about the rows is said
    (network, throttling, conflict, credentials, no such table); botocore's own where a request is
    refused as a whole."""

    fences = True

    def __init__(
        self,
        table: str,
        *,
        key: str = "id",
        columns: Iterable[str] | None = None,
        to_row: ToRow | None = None,
        fence_table: str = FENCE_TABLE,
        create_fence: bool = False,
        client: Any = None,
    ) -> None:
        """``key``: the table's partition key, of type S, N or B; a table with a sort key is refused
        at first use.

        A put's value is a mapping or a dataclass; else ``to_row(id, value)`` gives the mapping
        {attribute: value}. The key is added where it is missing. ``columns`` None: the item
        becomes the row, and loses what the row has not. Else they are what is written of the row,
        all required, and other attributes stay. An operation without such a row fails alone.

        Values: str, bytes, bool, None, int, Decimal, float, and lists, sets and mappings of them.
        Floats become the shortest decimals that read back as the same floats. NaN, infinities, and
        numbers of more than 38 digits are refused. Numbers are read back as Decimal.

        ``fence_table``: a table with the key "lane" (S) and no sort key, see
        :attr:`fence_definition`, made by ``create_fence`` where it is missing; or ``table``
        itself, if its key is a text: its keys that begin with "cachekit_fence/" are then the
        fence's. No time-to-live may delete them.

        ``client``: a boto3 DynamoDB client, or a function that makes one; None: of the usual
        environment, with timeouts of 2 s (connect) and 5 s (read), and without retries, since the
        write-back worker has its own. Bound those of yours. A client that is given stays yours.

        Raises ConfigurationError for what can not fit together. Does no I/O."""
        if find_spec("boto3") is None:
            raise MissingDependencyError(
                "this sink needs boto3: pip install 'cachekit-strategies[dynamodb]'"
            )
        for name in (table, key, fence_table):
            if not isinstance(name, str) or not name:
                raise ConfigurationError(f"sink: {name!r} can not be a table's or a key's name")
        if not (client is None or callable(client) or hasattr(client, "transact_write_items")):
            raise ConfigurationError(
                "sink: client must be a boto3 DynamoDB client, or a function that makes one"
            )
        self._table = table
        self._key = key
        self._rows = Rows(key, columns, to_row)
        self._updates = columns is not None
        if self._updates and len(self._rows.columns) == 1:
            raise ConfigurationError("sink: columns must name one besides the key")
        self._fence = fence_table
        self._prefix = _RESERVED if fence_table == table else ""
        self._create_fence = create_fence
        self._client = Client(client, self._look_again)
        self._source: _Source | None = None

    @property
    def fence_definition(self) -> dict[str, Any]:
        """The arguments of ``client.create_table`` that make the fence table."""
        return {
            "TableName": self._fence,
            "KeySchema": [{"AttributeName": _LANE, "KeyType": "HASH"}],
            "AttributeDefinitions": [{"AttributeName": _LANE, "AttributeType": "S"}],
            "BillingMode": "PAY_PER_REQUEST",
        }

    def write_many(self, ops: Sequence[Op]) -> dict[Any, Exception]:
        """Apply operations of one lane and epoch: {id: error} of those that have no row, or whose
        row DynamoDB refuses.

        Deletes go first. Raises FencedOut unless the epoch is above all that the source has seen
        of the lane; nothing of the transaction in hand is applied then."""
        if not ops:
            return {}
        batch = self._rows.sort_out(ops, _Every())
        if batch:
            source = self._source or self._meet()
            self._apply(source, batch, self._writes(source, batch))
        return batch.failed

    def last_epoch(self, lane: str) -> int:
        """The highest epoch that the source has seen of a lane; 0 = none. A consistent read."""
        source = self._source or self._meet()
        try:
            found = source.client.get_item(
                TableName=self._fence, Key=self._fence_item(source, lane), ConsistentRead=True
            )
        except Exception as error:
            raise self._told(error)
        return int(found.get("Item", {}).get(_EPOCH, {"N": "0"})["N"])

    def close(self) -> None:
        """Close the connections, unless the client was given. Twice is fine."""
        self._look_again()
        self._client.close()

    def _look_again(self) -> None:
        self._source = None

    # -- the source -----------------------------------------------------------------------

    def _meet(self) -> _Source:
        """Look at the tables; make the fence if it is to."""
        try:
            client = self._client.get()
            name, kind = self._key_of(client, self._table)
            if name != self._key:
                raise ConfigurationError(f"sink: the key of {self._table} is {name!r}")
            fence_key, fence_kind = self._meet_fence(client)
            if fence_kind != "S":
                raise ConfigurationError(f"sink: the key of {self._fence} must be of type S")
        except Exception as error:
            raise self._told(error)
        serialize = import_module("boto3.dynamodb.types").TypeSerializer().serialize
        self._source = source = _Source(client, kind, fence_key, serialize)
        return source

    def _meet_fence(self, client: Any) -> tuple[str, str]:
        try:
            return self._key_of(client, self._fence)
        except Exception as error:
            if not self._create_fence or _code(error) != "ResourceNotFoundException":
                raise
        try:
            client.create_table(**self.fence_definition)
        except Exception as error:
            if _code(error) != "ResourceInUseException":  # another process makes it
                raise
        return self._key_of(client, self._fence)

    def _key_of(self, client: Any, table: str) -> tuple[str, str]:
        """Name and type of a table's key."""
        told = client.describe_table(TableName=table)["Table"]
        if told.get("TableStatus") in ("CREATING", "DELETING"):
            raise SourceUnready(f"sink: the table {table} is being made, or deleted")
        names = [part["AttributeName"] for part in told["KeySchema"]]
        if len(names) != 1:
            raise ConfigurationError(f"sink: {table} has a sort key: that is not supported")
        kinds = {
            each["AttributeName"]: each["AttributeType"] for each in told["AttributeDefinitions"]
        }
        return names[0], kinds[names[0]]

    def _fence_item(self, source: _Source, lane: str) -> dict[str, Any]:
        return {source.fence_key: {"S": self._prefix + lane}}

    # -- writing --------------------------------------------------------------------------

    def _writes(self, source: _Source, batch: Batch) -> list[Write]:
        """What a batch does; what can not be written is added to its failures."""
        asked: list[tuple[Any, dict[str, Any] | None]] = [(id, None) for id in batch.deletes]
        for puts in batch.puts:
            names = puts.columns[:-1]
            asked += [(id, {name: row[name] for name in names}) for id, row in puts.pairs]
        writes = []
        for id, values in asked:
            try:
                writes.append(self._write(source, id, values))
            except Exception as error:
                batch.failed[id] = error
        return writes

    def _write(self, source: _Source, id: Any, values: dict[str, Any] | None) -> Write:
        """``values``: the other attributes, or None to delete."""
        keyed = {self._key: key_of(id, source.kind, source.serialize)}
        if self._prefix and str(id).startswith(self._prefix):
            raise ValueError(f"sink: keys that begin with {_RESERVED!r} are the fence's")
        if values is None:
            return delete(self._table, id, keyed)
        item = value_of(values, source.serialize)["M"]
        return (update if self._updates else put)(self._table, id, keyed, item)

    def _apply(self, source: _Source, batch: Batch, writes: list[Write]) -> None:
        raised = False
        for part in parts(writes):
            while part:
                guard = {
                    "ConditionCheck" if raised else "Update": self._guard(source, batch, raised)
                }
                items = [guard, *[write.action for write in part]]
                try:
                    source.client.transact_write_items(TransactItems=items)
                except Exception as error:
                    refused = self._refused(error, batch, part, raised)
                    batch.failed.update(refused)
                    part = [write for write in part if write.id not in refused]
                else:
                    raised = True
                    break

    def _guard(self, source: _Source, batch: Batch, raised: bool) -> dict[str, Any]:
        """Raises the fence, or, where this batch did so, checks that it has not been since."""
        guard: dict[str, Any] = {
            "TableName": self._fence,
            "Key": self._fence_item(source, batch.lane),
            "ExpressionAttributeNames": {"#epoch": _EPOCH},
            "ExpressionAttributeValues": {":epoch": {"N": str(batch.epoch)}},
        }
        if raised:
            return guard | {"ConditionExpression": "#epoch = :epoch"}
        return guard | {
            "UpdateExpression": "SET #epoch = :epoch",
            "ConditionExpression": "attribute_not_exists(#epoch) OR #epoch < :epoch",
        }

    # -- errors ---------------------------------------------------------------------------

    def _refused(
        self, error: Exception, batch: Batch, part: list[Write], raised: bool
    ) -> dict[Any, Exception]:
        """{id: error} of the rows that a transaction was refused for, else raises."""
        reasons = _reasons(error)
        if len(reasons) == 1 + len(part):
            if reasons[0][0] == "ConditionalCheckFailed":
                raise _overtaken(batch) if raised else fenced_out(batch.lane, batch.epoch)
            refused: dict[Any, Exception] = {
                write.id: ValueError(f"sink: DynamoDB refuses the row: {code}: {message}")
                for write, (code, message) in zip(part, reasons[1:], strict=True)
                if code in _ROWS_FAULT
            }
            if refused:  # what else there was will be told again, by the others
                return refused
        told = self._told(error)
        if told is error and len(part) == 1:
            return {part[0].id: error}
        raise told

    def _told(self, error: Exception) -> Exception:
        """The error to raise: this one, or a ConnectionError from it."""
        known: Any = import_module("botocore.exceptions")
        theirs: bool = isinstance(error, (known.ClientError, known.BotoCoreError))
        malformed: bool = isinstance(error, known.ParamValidationError)
        if malformed or not theirs:
            return error
        if _code(error) in _REQUESTS_FAULT or _status(error) == 413:
            self._source = None  # or the tables have changed: look at them again
            return error
        if _code(error) == "ResourceNotFoundException":
            self._source = None
        better = SourceUnready(f"sink: DynamoDB takes no batch: {error}")
        better.__cause__ = error
        return better


def _answer(error: Exception) -> dict[str, Any]:
    """What DynamoDB said, where it did; errors of the network have None."""
    return getattr(error, "response", None) or {}


def _code(error: Exception) -> str:
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _status(error: Exception) -> int:
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _reasons(error: Exception) -> list[tuple[str, str]]:
    """(code, message) of each item of a transaction that was cancelled."""
    told = _answer(error).get("CancellationReasons", ())
    return [(str(each.get("Code")), str(each.get("Message", ""))) for each in told]


def _overtaken(batch: Batch) -> FencedOut:
    return FencedOut(
        f"lane {batch.lane!r}: a newer batch came before the end of the one of epoch "
        f"{batch.epoch}; the rest of it was not applied"
    )
