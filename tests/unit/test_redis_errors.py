"""What a Redis server answers with when it will not serve: the class, the text, the connection."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from redis_faults import (
    WORLDS,
    FaultServer,
    assert_all_raise,
    every_verb_at_once,
    in_world,
    scripted,
)

from cachekit.backends.redis import RedisBackend
from cachekit.errors import BackendRefused, BackendTimeout, BackendUnavailable
from cachekit.protocols import Item

BOTH = pytest.mark.parametrize("world", WORLDS)

REFUSALS = [
    b"READONLY You can't write against a read only replica.",
    b"OOM command not allowed when used memory > 'maxmemory'.",
    b"NOAUTH Authentication required.",
    b"NOPERM User app has no permissions to run the 'mget' command",
    b"WRONGTYPE Operation against a key holding the wrong kind of value",
    b"MISCONF Redis is configured to save RDB snapshots, but it's unable to persist to disk.",
    b"ERR unknown command 'EVALSHA', with args beginning with: 'SECRET'",
    b"MOVED 1 127.0.0.1:1",
    b"ASK 1 127.0.0.1:1",
    b"\xff\xfe \x00",
]
OUTAGES = [
    b"LOADING Redis is loading the dataset in memory",
    b"BUSY Redis is busy running a script.",
    b"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    b"CLUSTERDOWN The cluster is down",
    b"TRYAGAIN Multiple keys request during rehashing of slot",
    b"ERR max number of clients reached",
]


@BOTH
@pytest.mark.parametrize("text", REFUSALS + OUTAGES)
def test_an_error_reply_to_any_verb_is_refused_or_unavailable(world: str, text: bytes) -> None:
    expected = BackendRefused if text in REFUSALS else BackendUnavailable
    with FaultServer(scripted(lambda command: b"-" + text + b"\r\n")) as server:
        outcomes = every_verb_at_once(world, RedisBackend(server.url), budget=2)
        assert_all_raise(outcomes, expected, most=2)
        for _, outcome in outcomes.values():
            assert "SECRET" not in "".join(traceback.format_exception(outcome))


@BOTH
def test_a_connection_that_leads_to_a_replica_is_not_kept(world: str) -> None:
    with FaultServer(scripted(lambda command: b"-READONLY not here\r\n")) as server:

        async def body(store: Any, w: Any) -> None:
            for _ in range(3):
                with pytest.raises(BackendRefused):
                    await store.set_many([Item("k", b"v", None)], w.deadline(2))

        in_world(world, RedisBackend(server.url), body)
        assert server.connections == 3


@BOTH
@pytest.mark.parametrize("reply", [b"-WRONGPASS invalid username-password pair\r\n", b""])
def test_the_password_is_in_no_error_and_no_repr(world: str, reply: bytes) -> None:
    def answer(command: list[bytes]) -> bytes | None:
        return reply if command[0] == b"AUTH" else None

    with FaultServer(scripted(answer)) as server:
        url = server.url.replace("//", "//app:hunter2@")
        backend = RedisBackend(url)
        outcomes = every_verb_at_once(world, backend)
    shown = [repr(backend), repr(vars(backend)), repr(backend._options.login)]
    for _, outcome in outcomes.values():
        assert isinstance(outcome, BackendRefused if reply else BackendTimeout)
        shown += [repr(outcome), *traceback.format_exception(outcome)]
    assert not any("hunter2" in text for text in shown)
