"""Hearing of other processes' invalidations: Redis publish/subscribe, or its client tracking.

The scripts of ``scripts`` publish; here is the listening side. Messages and the answers to our
own commands come in one ordered stream, so the answer to a PING proves that everything the
server published before it was sent has been heard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import hiredis

from ...core.notes import Note, NoteKind, pack, unpack
from ...errors import ConfigurationError
from ...protocols import Ears
from .layout import bus_channel
from .line import Line, Overlong
from .listener import ATTEMPT, STEADY, Listener, check_master, log
from .options import Options, Topology
from .wire import Command, ErrorReply, ProtocolViolation, Reply

BOUND = 1.0  # seconds
LEAST_BOUND = 0.1
BEATS = 4  # heartbeats per bound
LONGEST_MESSAGE = 1 << 20  # bytes
LONGEST_LIST = 8 << 20  # bytes: names of all keys that changed in one turn of the server

_NO_HELLO = frozenset({"ERR", "NOPERM", "NOPROTO"})
_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def _clock() -> float:
    """Seconds, those in which the machine slept included."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


class RedisBus:
    """A :class:`~cachekit.protocols.Bus`: one connection and one daemon thread per ``listen``.

    ``bound`` (seconds) is how old the last proof may be that everything published has been
    heard; it is renewed four times as often, and lost where a round trip takes more than half of
    it. A thread that got no processor for so long says ``lost`` when it gets one. After a cut it
    tries again each 0.05 to 1 s, jittered; one that is refused (no permission for the channel)
    warns once and tries each 30 s.

    Publishers never wait: the server drops a listener whose backlog passes its
    ``client-output-buffer-limit pubsub``, and that listener hears of it as a loss. A recv is at
    most 64 KiB and what it brought is handed on before the next; a message that does not end
    within 1 MiB costs the connection.

    Sentinel: the server is asked for its ROLE in place of PING, where the user may ask. An old
    master that is cut off together with us still says master: then its own clients' writes are
    heard, and nobody else's until the cut heals.

    Cluster: one node, which gets what the others publish; the proof covers our link to that
    node, and that it sees the cluster as whole (CLUSTER INFO, where the user may ask), not each
    link between the nodes.

    ``tracking`` listens to the server's own invalidations of all keys of the namespace (CLIENT
    TRACKING, broadcasting; RESP3): then foreign writers, expiry and eviction are heard of too,
    and so is each of our own fills. Notes have no sender then. Not for a cluster.

    In a forked child nothing listens; it may ``listen`` anew.
    """

    coarse = False

    def __init__(
        self,
        options: Options,
        encoded_namespace: str,
        *,
        bound: float = BOUND,
        tracking: bool = False,
    ) -> None:
        if not bound >= LEAST_BOUND:
            raise ConfigurationError(f"the bus's bound is at least {LEAST_BOUND} s")
        if tracking and options.topology is Topology.CLUSTER:
            raise ConfigurationError(
                "bus=tracking hears one server only; leave it out for a cluster"
            )
        self.bound = bound
        self._options = options
        self._namespace = encoded_namespace
        self.tells_changes = tracking  # of keys that changed, not of every step
        self._tracking = tracking

    def listen(self, ears: Ears) -> Callable[[], None]:
        """As the protocol says; after the stop was called nothing more is told than what is
        being told in that moment, ``lost`` included."""
        subject: _Subject = (
            _Tracking(self._namespace) if self._tracking else _Channel(self._namespace)
        )
        return _BusListener(self._options, subject, ears, self.bound).start()


class _Channel:
    """Notes that the scripts publish."""

    needs_push = False
    most = LONGEST_MESSAGE

    def __init__(self, namespace: str) -> None:
        self._channel = bus_channel(namespace)
        self.command: Command = (b"SUBSCRIBE", self._channel)

    def is_start(self, reply: Reply) -> bool:
        return isinstance(reply, list) and list(reply[:2]) == [b"subscribe", self._channel]

    def notes(self, push: Sequence[Reply]) -> Sequence[Note | None] | None:
        """What a push says, None for each part that is not ours; None in all: everything."""
        if len(push) == 3 and push[0] == b"message":
            return [unpack(push[2])]
        return []


class _Tracking:
    """The server's invalidations of key names."""

    # The server sends them before the reply to the write that caused them, so that here too a
    # PING that was sent after that reply is answered behind them.
    needs_push = True
    most = LONGEST_LIST

    def __init__(self, namespace: str) -> None:
        self._prefix = f"{{{namespace}:".encode()
        self.command: Command = (b"CLIENT", b"TRACKING", b"ON", b"BCAST", b"PREFIX", self._prefix)

    def is_start(self, reply: Reply) -> bool:
        return isinstance(reply, bytes) and reply == b"OK"

    def notes(self, push: Sequence[Reply]) -> Sequence[Note | None] | None:
        if len(push) != 2 or push[0] != b"invalidate":
            return []
        if not isinstance(push[1], list):
            return None
        return [note for name in push[1] for note in self._note(name)]

    def _note(self, name: object) -> list[Note | None]:
        if not isinstance(name, bytes) or not name.startswith(self._prefix):
            return [None]
        rest = name[len(self._prefix) :]
        if rest.startswith(b"#") and rest.endswith(b"}"):
            return [_checked(NoteKind.TAG, rest[1:-1])]
        partition, brace, what = rest.partition(b"}")
        if brace and partition.isdigit():
            if what == b"!":
                return [_checked(NoteKind.SPACE, b"")]
            if what.startswith(b":"):
                return [_checked(NoteKind.KEY, what[1:])]
            return []  # a plain record, or part of a log: near tiers hold no such thing
        return [None]


_Subject = _Channel | _Tracking


def _checked(kind: NoteKind, name: bytes) -> Note | None:
    try:
        return unpack(pack(Note(kind, name.decode("ascii"))))
    except ValueError:
        return None


class _BusListener(Listener):
    name = "cachekit-bus"
    what = "the bus of invalidations"

    def __init__(self, options: Options, subject: _Subject, ears: Ears, bound: float) -> None:
        super().__init__(options)
        self._subject = subject
        self.most = subject.most
        self._ears = ears
        self._bound = bound
        self._joined: float | None = None  # since when
        self._proof = 0.0  # everything published before has been heard
        self._sent: float | None = None  # when the heartbeat that is out was sent
        self._expected: list[bytes] = []  # commands of it that are not answered
        self._may_ask = True  # more than PING
        self._push = True  # RESP3
        self._notes: list[Note] = []
        self._foreign = 0

    def _session(self) -> None:
        until = time.monotonic() + ATTEMPT
        line = self._reach(until)
        [hello] = line.ask([(b"HELLO", 3)], until)
        refused = isinstance(hello, ErrorReply)
        if refused and (hello.code not in _NO_HELLO or self._subject.needs_push):
            raise hello
        self._push = not refused
        # RESP2 takes nothing but PING while subscribed.
        self._may_ask = self._push
        self._notes, self._foreign = [], 0
        self._proof = _clock()
        line.send([self._subject.command], until)
        early: list[Reply] = []
        while self._joined is None:
            replies = line.read(max(0.0, until - time.monotonic()))
            if time.monotonic() > until:
                raise TimeoutError("the server did not confirm the subscription in time")
            early = self._begin(replies)
        self._listen(line, early)

    def _begin(self, replies: Sequence[Reply]) -> list[Reply]:
        """Look for the confirmation; answers what came after it."""
        for i, reply in enumerate(replies):
            if isinstance(reply, ErrorReply):
                raise reply
            if self._subject.is_start(reply):
                self._joined = _clock()
                self._warned = False
                self._ears.joined()
                return list(replies[i + 1 :])
        return []

    def _listen(self, line: Line, replies: list[Reply]) -> None:
        beat = 0.0  # when the next heartbeat is due
        self._sent = None
        while True:
            self._halt.check()
            for reply in replies:
                self._take(reply)
            self._tell()
            now = _clock()
            if self._sent is None and now >= beat:
                self._sent, beat = now, now + self._bound / BEATS
                self._ask(line)
            limit = self._proof + self._bound
            due = limit if self._sent is not None else min(beat, limit)
            try:
                replies = line.read(max(0.0, due - now))
            except Overlong:
                self._ears.foreign(1)
                raise
            # Before what came is looked at: it may be older than the bound.
            if _clock() > limit:
                raise TimeoutError("no proof within the bound that all was heard")

    def _ask(self, line: Line) -> None:
        commands: list[Command] = [(b"PING",)]
        if self._may_ask and self._options.topology is Topology.SENTINEL:
            commands = [(b"ROLE",)]
        elif self._may_ask and self._options.topology is Topology.CLUSTER:
            commands = [(b"CLUSTER", b"INFO"), (b"PING",)]
        self._expected = [command[0] for command in commands]
        line.send(commands, time.monotonic() + self._bound)

    def _take(self, reply: Reply) -> None:
        if self._is_message(reply):
            notes = self._subject.notes(reply)
            if notes is None:  # flushed
                self._notes = []
                self._ears.lost()
                self._ears.joined()
                return
            for note in notes:
                if note is None:
                    self._foreign += 1
                else:
                    self._notes.append(note)
            return
        if not self._expected:
            raise ProtocolViolation("the server answered what was not asked")
        self._check(self._expected.pop(0), reply)
        if self._expected or self._sent is None:
            return
        self._tell()
        self._proof, self._sent = self._sent, None
        self._ears.lag(_clock() - self._proof)

    def _is_message(self, reply: Reply) -> bool:
        if self._push:
            return isinstance(reply, hiredis.PushNotification)
        return isinstance(reply, list) and reply[:1] != [b"pong"]

    def _check(self, command: bytes, reply: Reply) -> None:
        if isinstance(reply, ErrorReply):
            if command == b"PING" or reply.code != "NOPERM":
                raise reply
            self._may_ask = False  # that it was refused came in order all the same
        elif command == b"ROLE":
            check_master(reply)
        elif command == b"CLUSTER" and b"cluster_state:ok" not in reply:
            raise ConnectionError("the node does not see the cluster as whole")

    def _tell(self) -> None:
        notes, self._notes = self._notes, []
        if notes:
            self._ears.heard(notes)
        count, self._foreign = self._foreign, 0
        if count:
            self._ears.foreign(count)

    def _ended(self, error: BaseException) -> bool:
        since, self._joined = self._joined, None
        if since is None:
            return False
        try:
            self._ears.lost()
        except Exception as problem:
            log.warning("redis: a listener of the bus failed: %s", type(problem).__name__)
        return _clock() - since >= STEADY
