"""Domain events between processes, in one Redis stream per namespace.

``{ns}:events``: each entry has the payload (``p``), the id of the entry before it (``l``, ``0-0``
for the first) and the era (``e``): random for the first entry of the stream, and handed on from
entry to entry. So a follower sees from the next entry alone whether it missed one, however it
came to be gone: trimmed, flushed (ids alone do not show it: a stream begun anew within the same
millisecond repeats them), or lost with a server that returned with older memory.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Sequence

from ...core.deadline import Deadline
from ...errors import ConfigurationError
from ...protocols import World
from .line import Line, Overlong
from .listener import ATTEMPT, STEADY, Listener, check_master, log, moved_to
from .options import Options, Topology
from .routes import Call, Route, checked
from .scripts import Script
from .verb import Verb
from .wire import Command, ErrorReply, ProtocolViolation, Reply

MOST_PAYLOAD = 65536  # bytes
KEPT = 10_000  # events
BLOCK = 0.5  # seconds
PATIENCE = 1.0  # seconds for an answer, on top of BLOCK
BATCH = 32  # events of one answer: at most 2 MiB of payloads
LONGEST_REPLY = 4 << 20  # bytes
HOPS = 3
ERA_BYTES = 8
NOWHERE = b"0-0"

Position = tuple[int, int]

# most events to keep, payload, a new era -> id
_APPEND = Script(
    r"""
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local before, era = '0-0', ARGV[3]
if last[1] then
  before = last[1][1]
  local fields = last[1][2]
  for i = 1, #fields, 2 do
    if fields[i] == 'e' then era = fields[i + 1] end
  end
end
local entry = {'p', ARGV[2], 'l', before, 'e', era}
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(entry))
"""
)


def events_key(encoded: str) -> bytes:
    return f"{{{encoded}}}:events".encode()


class RedisStream:
    """A :class:`~cachekit.protocols.Stream`. ``kept`` events are there for who was away.

    ``route`` gives the way of a world to the server, as the backend's stores have it; ``append``
    opens one per world, which ``close`` ends. The server may keep some hundred events more than
    ``kept``.

    ``follow`` itself asks nothing: its thread looks up the newest event, and what is appended
    after that look, usually a few milliseconds later, is delivered. Where the first look failed,
    ``gap`` is called once after the first that did not. Later a gap is told when the next event
    does not follow on the last one seen, or within half a second when the last one seen is no
    longer there although nothing came after it. Then it goes on with what there is.

    In a forked child nothing follows; it may ``follow`` anew."""

    def __init__(
        self,
        options: Options,
        encoded_namespace: str,
        route: Callable[[World], Route],
        *,
        kept: int = KEPT,
    ) -> None:
        if kept < 1:
            raise ConfigurationError("a stream keeps at least one event")
        self._options = options
        self._key = events_key(encoded_namespace)
        self._route = route
        self._kept = b"%d" % kept
        self._routes: weakref.WeakKeyDictionary[World, Route] = weakref.WeakKeyDictionary()

    async def append(self, world: World, payload: bytes, deadline: Deadline) -> None:
        """One round trip. After a failure the event may be there all the same. Raises
        ValueError for a payload of more than 64 KiB."""
        if len(payload) > MOST_PAYLOAD:
            raise ValueError(f"an event of {len(payload)} bytes; at most {MOST_PAYLOAD} fit")
        with Verb("append", deadline) as verb:
            route = self._open(world)
            tail = (b"1", self._key, self._kept, payload, os.urandom(ERA_BYTES))
            calls: list[Call] = [(self._key, (b"EVALSHA", _APPEND.digest, *tail))]
            replies = await route.send(calls, verb.until)
            if isinstance(replies[0], ErrorReply) and replies[0].code == "NOSCRIPT":
                calls = [(self._key, (b"EVAL", _APPEND.source, *tail))]
                replies = await route.send(calls, verb.until)
            checked(replies)

    def follow(
        self, receive: Callable[[bytes], None], gap: Callable[[], None]
    ) -> Callable[[], None]:
        """As the protocol says; the stop lets the call end that is running."""
        return _Follower(self._options, self._key, receive, gap).start()

    async def close(self, world: World) -> None:
        """End what ``append`` opened in this world. Twice is fine; append may be used again."""
        route = self._routes.pop(world, None)
        if route is not None:
            await route.close()

    def _open(self, world: World) -> Route:
        route = self._routes.get(world)
        if route is None:  # two threads may each make one: it opens nothing before its first call
            route = self._routes.setdefault(world, self._route(world))
        return route


class _Follower(Listener):
    name = "cachekit-stream"
    what = "the stream of events"
    most = LONGEST_REPLY
    needs_database = True

    def __init__(
        self,
        options: Options,
        key: bytes,
        receive: Callable[[bytes], None],
        gap: Callable[[], None],
    ) -> None:
        super().__init__(options)
        self._key = key
        self._receive = receive
        self._gap = gap
        self._seen: bytes | None = None  # the last event that was delivered, or passed over
        self._era = b""  # of that event; empty where there was none
        self._late = False  # the first look failed
        self._may_ask = True  # ROLE
        self._count = BATCH
        self._complained = False
        self._since: float | None = None  # when this session got its first answer

    def _session(self) -> None:
        self._since = None
        line = self._begin(time.monotonic() + ATTEMPT)
        while True:
            self._more(line, time.monotonic() + BLOCK + PATIENCE)
            self._look(line, time.monotonic() + PATIENCE)

    def _begin(self, until: float) -> Line:
        for _ in range(HOPS):
            line = self._reach(until)
            try:
                self._look(line, until)
            except ErrorReply as error:
                if moved_to(error) is None:
                    raise
                self._turn_from(error)
                continue
            return line
        raise ConnectionError("the nodes of the cluster do not agree on who has the stream")

    def _look(self, line: Line, until: float) -> None:
        """At the newest event: where to begin, and whether the last one seen is still behind."""
        if self._may_ask and self._options.topology is Topology.SENTINEL:
            [role] = line.ask([(b"ROLE",)], until)
            check_master(role)
            self._may_ask = not isinstance(role, ErrorReply)
        newest = self._ask(line, (b"XREVRANGE", self._key, b"+", b"-", b"COUNT", 1), until)
        self._warned = False
        if self._since is None:
            self._since = time.monotonic()
        entries = _entries(newest)
        top, fields = entries[0] if entries else (NOWHERE, ())
        era = _named(fields).get(b"e", self._era)
        if self._seen is None:
            self._seen, self._era = top, era
            if self._late:
                self._call(self._gap)
        elif _position(top) <= _position(self._seen) and (top, era) != (self._seen, self._era):
            # Another stream begins here, or the same one goes on from an older state.
            self._seen = NOWHERE if era != self._era else top
            self._era = era if entries else b""
            self._call(self._gap)

    def _more(self, line: Line, until: float) -> None:
        """What came after the last one seen, waiting BLOCK for it."""
        assert self._seen is not None
        blocking = (b"COUNT", self._count, b"BLOCK", int(BLOCK * 1000))
        command = (b"XREAD", *blocking, b"STREAMS", self._key, self._seen)
        try:
            reply = self._ask(line, command, until)
        except Overlong:
            if self._count > 1:
                self._count = 1
            else:  # somebody else's, longer than any event: go on behind it
                self._seen = None
                self._late = True
            raise
        if reply is None:
            return
        if not isinstance(reply, list) or len(reply) != 1 or len(reply[0]) != 2:
            raise ProtocolViolation("no answer to XREAD")
        entries = _entries(reply[0][1])
        if entries:
            self._count = BATCH
        for id, fields in entries:
            self._halt.check()
            self._deliver(id, fields)

    def _ask(self, line: Line, command: Command, until: float) -> Reply:
        [reply] = line.ask([command], until)
        if isinstance(reply, ErrorReply):
            raise reply
        return reply

    def _deliver(self, id: bytes, fields: Sequence[bytes]) -> None:
        named = _named(fields)
        payload, before, era = named.get(b"p"), named.get(b"l"), named.get(b"e", self._era)
        if before not in (None, self._seen) or (self._era and era != self._era):
            self._call(self._gap)
        self._era = era
        if payload is not None and len(payload) <= MOST_PAYLOAD:
            self._call(self._receive, payload)
        self._seen = id

    def _call(self, function: Callable[..., None], *args: bytes) -> None:
        try:
            function(*args)
        except Exception as error:
            if not self._complained:
                self._complained = True
                log.warning("redis: a follower of the stream raised %s", type(error).__name__)

    def _ended(self, error: BaseException) -> bool:
        if self._seen is None:
            self._late = True
        return self._since is not None and time.monotonic() - self._since >= STEADY


def _entries(reply: Reply) -> list[tuple[bytes, Sequence[bytes]]]:
    if not isinstance(reply, list):
        raise ProtocolViolation("no entries of a stream")
    # an entry that was deleted while it was read has no fields
    return [(id, fields or ()) for id, fields in reply]


def _named(fields: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(fields[::2], fields[1::2], strict=False))


def _position(id: bytes) -> Position:
    milliseconds, _, sequence = id.partition(b"-")
    return int(milliseconds), int(sequence)
