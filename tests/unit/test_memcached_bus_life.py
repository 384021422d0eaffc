"""The polling bus of Memcached on real servers: nodes that go away, its listener's life."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from memcached_party import SLACK, Hearing, Party, parties

from cachekit.backends.memcached import bus
from cachekit.testing import MemcachedServer


@pytest.fixture
def party() -> Iterator[Callable[[str, str], Party]]:
    with parties() as open_one:
        yield open_one


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
