"""Whose fault an error of a database is, told by its code and not by the class it came as."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from cachekit.errors import ConfigurationError
from cachekit.sinks.verdicts import SourceUnready, is_loss, told, unready
from cachekit.strategies.answers import is_outage

psycopg = pytest.importorskip("psycopg")
sa = pytest.importorskip("sqlalchemy")

SOURCES = [
    "08000", "08001", "08003", "08006", "08P01", "25006", "25P02", "25P03", "25P04", "26000",
    "28000", "28P01", "3D000", "3F000", "40001", "40003", "40P01", "42703", "42704", "42P01",
    "42P05", "42P10", "53100", "53200", "53300", "55000", "55006", "55P03", "57014", "57P01",
    "57P02", "57P03", "57P05", "58000", "58030", "HV00N", "XX001", "XX002",
]  # fmt: skip
ROWS = [
    "21000", "22001", "22003", "22021", "22P02", "23502", "23503", "23505", "23514", "23P01",
    "27000", "2F002", "38000", "39000", "40002", "42501", "42804", "42883", "44000", "54000",
    "HV000", "P0001", "XX000",
]  # fmt: skip
LOST = ["08006", "25006", "25P03", "57P01", "57P02", "57P03", "58030", "26000", "XX001"]


def _named(name: str, *bases: str) -> type[Exception]:
    below = tuple(type(base, (Exception,), {}) for base in bases) or (Exception,)
    return type(name, below, {})


def _psycopg(state: str) -> Exception:
    try:
        kind = psycopg.errors.lookup(state)
    except KeyError:
        kind = type("Unheard", (psycopg.DatabaseError,), {"sqlstate": state})
    error: Exception = kind("no")
    return error


def _psycopg2(state: str) -> Exception:
    """Its classes have the same names; the code lies elsewhere."""
    kind = _named(type(_psycopg(state)).__name__, *(c.__name__ for c in _classes(state)))
    error = kind("no")
    error.pgcode = state  # type: ignore[attr-defined]
    return error


def _classes(state: str) -> list[type]:
    names = ("OperationalError", "DataError", "IntegrityError", "ProgrammingError")
    return [c for c in type(_psycopg(state)).__mro__ if c.__name__ in names]


def _pg8000(state: str) -> Exception:
    return _named("DatabaseError")({"S": "ERROR", "C": state, "M": "no"})


def _pg8000_as_interface(state: str) -> Exception:
    return _named("InterfaceError")({"S": "FATAL", "C": state, "M": "no"})


def _asyncpg(state: str) -> Exception:
    """By itself: no class has a name of PEP 249."""
    return type("PostgresError", (Exception,), {"sqlstate": state})("no")


def _asyncpg_below(state: str) -> Exception:
    try:
        try:
            raise _asyncpg(state)
        except Exception as error:
            below = _named("Error")("no")
            below.pgcode = below.sqlstate = state  # type: ignore[attr-defined]
            raise below from error
    except Exception as error:
        return _raised(sa.exc.DBAPIError("INSERT", {}, error), error)


def _psycopg_below(state: str) -> Exception:
    error = _psycopg(state)
    names = [c.__name__ for c in _classes(state)]
    kind = getattr(sa.exc, names[0]) if names else sa.exc.DBAPIError
    return _raised(kind("INSERT", {}, error), error)


def _raised(error: Exception, cause: BaseException | None) -> Exception:
    error.__cause__ = cause
    return error


DRIVERS: list[Callable[[str], Exception]] = [
    _psycopg, _psycopg2, _pg8000, _pg8000_as_interface, _asyncpg, _asyncpg_below, _psycopg_below,
]  # fmt: skip


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_code_says_the_same_through_every_driver(driver: Callable[[str], Exception]) -> None:
    said = {state: is_outage(told(driver(state))) for state in SOURCES + ROWS}
    assert said == dict.fromkeys(SOURCES, True) | dict.fromkeys(ROWS, False)


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_fails_before_the_rows_come_is_never_theirs(
    driver: Callable[[str], Exception],
) -> None:
    for state in SOURCES + ROWS:
        assert is_outage(unready(driver(state))), state
        assert is_outage(told(unready(driver(state)))), state


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_connection_is_given_up_only_for_what_ends_it(
    driver: Callable[[str], Exception],
) -> None:
    """A lock that was not free in time, say, leaves it as it was."""
    for better in (lambda e: e, told, unready):
        lost = {state for state in SOURCES + ROWS if is_loss(better(driver(state)))}
        assert lost >= set(LOST)
        assert not lost & {"40001", "40P01", "42P01", "53200", "55P03", "55006", "57014", *ROWS}


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_sink_of_ones_own_is_understood_by_the_code_too(
    driver: Callable[[str], Exception],
) -> None:
    """But for a missing table: its statements may name one by the row."""
    for state in SOURCES:
        if state not in ("3F000", "42703", "42704", "42P01", "42P10"):
            assert is_outage(driver(state)), state
    for state in ROWS:
        assert not is_outage(driver(state)), state


def test_an_error_whose_class_is_right_passes_unchanged() -> None:
    for error in (
        _psycopg("57P01"), _psycopg("23505"), _psycopg_below("08006"), _psycopg_below("22003"),
        psycopg.OperationalError("the connection is closed"), ConnectionResetError(),
        TimeoutError(), sqlite3.OperationalError("locked"), sqlite3.IntegrityError(), KeyError(1),
        ConfigurationError("no"), SourceUnready("no"), ValueError("no"),
    ):  # fmt: skip
        assert told(error) is error


def test_one_that_is_replaced_is_raised_from_the_first() -> None:
    first = _psycopg("54000")
    assert told(first).__cause__ is first
    assert unready(first).__cause__ is first
    assert "no" in str(told(first))


def test_an_error_of_the_network_is_the_sources_whatever_its_number() -> None:
    for error in (
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 111] ..."),
    ):
        assert isinstance(told(error), SourceUnready)
        assert is_loss(error)


def _of_interface(cause: BaseException) -> Exception:
    return _raised(_named("InterfaceError")("no"), cause)


def test_a_value_that_a_driver_can_not_encode_is_the_rows_fault() -> None:
    """asyncpg's DataError is an InterfaceError and a ValueError."""
    both = type("DataError", (_named("InterfaceError"), ValueError), {})("not an int")
    for error in (
        _of_interface(both),
        _raised(sa.exc.InterfaceError("x", {}, _of_interface(both)), _of_interface(both)),
    ):
        assert not is_outage(told(error))
        assert not is_loss(error)
    assert not is_outage(both)
    assert is_outage(told(_of_interface(ConnectionResetError())))
    assert is_outage(told(_of_interface(OSError(errno.EPIPE, "Broken pipe"))))


def test_what_fails_in_the_making_of_a_statement_is_not_taken_for_the_networks() -> None:
    """A type's own code may open a file for its row; SQLAlchemy keeps that error the same way."""
    cause = FileNotFoundError(errno.ENOENT, "No such file or directory", "7.png")
    error = _raised(sa.exc.StatementError("no", "INSERT", {}, cause), cause)
    assert told(error) is error
    assert not is_outage(error)


def test_a_driver_in_disorder_is_no_rows_fault() -> None:
    below = _named("InternalClientError")("cannot switch to state 3")
    error = _raised(sa.exc.DBAPIError("INSERT", {}, below), below)
    assert is_outage(told(error))
    assert is_loss(error)


def _coded(kind: type[Exception], code: int) -> Any:
    error = kind("no")
    error.sqlite_errorcode = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize("code", [5, 6, 8, 10, 11, 13, 14, 23, 26, 266, 517, 1032])
def test_sqlites_busy_full_damaged_or_read_only_file_is_the_sources_fault(code: int) -> None:
    kind = sqlite3.DatabaseError if code in (11, 23, 26) else sqlite3.OperationalError
    error = _coded(kind, code)
    assert is_outage(told(error))
    assert is_outage(told(_raised(sa.exc.DBAPIError("INSERT", {}, error), error)))
