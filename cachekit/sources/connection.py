"""One table's boto3 client: opened at first use, one per process, with what is tried again."""

from __future__ import annotations

import random
import time
from typing import Any

from ..backends.dynamodb.faults import THROTTLED, code_of, is_down
from ..sinks.clients import Client
from .errors import Throttled, Unsettled

READS = 3  # attempts of one that the service or the network failed
PAUSE = 0.05  # seconds, as the next
LONGEST_PAUSE = 1.0
_LOST_ANSWERS = frozenset({"ResponseParserError", "IncompleteReadError"})


class Pauses:
    """Growing pauses with full jitter (Brooker, "Exponential Backoff And Jitter", 2015), until
    nothing has gone through for ``patience`` seconds."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.progress()

    def progress(self) -> None:
        self._end = time.monotonic() + self._patience
        self._longest = PAUSE

    def wait(self) -> bool:
        """False at once, instead of a pause, where the patience is over."""
        left = self._end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(left, random.uniform(0, self._longest)))
        self._longest = min(2 * self._longest, LONGEST_PAUSE)
        return True


class Connection:
    """``client``: as :class:`~cachekit.sinks.clients.Client` takes it; ``patience`` in seconds."""

    def __init__(self, table: str, client: Any, patience: float) -> None:
        self.table = table
        self.client = Client(client)
        self._patience = patience

    def pauses(self) -> Pauses:
        return Pauses(self._patience)

    def read(self, verb: str, pauses: Pauses, **asked: Any) -> Any:
        """What the client's method answers. Throttled, it is asked again for the patience; failed
        by the service or the network, twice more within it."""
        failed = 0
        while True:
            try:
                return getattr(self.client.get(), verb)(**asked)
            except Exception as error:
                if is_down(error):
                    failed += 1
                    if failed == READS or not pauses.wait():
                        raise
                elif code_of(error) not in THROTTLED:
                    raise
                elif not pauses.wait():
                    raise self.throttled(code_of(error)) from error

    def write(self, verb: str, pauses: Pauses, **asked: Any) -> Any:
        """The same, but only what was certainly not applied is sent again: a write that was, and
        one that comes late, could undo what another writer did in between."""
        while True:
            try:
                return getattr(self.client.get(), verb)(**asked)
            except Exception as error:
                if is_down(error) or type(error).__name__ in _LOST_ANSWERS:
                    raise Unsettled(
                        f"{self.table}: nobody knows whether this was written: {error}"
                    ) from error
                if code_of(error) not in THROTTLED:
                    raise
                if not pauses.wait():
                    raise self.throttled(code_of(error)) from error

    def throttled(self, what: str) -> Throttled:
        return Throttled(
            f"{self.table}: {what} for {self._patience:g} s: too little capacity for the table, "
            "or for one item"
        )
