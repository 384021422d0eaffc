"""The bus of Memcached, which can push nothing: a thread polls every node's epoch.

Every step that invalidates bumps the epoch of its node (``epochs``), so an epoch that moved by
more than our own bumps tells that another process invalidated something, but not what. So the
note names the whole namespace, and every near copy goes with each foreign invalidation: right for
data that is read far more often than written. For write-heavy fleets a bound in seconds
(``coherence=<seconds>``) keeps near copies longer. Polling costs each node four small reads a
second for every listening process.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping

from ...core.deadline import Deadline
from ...protocols import Ears, Note, NoteKind
from ..local_bus import SafeEars
from .epochs import Epoch, Ledger
from .wire import Address, Connection

INTERVAL = 0.25
TRY = 0.2
BOUND = 1.0
LOST_AFTER = 0.9
"""Seconds without an answer: what is left to ``BOUND`` is for the machine to run us."""
SETTLE = 0.05
"""How long the answer to a bump of our own may take to be entered in the ledger."""
LOOK = 0.005

_SPACE = Note(NoteKind.SPACE, "")


class MemcachedBus:
    """Invalidations of one backend's namespace, found by polling.

    What this backend's own stores did is known by the numbers the server answered to their
    bumps: such a note carries the store as its sender, any other none. A bump of ours whose
    answer was lost, and a counter that is gone or made anew, count as foreign. ``lag`` is the
    longest a note could have taken at the last poll."""

    bound: float = BOUND
    coarse: bool = True

    def __init__(
        self, nodes: Mapping[str, Address], epochs: Mapping[str, Epoch], tls: ssl.SSLContext | None
    ) -> None:
        self._nodes = nodes
        self._epochs = epochs
        self._tls = tls

    def listen(self, ears: Ears) -> Callable[[], None]:
        """Poll from a daemon thread with connections of its own, until the function is called.

        That returns at once; nothing is told after it, and the thread ends within 0.3 s. One
        node that does not answer for the bound means ``lost``, and while it is away no listener
        is ``joined``. Threads do not survive a fork: in a child, listen again."""
        nodes = [_Node(where, self._epochs[node]) for node, where in self._nodes.items()]
        poller = _Poller(nodes, self._tls, SafeEars(ears, "memcached"))
        poller.start()
        return poller.stop


class _Node:
    """One node as its poller sees it."""

    def __init__(self, address: Address, epoch: Epoch) -> None:
        self.address = address
        self.epoch = epoch
        self.ledger = Ledger()
        self.connection: Connection | None = None
        self.position: int | None = None
        self.pending: int | None = None  # seen, not yet judged
        self.strange = False
        self.seen = 0.0  # when the last poll that was answered began

    def ask(self, tls: ssl.SSLContext | None, deadline: Deadline) -> bool:
        """Take the epoch; False when the node did not answer."""
        begun = time.monotonic()
        try:
            if self.connection is None:
                self.connection = Connection(self.address, tls, deadline)
            self.pending, self.strange = self.epoch.position(self.connection)
        except Exception:  # whatever it was, the next poll begins with a new connection
            self.hang_up()
            return False
        self.seen = begun
        return True

    def is_quiet(self) -> bool:
        """Whether nobody else moved the epoch since the last poll."""
        if self.pending is None:
            return True
        if self.position is None or self.strange:
            return False
        return self.pending - self.position == len(self.own())

    def own(self) -> list[bytes]:
        """The stores of ours that moved the epoch since the last poll, once for each bump."""
        if self.pending is None or self.position is None:
            return []
        return self.ledger.own(self.position, self.pending)

    def settle(self) -> None:
        """What was seen last is where the next poll counts from."""
        if self.pending is not None:
            self.position, self.pending = self.pending, None
            self.ledger.forget(self.position)

    def is_cut(self, deadline: Deadline) -> bool:
        """Whether the next poll has to connect first."""
        if self.connection is not None and not self.connection.ready(deadline):
            self.hang_up()
        return self.connection is None

    def needs_resolver(self) -> bool:
        """Whether to connect means to ask the system's resolver, which keeps no deadline."""
        if isinstance(self.address, str):
            return False
        try:
            ipaddress.ip_address(self.address[0])
        except ValueError:
            return True
        return False

    def hang_up(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


class _Poller:
    """The thread of one listener. All but ``stop`` runs in it."""

    def __init__(self, nodes: list[_Node], tls: ssl.SSLContext | None, ears: SafeEars) -> None:
        self._nodes = nodes
        self._tls = tls
        self._ears = ears
        self._stopped = False
        # Not an Event: that is not safe to set from a finaliser, which may run inside its wait.
        self._gate = threading.Lock()
        self._gate.acquire()
        self._joined = False
        self._whole = 0.0  # when the last round that every node answered began

    def start(self) -> None:
        _pollers.add(self)
        threading.Thread(target=self._run, name="cachekit-memcached-bus", daemon=True).start()

    def stop(self) -> None:
        self._ears.stopped = self._stopped = True
        with contextlib.suppress(RuntimeError):  # a second stop finds it open
            self._gate.release()

    def abandon(self) -> None:
        """In a forked child: the thread is the parent's, and so are its sockets."""
        self.stop()
        for node in self._nodes:
            node.hang_up()
        _keep_ledgers(self._nodes, False)

    def _run(self) -> None:
        _keep_ledgers(self._nodes, True)
        try:
            while not self._stopped:
                begun = time.monotonic()
                self._poll(begun)
                until = begun + INTERVAL
                if self._joined:
                    until = min(until, self._due())
                self._pause(until - time.monotonic())
        finally:
            self._lose()
            _keep_ledgers(self._nodes, False)
            for node in self._nodes:
                node.hang_up()

    def _pause(self, seconds: float) -> None:
        if seconds > 0.0 and not self._stopped:
            self._gate.acquire(timeout=seconds)

    def _due(self) -> float:
        """When the oldest answer is too old to be joined with."""
        return min(node.seen for node in self._nodes) + LOST_AFTER

    def _poll(self, begun: float) -> None:
        whole = True
        for node in self._nodes:
            if self._stopped:
                return
            whole = self._ask(node) and whole
        self._judge()
        if self._joined and time.monotonic() >= self._due():
            self._lose()
        if whole:
            if not self._joined:
                self._joined = True
                self._whole = begun
                self._ears.joined()
            self._ears.lag(time.monotonic() - self._whole)
            self._whole = begun

    def _ask(self, node: _Node) -> bool:
        seconds = TRY
        if self._joined:
            seconds = min(TRY, max(0.0, self._due() - time.monotonic()))
        deadline = Deadline(seconds, time.monotonic)
        if node.is_cut(deadline) and node.needs_resolver():
            self._lose()
        return node.ask(self._tls, deadline)

    def _judge(self) -> None:
        """Tell of what was invalidated since the last poll."""
        moved = [node for node in self._nodes if not node.is_quiet()]
        # A bump of our own may be counted by the server and its answer still be on the way.
        until = time.monotonic() + SETTLE
        while moved and self._joined and not self._stopped and time.monotonic() < until:
            self._pause(LOOK)
            moved = [node for node in moved if not node.is_quiet()]
        notes = [_SPACE] if moved else []
        own = {sender for node in self._nodes for sender in node.own()}
        notes += [_SPACE._replace(sender=sender) for sender in sorted(own)]
        strange = sum(node.strange for node in moved)
        for node in self._nodes:
            node.settle()
        if notes and self._joined:
            self._ears.heard(notes)
            if strange:
                self._ears.foreign(strange)

    def _lose(self) -> None:
        if self._joined:
            self._joined = False
            self._ears.lost()


_lock = threading.Lock()
_pollers: weakref.WeakSet[_Poller] = weakref.WeakSet()


def _keep_ledgers(nodes: list[_Node], keep: bool) -> None:
    with _lock:
        for node in nodes:
            others = tuple(each for each in node.epoch.ledgers.all if each is not node.ledger)
            node.epoch.ledgers.all = (*others, node.ledger) if keep else others


def _child() -> None:
    global _lock
    _lock = threading.Lock()  # the parent may have held it
    for poller in list(_pollers):
        poller.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_child)
