"""Which nodes of a cluster are down, and when one of them is tried again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from .wire import Address

# Seconds until a node that is down is tried again, and the map asked for again: from the first
# to the second, doubled each time that it was of no use.
SHORTEST, LONGEST = 0.2, 0.8  # less than a breaker's pause: its probe shall reach the node
STRIKES = 3  # failures of a node, one after the other, until it is down


@dataclass(slots=True)
class _Ill:
    strikes: int = 0
    known: float = 0.0
    until: float = 0.0
    pause: float = 0.0


class Health:
    """Which nodes are down: after STRIKES failures with no success between. Then one call is
    let through each pause, and the others fail at once. Empty while all is well."""

    def __init__(self) -> None:
        self._ill: dict[Address, _Ill] = {}

    def __contains__(self, node: Address) -> bool:
        """Whether the node is down."""
        ill = self._ill.get(node)
        return ill is not None and ill.strikes >= STRIKES

    def admits(self, node: Address, now: float) -> bool:
        """Whether a call may go to the node; where it is down, that makes the call its probe."""
        ill = self._ill.get(node)
        if ill is None or ill.strikes < STRIKES:
            return True
        if now < ill.until:
            return False
        ill.until = now + ill.pause
        return True

    def failed(self, node: Address, began: float) -> None:
        """A call that began then failed. All that were under way at a failure count as one."""
        ill = self._ill.setdefault(node, _Ill())
        if began < ill.known:
            return
        ill.known = time.monotonic()
        ill.strikes += 1
        if ill.strikes >= STRIKES:
            ill.pause = min(2 * ill.pause or SHORTEST, LONGEST)
            ill.until = ill.known + ill.pause

    def answered(self, node: Address) -> None:
        if self._ill:
            self._ill.pop(node, None)

    def keep(self, nodes: Sequence[Address]) -> None:
        """Forget all others."""
        self._ill = {node: ill for node, ill in list(self._ill.items()) if node in nodes}
