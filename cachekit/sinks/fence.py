"""The fence: one row per lane in the source, holding the highest epoch it has seen.

A batch raises the row in its own transaction and as its first statement, so the row's lock also
puts two writers of a lane one behind the other: the second sees what the first has committed,
and the older of the two finds the row already at or above its epoch, for puts and deletes alike.
"""

from __future__ import annotations

import math

from ..core.policy import Duration, seconds
from ..errors import ConfigurationError, FencedOut

FENCE_TABLE = "cachekit_fence"
IDLE_LIMIT = 10.0
# PostgreSQL's bound on how long a transaction may lie still. A writer frozen in the middle of a
# batch keeps its successor waiting at the fence for as long.
IDLE_SETTING = "idle_in_transaction_session_timeout"

# PEP 249's names of errors after which nobody knows whether the transaction took place.
_LOSSES = frozenset({"OperationalError", "InterfaceError"})
# Drivers sort errors by class of SQLSTATE, and these classes do not say whose fault it was:
# 54, "program limit exceeded", as of a text too long for its index, comes as an OperationalError.
_ROWS_FAULT = ("54",)
# A read-only server, a transaction ended for lying still; a table, column (rows with others are
# sorted out before) or schema that is not there, or not yet.
_SOURCES_FAULT = ("25006", "25P03", "42P01", "42703", "3F000")
_DAMAGED = (11, 26)  # SQLITE_CORRUPT, SQLITE_NOTADB: a DatabaseError like any other


class SourceUnready(ConnectionError):
    """The source takes no batch at present, whatever is in it; to try again is right."""


def fenced_out(lane: str, epoch: int) -> FencedOut:
    return FencedOut(
        f"lane {lane!r}: the source has seen epoch {epoch} or a later one; "
        "this batch came too late, and nothing of it was applied"
    )


def idle_milliseconds(limit: Duration | None) -> int | None:
    try:
        found = None if limit is None else seconds(limit, "idle_limit")
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"sink: {error}") from None
    if found == 0:
        raise ConfigurationError("sink: idle_limit: must be more than 0; None sets no limit")
    return None if found is None else math.ceil(found * 1000)


def is_loss(error: BaseException) -> bool:
    """Whether the connection, or what became of its transaction, is in doubt."""
    if isinstance(error, ConnectionError):
        return True
    return any(cls.__name__ in _LOSSES for cls in type(error).__mro__)


def told(error: Exception) -> Exception:
    """The error to raise: this one, or one from it where its class misleads about whether it is
    of use to try the same rows again."""
    cause = getattr(error, "orig", None) or error  # the driver's own, below SQLAlchemy's
    state = _state(cause)
    better: Exception
    if state.startswith(_ROWS_FAULT):
        better = ValueError(f"sink: the source refuses a row: {cause}")
    elif state in _SOURCES_FAULT or _damage(cause):
        better = SourceUnready(f"sink: the source takes no batch: {cause}")
    else:
        return error
    better.__cause__ = error
    return better


def _state(error: BaseException) -> str:
    """PostgreSQL's SQLSTATE, where the driver keeps it."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state is None and error.args and isinstance(error.args[0], dict):
        state = error.args[0].get("C")
    return state if isinstance(state, str) else ""


def _damage(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return isinstance(code, int) and code & 0xFF in _DAMAGED
