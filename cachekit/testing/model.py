"""What a slot must do, as plain values: the reference that random runs are compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..protocols import Slot, SlotState

NEVER = float("inf")


@dataclass(frozen=True)
class Model:
    """One slot at the time ``now``. ``step`` gives the answer and the slot after it."""

    now: float = 0.0
    stamp: bytes | None = None
    data: bytes = b""
    entry_until: float = NEVER
    token: bytes | None = None
    token_until: float = NEVER
    writers: frozenset[bytes] = frozenset()
    contested: bool = False
    block_until: float = NEVER

    def at(self, now: float) -> Model:
        """The slot some time later."""
        later = replace(self, now=now)
        if self.writers and self.block_until <= now:
            return Model(now)
        if self.token is not None and self.token_until <= now:
            later = replace(later, token=None)
        if self.stamp is not None and self.entry_until <= now:
            later = replace(later, stamp=None, data=b"")
        return later

    def slot(self) -> Slot:
        if self.writers:
            return Slot(SlotState.BLOCK)
        if self.stamp is None:
            return Slot(SlotState.NOTHING if self.token is None else SlotState.TOKEN)
        state = SlotState.ENTRY if self.token is None else SlotState.REFRESHING
        return Slot(state, self.stamp, self.data)

    def step(self, verb: str, *given: Any) -> tuple[Any, Model]:
        return getattr(self, f"_{verb}")(*given)  # type: ignore[no-any-return]  # by name

    def _read(self) -> tuple[Slot, Model]:
        return self.slot(), self

    def _acquire(self, me: bytes, lease: float, over: bytes, keep: bool) -> tuple[bool, Model]:
        if self.writers:
            return False, self
        if self.stamp is None:
            if self.token is not None:
                return False, self
        elif self.stamp != over or (self.token is not None and keep):
            return False, self
        entry = self if keep else Model(self.now)
        return True, replace(entry, token=me, token_until=self.now + lease)

    def _renew(self, me: bytes, lease: float) -> tuple[bool, Model]:
        if self.token != me:
            return False, self
        return True, replace(self, token_until=self.now + lease)

    def _fill(self, me: bytes, data: bytes, ttl: float | None) -> tuple[bool, Model]:
        return (True, self._entry(me, data, ttl)) if self.token == me else (False, self)

    def _release(self, me: bytes) -> tuple[None, Model]:
        return None, replace(self, token=None) if self.token == me else self

    def _put(self, me: bytes, data: bytes, ttl: float | None) -> tuple[bool, Model]:
        if self.writers:
            return False, replace(self, contested=True)
        return True, self._entry(me, data, ttl)

    def _void(self) -> tuple[None, Model]:
        return None, replace(self, contested=True) if self.writers else Model(self.now)

    def _seize(self, me: bytes, lease: float) -> tuple[None, Model]:
        until = self.now + lease
        if not self.writers:
            return None, Model(self.now, writers=frozenset({me}), block_until=until)
        return None, replace(
            self,
            writers=self.writers | {me},
            contested=True,
            block_until=max(self.block_until, until),
        )

    def _commit(self, me: bytes, data: bytes, ttl: float | None) -> tuple[bool, Model]:
        if self.writers == {me} and not self.contested:
            return True, self._entry(me, data, ttl)
        return False, self._end(me)[1]

    def _end(self, me: bytes) -> tuple[None, Model]:
        others = self.writers - {me}
        if others:
            return None, replace(self, writers=others, contested=True)
        return None, Model(self.now)

    def _entry(self, stamp: bytes, data: bytes, ttl: float | None) -> Model:
        until = NEVER if ttl is None else self.now + ttl
        return Model(self.now, stamp=stamp, data=data, entry_until=until)


@dataclass(frozen=True)
class TagModel:
    """One tag: its nonce, or the block of the writers in flight."""

    now: float = 0.0
    nonce: bytes | None = None
    writers: frozenset[bytes] = frozenset()
    block_until: float = NEVER

    def at(self, now: float) -> TagModel:
        if self.writers and self.block_until <= now:
            return TagModel(now)
        return replace(self, now=now)

    def nonces(self, new: bytes) -> bytes | None:
        """What ``nonces`` answers when it would make ``new``."""
        return None if self.writers else self.nonce or new

    def step(self, verb: str, me: bytes, lease: float, new: bytes) -> TagModel:
        if verb == "nonces":
            return replace(self, nonce=self.nonces(new))
        if verb == "drop":
            return replace(self, nonce=None)
        if verb == "seize":
            until = self.now + lease
            if self.writers:
                until = max(self.block_until, until)
            return TagModel(self.now, writers=self.writers | {me}, block_until=until)
        if verb == "end":
            others = self.writers - {me}
            return replace(self, writers=others) if others else TagModel(self.now)
        return self
