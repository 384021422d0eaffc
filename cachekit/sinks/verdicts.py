"""Whose fault a database's error is: the source's, then the batch waits, or a row's.

The worker goes by an error's class (PEP 249's names), and drivers sort theirs in different ways.
So an error whose class misleads it is replaced by one of ours, raised from it; others pass.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from ..errors import CacheKitError
from .sqlstates import is_lost, is_set_up, is_sources, state_of

# PEP 249's names of errors after which nobody knows whether the transaction took place.
_LOSSES = frozenset({"OperationalError", "InterfaceError"})
_SQLITE_ERROR = 1
_UNFIT = (11, 23, 26)  # SQLITE_CORRUPT, _AUTH, _NOTADB: a DatabaseError like any other
_OF_VALUES = (ValueError, TypeError, LookupError, ArithmeticError)
_MOST_CAUSES = 10  # that are looked along: they may form a circle
_turns = count()


class SourceUnready(ConnectionError):
    """The source takes no batch at present, whatever is in it; to try again is right."""


def told(error: Exception) -> Exception:
    """The error to raise, of a step that brought rows."""
    if isinstance(error, (CacheKitError, SourceUnready)):
        return error
    own = _own(error)
    sources = _is_sources(own)
    if sources is None or (sources == _waits(error) and not is_set_up(state_of(own))):
        return error
    return _unready(error, own) if sources else _refusal(error, own)


def unready(error: Exception) -> Exception:
    """The error to raise, of a step that brought no row: to connect, to look at the tables, to
    raise the fence. Whatever it is, no row is at fault."""
    if isinstance(error, CacheKitError) or (_waits(error) and told(error) is error):
        return error
    return _unready(error, _own(error))


def refusal(error: Exception, execute: Callable[[str, Any], Any], statement: Any) -> Exception:
    """The error to raise, of a statement with rows. SQLite has one code for a statement that it
    can not compile, as without its table, and for an expression that fails for some value, as a
    json_extract in a trigger, a check or a generated column. So it compiles it once more, without
    values: where it can, that they are missing is the only fault left, and one of the driver's."""
    own = _own(error)
    if _code(own) & 0xFF != _SQLITE_ERROR or not isinstance(statement, str):
        return error
    try:
        execute(f"{statement}\n-- {next(_turns)}", ())  # of a new text, since old ones are kept
    except Exception as again:
        missing = _own(again)
        if type(missing).__name__ == "ProgrammingError" and not _code(missing):
            return _refusal(error, own)
    return error


def is_loss(error: BaseException) -> bool:
    """Whether the connection, or what became of its transaction, is in doubt."""
    own = _own(error)
    if state := state_of(own):
        return is_lost(state)
    sources = _is_sources(own)
    return _waits(own) if sources is None else sources


def is_in_step(error: BaseException) -> bool:
    """Whether the server, or its driver in good order, has said so. A driver that fails by itself
    in the middle of a message, as pg8000 at half a surrogate pair, takes the answers to one
    statement for those to the next."""
    own = _own(error)
    if isinstance(own, CacheKitError) or state_of(own):
        return True
    return any(cls.__name__ == "DatabaseError" for cls in type(own).__mro__)


def _is_sources(own: BaseException) -> bool | None:
    """None: its class is right."""
    if state := state_of(own):
        return is_sources(state) or is_set_up(state)
    if _code(own) & 0xFF in _UNFIT or type(own).__name__ == "InternalClientError":  # asyncpg's
        return True
    if isinstance(own, OSError):  # of the network, a socket's file, certificates
        return True
    # asyncpg: a value that it can not encode is an error in the use of its interface.
    return False if _waits(own) and _blames_a_value(own) else None


def _blames_a_value(own: BaseException) -> bool:
    seen: BaseException | None = own
    for _ in range(_MOST_CAUSES):
        if isinstance(seen, _OF_VALUES) and not isinstance(seen, OSError):
            return True
        seen = None if seen is None else seen.__cause__
    return False


def _waits(error: BaseException) -> bool:
    """Whether its class makes the worker try the whole batch again."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    return any(cls.__name__ in _LOSSES for cls in type(error).__mro__)


def _own(error: BaseException) -> BaseException:
    """The driver's error, below SQLAlchemy's and ours."""
    for _ in range(_MOST_CAUSES):
        below = error.__cause__ if isinstance(error, SourceUnready) else None
        if any(cls.__name__ == "DBAPIError" for cls in type(error).__mro__):
            below = getattr(error, "orig", None)
        if not isinstance(below, BaseException):
            break
        error = below
    return error


def _code(error: BaseException) -> int:
    code = getattr(error, "sqlite_errorcode", 0)
    return code if isinstance(code, int) else 0


def _unready(error: Exception, own: BaseException) -> Exception:
    better = SourceUnready(f"sink: the source takes no batch: {own}")
    better.__cause__ = error
    return better


def _refusal(error: Exception, own: BaseException) -> Exception:
    better = ValueError(f"sink: the source refuses a row: {own}")
    better.__cause__ = error
    return better
