"""Logs broken once each where they are owned and where their dead letters lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reference_log import ReferenceLog

from cachekit.core.ops import OpKind
from cachekit.protocols import Letter, World
from cachekit.testing.log_model import LogModel, Ownership

# -- owners ------------------------------------------------------------------------------


class Owned(LogModel):
    """The model with another kind of ownership."""

    ownership: type[Ownership]

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.owners = [self.ownership() for _ in self.owners]


def owned(kind: type[Ownership]) -> type[LogModel]:
    return type(kind.__name__, (Owned,), {"ownership": kind})


@owned
class ClaimIgnoresTheLease(Ownership):
    def claim(self, owner: bytes, lease: float, beyond: int, now: float) -> int | None:
        self.owner = b""
        return super().claim(owner, lease, beyond, now)


@owned
class OnesOwnClaimWaits(Ownership):
    def claim(self, owner: bytes, lease: float, beyond: int, now: float) -> int | None:
        return None if self.owner and now < self.until else super().claim(owner, lease, beyond, now)


@owned
class AnybodyReleases(Ownership):
    def release(self, owner: bytes, epoch: int) -> None:
        self.owner = b""


@owned
class AnOldEpochReleases(Ownership):
    def release(self, owner: bytes, epoch: int) -> None:
        super().release(owner, self.epoch)


@owned
class TheEpochIsReleasedToo(Ownership):
    def release(self, owner: bytes, epoch: int) -> None:
        super().release(owner, epoch)
        self.epoch = self.epoch if self.owner else 0


@owned
class RenewNeedsARunningLease(Ownership):
    def renew(self, owner: bytes, epoch: int, lease: float, now: float) -> bool:
        return now < self.until and super().renew(owner, epoch, lease, now)


@owned
class RenewTakesWhatIsFree(Ownership):
    def renew(self, owner: bytes, epoch: int, lease: float, now: float) -> bool:
        if not self.owner or now >= self.until:
            self.owner, self.epoch = owner, max(epoch, self.epoch)
        return super().renew(owner, self.epoch, lease, now)


@owned
class RenewDoesNothing(Ownership):
    def renew(self, owner: bytes, epoch: int, lease: float, now: float) -> bool:
        return (self.owner, self.epoch) == (owner, epoch)


@owned
class BeyondIsIgnored(Ownership):
    def claim(self, owner: bytes, lease: float, beyond: int, now: float) -> int | None:
        return super().claim(owner, lease, 0, now)


@owned
class BeyondIsObeyed(Ownership):
    """Also where that is a step back."""

    def claim(self, owner: bytes, lease: float, beyond: int, now: float) -> int | None:
        if super().claim(owner, lease, beyond, now) is None:
            return None
        self.epoch = beyond + 1 if beyond else self.epoch
        return self.epoch


class AnyEpochSettles(LogModel):
    def settle(self, part: int, epoch: int, done: Any, letters: Sequence[Letter]) -> bool:
        return super().settle(part, self.owners[part].epoch, done, letters)


class AnOldEpochParks(LogModel):
    def settle(self, part: int, epoch: int, done: Any, letters: Sequence[Letter]) -> bool:
        self.dead.update((letter.record.version, letter) for letter in letters)
        return super().settle(part, epoch, done, letters)


class SettleNeedsARunningLease(ReferenceLog):
    async def settle(self, world: World, part: int, epoch: int, *given: Any) -> bool:
        if self.place.clock() >= self.model.owners[part].until:
            return False
        return await super().settle(world, part, epoch, *given)


class SettleTakesTheWholeKey(LogModel):
    def _leave(self, part: int, key: str, upto: int) -> None:
        super()._leave(part, key, 2**63)


class SettleTakesOneVersion(LogModel):
    def _leave(self, part: int, key: str, upto: int) -> None:
        if upto in self.ops[part]:
            self.settled.append((self.mark, key))
            del self.ops[part][upto]


class SettleTakesAllThatIsOlder(LogModel):
    def _leave(self, part: int, key: str, upto: int) -> None:
        for other in {record.key for record in self.ops[part].values()}:
            super()._leave(part, other, upto)


class SettleStopsAtAThousand(LogModel):
    def settle(self, part: int, epoch: int, done: Any, letters: Sequence[Letter]) -> bool:
        return super().settle(part, epoch, done[:1000], letters)


# -- dead letters ------------------------------------------------------------------------


class LettersComeAsTheyWereParked(LogModel):
    def letters(self, after: int, limit: int) -> list[Letter]:
        return [letter for version, letter in self.dead.items() if version > after][:limit]


class ErrorsAreCutShort(LogModel):
    def letters(self, after: int, limit: int) -> list[Letter]:
        return [each._replace(error=each.error[:20]) for each in super().letters(after, limit)]


class NothingIsOutdated(LogModel):
    def settle(self, part: int, epoch: int, done: Any, letters: Sequence[Letter]) -> bool:
        before = {number: letter.outdated for number, letter in self.dead.items()}
        answer = super().settle(part, epoch, done, letters)
        for number, letter in self.dead.items():
            self.dead[number] = letter._replace(outdated=before.get(number, letter.outdated))
        return answer


class AParkedOneOutdatesNothing(NothingIsOutdated):
    def settle(self, part: int, epoch: int, done: Any, letters: Sequence[Letter]) -> bool:
        if letters:
            return super().settle(part, epoch, done, letters)
        return LogModel.settle(self, part, epoch, done, letters)


class OutdatedBeforeTheLettersLie(LogModel):
    def settle(self, part: int, epoch: int, done: Any, letters: Sequence[Letter]) -> bool:
        if not LogModel.settle(self, part, epoch, done, []):
            return False
        return LogModel.settle(self, part, epoch, [], letters)


class ALetterOfTheStepIsNotOutdated(LogModel):
    def settle(self, part: int, epoch: int, done: Any, letters: Sequence[Letter]) -> bool:
        answer = super().settle(part, epoch, done, letters)
        if answer:
            self.dead.update((letter.record.version, letter) for letter in letters)
        return answer


class LettersComeFresh(LogModel):
    def settle(self, part: int, epoch: int, done: Any, letters: Sequence[Letter]) -> bool:
        return super().settle(part, epoch, done, [x._replace(outdated=False) for x in letters])


class ParkedAgainIsFresh(LogModel):
    def settle(self, part: int, epoch: int, done: Any, letters: Sequence[Letter]) -> bool:
        for letter in letters:
            self.dead.pop(letter.record.version, None)
        return super().settle(part, epoch, done, letters)


class RevivedLettersStay(LogModel):
    def revive(self, *given: Any) -> list[int]:
        before = dict(self.dead)
        revived = super().revive(*given)
        self.dead = before
        return revived


class ADeleteIsRevivedAsAPut(LogModel):
    def revive(self, *given: Any) -> list[int]:
        for number, letter in self.dead.items():
            record = letter.record._replace(kind=OpKind.PUT)
            self.dead[number] = letter._replace(record=record)
        return super().revive(*given)


class ReviveKeepsToTheBound(LogModel):
    def revive(self, versions: Sequence[int], *given: Any) -> list[int]:
        room = self.bounds.operations - sum(map(len, self.ops))
        return super().revive(versions[: max(0, room)], *given)


class ReviveTakesWhatIsOutdated(LogModel):
    def revive(self, *given: Any) -> list[int]:
        for number, letter in self.dead.items():
            self.dead[number] = letter._replace(outdated=False)
        return super().revive(*given)


class ReviveOvertakes(LogModel):
    """Whether or not the key has an operation in the log."""

    def revive(self, versions: Sequence[int], force: bool, *given: Any) -> list[int]:
        fresh = [v for v in versions if force or v not in self.dead or not self.dead[v].outdated]
        return super().revive(fresh, True, *given)


class ForceIsIgnored(LogModel):
    def revive(self, versions: Sequence[int], force: bool, *given: Any) -> list[int]:
        return super().revive(versions, False, *given)


class OutdateDoesNothing(LogModel):
    def outdate(self, keys: Sequence[str]) -> None:
        return


class OutdateTakesAll(LogModel):
    def outdate(self, keys: Sequence[str]) -> None:
        super().outdate([letter.record.key for letter in self.dead.values()])


class OutdateGoesByThePrefix(LogModel):
    def outdate(self, keys: Sequence[str]) -> None:
        found = [letter.record.key for letter in self.dead.values()]
        super().outdate([each for each in found if each.startswith(tuple(keys))])


class OutdateStopsAtAThousand(LogModel):
    def outdate(self, keys: Sequence[str]) -> None:
        super().outdate(keys[:1000])


class OutdateDrops(LogModel):
    def outdate(self, keys: Sequence[str]) -> None:
        self.dead = {v: letter for v, letter in self.dead.items() if letter.record.key not in keys}


class OutdateSettles(LogModel):
    """As if the newer value had come through the log."""

    def outdate(self, keys: Sequence[str]) -> None:
        super().outdate(keys)
        for part in range(self.parts):
            for key in keys:
                self._leave(part, key, 2**63)


class OutdateLasts(LogModel):
    """What is parked later is outdated too."""

    past: frozenset[str] = frozenset()

    def outdate(self, keys: Sequence[str]) -> None:
        super().outdate(keys)
        self.past |= set(keys)

    def settle(self, part: int, epoch: int, done: Any, letters: Sequence[Letter]) -> bool:
        late = [each._replace(outdated=each.record.key in self.past) for each in letters]
        return super().settle(part, epoch, done, late)


class DropDropsAll(LogModel):
    def drop(self, versions: Sequence[int]) -> list[int]:
        dropped = super().drop(versions)
        self.dead.clear()
        return dropped


class DropAnswersWhatItWasAsked(LogModel):
    def drop(self, versions: Sequence[int]) -> list[int]:
        super().drop(versions)
        return list(versions)
