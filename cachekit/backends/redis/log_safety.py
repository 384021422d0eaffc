"""What a write-back queue asks of the servers that keep it: no eviction, and its level."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...errors import ConfigurationError
from .routes import Call, Route
from .wire import Command, ErrorReply, NodeReplies, Replies, Reply, remaining

LEVELS = ("process", "host", "replicated")
TICK = 0.15  # seconds; a server looks ten times a second whether a wait has lasted long enough

Waiting = bytes | None  # the command that shows an operation kept at its level, if one is needed


async def check(
    route: Route, keys: Sequence[bytes], level: str, until: float
) -> tuple[Waiting, list[bytes]]:
    """Look at the servers that keep these keys: how to wait there for ``level``, and the run of
    each.

    Raises ConfigurationError for one that could lose the log, or will not say. ``volatile-*``
    policies are fine: of all keys only the owner's lease has a ttl, and an owner whose lease was
    evicted is still told from the next one by the epoch."""
    asked: list[Command] = [("INFO", "memory")]
    if level == "host":
        asked += [
            ("INFO", "persistence"),
            ("CONFIG", "GET", "appendfsync"),
            ("CONFIG", "GET", "no-appendfsync-on-rewrite"),
            ("COMMAND", "INFO", "WAITAOF"),
        ]
    calls: list[Call] = [(key, command) for key in keys for command in asked]
    replies = await route.send(calls, until)
    needs_wait, runs = False, []
    for start in range(0, len(replies), len(asked)):
        runs.append(replies.run_of(start))
        memory, *rest = replies[start : start + len(asked)]
        _refuse_eviction(_info(memory))
        if rest:
            needs_wait |= _needs_wait(*rest)
    if level == "replicated":
        return b"WAIT", runs
    return b"WAITAOF" if needs_wait else None, runs


def _info(reply: Reply) -> dict[str, str]:
    if isinstance(reply, ErrorReply):
        if reply.code == "NOPERM":
            raise ConfigurationError(
                "redis: a write-back log must know whether the server may evict it; grant the "
                "user +info"
            )
        raise reply
    return dict(re.findall(r"(\w+):(.*?)\r?\n", reply.decode()))


def _refuse_eviction(memory: dict[str, str]) -> None:
    policy = memory.get("maxmemory_policy", "unknown")
    if memory.get("maxmemory") == "0" or policy == "noeviction" or policy.startswith("volatile-"):
        return
    raise ConfigurationError(
        f"redis: with maxmemory-policy {policy} the server may evict a write-back log; keep it on "
        "a server with noeviction"
    )


def _needs_wait(persistence: Reply, fsync: Reply, pause: Reply, waitaof: Reply) -> bool:
    if _info(persistence).get("aof_enabled") != "1":
        raise ConfigurationError("redis: level 'host' needs a server with appendonly yes")
    told = None if isinstance(fsync, ErrorReply) else fsync[1]
    paused = not isinstance(pause, ErrorReply) and pause[1] == b"yes"
    if told == b"always" and not paused:
        return False
    if isinstance(waitaof, list) and waitaof and waitaof[0]:
        return True
    why = f"its appendfsync is {told.decode()}" if told else "the user may not read appendfsync"
    if told == b"always":
        why = "its no-appendfsync-on-rewrite is yes"
    raise ConfigurationError(
        f"redis: level 'host' needs appendfsync always, or Redis 7.2 for WAITAOF: {why}, and "
        "WAITAOF is not there"
    )


async def send_and_wait(
    route: Route, calls: Sequence[Call], states: Sequence[bytes], waiting: bytes, until: float
) -> Replies:
    """The replies of ``calls`` alone, once all that they wrote is kept as ``waiting`` shows.
    ``states``: of each call, a hash of its partition that may be written to.

    The wait follows its call on the same connection. In a cluster a call may be redirected away
    from its wait: other runs have answered them, and it is waited for again."""
    both: list[Call] = []
    for call in calls:
        both += [call, (call[0], _wait_command(waiting, until))]
    replies = await route.send(both, until)
    answers = NodeReplies(len(calls))
    for i in range(len(calls)):
        answers[i] = reply = replies[2 * i]
        answers.runs[i] = replies.run_of(2 * i)
        if isinstance(reply, ErrorReply):
            continue  # nothing was written: the caller sees why
        told, runs = replies[2 * i + 1], (replies.run_of(2 * i), replies.run_of(2 * i + 1))
        while runs[0] != runs[1]:
            touch: Call = (states[i], (b"HSET", states[i], b"touched", b"1"))
            wait: Call = (states[i], _wait_command(waiting, until))
            again = await route.send([touch, wait], until)
            if isinstance(again[0], ErrorReply):
                raise again[0]
            told, runs = again[1], (again.run_of(0), again.run_of(1))
            answers.runs[i] = runs[0]
        if isinstance(told, ErrorReply):
            raise told
        if (told[0] if isinstance(told, list) else told) < 1:
            where = "on the disk" if waiting == b"WAITAOF" else "by a replica"
            raise TimeoutError(f"it was not confirmed {where} in time, and may be kept or not")
    return answers


def _wait_command(waiting: bytes, until: float) -> Command:
    left = remaining(until)
    most = max(1, int(1000 * max(left / 2, left - TICK)))  # before its caller gives up
    return (waiting, 1, 0, most) if waiting == b"WAITAOF" else (waiting, 1, most)
