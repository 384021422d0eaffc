"""Every test of the log's contract suite fails on a log broken in the way it is there to catch."""

from __future__ import annotations

import broken_log_owners as owners
import broken_logs as broken
import pytest
from reference_log import Place, ReferenceLog
from test_suite_catches_broken_backends import is_caught, names_in, runs

from cachekit.protocols import Bounds, Log
from cachekit.testing import LogContract
from cachekit.testing.log_model import LogModel

# test: what it must catch. The comparison at the end keeps the list complete.
CAUGHT: dict[str, list[type]] = {
    "test_versions_grow_in_the_order_of_acceptance": [
        broken.TheLastIsAcceptedFirst,
        broken.TheTimeIsTheLogs,
    ],
    "test_versions_never_go_back": [broken.VersionsBeginAnewWhenAllIsDone],
    "test_what_comes_without_a_time_was_accepted_now": [broken.NoTimeIsTheFirstOfJanuary1970],
    "test_every_byte_and_size_comes_back": [broken.DataEndsAtANul, owners.ErrorsAreCutShort],
    "test_hostile_keys_stay_apart": [broken.KeysIgnoreCase],
    "test_queues_of_one_place_do_not_see_each_other": [broken.QueuesAreCutAtAColon],
    "test_places_do_not_see_each_other": [broken.OnePlaceForAll],
    "test_the_bound_counts_operations_until_they_are_settled": [
        broken.TheBoundCountsKeys,
        broken.TheBoundCountsDeadLetters,
    ],
    "test_the_bound_counts_bytes_and_nothing_is_accepted_past_what_was_refused": [
        broken.TheBoundForgetsTheSize,
        broken.WhatFitsIsAcceptedPastWhatWasRefused,
    ],
    "test_a_look_gives_the_newest_operation_of_each_key": [
        broken.LookGivesTheOldest,
        broken.ADeleteIsNothing,
    ],
    "test_reading_goes_on_after_a_version": [
        broken.ReadBeginsWithTheLastOne,
        broken.ReadIgnoresTheLimit,
    ],
    "test_the_standing_counts_what_waits": [
        broken.DepthCountsKeys,
        broken.NewestIsOfWhatWaits,
        broken.SizeIsOfTheDataAlone,
    ],
    "test_what_is_left_of_a_moment_counts_down_and_not_what_came_later": [broken.LeftCountsAll],
    "test_what_was_settled_is_told_since_a_mark": [
        broken.NothingIsTold,
        broken.AMarkOfNothingTellsNothing,
        broken.OnlyWhatWasAppliedIsTold,
        broken.TheMarkMovesThoughNothingIsTold,
    ],
    "test_too_many_settled_keys_are_not_told_in_part": [broken.SettledKeysAreToldInPart],
    "test_a_queue_opened_again_is_as_it_was": [broken.CloseLosesAll, broken.ClosedForGood],
    "test_a_queue_has_one_identity_for_all_who_open_it": [
        broken.EveryObjectDrawsAnIdentity,
        broken.TheIdentityIsTheNames,
    ],
    "test_the_other_world_sees_the_same_queue": [broken.EveryWorldHasItsOwn],
    "test_a_deadline_that_passed_is_a_backend_error_at_once": [broken.DeadlinesAreIgnored],
    "test_empty_lists_are_fine": [broken.NothingIsNoList],
    "test_one_owner_at_a_time_and_epochs_only_grow": [
        owners.ClaimIgnoresTheLease,
        owners.OnesOwnClaimWaits,
        owners.AnybodyReleases,
        owners.AnOldEpochReleases,
        owners.TheEpochIsReleasedToo,
    ],
    "test_a_lease_ends_and_can_be_renewed_until_somebody_else_claims": [
        owners.RenewNeedsARunningLease,
        owners.RenewTakesWhatIsFree,
        owners.RenewDoesNothing,
    ],
    "test_a_renewed_lease_outlives_the_first_one": [owners.RenewDoesNothing],
    "test_an_epoch_lies_beyond_what_it_is_asked_to": [
        owners.BeyondIsIgnored,
        owners.BeyondIsObeyed,
        owners.TheEpochIsReleasedToo,
    ],
    "test_an_old_epoch_settles_nothing": [owners.AnyEpochSettles, owners.AnOldEpochParks],
    "test_an_owner_whose_lease_ran_out_settles_until_somebody_else_claims": [
        owners.SettleNeedsARunningLease
    ],
    "test_settling_takes_the_key_up_to_the_version_and_nothing_newer": [
        owners.SettleTakesTheWholeKey,
        owners.SettleTakesOneVersion,
        owners.SettleTakesAllThatIsOlder,
    ],
    "test_a_parked_operation_takes_what_is_older_along_and_nothing_newer": [
        owners.SettleTakesTheWholeKey,
        owners.SettleTakesOneVersion,
    ],
    "test_a_great_many_are_settled_in_one_step": [owners.SettleStopsAtAThousand],
    "test_letters_are_listed_by_version_page_by_page": [owners.LettersComeAsTheyWereParked],
    "test_a_newer_operation_that_was_applied_or_parked_makes_a_letter_outdated": [
        owners.NothingIsOutdated,
        owners.AParkedOneOutdatesNothing,
    ],
    "test_an_older_letter_of_the_same_step_is_outdated_too": [
        owners.OutdatedBeforeTheLettersLie,
        owners.ALetterOfTheStepIsNotOutdated,
    ],
    "test_a_letter_that_comes_outdated_stays_so": [owners.LettersComeFresh],
    "test_a_letter_parked_again_is_no_less_outdated": [owners.ParkedAgainIsFresh],
    "test_a_revived_letter_is_a_new_operation": [
        owners.RevivedLettersStay,
        owners.ADeleteIsRevivedAsAPut,
    ],
    "test_letters_are_revived_beyond_the_bound": [owners.ReviveKeepsToTheBound],
    "test_an_outdated_letter_is_revived_only_by_force": [
        owners.ReviveTakesWhatIsOutdated,
        owners.ForceIsIgnored,
    ],
    "test_a_write_past_the_log_outdates_the_letters_of_its_keys": [
        owners.OutdateDoesNothing,
        owners.OutdateTakesAll,
        owners.OutdateGoesByThePrefix,
        owners.OutdateDrops,
        owners.OutdateSettles,
        owners.OutdateLasts,
    ],
    "test_a_write_past_the_log_of_many_keys_outdates_their_letters": [
        owners.OutdateDoesNothing,
        owners.OutdateStopsAtAThousand,
    ],
    "test_a_letter_whose_key_has_an_operation_waits_unless_forced": [
        owners.ReviveOvertakes,
        owners.ForceIsIgnored,
    ],
    "test_of_the_letters_of_a_key_the_newest_is_revived": [
        owners.ReviveTakesWhatIsOutdated,
        owners.AParkedOneOutdatesNothing,
    ],
    "test_dropped_letters_are_gone_for_good": [
        owners.DropDropsAll,
        owners.DropAnswersWhatItWasAsked,
    ],
    "test_writers_at_once_lose_nothing_while_one_settles": [
        broken.VersionsAreDrawnBeforeTheyAreKept,
        broken.SomeAppendsAreLost,
    ],
    "test_writers_at_once_do_not_pass_the_bound": [broken.RoomIsSeenAndThenTaken],
    "test_claimants_at_once_are_one_owner": [broken.ClaimLooksAndThenTakes],
    "test_no_look_misses_both_an_operation_and_its_settling": [broken.LookIsTwoLooks],
    "test_what_was_acknowledged_is_seen_by_every_later_look": [broken.EveryOtherLookIsOfAReplica],
    "test_settlers_of_two_epochs_at_once_are_one_owner": [broken.SettleLooksAndThenTakes],
    "test_a_random_run_does_what_the_model_does": [
        owners.AnyEpochSettles,
        owners.SettleTakesTheWholeKey,
        broken.WhatFitsIsAcceptedPastWhatWasRefused,
        owners.AParkedOneOutdatesNothing,
        owners.RevivedLettersStay,
        owners.BeyondIsObeyed,
        broken.LeftCountsAll,
        owners.OutdateTakesAll,
    ],
}


def suite_for(part: type | None) -> type[LogContract]:
    """The contract over the reference log with this part broken (None: sound)."""
    kind = part if part is not None and issubclass(part, ReferenceLog) else ReferenceLog
    model = part if part is not None and issubclass(part, LogModel) else LogModel

    class Ward(LogContract):
        manual_time = True
        many_settled = 2_500

        def make_log(self, place: str, queue: str, bounds: Bounds) -> Log:
            places = vars(self).setdefault("places", {})
            name = "" if hasattr(kind, "one_place") else place
            log = kind(places.setdefault(name, Place(self.clock)), queue, bounds)
            log.kind = model
            return log

    return Ward


@pytest.mark.parametrize(
    ("name", "part"),
    [pytest.param(n, p, id=f"{p.__name__}-{n[5:40]}") for n, ps in CAUGHT.items() for p in ps],
)
def test_the_broken_log_fails(name: str, part: type) -> None:
    assert is_caught(suite_for(part), name)


@pytest.mark.parametrize("name", names_in(LogContract))
def test_the_sound_log_passes_the_same_way(name: str) -> None:
    for run in runs(suite_for(None), name):
        run()


def test_every_test_of_the_logs_suite_is_shown_to_fail() -> None:
    assert set(CAUGHT) == set(names_in(LogContract))
