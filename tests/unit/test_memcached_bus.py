"""The polling bus of Memcached on real servers: what it tells, and how that is sent."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from memcached_party import ME, SPACE, Party, parties
from memcached_worlds import FakeServer

from cachekit.backends.memcached import bus
from cachekit.backends.memcached.epochs import MOST_UNREAD, Ledger
from cachekit.errors import BackendError
from cachekit.runtime import drive
from cachekit.testing import MemcachedServer


@pytest.fixture
def party() -> Iterator[Callable[[str, str], Party]]:
    with parties() as open_one:
        yield open_one


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
