"""The trust in near copies: pushed while the bus has joined, by the bound before and after."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from cachekit import Cache
from cachekit.backends.memory import MemoryBackend
from cachekit.core.keys import physical
from cachekit.core.notes import Note, NoteKind, pack, unpack
from cachekit.errors import ConfigurationError
from cachekit.protocols import Ears
from cachekit.runtime import Runtime
from cachekit.testing.clock import ManualClock


class Wire:
    """A bus that says what the test says."""

    bound = 1.0
    coarse = False

    def __init__(self) -> None:
        self.ears: list[Ears] = []
        self.stopped = 0

    def listen(self, ears: Ears) -> Callable[[], None]:
        self.ears.append(ears)

        def stop() -> None:
            self.stopped += 1

        return stop


class Place:
    """A cache over a memory backend with that bus, and a clock that only the test moves."""

    def __init__(self, **options: Any) -> None:
        self.backend = MemoryBackend()
        self.wire = Wire()
        self.backend.bus = self.wire
        self.clock = ManualClock()
        runtime = Runtime(clock=self.clock, wall=lambda: self.clock() + 1_700_000_000)
        self.cache = Cache(backend=self.backend, runtime=runtime, **options)
        self.loads = 0

    def read(self, key: str = "k", **options: Any) -> int:
        def load() -> int:
            self.loads += 1
            return self.loads

        return self.cache.get_or_set(key, load, ttl=100, **options)

    def near(self, key: str = "k") -> bool:
        """Whether a read is answered here, without the far tier."""
        before = self.cache.stats().far_hits
        self.read(key)
        return self.cache.stats().far_hits == before

    def join(self) -> None:
        self.wire.ears[-1].joined()
        self.clock.advance(0.001)

    def hear(self, kind: NoteKind, name: str = "", sender: bytes = b"somebody") -> None:
        self.wire.ears[-1].heard([Note(kind, name, sender)])


def test_nobody_listens_before_something_is_kept_near() -> None:
    place = Place()
    assert place.wire.ears == []
    assert place.cache.stats().coherence == "push lost"
    place.cache.invalidate(keys=["k"])
    assert place.wire.ears == []
    place.read()
    assert len(place.wire.ears) == 1
    place.read("other")
    assert len(place.wire.ears) == 1


def test_before_the_bus_has_joined_a_copy_is_trusted_for_the_bound() -> None:
    place = Place()
    place.read()
    assert place.near()
    place.clock.advance(1.01)
    assert not place.near()


def test_a_copy_read_after_the_bus_joined_is_kept_for_its_whole_life() -> None:
    place = Place()
    place.read()
    place.join()
    assert place.cache.stats().coherence == "push"
    place.clock.advance(1.01)
    assert not place.near()  # read before it joined
    place.clock.advance(90)
    assert place.near()


@pytest.mark.parametrize("kind", ["key", "tag", "space"])
def test_a_note_of_another_process_drops_what_it_names_and_nothing_else(kind: str) -> None:
    place = Place()
    place.read("first")
    place.join()
    place.clock.advance(2)
    place.read("k", tags=["t"])
    place.read("other", tags=["u"])
    note = {"key": (NoteKind.KEY, "k"), "tag": (NoteKind.TAG, "t"), "space": (NoteKind.SPACE, "")}
    place.hear(*note[kind])
    assert not place.near("k")
    assert place.near("other") == (kind != "space")


def test_a_key_that_needs_encoding_is_found_by_the_name_backends_give_it() -> None:
    place = Place()
    key = "ключ mit blank " + "x" * 300
    place.read("first")
    place.join()
    place.clock.advance(2)
    place.read(key)
    assert place.near(key)
    place.hear(NoteKind.KEY, physical(key))
    assert not place.near(key)


def test_the_own_echo_drops_nothing() -> None:
    place = Place()
    place.read("first")
    place.join()
    place.clock.advance(2)
    place.read()
    assert place.cache.parts.far is not None
    (mine,) = place.cache.parts.far.senders
    place.hear(NoteKind.KEY, "k", mine)
    assert place.near()


def test_a_note_that_comes_during_a_load_keeps_its_result_from_being_kept() -> None:
    place = Place()
    place.read("first")
    place.join()
    place.clock.advance(2)

    def load() -> str:
        place.hear(NoteKind.KEY, "k")
        return "old"

    assert place.cache.get_or_set("k", load) == "old"
    assert not place.near()


def test_after_a_loss_every_copy_goes_and_new_ones_are_trusted_for_the_bound() -> None:
    place = Place()
    place.read("first")
    place.join()
    place.clock.advance(2)
    place.read()
    place.wire.ears[-1].lost()
    assert place.cache.stats().coherence == "push lost"
    assert not place.near()
    assert place.near()
    place.clock.advance(1.01)
    assert not place.near()
    place.join()
    place.clock.advance(1.01)
    assert not place.near()
    place.clock.advance(50)
    assert place.near()


def test_a_read_under_way_while_the_bus_is_lost_is_not_kept() -> None:
    place = Place()
    place.read("first")
    place.join()
    place.clock.advance(2)

    def load() -> str:
        place.wire.ears[-1].lost()
        return "old"

    place.cache.get_or_set("k", load)
    assert not place.near()


def test_a_copy_loaded_while_the_far_tier_was_away_is_trusted_for_the_bound_only() -> None:
    """No block could refuse it, so no note need come when a writer elsewhere ends."""
    place = Place()
    place.read("first")
    place.join()
    place.clock.advance(2)
    far = place.cache.parts.far
    assert far is not None
    for _ in range(10):
        far.breaker.failure()
    place.read()
    assert place.near()
    place.clock.advance(1.01)
    loads = place.loads
    place.read()
    assert place.loads > loads


@pytest.mark.parametrize(("coherence", "state"), [(5.0, "bound"), ("strict", "strict")])
def test_a_bound_in_seconds_or_strict_does_not_listen(coherence: Any, state: str) -> None:
    place = Place(coherence=coherence)
    place.read()
    assert place.wire.ears == []
    assert place.cache.stats().coherence == state
    place.clock.advance(4.9)
    assert place.near() == (state == "bound")
    place.clock.advance(0.2)
    assert not place.near()


def test_push_needs_a_bus() -> None:
    backend = MemoryBackend()
    backend.bus = None
    with pytest.raises(ConfigurationError, match="bus"):
        Cache(backend=backend, coherence="push")
    assert Cache(backend=backend).stats().coherence == "bound"
    assert Cache(coherence="push").stats().coherence == "embedded"


def test_a_bus_that_only_says_that_something_changed_must_be_asked_for() -> None:
    backend = MemoryBackend()
    wire = Wire()
    wire.coarse = True
    backend.bus = wire
    assert Cache(backend=backend).stats().coherence == "bound"
    assert Cache(backend=backend, coherence="push").stats().coherence == "push lost"


def test_close_stops_listening_and_a_dropped_cache_too() -> None:
    place = Place()
    place.read()
    place.cache.close()
    place.cache.close()
    assert place.wire.stopped == 1
    place = Place()
    place.read()
    coherence = weakref.ref(place.cache.parts.coherence)
    wire, place.cache = place.wire, Cache()
    gc.collect()
    assert coherence() is None
    assert wire.stopped == 1
    wire.ears[-1].heard([Note(NoteKind.SPACE, "")])  # nobody is there any more
    wire.ears[-1].lost()


def test_a_forked_child_listens_anew_and_trusts_nothing_of_its_parent() -> None:
    place = Place()
    place.read("first")
    place.join()
    place.clock.advance(2)
    place.read()
    child = os.fork()
    if child == 0:
        good = place.cache.stats().coherence == "push lost" and not place.near()
        good = good and len(place.wire.ears) == 2
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert place.near()


def test_what_the_bus_measures_and_counts_is_in_the_statistics() -> None:
    place = Place()
    place.read()
    place.join()
    ears = place.wire.ears[-1]
    for lag in (0.001, 0.002, 0.1):
        ears.lag(lag)
    ears.foreign(3)
    place.hear(NoteKind.KEY, "x")
    ears.lost()
    stats = place.cache.stats()
    assert stats.timings["bus_lag"]["count"] == 3
    assert 0.09 < stats.timings["bus_lag"]["p99"] < 0.12
    counts = stats.counts
    assert [counts[n] for n in ("bus_joined", "bus_lost", "bus_foreign", "bus_notes")] == [
        1,
        1,
        3,
        1,
    ]


def test_a_flood_of_notes_from_a_thread_hurts_no_reader() -> None:
    place = Place()
    place.read("first")
    place.join()
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            place.hear(NoteKind.KEY, "k")
            place.hear(NoteKind.TAG, "t")

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        values = [place.read(tags=["t"]) for _ in range(3000)]
    finally:
        stop.set()
        thread.join()
    assert len(values) == 3000


@pytest.mark.parametrize(
    "note",
    [
        Note(NoteKind.KEY, "user:1", b"12345678", 1.5),
        Note(NoteKind.TAG, "x" * 230, b"\x00" * 8, -1.0),
        Note(NoteKind.SPACE, "", b"\xff" * 8, 0.0),
    ],
)
def test_a_note_comes_back_from_its_bytes(note: Note) -> None:
    assert unpack(pack(note)) == note


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ck\x01",
        b"ck\x02" + pack(Note(NoteKind.KEY, "k"))[3:],
        pack(Note(NoteKind.KEY, "k"))[:-1],
        pack(Note(NoteKind.SPACE, "")) + b"x",
        pack(Note(NoteKind.KEY, "k")) + b"\n",
        pack(Note(NoteKind.KEY, "k")) + "é".encode(),
        pack(Note(NoteKind.KEY, "k" * 230)) + b"k",
        pack(Note(NoteKind.KEY, "k")).replace(b"kk", b"zk"),
        None,
        7,
        "ck",
    ],
)
def test_anything_else_is_no_note(data: Any) -> None:
    assert unpack(data) is None


def test_a_name_that_no_key_has_is_not_packed() -> None:
    for name in ("x" * 231, "é"):
        with pytest.raises(ValueError):
            pack(Note(NoteKind.KEY, name))
