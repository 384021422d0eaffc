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
