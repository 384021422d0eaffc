"""The counter of invalidations that each node keeps for a namespace, and who bumps it.

A step bumps it behind its change, on the same connection and in the same request: the server works
off a connection in order, so whoever sees the bump finds the change. The counter begins at a
random number, so that one made anew (after a restart, a flush or an eviction) is not taken for
the old one. It never expires.
"""

from __future__ import annotations

import secrets
from collections import deque

from .wire import NOT_A_NUMBER, Connection

START_BITS = 48
MOST_UNREAD = 16384


class Ledger:
    """The numbers that this process's own bumps were answered with, and which store bumped, for
    one listener. Bounded: what does not fit is taken for foreign, which costs misses only."""

    def __init__(self) -> None:
        self._unread: deque[tuple[int, bytes]] = deque(maxlen=MOST_UNREAD)
        self._own: dict[int, bytes] = {}

    def write(self, number: int, sender: bytes) -> None:
        """Safe for threads; everything else is the listener's."""
        self._unread.append((number, sender))

    def own(self, before: int, now: int) -> list[bytes]:
        """Who made those steps of the counter from ``before`` to ``now`` that were our own."""
        while self._unread:
            number, sender = self._unread.popleft()
            self._own[number] = sender
        return [sender for number, sender in self._own.items() if before < number <= now]

    def forget(self, upto: int) -> None:
        self._own = {number: sender for number, sender in self._own.items() if number > upto}


class Ledgers:
    """Those of everyone who listens to one node; ``all`` is replaced, never changed."""

    def __init__(self) -> None:
        self.all: tuple[Ledger, ...] = ()


class Epoch:
    """One node's counter, as the store ``sender`` bumps it. Safe for threads."""

    __slots__ = ("bump", "ledgers", "name", "sender")

    def __init__(self, name: bytes, sender: bytes = b"", ledgers: Ledgers | None = None) -> None:
        self.name = name
        self.bump = b"incr %b 1\r\n" % name
        self.sender = sender
        self.ledgers = ledgers or Ledgers()

    def of(self, sender: bytes) -> Epoch:
        """The same counter in the hands of a store."""
        return Epoch(self.name, sender, self.ledgers)

    def settle(self, connection: Connection, answer: bytes) -> None:
        """Take the answer to a bump; where there was no counter, make one and bump that.

        One more round trip then. Returns only once a bump was acknowledged."""
        while not answer.isdigit():
            commands = [self._create(), self.bump]
            if answer == NOT_A_NUMBER:
                commands.insert(0, b"delete %b\r\n" % self.name)
            elif answer != b"NOT_FOUND":
                raise ValueError("a reply that is not memcached's")
            answer = connection.run(commands)[-1]
        for ledger in self.ledgers.all:
            ledger.write(int(answer), self.sender)

    def position(self, connection: Connection) -> tuple[int, bool]:
        """Where the counter stands, made if there is none; and whether something else lay there."""
        strange = False
        while True:
            item = connection.get([self.name]).get(self.name)
            # A server pads a number that became shorter.
            text = item[0].rstrip(b" ") if item is not None else b""
            if text.isdigit() and len(text) <= 20:
                return int(text), strange
            commands = [self._create()]
            if item is not None:
                strange = True
                commands.insert(0, b"delete %b\r\n" % self.name)
            connection.run(commands)

    def _create(self) -> bytes:
        start = b"%d" % secrets.randbits(START_BITS)
        return b"add %b 0 0 %d\r\n%b\r\n" % (self.name, len(start), start)
