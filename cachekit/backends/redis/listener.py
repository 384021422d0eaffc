"""A daemon thread with a connection of its own, for what a server sends late or unasked.

Every wait of such a thread, that for a connect or a TLS handshake too, ends when the thread is
told to stop; so it is gone soon after, whatever the server does.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

from ...core.threads import begin
from .line import Halt, Line, Stopped
from .options import Options, Topology
from .wire import CLOSING_CODES, Address, ErrorReply, Login, NotMaster, Reply, remaining

log = logging.getLogger("cachekit")

ATTEMPT = 1.0  # seconds for one try to connect, log in and be taken on
SHORTEST, LONGEST = 0.05, 1.0  # seconds from one try to the next
STEADY = 2 * LONGEST  # seconds of use after which the next failure counts as the first
REFUSED = 30.0  # seconds until a server that said no is asked again


class Listener:
    """The thread: one session after the other, with a pause between that grows and has jitter.

    The pause counts from the beginning of a try, so that what a dead server's silence took is
    not waited for again: at most ATTEMPT or LONGEST seconds lie between two tries. A server
    that refuses is asked each REFUSED seconds, and one warning is logged."""

    name = "cachekit-listener"
    what = ""  # for the warning
    most = 1 << 20  # bytes of one reply
    needs_database = False

    def __init__(self, options: Options) -> None:
        self._options = options
        # The server's run is of no use here, and messages know no databases.
        db = options.login.db if self.needs_database else 0
        self._login = replace(options.login, ask_run=False, db=db)
        self._nodes = list(options.addresses)
        self._halt: Halt
        self._line: Line | None = None
        self._warned = False

    def start(self) -> Callable[[], None]:
        """Start the thread; the answer ends it within half a second, and does not wait for it."""
        try:
            self._halt = halt = Halt()
        except OSError as error:  # out of descriptors
            return self._deaf(error)
        self.pid = os.getpid()
        _running.add(self)
        if not begin(threading.Thread(target=self._run, name=self.name, daemon=True)):
            _running.discard(self)
            halt.close()
            return self._deaf(RuntimeError("no thread starts"))
        return halt.stop

    def _deaf(self, error: Exception) -> Callable[[], None]:
        log.warning("redis: %s can not be listened to: %s", self.what, error)
        return lambda: None

    # -- what the two kinds are made of ----------------------------------------------------

    def _session(self) -> None:
        """From connecting until the connection is of no use any more: ends by an exception."""
        raise NotImplementedError

    def _ended(self, error: BaseException) -> bool:
        """Called after each session; answers whether it had been of use for a while."""
        raise NotImplementedError

    def _reach(self, until: float) -> Line:
        """A logged-in line to where this topology says."""
        topology = self._options.topology
        address = self._master(until) if topology is Topology.SENTINEL else self._nodes[0]
        line = self._open(address, self._login, until)
        if topology is Topology.CLUSTER:
            self._learn(line, address, until)
        return line

    def _turn_from(self, error: Exception) -> None:
        """Where to go next in a cluster: where we were sent to, or the next node known."""
        target = moved_to(error)
        if target is not None:
            self._nodes = [target, *(node for node in self._nodes if node != target)]
        elif self._options.topology is Topology.CLUSTER:
            self._nodes.append(self._nodes.pop(0))

    # -- inside ----------------------------------------------------------------------------

    def _open(self, address: Address, login: Login, until: float) -> Line:
        self._hang_up()
        # Known before it opens anything: a forked child finds its copy here.
        self._line = line = Line(self._halt, self.most)
        line.open(address, login, until)
        return line

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _master(self, until: float) -> Address:
        problem: Exception | None = None
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._options.service)
        for sentinel in list(self._nodes):
            # A silent sentinel may not eat the time of those after it.
            share = monotonic() + remaining(until) / 2
            try:
                line = self._open(sentinel, self._options.sentinel_login, share)
                [reply] = line.ask([question], share)
                if isinstance(reply, ErrorReply):
                    raise reply
                if not isinstance(reply, list) or len(reply) != 2:
                    raise ConnectionError(f"{sentinel} knows no master of this service")
                address = Address(reply[0].decode(), int(reply[1]))
            except Stopped:
                raise
            except Exception as error:
                problem = error
                continue
            self._nodes.sort(key=lambda known: known != sentinel)
            return address
        raise problem or ConnectionError("no sentinel was given")

    def _learn(self, line: Line, here: Address, until: float) -> None:
        """Other nodes to go to when this one is gone; a user who may not ask knows the seeds."""
        [reply] = line.ask([("CLUSTER", "SLOTS")], until)
        if not isinstance(reply, list):
            return
        nodes = [here]
        for _, _, *servers in reply:
            for server in servers:
                host = (server[0] or b"").decode()
                nodes.append(Address(here.host if host in ("", "?") else host, server[1]))
        self._nodes = list(dict.fromkeys([*nodes, *self._options.addresses]))

    def _run(self) -> None:
        failures = 0
        try:
            while True:
                began = monotonic()
                error = self._problem()
                if self._halt.stopped:
                    return
                self._turn_from(error)
                if self._ended(error):
                    failures, began = 0, monotonic()
                failures += 1
                pause = self._pause(error, failures, monotonic() - began)
                del error  # its frames hold the session's objects
                self._halt.wait(None, 0, pause)
        except Stopped:
            return
        except BaseException as error:
            self._ended(error)
            raise
        finally:
            self._hang_up()
            self._halt.close()
            _running.discard(self)

    def _problem(self) -> Exception:
        try:
            self._session()
        except Exception as error:
            return error
        finally:
            self._hang_up()
        raise AssertionError("a session ends by an exception")

    def _pause(self, error: Exception, failures: int, spent: float) -> float:
        if is_refusal(error):
            if not self._warned:
                self._warned = True
                log.warning(
                    "redis: %s is refused by the server: %s (tried again each %.0f s)",
                    *(self.what, error, REFUSED),
                )
            return REFUSED * random.uniform(0.8, 1.2)
        longest = min(LONGEST, SHORTEST * 2 ** min(failures, 10))
        return max(SHORTEST, random.uniform(SHORTEST, longest) - spent)


def is_refusal(error: Exception) -> bool:
    """Whether the server will say the same as long as nobody changes its settings."""
    if not isinstance(error, ErrorReply) or error.unavailable:
        return False
    return error.code == "NOAUTH" or error.code not in {*CLOSING_CODES, "MOVED", "ASK"}


def moved_to(error: Exception) -> Address | None:
    """The node a MOVED names, if it is one."""
    if not isinstance(error, ErrorReply) or error.code != "MOVED":
        return None
    host, _, port = str(error).rpartition(" ")[2].rpartition(":")
    return Address(host.strip("[]"), int(port)) if host and port.isdigit() else None


def check_master(reply: Reply) -> None:
    """Of ROLE."""
    if isinstance(reply, list) and reply[:1] != [b"master"]:
        raise NotMaster("the server is not the master any more")


_running: set[Listener] = set()


def _in_child() -> None:
    """The threads stayed with the parent; here only the copies of their descriptors are left."""
    for listener in list(_running):
        if listener.pid != os.getpid():  # one that another hook has just started is ours
            listener._hang_up()
            listener._halt.close()
            _running.discard(listener)


os.register_at_fork(after_in_child=_in_child)
