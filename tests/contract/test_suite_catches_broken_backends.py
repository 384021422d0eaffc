"""Every test of the contract suite fails on a backend broken in the way it is there to catch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import broken_backends as broken
import broken_buses
import broken_tags
import pytest
from broken_backends import Patient, one_space_for_all

from cachekit.backends.memory import MemorySlots, MemoryStore
from cachekit.protocols import Backend
from cachekit.testing import BackendContract, buses

# test: what it must catch. The comparison at the end keeps the list complete.
CAUGHT: dict[str, list[type]] = {
    "test_values_come_back_in_the_order_of_the_keys": [broken.GetSortsTheKeys],
    "test_empty_lists_are_fine": [broken.GetRefusesNoKeys],
    "test_a_later_value_replaces_and_a_deleted_key_is_gone": [broken.SetAddsOnly],
    "test_every_byte_survives": [broken.EmptyReadsAsAbsent],
    "test_hostile_keys_and_tags_stay_apart": [broken.KeysIgnoreCase],
    "test_a_record_a_slot_and_a_tag_of_one_name_are_three_things": [broken.TagsLieAmongTheSlots],
    "test_many_keys_at_once": [broken.GetStopsAtAHundred],
    "test_a_tenants_data_is_its_own": [broken.NamespaceIsGlued],
    "test_a_hostile_namespace_works_or_is_refused_at_wiring": [
        one_space_for_all(lambda name: "".join(c for c in name if c.isalnum() and c.isascii())),
    ],
    "test_a_second_store_sees_what_the_first_did": [broken.EveryOpenHasItsOwn],
    "test_a_shared_backend_made_twice_shows_the_same_data": [broken.SaysSharedButIsNot],
    "test_the_other_world_sees_the_same_slots": [broken.EveryWorldHasItsOwn],
    "test_a_deadline_that_passed_is_a_backend_error_at_once": [broken.DeadlinesAreIgnored],
    "test_closing_twice_is_fine": [broken.CloseOnlyOnce, broken.CloseLosesAll],
    "test_step_on_state": [
        broken.FillIgnoresTheToken,
        broken.VoidLeavesTokens,
        broken.SeizeOverwritesABlock,
        broken.CommitNeedsOnlyItsOwnId,
        broken.AcquireForgetsToKeep,
    ],
    "test_leaving_a_shared_block_leaves_it_contested": [broken.ALeavingWriterContestsNothing],
    "test_a_step_on_many_keys_is_done_on_each_by_its_state": [broken.VoidForgetsAllButTheFirst],
    "test_entries_of_every_byte_and_size_come_back_with_their_stamp": [broken.EntriesEndAtANul],
    "test_a_ttl_of_a_year_and_none_hold_now": [broken.NoTtlIsZero, broken.LongTtlsArePointsInTime],
    "test_what_has_a_ttl_is_gone_after_it_and_nothing_else": [
        broken.TtlsAreWholeSecondsRoundedDown,
        broken.SeizeShortensABlock,
        broken.NoTtlIsZero,
    ],
    "test_a_renewed_lease_outlives_the_first_one": [broken.RenewDoesNothing],
    "test_acquiring_many_grants_each_key_by_its_own_state": [broken.AcquireManyTakesAll],
    "test_acquiring_many_tells_what_stands_in_the_way": [broken.AcquireManyForgetsTheSlot],
    "test_filling_many_stores_only_where_the_token_still_stands": [broken.FillManyPuts],
    "test_a_refresh_token_given_back_frees_the_refresh_at_once": [
        broken.ReleaseKeepsTheRefreshToken
    ],
    "test_reading_creates_no_nonce": [broken.ReadCreatesNonces],
    "test_a_created_nonce_is_the_one_read": [broken.ReadForgetsTheSpace],
    "test_nonces_come_in_the_order_asked": [broken.ReadSortsTheTags],
    "test_a_nonce_is_never_overwritten": [broken.NoncesAreOverwritten],
    "test_creators_at_once_agree_on_one": [broken.NoncesLookAndThenStore],
    "test_a_dropped_tag_gets_another_nonce_and_its_neighbour_keeps_its_own": [
        broken.DroppingATagDropsAll
    ],
    "test_dropping_the_space_changes_it_for_every_key": [broken.DropSpaceOnlyForgetsNothing],
    "test_drops_touch_one_namespace_only": [
        one_space_for_all(str.lower),
        one_space_for_all(lambda name: name[:-1]),
    ],
    "test_a_nonce_made_before_a_drop_is_gone_after_it_whoever_creates": [
        broken.NoncesLookAndThenStore
    ],
    "test_a_blocked_tag_has_no_nonce_and_gets_none": [
        broken_tags.NoncesAreMadeUnderABlock,
        broken_tags.SeizeTagsOnlyDrops,
    ],
    "test_a_tags_block_stands_until_its_last_writer_ends": [
        broken_tags.AnyEndEndsABlock,
        broken_tags.SeizeTagsCountsWriters,
        broken_tags.SeizeTagsTakesABlockOver,
    ],
    "test_nonces_before_and_after_a_block_differ": [broken_tags.NoncesComeBackAfterABlock],
    "test_dropping_a_blocked_tag_leaves_its_block": [broken_tags.DropTagsEndsBlocks],
    "test_ending_where_no_block_is_left_deletes_the_nonce": [broken_tags.EndTagsLeavesNonces],
    "test_a_tags_block_ends_with_its_longest_lease": [
        broken_tags.SeizeTagsTakesTheLastLease,
        broken_tags.TagBlocksNeverEnd,
        broken_tags.NoncesComeBackAfterABlock,
        broken_tags.EndTagsLeavesNonces,
    ],
    "test_a_tags_block_is_no_keys_block_and_no_neighbours": [
        broken_tags.TagBlocksAreKeyBlocks,
        one_space_for_all(lambda name: name.rstrip("x")),
    ],
    "test_writers_of_a_tag_that_met_both_count": [broken_tags.SeizeTagsLooksAndThenStores],
    "test_no_nonce_outlives_a_block_that_it_met": [broken_tags.NoncesLookAndThenEndTheBlock],
    "test_a_random_run_on_a_tag_does_what_the_model_does": [
        broken_tags.NoncesAreMadeUnderABlock,
        broken_tags.NoncesComeBackAfterABlock,
        broken_tags.EndTagsLeavesNonces,
        broken_tags.SeizeTagsTakesTheLastLease,
        broken_tags.AnyEndEndsABlock,
    ],
    "test_the_first_that_a_listener_is_told_is_that_it_joined": [
        broken_buses.NobodyJoins,
        broken_buses.NotesComeBeforeJoined,
        broken_buses.OldNotesAreToldAgain,
    ],
    "test_what_invalidates_is_heard_in_order_with_its_sender": [
        broken_buses.NotesHaveNoSender,
        broken_buses.PutTellsNothing,
        broken_buses.TagsAreToldAsKeys,
        broken_buses.VoidTellsOneOfMany,
        broken_buses.NamesAreCutShort,
    ],
    "test_a_burst_is_heard_whole_and_in_order": [
        broken_buses.NotesChangePlaces,
        broken_buses.EveryTenthNoteIsLost,
    ],
    "test_what_invalidates_nothing_is_not_heard": [
        broken_buses.FillIsTold,
        broken_buses.EndTellsOfItsOwnBlock,
    ],
    "test_who_ends_where_his_block_stands_no_longer_is_heard": [broken_buses.EndTellsNothing],
    "test_a_listener_that_was_stopped_hears_no_more_and_others_do": [
        broken_buses.StopIsIgnored,
        broken_buses.StopEndsAll,
    ],
    "test_other_namespaces_are_not_heard": [broken_buses.OneBusForAll],
    "test_a_shared_backend_made_twice_is_heard_by_the_other": [broken.SaysSharedButIsNot],
    "test_of_many_at_once_exactly_one_is_granted": [broken.AcquireLooksAndThenTakes],
    "test_a_fill_racing_a_void_never_outlives_it": [
        broken.FillLooksAndThenStores,
        broken.VoidLeavesTokens,
    ],
    "test_a_fill_racing_a_put_leaves_what_was_put": [broken.FillLooksAndThenStores],
    "test_a_fill_racing_a_writer_leaves_its_block": [broken.FillLooksAndThenStores],
    "test_writers_that_met_leave_no_entry": [
        broken.SeizeOverwritesABlock,
        broken.CommitNeedsOnlyItsOwnId,
    ],
    "test_a_commit_racing_an_invalidation_leaves_nothing": [broken.CommitLooksAndThenStores],
    "test_a_random_run_does_what_the_model_does": [
        broken.FillIgnoresTheToken,
        broken.SeizeOverwritesABlock,
        broken.SeizeShortensABlock,
        broken.ALeavingWriterContestsNothing,
        broken.RenewDoesNothing,
        broken.FillKeepsTheLeaseAsTtl,
    ],
    "test_some_order_explains_what_two_clients_at_once_saw": [
        broken.AcquireLooksAndThenTakes,
        broken.FillLooksAndThenStores,
    ],
}


def suite_for(part: type | None) -> type[BackendContract]:
    """The contract over the memory backend with this part broken (None: sound)."""

    class Ward(BackendContract):
        manual_time = True

        def make_backend(self, namespace: str) -> Backend:
            kind = part if part is not None and issubclass(part, Patient) else Patient
            backend = kind(self, namespace)
            if part is not None and issubclass(part, MemorySlots):
                backend.slots = part
            if part is not None and issubclass(part, MemoryStore):
                backend.store = part
            return backend

    return Ward


def names_in(suite: type) -> list[str]:
    return [name for name in dir(suite) if name.startswith("test_")]


def runs(suite: type[BackendContract], name: str) -> Iterator[Callable[[], None]]:
    """One call for each set of parameters pytest would give the test."""
    test = getattr(suite, name)
    marks = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    for values in itertools.product(*(mark.args[1] for mark in marks)):
        given = dict(zip((mark.args[0] for mark in marks), values, strict=True))
        yield lambda given=given: getattr(suite(), name)(**given)  # type: ignore[misc]


def is_caught(suite: type[BackendContract], name: str) -> bool:
    for run in runs(suite, name):
        try:
            run()
        except (Exception, pytest.fail.Exception):
            return True
    return False


@pytest.fixture(autouse=True)
def _soon_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buses, "SLACK", 0.2)


@pytest.mark.parametrize(
    ("name", "part"),
    [pytest.param(n, p, id=f"{p.__name__}-{n[5:40]}") for n, ps in CAUGHT.items() for p in ps],
)
def test_the_broken_backend_fails(name: str, part: type) -> None:
    assert is_caught(suite_for(part), name)


@pytest.mark.parametrize("name", names_in(BackendContract))
def test_the_sound_backend_passes_the_same_way(name: str) -> None:
    for run in runs(suite_for(None), name):
        run()


def test_every_test_of_the_suite_is_shown_to_fail() -> None:
    assert set(CAUGHT) == set(names_in(BackendContract))
