"""Host names to addresses within a deadline, which the system's resolver does not know."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any
from weakref import WeakValueDictionary

from ...core.eventcount import Flag
from ...core.threads import begin
from .wire import Address, remaining

Target = tuple[int, Any]  # address family, what connect() takes


class _Lookup:
    """One running getaddrinfo; its thread ends with it, whoever still waits."""

    def __init__(self, address: Address) -> None:
        self.done = Flag()
        self.targets: list[Target] = []
        self.error: OSError | None = OSError("it was broken off")
        self.address = address

    def start(self) -> None:
        thread = threading.Thread(target=self._run, name="cachekit:resolve", daemon=True)
        if not begin(thread, self._over):
            raise OSError("no thread to resolve a name in")

    def _over(self) -> None:
        _running.pop(self.address, None)
        self.done.set()

    def _run(self) -> None:
        try:
            self.targets, self.error = _ask(self.address, 0), None
        except OSError as error:
            self.error = error
        except UnicodeError as error:  # a label too long for IDNA
            self.error = OSError(str(error))
        finally:
            self._over()


# At most one thread per host: callers of a hung resolver queue behind the one that hangs.
_running: WeakValueDictionary[Address, _Lookup] = WeakValueDictionary()
_starting = threading.Lock()


def _ask(address: Address, flags: int) -> list[Target]:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)
    return [(entry[0], entry[4]) for entry in found]


def resolve(address: Address, until: float) -> list[Target]:
    """The host's addresses; raises OSError, or TimeoutError when ``until`` passes first."""
    try:
        return _ask(address, socket.AI_NUMERICHOST)
    except OSError:
        pass  # a name, not a number
    except UnicodeError as error:
        raise OSError(str(error)) from error
    with _starting:
        lookup = _running.get(address)
        if lookup is None:
            lookup = _running[address] = _Lookup(address)
            lookup.start()
    if not lookup.done.wait(remaining(until)):
        raise TimeoutError(f"the name {address.host} was not resolved in time")
    if lookup.error is not None:
        raise ConnectionError(f"{address.host}: {lookup.error}")
    return lookup.targets


def _after_fork() -> None:
    global _starting
    _running.clear()
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
