"""The polling bus of Memcached on real servers: what it tells, when, and what it does not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from memcached_worlds import FakeServer

from cachekit.backends.memcached import MemcachedBackend, bus
from cachekit.backends.memcached.epochs import MOST_UNREAD, Ledger
from cachekit.core.deadline import Deadline
from cachekit.errors import BackendError
from cachekit.protocols import Note, NoteKind
from cachekit.runtime import Runtime, drive
from cachekit.testing import MemcachedServer

SPACE = [Note(NoteKind.SPACE, "")]
SLACK = 1.0  # for the machine to run a thread at all
ME = b"w" * 16


class Hearing:
    """Ears that write down what they are told, and when; ``own`` is what is known to be ours."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any, float]] = []
        self._more = threading.Condition()

    def joined(self) -> None:
        self._note("joined", None)

    def lost(self) -> None:
        self._note("lost", None)

    def heard(self, notes: Sequence[Note]) -> None:
        assert notes
        for note in notes:
            self._note("heard" if [note] == SPACE else "own", [note])

    def lag(self, seconds: float) -> None:
        self._note("lag", seconds)

    def foreign(self, count: int) -> None:
        self._note("foreign", count)

    def _note(self, what: str, value: Any) -> None:
        with self._more:
            self.told.append((what, value, time.monotonic()))
            self._more.notify_all()

    def all(self, what: str) -> list[Any]:
        return [value for each, value, _ in self.told if each == what]

    def wait(self, what: str, count: int = 1, seconds: float = bus.BOUND + SLACK) -> float:
        """When it was told for the ``count``-th time; fails if it is not, in time."""

        def times() -> list[float]:
            return [at for each, _, at in self.told if each == what]

        with self._more:
            assert self._more.wait_for(lambda: len(times()) >= count, seconds), self.told[-8:]
            return times()[count - 1]

    def polls(self, count: int) -> None:
        """Wait for so many whole rounds from now on."""
        self.wait("lag", len(self.all("lag")) + count, 5.0)


class Party:
    """One process's backend, as far as a test needs one."""

    def __init__(self, url: str, namespace: str) -> None:
        self.backend = MemcachedBackend(url, namespace=namespace)
        self.world = Runtime().threads
        self.store: Any = self.backend.open(self.world)
        self._stops: list[Callable[[], None]] = []

    def late(self) -> Deadline:
        return self.world.deadline(5.0)

    def do(self, verb: str, *args: Any) -> Any:
        return drive(getattr(self.store, verb)(*args, self.late()))

    def listen(self) -> Hearing:
        ears = Hearing()
        assert self.backend.bus is not None
        self._stops.append(self.backend.bus.listen(ears))
        ears.wait("joined")
        return ears

    def close(self) -> None:
        for stop in self._stops:
            stop()
        drive(self.store.close())


@pytest.fixture
def party() -> Iterator[Callable[[str, str], Party]]:
    opened: list[Party] = []

    def open_one(url: str, namespace: str) -> Party:
        opened.append(Party(url, namespace))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def raw(server: MemcachedServer, command: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(command)
        return connection.recv(4096)


# -- what is told


VERBS: dict[str, list[Any]] = {
    "void": [["k", "l"]],
    "put": ["k", ME, b"x", None],
    "seize": [["k"], ME, 5.0],
    "drop_tags": [["never-made"]],
    "seize_tags": [["t"], ME, 5.0],
    "drop_space": [],
}


@pytest.mark.server
def test_every_invalidation_of_another_process_is_heard_and_our_own_are_not(
    memcached_server: MemcachedServer, party: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "SETTLE", 0.2)  # a busy machine must not make ours look foreign
    mine = party(memcached_server.url, "told")
    theirs = party(memcached_server.url, "told")
    ears, also = mine.listen(), mine.listen()
    second: Any = mine.backend.open(mine.world)
    for verb, args in VERBS.items():
        for _ in range(50):
            mine.do(verb, *args)
            drive(second.void(["k"], mine.late()))
    drive(second.close())
    ears.polls(2)
    senders = {notes[0].sender for notes in ears.all("own")}
    assert senders == {mine.store.sender, second.sender}
    assert {notes[0]._replace(sender=bytes(8)) for notes in ears.all("own")} == set(SPACE)
    assert ears.all("heard") == []
    for count, (verb, args) in enumerate(VERBS.items(), 1):
        mine.do(verb, *args)
        theirs.do(verb, *args)
        ears.wait("heard", count)
    ears.polls(1)
    for told in (ears.all("heard"), also.all("heard")):
        # A busy machine may take a count for another one's a second time: a miss more.
        assert all(notes == SPACE for notes in told)
        assert len(VERBS) <= len(told) <= 2 * len(VERBS)
    assert theirs.store.sender not in senders
    assert ears.all("lost") == ears.all("foreign") == []
    assert all(0.0 < lag < bus.BOUND for lag in ears.all("lag"))


@pytest.mark.server
def test_who_listens_hears_nothing_of_other_namespaces_or_of_reads_and_fills(
    memcached_server: MemcachedServer, party: Any
) -> None:
    ears = party(memcached_server.url, "quiet").listen()
    other = party(memcached_server.url, "quieter")
    other.do("put", "k", ME, b"x", None)
    theirs = party(memcached_server.url, "quiet")
    assert theirs.do("acquire", "k", ME, 5.0).granted
    assert theirs.do("renew", "k", ME, 5.0)
    assert theirs.do("fill", "k", ME, b"x", None)
    theirs.do("read", ["k"], ["t"])
    theirs.do("nonces", ["k"], ["t"], lambda: os.urandom(16), None)
    theirs.do("release", "k", ME)
    ears.polls(2)
    assert ears.all("heard") == []


@pytest.mark.server
def test_a_writer_that_ends_its_own_block_says_no_more_and_one_whose_block_ran_out_does(
    memcached_server: MemcachedServer, party: Any
) -> None:
    writer = party(memcached_server.url, "ends")
    other = b"o" * 16

    def bumps(verb: str, *args: Any) -> int:
        before = int(raw(memcached_server, b"get ends:e\r\n").split(b"\r\n")[1])
        writer.do(verb, *args)
        return int(raw(memcached_server, b"get ends:e\r\n").split(b"\r\n")[1]) - before

    writer.do("void", ["k"])
    assert bumps("seize", ["k"], ME, 5.0) == 1
    assert bumps("commit", "k", ME, b"x", None) == 0
    assert bumps("commit", "k", ME, b"y", None) == 1  # no block: the entry goes
    assert bumps("end", ["k"], ME) == 1  # nor anything else: what was read meanwhile is unknown
    writer.do("seize", ["k", "l"], ME, 5.0)
    writer.do("seize", ["k"], other, 5.0)
    assert bumps("end", ["k", "l"], ME) == 0
    assert bumps("end", ["k"], ME) == 0  # a block of others was told of when it was put
    assert bumps("end", ["k"], other) == 0
    writer.do("put", "k", ME, b"x", None)
    assert bumps("end", ["k"], ME) == 1
    assert bumps("seize_tags", ["t"], ME, 5.0) == 1
    assert bumps("end_tags", ["t"], other) == 0
    assert bumps("end_tags", ["t"], ME) == 0
    writer.do("nonces", [], ["t"], lambda: os.urandom(16), None)
    assert bumps("end_tags", ["t"], ME) == 1
    many = [f"k{n}" for n in range(600)]
    assert bumps("seize", many, ME, 5.0) == 1
    assert bumps("end", many, ME) == 0
    reading = writer.do("read", many, [])
    assert {slot.state.value for slot in reading.slots} == {"nothing"}


# -- how it is sent


def test_the_bump_goes_behind_the_change_in_the_same_request() -> None:
    requests: list[bytes] = []

    def script(connection: socket.socket) -> None:
        while data := connection.recv(65536):
            requests.append(data)
            answers = {b"add": b"STORED\r\n7\r\n", b"delete": b"DELETED\r\n8\r\n"}
            looked = b"END\r\n6\r\n" if b"incr" in data else b"END\r\n"
            connection.sendall(answers.get(data.split()[0], looked))

    with FakeServer(script) as server:
        mine = Party(server.url, "")
        mine.do("put", "k", ME, b"x", None)
        mine.do("seize", ["k"], ME, 5.0)
        mine.do("seize_tags", ["t"], ME, 5.0)
        mine.do("drop_space")
        mine.do("void", ["k"])
        mine.close()
    bump = b"\r\nincr :e 1\r\n"
    heads = [request.split()[:2] for request in requests if request.endswith(bump)]
    assert heads == [
        [b"add", b":k:k"],
        [b"add", b":k:k"],
        [b"add", b":t:t"],
        [b"delete", b":n"],
        [b"gets", b":k:k"],  # nothing was there: the look is all that had to come before
    ]
    assert len(requests) == len(heads) + 3


@pytest.mark.parametrize("answer", [b"STORED\r\n", b"STORED\r\nwhat\r\n", b"STORED\r\n7\r\n8\r\n"])
def test_a_step_whose_bump_was_not_acknowledged_is_not_done(answer: bytes) -> None:
    def script(connection: socket.socket) -> None:
        while data := connection.recv(65536):
            if data.startswith(b"gets"):
                connection.sendall(b"END\r\n")
            else:
                connection.sendall(answer)
                return

    with FakeServer(script) as server:
        mine = Party(server.url, "")
        for verb in ("put", "seize", "seize_tags"):
            with pytest.raises(BackendError):
                mine.do(verb, *VERBS[verb])
        mine.close()


@pytest.mark.server
def test_a_bump_of_ours_whose_answer_is_still_on_its_way_is_waited_for(
    memcached_server: MemcachedServer, party: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "SETTLE", 0.6)
    mine = party(memcached_server.url, "late")
    ears = mine.listen()
    ((ledger,),) = [epoch.ledgers.all for epoch in mine.backend._epochs.values()]
    counted = int(raw(memcached_server, b"incr late:e 1\r\n"))
    time.sleep(bus.INTERVAL + 0.05)  # a poll has seen it by now
    ledger.write(counted, mine.store.sender)
    ears.polls(2)
    assert ears.all("heard") == []
    raw(memcached_server, b"incr late:e 1\r\n")  # ours too, its answer lost: none of ours then
    ears.wait("heard")


def test_a_ledger_tells_which_steps_of_the_counter_are_our_own() -> None:
    ledger = Ledger()
    for number, sender in ((12, b"a"), (11, b"b"), (14, b"a")):
        ledger.write(number, sender)
    assert ledger.own(10, 10) == []
    assert sorted(ledger.own(10, 12)) == [b"a", b"b"]
    # Somebody took the 13th step: one of ours that comes behind it does not count for that.
    assert len(ledger.own(10, 13)) == 2
    assert ledger.own(12, 10) == []  # made anew
    ledger.forget(13)
    assert ledger.own(10, 14) == [b"a"]
    for number in range(MOST_UNREAD + 2):
        ledger.write(100 + number, b"a")
    assert len(ledger.own(99, 10**6)) == MOST_UNREAD


# -- counters that vanish


@pytest.mark.server
def test_a_counter_that_vanished_or_was_made_anew_or_is_none_is_told(party: Any) -> None:
    with MemcachedServer() as server:
        mine = party(server.url, "gone")
        ears = mine.listen()
        raw(server, b"flush_all\r\n")
        ears.wait("heard", 1)
        raw(server, b"delete gone:e\r\n")
        mine.do("void", ["k"])  # made anew by ourselves, before the next poll perhaps
        ears.wait("heard", 2)
        raw(server, b"set gone:e 0 0 4\r\nwhat\r\n")
        ears.wait("foreign")
        ears.wait("heard", 3)
        raw(server, b"set gone:e 0 0 4\r\nwhat\r\n")
        mine.do("put", "k", ME, b"x", None)
        mine.do("void", ["k"])
        ears.wait("heard", 4)
        assert ears.all("lost") == []
        server.kill()
        server.start()
        mine.do("void", ["k"])
        ears.wait("heard", 5)
        ears.polls(1)
        assert set(map(str, ears.all("heard"))) == {str(SPACE)}


# -- nodes that go away


@pytest.mark.server
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_node_that_does_not_answer_is_a_bus_lost_until_it_answers_again(
    how: str, party: Any
) -> None:
    with MemcachedServer() as one, MemcachedServer() as other:
        url = f"{one.url},127.0.0.1:{other.port}"
        mine, theirs = party(url, "nodes"), party(url, "nodes")
        ears = mine.listen()
        (other.kill if how == "killed" else other.pause)()
        gone = time.monotonic()
        lost = ears.wait("lost")
        # The last answer may be as old as one interval.
        assert bus.LOST_AFTER - bus.INTERVAL - 0.1 < lost - gone < bus.BOUND + SLACK
        time.sleep(2 * bus.INTERVAL)
        assert (len(ears.all("joined")), len(ears.all("lost"))) == (1, 1)
        (other.start if how == "killed" else other.resume)()
        ears.wait("joined", 2, 2.0)
        heard = len(ears.all("heard"))
        theirs.do("void", [f"k{n}" for n in range(20)])  # on both nodes
        ears.wait("heard", heard + 1)
        if how == "killed":  # the one that stayed is listened to as before
            other.kill()
            ears.wait("lost", 2)


def test_a_bus_whose_nodes_were_never_there_joins_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    mine = Party(f"memcached://127.0.0.1:{port}", "")
    ears = Hearing()
    assert mine.backend.bus is not None
    stop = mine.backend.bus.listen(ears)
    time.sleep(2 * bus.INTERVAL)
    stop()
    assert ears.told == []
    mine.close()


# -- life


def _threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "cachekit-memcached-bus"]


def _gone(seconds: float) -> bool:
    end = time.monotonic() + seconds
    while _threads() and time.monotonic() < end:
        time.sleep(0.005)
    return not _threads()


@pytest.mark.server
@pytest.mark.parametrize("frozen", [False, True])
def test_nobody_polls_before_listen_and_a_stopped_listener_is_gone_and_told_nothing(
    frozen: bool, party: Any
) -> None:
    assert _gone(1.0)
    with MemcachedServer() as server:
        mine, theirs = party(server.url, "stop"), party(server.url, "stop")
        mine.do("void", ["k"])
        assert _threads() == []
        assert mine.backend.bus is not None
        ears = Hearing()
        stop = mine.backend.bus.listen(ears)
        ears.wait("joined")
        (thread,) = _threads()
        assert thread.daemon
        if frozen:
            server.pause()
            time.sleep(0.1)
        else:
            theirs.do("void", ["k"])
        begun = time.monotonic()
        stop()
        told = len(ears.told)
        assert time.monotonic() - begun < 0.1
        assert _gone(0.5)
        assert len(ears.told) <= told + 1  # one that was on its way
        assert "lost" not in [what for what, _, _ in ears.told]
        stop()
        server.resume()
        (epoch,) = mine.backend._epochs.values()
        assert epoch.ledgers.all == ()


@pytest.mark.server
def test_a_forked_child_leaves_the_parents_sockets_and_listens_anew(
    memcached_server: MemcachedServer, party: Any
) -> None:
    mine, theirs = (party(memcached_server.url, "forked") for _ in range(2))
    ears = mine.listen()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            (epoch,) = mine.backend._epochs.values()
            silent = not _threads() and epoch.ledgers.all == ()
            before = list(ears.told)
            again = mine.listen()
            mine.do("void", ["k"])
            again.polls(2)
            quiet = again.all("heard") == []
            Party(memcached_server.url, "forked").do("void", ["k"])
            again.wait("heard")
            code = 0 if silent and quiet and ears.told == before else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert ears.all("lost") == []
    heard = len(ears.all("heard"))
    assert heard >= 1  # what the child did is another process's doing
    theirs.do("void", ["k"])
    ears.wait("heard", heard + 1)


OTHER = """
import sys, time
from cachekit.backends.memcached import MemcachedBackend
from cachekit.runtime import Runtime, drive
here = Runtime().threads
store = MemcachedBackend(sys.argv[1], namespace="stale").open(here)
for line in sys.stdin:
    begun = time.monotonic()
    drive(store.slots.void([line.strip()], here.deadline(5.0)))
    print(begun, flush=True)
"""


@pytest.mark.server
def test_what_another_process_invalidates_is_heard_within_the_bound(
    memcached_server: MemcachedServer, party: Any
) -> None:
    ears = party(memcached_server.url, "stale").listen()
    command = [sys.executable, "-c", OTHER, memcached_server.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        waited = []
        for count in range(1, 9):
            time.sleep(0.037)  # in another phase of the polling each time
            other.stdin.write(b"k\n")
            other.stdin.flush()
            begun = float(other.stdout.readline())  # the clock is the machine's
            waited.append(ears.wait("heard", count) - begun)
        other.stdin.close()
    assert max(waited) < bus.BOUND, waited
    assert ears.all("lost") == []
