"""Memory backends whose bus is broken once each, in the way the name says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from broken_backends import Patient

from cachekit.backends.local_bus import LocalBus
from cachekit.backends.memory import MemorySlots
from cachekit.core.deadline import Deadline
from cachekit.protocols import Ears, Note, NoteKind
from cachekit.testing import BackendContract

# -- steps that tell too little or too much ----------------------------------------------


class NotesHaveNoSender(MemorySlots):
    def _post(self, kind: NoteKind, names: Sequence[str]) -> None:
        self._shelf.bus.post(kind, names, b"")


class PutTellsNothing(MemorySlots):
    async def put(self, *given: Any) -> bool:
        self._post = lambda *note: None  # type: ignore[method-assign]
        try:
            return await super().put(*given)
        finally:
            del self._post


class VoidTellsOneOfMany(MemorySlots):
    def _post(self, kind: NoteKind, names: Sequence[str]) -> None:
        super()._post(kind, names[:1])


class TagsAreToldAsKeys(MemorySlots):
    def _post(self, kind: NoteKind, names: Sequence[str]) -> None:
        super()._post(NoteKind.KEY if kind is NoteKind.TAG else kind, names)


class NamesAreCutShort(MemorySlots):
    def _post(self, kind: NoteKind, names: Sequence[str]) -> None:
        super()._post(kind, [name[:200] for name in names])


class FillIsTold(MemorySlots):
    async def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        self._post(NoteKind.KEY, [key])
        return await super().fill(key, token, data, ttl, deadline)


class EndTellsOfItsOwnBlock(MemorySlots):
    def _end(self, key: str, writer: bytes) -> None:
        self._post(NoteKind.KEY, [key])
        super()._end(key, writer)


class EndTellsNothing(MemorySlots):
    def _end(self, key: str, writer: bytes) -> None:
        if not self._shelf.holds.end(key, writer):
            self._shelf.entries.drop(key)


# -- buses -------------------------------------------------------------------------------


class WithBus(Patient):
    """The memory backend with another bus."""

    kind: type[LocalBus] = LocalBus

    def __init__(self, suite: BackendContract, namespace: str) -> None:
        super().__init__(suite, namespace)
        self.bus = self._shelf.bus = self.kind()


class Muffled:
    """Ears to which some calls do not come."""

    def __init__(self, ears: Ears) -> None:
        self.ears = ears

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ears, name)


class NobodyJoins(WithBus):
    class kind(LocalBus):
        def listen(self, ears: Ears) -> Callable[[], None]:
            muffled: Any = Muffled(ears)
            muffled.joined = lambda: None
            return super().listen(muffled)


class NotesComeBeforeJoined(WithBus):
    class kind(LocalBus):
        def listen(self, ears: Ears) -> Callable[[], None]:
            ears.heard([Note(NoteKind.SPACE, "")])
            return super().listen(ears)


class OldNotesAreToldAgain(WithBus):
    class kind(LocalBus):
        def __init__(self) -> None:
            super().__init__()
            self.old: list[Note] = []

        def post(self, kind: NoteKind, names: Sequence[str], sender: bytes) -> None:
            super().post(kind, names, sender)
            self.old += [Note(kind, name, sender) for name in names]

        def listen(self, ears: Ears) -> Callable[[], None]:
            stop = super().listen(ears)
            ears.heard(self.old)
            return stop


class NotesChangePlaces(WithBus):
    class kind(LocalBus):
        def deliver(self) -> None:
            if len(self._posted) > 1:
                self._posted.reverse()
                super().deliver()


class EveryTenthNoteIsLost(WithBus):
    class kind(LocalBus):
        count = 0

        def post(self, kind: NoteKind, names: Sequence[str], sender: bytes) -> None:
            self.count += 1
            if self.count % 10:
                super().post(kind, names, sender)


class StopIsIgnored(WithBus):
    class kind(LocalBus):
        def listen(self, ears: Ears) -> Callable[[], None]:
            super().listen(ears)
            return lambda: None


class StopEndsAll(WithBus):
    class kind(LocalBus):
        def listen(self, ears: Ears) -> Callable[[], None]:
            super().listen(ears)
            return lambda: setattr(self, "_ears", [])


class OneBusForAll(WithBus):
    one = LocalBus()

    def __init__(self, suite: BackendContract, namespace: str) -> None:
        super().__init__(suite, namespace)
        self.bus = self._shelf.bus = self.one
