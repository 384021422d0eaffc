"""One reader per fleet, elected by a lease in the far tier."""

from __future__ import annotations

from contextlib import suppress

from ..core.entry import Verdict
from ..errors import BackendError
from ..packing import Found, Right
from ..protocols import SlotState
from ..runtime import drive
from ..strategies.parts import Parts

__all__ = ["Seat"]

LEASE_LEAST, LEASE_MOST = 1.5, 10.0
_ABSENT = Found(Verdict.MISS, SlotState.NOTHING)


class Seat:
    """Who of a fleet reads: the holder of a lease in the far tier, of ``max_lag`` seconds within
    bounds. Without a far tier everybody does. Safe across fork: the child holds nothing."""

    def __init__(self, parts: Parts, name: str, max_lag: float) -> None:
        self._parts = parts
        self._key = f"~feed:{name}"
        self._lease = min(max(max_lag, LEASE_LEAST), LEASE_MOST)
        self._token: bytes | None = None
        self._next = float("-inf")
        self._served = parts.runtime.clock()
        parts.runtime.on_fork(self._reset_after_fork)

    def hold(self) -> bool:
        """Whether it is this process's turn; asks the far tier three times per lease."""
        far, runtime = self._parts.far, self._parts.runtime
        if far is None:
            return True
        if runtime.clock() < self._next:
            return self._token is not None
        self._next = runtime.clock() + self._lease / 3 * (0.75 + runtime.uniform() / 2)
        world = runtime.threads
        try:
            within = far.deadline(world)
            if self._token is not None:
                if not drive(far.renew(world, self._key, self._token, self._lease, within)):
                    self._token = None
                return self._token is not None
            lease = self._lease
            claim = drive(far.acquire(world, self._key, _ABSENT, (), lease, False, lease, within))
        except BackendError:
            return self._token is not None  # two that read do no harm, none would
        if isinstance(claim, Right):
            self._token = claim.token
            self._served = runtime.clock()
        return self._token is not None

    def judge(self, behind: bool) -> None:
        """Give way for half a lease when this process has not been able to keep up for three:
        others may have the rights or the connection that it lacks."""
        now = self._parts.runtime.clock()
        if not behind:
            self._served = now
        elif self._token is not None and now - self._served > 3 * self._lease:
            self.leave()
            self._next = now + self._lease / 2

    def leave(self) -> None:
        far, token, self._token = self._parts.far, self._token, None
        if far is not None and token is not None:
            world = self._parts.runtime.threads
            with suppress(BackendError):  # then the lease ends by itself
                drive(far.release(world, self._key, token, far.deadline(world)))

    def _reset_after_fork(self) -> None:
        self._token, self._next = None, float("-inf")
