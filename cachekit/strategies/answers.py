"""What a sink's answer or error means for the operations it was given."""

from __future__ import annotations

import concurrent.futures
import errno
import inspect
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from tenacity import RetryCallState

from ..core.ops import Op
from ..errors import CacheKitError, CodecError, ConfigurationError, KeyEncodingError
from .intent import http_status, outcome_unknown

MOST_TEXT = 2000  # characters of an error that are kept
MOST_CAUSES = 10  # that are looked along: they may form a circle
_OF_ROWS = (ValueError, TypeError, LookupError, ArithmeticError, AssertionError)
_OF_ROWS_BY_NAME = frozenset({"IntegrityError", "DataError", "ProgrammingError"})  # PEP 249
# Of the machine or the network, and of no row.
_OUTAGES = frozenset(
    getattr(errno, name)
    for name in (
        "EHOSTUNREACH", "EHOSTDOWN", "ENETUNREACH", "ENETDOWN", "EMFILE", "ENFILE", "ENOSPC",
        "EDQUOT", "EIO", "EROFS", "ENOMEM", "ENOBUFS", "EAGAIN",
    )
    if hasattr(errno, name)
)  # fmt: skip


def is_outage(error: BaseException) -> bool:
    """Whether an error says nothing about the rows: the source is away, or the sink is set up
    wrongly. The batch is then tried again for as long as it takes. What an error was raised from
    counts too, unless it is of a kind that blames a value."""
    seen: BaseException | None = error
    for _ in range(MOST_CAUSES):
        if seen is None:
            return False
        if isinstance(seen, BaseExceptionGroup):
            return all(is_outage(one) for one in seen.exceptions)
        if http_status(seen) == 500:
            return False  # some answer so to a row that they can not take: it is to be found
        if outcome_unknown(seen) or isinstance(seen, CacheKitError):
            return not isinstance(seen, (CodecError, KeyEncodingError))
        if isinstance(seen, (socket.gaierror, concurrent.futures.CancelledError)):
            return True
        if isinstance(seen, OSError) and seen.errno in _OUTAGES:
            return True
        if isinstance(seen, _OF_ROWS) or type(seen).__name__ in _OF_ROWS_BY_NAME:
            return False
        seen = seen.__cause__
    return False


def refused(ops: Sequence[Op], answer: Any) -> dict[Any, BaseException] | BaseException:
    """What was not written: {id: exception}, empty where all was; or an error of the whole batch,
    for an answer that is none or names operations that were not asked for."""
    if isinstance(answer, BaseException):
        return answer
    if inspect.isawaitable(answer) or inspect.isgenerator(answer) or inspect.isasyncgen(answer):
        close = getattr(answer, "close", None)
        if inspect.iscoroutine(answer) or inspect.isgenerator(answer):
            close()  # type: ignore[misc]  # both have it
        return ConfigurationError(
            f"the sink answered with a {type(answer).__name__}, so nothing was written yet: "
            "write_many must be a plain function or a coroutine function"
        )
    if isinstance(answer, Mapping):
        failed = {id: e for id, e in answer.items() if isinstance(e, BaseException)}
        if failed and not failed.keys() <= {op.id for op in ops}:
            strange = next(id for id in failed if id not in {op.id for op in ops})
            return ConfigurationError(
                f"the sink refused {strange!r}, which is no id of the batch; answer "
                "{operation.id: exception}"
            )
        return failed
    if isinstance(answer, (list, tuple)):
        first = next((one for one in answer if isinstance(one, BaseException)), None)
        if first is not None:
            return first
    return {}


def told(error: BaseException) -> str:
    """An error as a text that any log takes."""
    name = type(error).__name__
    try:
        text = f"{name}: {error}"
    except Exception:  # its __str__ raised
        text = name
    return text.encode("utf-8", "backslashreplace").decode()[:MOST_TEXT]


def attempted(number: int) -> RetryCallState:
    """What tenacity's ``wait`` and ``stop`` objects look at after so many attempts."""
    state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]  # only counted
    state.attempt_number = number
    return state
