"""The suite by which a write-back log proves itself, cachekit's own and third parties' alike.

    from cachekit.testing import LogContract

    class TestMine(LogContract):
        def make_log(self, place, queue, bounds):
            return MyLog(f"mine://localhost/{place}", queue, bounds=bounds)

Every test runs in both worlds, and on logs of one partition or several. ``LogSuite`` has the
attributes by which a subclass tells what differs (``ttl_granularity`` of leases, ``many_settled``,
``largest``) and how time is moved.
"""

from __future__ import annotations

from .log_letters import LogLettersContract
from .log_owner import LogOwnerContract
from .log_queue import LogQueueContract
from .log_races import LogRacesContract
from .log_views import LogViewsContract


class LogContract(
    LogQueueContract, LogViewsContract, LogOwnerContract, LogLettersContract, LogRacesContract
):
    """Subclass in a test module and define ``make_log(self, place, queue, bounds)``."""
