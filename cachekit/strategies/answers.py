"""What a sink's answer or error means for the operations it was given."""

from __future__ import annotations

import concurrent.futures
import errno
import inspect
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tenacity import Future, RetryCallState

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
        if (says := _says(seen)) is not None:
            return says
        reason = getattr(seen, "reason", None)  # urllib raises its errors from nothing
        seen = reason if isinstance(reason, OSError) else seen.__cause__
    return False


def _says(error: BaseException) -> bool | None:
    """What an error by itself says of an outage. None: ask what it was raised from."""
    if isinstance(error, CacheKitError):
        return not isinstance(error, (CodecError, KeyEncodingError))
    status = http_status(error)
    if status == 500:
        return False  # some answer so to a row that they can not take: it is to be found
    if (sources := _by_sqlstate(error)) is not None:
        return sources
    # asyncpg: a value that it can not encode is an error in the use of its interface too.
    if not status and isinstance(error, _OF_ROWS) and not isinstance(error, OSError):
        return False
    if outcome_unknown(error):
        return True
    if isinstance(error, (socket.gaierror, concurrent.futures.CancelledError)):
        return True
    if isinstance(error, OSError) and (error.errno in _OUTAGES or _is_of_connecting(error)):
        return True
    return False if type(error).__name__ in _OF_ROWS_BY_NAME else None


def _by_sqlstate(error: BaseException) -> bool | None:
    """Whether PostgreSQL's own code of an error, where there is one, says that no row is at
    fault: a driver's class may say otherwise, or nothing."""
    from ..sinks.sqlstates import is_sources, state_of  # only once there are errors

    below = getattr(error, "orig", None)  # SQLAlchemy's
    state = state_of(below if isinstance(below, BaseException) else error)
    return is_sources(state) if state else None


def _is_of_connecting(error: OSError) -> bool:
    """Whether to connect failed, where no number says so by itself."""
    if error.errno is None:  # asyncio, where a name has several addresses
        return str(error).startswith("Multiple exceptions: ")
    # A Unix socket that is gone: of any other missing file there is the name.
    return (
        error.errno == errno.ENOENT
        and error.filename is None
        and error.strerror == os.strerror(errno.ENOENT)
    )


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


def attempted(
    number: int,
    error: BaseException | None = None,
    *,
    seconds: float = 0.0,
    idle: float = 0.0,
    wait: Callable[[RetryCallState], float] | None = None,
) -> RetryCallState:
    """What tenacity's ``wait`` and ``stop`` objects look at after so many attempts.

    ``error``: of the last one. ``seconds``: since the first one began; ``idle``: of these, spent
    between attempts. ``wait`` is asked for the pause to come: the state's ``upcoming_sleep``."""
    state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]  # only looked at
    state.attempt_number = number
    state.outcome = Future(number)
    state.outcome.set_exception(error or RuntimeError("the source took no batch"))
    state.outcome_timestamp = time.monotonic()
    state.start_time = state.outcome_timestamp - seconds
    state.idle_for = idle
    if wait is not None:
        state.upcoming_sleep = wait(state)
    return state
