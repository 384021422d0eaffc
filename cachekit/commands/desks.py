"""The queues that a command asks for: those of a place, or of an application."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from ..codecs import resolve
from ..errors import ConfigurationError
from ..logs import open_log
from ..logs.sqlite_tables import queues
from ..protocols import Bounds, Letter, Log
from ..runtime import Runtime, ThreadWorld, drive
from ..settings import safe_url
from ..strategies.journal import Payload
from ..strategies.parts import Parts
from ..strategies.write_back import WriteBack
from .app import at_rest, durable, load, log_of, unknown_queue

PATIENCE = 10.0  # seconds for one step of a log
PAGE = 100  # letters that are in memory at once

Told = Callable[[Sequence[str]], bool]


@dataclass(frozen=True, slots=True)
class Where:
    """Where the queues are, as it was typed: ``log``, a URL, or ``app``, module:attribute.
    ``namespace`` None: all of a SQLite file, the nameless one of a Redis."""

    log: str | None = None
    app: str | None = None
    namespace: str | None = None
    queue: str | None = None

    @property
    def sees_all(self) -> bool:
        """Whether no queue is left out because its namespace was not named."""
        return self.log is None or self.namespace is not None or self.log.startswith("sqlite:")


@dataclass(frozen=True, slots=True)
class Desk:
    """One queue. ``told`` tells the caches of an application that keys were written (None: there
    is no application); False: they could not be told now."""

    queue: str
    log: Log
    payload: Payload
    world: ThreadWorld
    told: Told | None = None
    namespace: str = ""

    @property
    def full_name(self) -> str:
        return f"{self.queue} (--namespace {self.namespace})" if self.namespace else self.queue

    def letters(self, after: int = 0, limit: int = sys.maxsize) -> Iterator[Letter]:
        while limit > 0:
            most = min(PAGE, limit)
            found = drive(self.log.letters(self.world, after, most, self._deadline()))
            yield from found
            if len(found) < most:
                return
            after, limit = found[-1].record.version, limit - len(found)

    def letter(self, version: int) -> Letter | None:
        for letter in self.letters(version - 1, 1):
            if letter.record.version == version:
                return letter
        return None

    def dead(self) -> int:
        return drive(self.log.standing(self.world, self._deadline())).dead

    def revive(self, versions: Sequence[int], force: bool) -> list[int]:
        return drive(self.log.revive(self.world, versions, force, self._deadline()))

    def drop(self, versions: Sequence[int]) -> list[int]:
        return drive(self.log.drop(self.world, versions, self._deadline()))

    def _deadline(self) -> Any:
        return self.world.deadline(PATIENCE)


@contextmanager
def opened(where: Where) -> Iterator[list[Desk]]:
    """The queues that were asked for: all of the place where none is named."""
    if (where.log is None) == (where.app is None):
        raise ConfigurationError("give --log URL or --app module:cache, one of the two")
    with ExitStack() as stack:
        if where.app is not None:
            if where.namespace:
                raise ConfigurationError("--namespace goes with --log; an --app has its own")
            desks = _of_app(where.app, where.queue, stack)
        else:
            desks = _of_url(where, stack)
        yield desks


@contextmanager
def one(where: Where) -> Iterator[Desk]:
    """The queue that was named, or the only one."""
    with opened(where) as desks:
        if len(desks) != 1:
            known = ", ".join(desk.full_name for desk in desks) or "none"
            raise ConfigurationError(f"name one with --queue; there are: {known}")
        yield desks[0]


def _of_app(spec: str, queue: str | None, stack: ExitStack) -> list[Desk]:
    cache = load(spec)
    stack.enter_context(at_rest(cache))
    desks: dict[str, Desk] = {}
    for strategy in durable(cache, spec, [queue] if queue is not None else ()):
        if strategy.name not in desks:
            desks[strategy.name] = _desk_of(strategy, cache.parts)
    return list(desks.values())


def _desk_of(strategy: WriteBack, parts: Parts) -> Desk:
    world, log = parts.runtime.threads, log_of(strategy)
    payload = Payload(strategy.recipe.codec, _context(parts.namespace))

    def told(keys: Sequence[str]) -> bool:
        return log.tells or drive(parts.invalidator.tell(world, keys, (), replay=True))

    return Desk(strategy.name, log, payload, world, told)


def _of_url(where: Where, stack: ExitStack) -> list[Desk]:
    url = where.log or ""
    world = Runtime().threads
    _check(url)

    def log_named(namespace: str, queue: str) -> Log:
        log = open_log(url, queue, namespace=namespace, bounds=Bounds())
        stack.callback(lambda: drive(log.close(world)))
        return log

    # Any queue of the place can say which there are.
    given = where.namespace or ""
    asked = log_named(given, where.queue or "any")
    found = [(given, name) for name in drive(asked.queues(world, world.deadline(PATIENCE)))]
    if where.namespace is None and where.sees_all:
        found = _all_in_file(url)
    if where.queue is not None:
        known = [name for _, name in found]
        if where.queue not in known:
            raise ConfigurationError(unknown_queue(where.queue, known))
        found = [(space, name) for space, name in found if name == where.queue]
    return [
        Desk(
            name,
            log_named(space, name),
            Payload(resolve("json"), _context(space)),
            world,
            namespace="" if where.namespace else space,
        )
        for space, name in found
    ]


def _all_in_file(url: str) -> list[tuple[str, str]]:
    """Namespace and name of each queue of a file that is there."""
    uri = f"file:{quote(_path(url))}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE)) as db:
        full = [name.partition("/") for name in queues(db)]
    return sorted((unquote(space, errors="surrogatepass"), name) for space, _, name in full)


def _check(url: str) -> None:
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ConfigurationError("--log: give sqlite:///orders.log or redis://host:6379/0")
    if scheme == "sqlite":
        path = _path(url)
        if path and not os.path.exists(path):  # to look must not make it
            raise ConfigurationError(f"--log {safe_url(url)}: there is no such file")


def _path(url: str) -> str:
    return unquote(urlsplit(url).path)[1:]


def _context(namespace: str) -> bytes:
    return b"log\0" + namespace.encode("utf-8", "surrogatepass") + b"\0"
