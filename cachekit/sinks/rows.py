"""What a batch of operations means for a table: rows to write, keys to delete, what is unfit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from operator import itemgetter
from typing import Any, NamedTuple

from ..core.ops import Op, OpKind
from ..errors import ConfigurationError

ToRow = Callable[[Any, Any], Mapping[str, Any]]


class UnknownColumn(ValueError):
    """A row has a value for a column that the table has not."""


class Puts(NamedTuple):
    """Rows of the same columns: ids, and the mappings that have the other columns."""

    columns: tuple[str, ...]  # the key's is the last
    pairs: list[tuple[Any, Mapping[str, Any]]]

    def values(self) -> list[tuple[Any, ...]]:
        """Every row's values, in the order of the columns."""
        others = self.columns[:-1]
        if len(others) > 1:
            read = itemgetter(*others)
            return [(*read(row), id) for id, row in self.pairs]
        if others:
            (column,) = others
            return [(row[column], id) for id, row in self.pairs]
        return [(id,) for id, _ in self.pairs]


class Batch(NamedTuple):
    """One delivery, sorted out. ``failed``: operations that have no row, with the error."""

    lane: str
    epoch: int
    deletes: list[Any]
    puts: list[Puts]
    failed: dict[Any, Exception]

    def __bool__(self) -> bool:
        return bool(self.deletes or self.puts)


class Rows:
    """Turns operations into rows of one table. Not for a table whose key is several columns."""

    def __init__(self, key: str, columns: Iterable[str] | None, to_row: ToRow | None) -> None:
        """``columns``: what a row must have and all that is written of it; None: all it has."""
        if to_row is not None and not callable(to_row):
            raise ConfigurationError("sink: to_row must be a function of an id and a value")
        if isinstance(columns, str):
            raise ConfigurationError("sink: columns must be a list of names")
        self._key = key
        self._to_row = to_row
        self._others = None if columns is None else tuple(c for c in columns if c != key)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that are known beforehand, the key's last."""
        return (*(self._others or ()), self._key)

    def sort_out(self, ops: Sequence[Op], known: Collection[str]) -> Batch:
        """``known``: the columns that the table has.

        Raises ConfigurationError unless all operations are of one lane and epoch."""
        lane, epoch = _delivery(ops)
        key, delete = self._key, OpKind.DELETE
        deletes: list[Any] = []
        puts: dict[tuple[str, ...], Puts] = {}
        failed: dict[Any, Exception] = {}
        names: Collection[str] | None = None  # of the row before: mostly they are the same
        pairs: list[tuple[Any, Mapping[str, Any]]] = []
        to_row = self._to_row
        for op in ops:
            id = op.id
            try:
                if id is None:
                    raise ValueError("sink: None can not be the key of a row")
                if op.kind is delete:
                    deletes.append(id)
                    continue
                row = op.value if to_row is None else to_row(id, op.value)
                if type(row) is not dict and not isinstance(row, Mapping):
                    row = _fields(row)
                if row.get(key, id) != id:
                    raise ValueError(f"sink: the row's {key!r} is not the id of its operation")
                if row.keys() != names:
                    columns = self._columns(row, known)
                    pairs = puts.setdefault(columns, Puts(columns, [])).pairs
                    names = row.keys()
                pairs.append((id, row))
            except Exception as error:
                _note(failed, op, error)
        return Batch(lane, epoch, deletes, list(puts.values()), failed)

    def _columns(self, row: Mapping[str, Any], known: Collection[str]) -> tuple[str, ...]:
        others = self._others
        if others is None:
            others = tuple(sorted(name for name in row if name != self._key))
        else:
            for column in others:
                if column not in row:
                    raise ValueError(f"sink: the row has no {column!r}")
        columns = (*others, self._key)
        for column in columns:
            if column not in known:
                raise UnknownColumn(f"sink: the table has no column {column!r}")
        return columns


def _delivery(ops: Sequence[Op]) -> tuple[str, int]:
    found = {(op.lane, op.epoch) for op in ops}
    if len(found) != 1:
        raise ConfigurationError("sink: the operations of a batch must be of one lane and epoch")
    lane, epoch = found.pop()
    if not lane or epoch < 1:
        raise ConfigurationError("sink: operations without a lane or an epoch can not be fenced")
    return lane, epoch


def _note(failed: dict[Any, Exception], op: Op, error: Exception) -> None:
    try:
        failed[op.id] = error
    except TypeError:  # an id that is not hashable can not be named: the batch fails as a whole
        raise error from None


def _fields(value: Any) -> Mapping[str, Any]:
    """A dataclass instance as a mapping of its own fields, nested ones left as they are."""
    cls = type(value)
    if not is_dataclass(cls):
        raise TypeError(
            f"sink: a {cls.__name__} is no row: give a mapping or a dataclass, or pass to_row"
        )
    return {field.name: getattr(value, field.name) for field in fields(cls)}
