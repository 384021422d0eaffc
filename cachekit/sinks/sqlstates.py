"""What PostgreSQL's SQLSTATE says about whose fault an error is (its manual, appendix A).

The code is the server's own, whatever class a driver or SQLAlchemy makes of it.
"""

from __future__ import annotations

# No row can cause these: connection, session, authorization, a transaction that gave way to
# others (deadlock, serialization), resources, locks and objects in use, an operator's or a
# timeout's end, the system, the configuration, damaged storage.
_SOURCES = (
    "08", "25", "26", "28", "3D", "40", "53", "55", "57", "58", "72", "F0",
    "42P05", "HV00N", "XX001", "XX002",
)  # fmt: skip
_YET_ROWS = ("40002",)  # a constraint that was checked at the commit
# Of statements that are the same for every row: a table, column, schema, type or unique
# constraint that is not there, or not yet.
_SET_UP = ("3F000", "42P01", "42703", "42704", "42809", "42P10")
# The connection is gone, or of no use: the next one may reach a server that is ready.
_LOST = ("08", "25", "26", "28", "3D", "57P", "58", "42P05", "XX001", "XX002")


def state_of(error: BaseException) -> str:
    """The SQLSTATE where the driver keeps it; "" elsewhere."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state is None and error.args and isinstance(error.args[0], dict):
        state = error.args[0].get("C")  # pg8000
    return state if isinstance(state, str) and len(state) == 5 else ""


def is_sources(state: str) -> bool:
    """Whether the next try of the same rows may find the source mended, and no row is at fault."""
    return state.startswith(_SOURCES) and state not in _YET_ROWS


def is_set_up(state: str) -> bool:
    """Whether it is the source's fault too where all rows have the same statement."""
    return state in _SET_UP


def is_lost(state: str) -> bool:
    return state.startswith(_LOST)
