"""Tokens and blocks kept in this process: the rules of a slot that need no I/O."""

from __future__ import annotations

from collections.abc import Callable

from ..protocols import NOTHING, Slot, SlotState

SWEEP_AT_LEAST = 64


class Hold:
    """A token or a block. ``token`` is empty for a block."""

    __slots__ = ("contested", "token", "until", "writers")

    def __init__(self, token: bytes, writers: set[bytes], until: float) -> None:
        self.token = token
        self.writers = writers
        self.contested = False
        self.until = until


class Holds:
    """The tokens and blocks of all keys: every rule of a slot that its entry has no part in.

    A token over an entry is its refresh token. Not locked: the owner's lock guards it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._holds: dict[str, Hold] = {}
        self._sweep_at = SWEEP_AT_LEAST

    def __len__(self) -> int:
        return len(self._holds)

    def of(self, key: str) -> Hold | None:
        hold = self._holds.get(key)
        if hold is not None and hold.until <= self._clock():
            del self._holds[key]
            return None
        return hold

    def slot(self, key: str, stamp: bytes | None, data: bytes | None) -> Slot:
        """What stands under the key, given its entry (``stamp`` None: there is none)."""
        hold = self.of(key)
        if hold is not None and not hold.token:
            return Slot(SlotState.BLOCK)
        if stamp is None:
            return NOTHING if hold is None else Slot(SlotState.TOKEN)
        return Slot(SlotState.ENTRY if hold is None else SlotState.REFRESHING, stamp, data)

    def may_acquire(self, slot: Slot, over: bytes, keep: bool) -> bool:
        if slot.state is SlotState.NOTHING:
            return True
        if slot.state is SlotState.ENTRY:
            return slot.stamp == over
        return slot.state is SlotState.REFRESHING and slot.stamp == over and not keep

    def grant(self, key: str, token: bytes, lease: float) -> None:
        self._add(key, Hold(token, set(), self._clock() + lease))

    def is_mine(self, key: str, token: bytes) -> bool:
        hold = self.of(key)
        return hold is not None and bool(hold.token) and hold.token == token

    def renew(self, key: str, token: bytes, lease: float) -> bool:
        if not self.is_mine(key, token):
            return False
        self._holds[key].until = self._clock() + lease
        return True

    def release(self, key: str, token: bytes) -> None:
        if self.is_mine(key, token):
            del self._holds[key]

    def drop(self, key: str) -> None:
        self._holds.pop(key, None)

    def contest(self, key: str) -> bool:
        """Contest the block that stands there; without one, void the token and say False."""
        hold = self.of(key)
        if hold is not None and not hold.token:
            hold.contested = True
            return True
        self.drop(key)
        return False

    def seize(self, key: str, writer: bytes, lease: float) -> None:
        until = self._clock() + lease
        hold = self.of(key)
        if hold is None or hold.token:
            self._add(key, Hold(b"", {writer}, until))
            return
        hold.writers.add(writer)
        hold.contested = True
        hold.until = max(hold.until, until)

    def is_alone(self, key: str, writer: bytes) -> bool:
        hold = self.of(key)
        return hold is not None and hold.writers == {writer} and not hold.contested

    def end(self, key: str, writer: bytes) -> bool:
        """Whether a block of others is left (contested now); else nothing is held any more."""
        hold = self.of(key)
        if hold is not None and not hold.token:
            hold.writers.discard(writer)
            if hold.writers:
                hold.contested = True
                return True
        self.drop(key)
        return False

    def _add(self, key: str, hold: Hold) -> None:
        self._holds[key] = hold
        # Leases nobody came back for: a sweep each time the table has doubled is O(1) a step.
        if len(self._holds) >= self._sweep_at:
            now = self._clock()
            self._holds = {k: h for k, h in self._holds.items() if h.until > now}
            self._sweep_at = SWEEP_AT_LEAST + 2 * len(self._holds)
