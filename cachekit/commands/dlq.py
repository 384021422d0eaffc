"""Dead letters: looked at, revived and dropped, from outside the application."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from ..codecs import resolve
from ..core.ops import OpKind
from ..errors import CodecError, ConfigurationError
from ..logs import open_log
from ..protocols import Bounds, Letter, Log
from ..runtime import Runtime, ThreadWorld, drive
from ..settings import safe_url
from ..strategies.journal import Payload
from ..strategies.parts import Parts
from ..strategies.write_back import WriteBack
from .app import at_rest, durable, load, log_of, unknown_queue
from .text import safe, say, short, table, utc

PATIENCE = 10.0  # seconds for one step of a log
PAGE = 100  # letters that are in memory at once
KEY, ERROR = 50, 80  # characters of a line
PEEK = 64  # bytes of what can not be decoded

Told = Callable[[Sequence[str]], bool]


@dataclass(frozen=True, slots=True)
class Where:
    """Where the queues are, as it was typed: ``log``, a URL, or ``app``, module:attribute."""

    log: str | None = None
    app: str | None = None
    namespace: str = ""
    queue: str | None = None


@dataclass(frozen=True, slots=True)
class Desk:
    """One queue. ``told`` tells the caches of an application that keys were written (None: there
    is no application); False: they could not be told now."""

    queue: str
    log: Log
    payload: Payload
    world: ThreadWorld
    told: Told | None = None

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


# -- finding the queues -------------------------------------------------------------------


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
            known = ", ".join(desk.queue for desk in desks) or "none"
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

    def log_named(queue: str) -> Log:
        log = open_log(url, queue, namespace=where.namespace, bounds=Bounds())
        stack.callback(lambda: drive(log.close(world)))
        return log

    # Any queue of the place can say which there are.
    asked = log_named(where.queue or "any")
    names = drive(asked.queues(world, world.deadline(PATIENCE)))
    if where.queue is not None:
        if where.queue not in names:
            raise ConfigurationError(unknown_queue(where.queue, names))
        names = [where.queue]
    payload = Payload(resolve("json"), _context(where.namespace))
    return [Desk(name, log_named(name), payload, world) for name in names]


def _check(url: str) -> None:
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ConfigurationError("--log: give sqlite:///orders.log or redis://host:6379/0")
    if scheme == "sqlite":
        path = unquote(urlsplit(url).path)[1:]
        if path and not os.path.exists(path):  # to look must not make it
            raise ConfigurationError(f"--log {safe_url(url)}: there is no such file")


def _context(namespace: str) -> bytes:
    return b"log\0" + namespace.encode("utf-8", "surrogatepass") + b"\0"


# -- the commands -------------------------------------------------------------------------


def list_letters(where: Where, *, as_json: bool, limit: int) -> int:
    """One line a letter, oldest versions first, at most ``limit`` in all."""
    rows: list[tuple[str, Letter]] = []
    more = 0
    with opened(where) as desks:
        for desk in desks:
            here = list(desk.letters(limit=limit - len(rows)))
            rows += [(desk.queue, _light(letter)) for letter in here]
            more += max(0, desk.dead() - len(here))
        names = [desk.queue for desk in desks]
    if as_json:
        say(json.dumps([_facts(queue, letter) for queue, letter in rows], indent=2))
    elif rows:
        heads = ("queue", "version", "key", "kind", "attempts", "parked", "outdated", "error")
        for line in table(heads, [_line(queue, letter) for queue, letter in rows]):
            say(line)
    else:
        told = f"no dead letters in {', '.join(map(safe, names))}" if names else "no queues there"
        say(told)
    if more:
        say(f"cachekit: {more} more; give --limit, or --queue", to=sys.stderr)
    return 0


def _light(letter: Letter) -> Letter:
    return letter._replace(record=letter.record._replace(data=b""))


def _line(queue: str, letter: Letter) -> tuple[str, ...]:
    record = letter.record
    return (
        safe(queue),
        str(record.version),
        short(record.key, KEY),
        record.kind.value,
        str(letter.attempts),
        utc(letter.parked),
        "outdated" if letter.outdated else "-",
        short(letter.error, ERROR),
    )


def _facts(queue: str, letter: Letter) -> dict[str, Any]:
    record = letter.record
    return {
        "queue": queue,
        "version": record.version,
        "key": record.key,
        "kind": record.kind.value,
        "attempts": letter.attempts,
        "accepted": utc(record.at),
        "parked": utc(letter.parked),
        "outdated": letter.outdated,
        "error": letter.error,
    }


def show(where: Where, version: int, *, values: bool, as_json: bool) -> int:
    """All there is to one letter; its value only where it was asked for."""
    with one(where) as desk:
        letter = desk.letter(version)
        if letter is None:
            raise ConfigurationError(f"{desk.queue} has no dead letter of version {version}")
        facts = _facts(desk.queue, letter)
        record = letter.record
        facts["key_bytes"] = len(record.key.encode("utf-8", "surrogatepass"))
        facts["data_bytes"] = len(record.data)
        facts |= _content(desk.payload, letter, values)
    if as_json:
        say(json.dumps(facts, indent=2, default=repr))
        return 0
    for name, fact in facts.items():
        shown = fact if isinstance(fact, str) else repr(fact)
        say(f"{name.replace('_', ' ') + ':':<12} {safe(shown)}")
    return 0


def _content(payload: Payload, letter: Letter, values: bool) -> dict[str, Any]:
    """Id and value as far as they can be read and may be shown."""
    record = letter.record
    try:
        # A delete has no value: so the id alone is decoded.
        id, _ = payload.decode(record._replace(kind=OpKind.DELETE))
        facts: dict[str, Any] = {"id": id if isinstance(id, str | int) else repr(id)}
        if record.kind is OpKind.DELETE:
            return facts
        if not values:
            return {**facts, "value": "not shown; add --values"}
        _, value = payload.decode(record)
        return {**facts, "value": _plain(value)}
    except CodecError as error:
        facts = {"unreadable": str(error)}
        if values:
            facts["begins"] = record.data[:PEEK].hex(" ")
        return facts


def _plain(value: Any) -> Any:
    """The value as JSON would have it, or its repr."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return value


def replay(where: Where, versions: Sequence[int], *, every: bool, force: bool) -> int:
    """Give letters to the worker again, as new operations. 1 if any was refused."""
    with one(where) as desk:
        chosen, keys = _chosen(desk, versions, every)
        revived = 0
        for batch in _batches(chosen):
            done = set(desk.revive(batch, force))
            revived += len(done)
            names = [keys[version] for version in batch if version in done and version in keys]
            late = desk.told is not None and not desk.told(names)
            for version in batch:
                if version in done:
                    say(f"{safe(desk.queue)}: version {version} is waiting for the worker again")
                else:
                    say(f"{safe(desk.queue)}: version {version} was refused: {_why(desk, version)}")
            if late:
                say("cachekit: the caches could not be told; the worker tells them", sys.stderr)
        if revived and desk.told is None and not desk.log.tells:
            say("cachekit: caches may show the old rows until these are written; use --app where "
                "that matters", sys.stderr)  # fmt: skip
    _none(chosen, desk)
    return 0 if revived == len(chosen) else 1


def _why(desk: Desk, version: int) -> str:
    letter = desk.letter(version)
    if letter is None:
        return "there is no such dead letter"
    if letter.outdated:
        return "a newer operation of its key was written or parked since; --force undoes that one"
    return "its key has a newer operation in the log; --force writes this one after it"


def drop(where: Where, versions: Sequence[int], *, every: bool, yes: bool) -> int:
    """Forget letters for good, after asking. 1 if any was not there, or the answer was no."""
    with one(where) as desk:
        chosen, _ = _chosen(desk, versions, every)
        if chosen and not yes and not _agreed(desk, len(chosen)):
            say("nothing was dropped")
            return 1
        dropped = 0
        for batch in _batches(chosen):
            done = set(desk.drop(batch))
            dropped += len(done)
            for version in batch:
                said = "dropped" if version in done else "was not there"
                say(f"{safe(desk.queue)}: version {version} {said}")
    _none(chosen, desk)
    return 0 if dropped == len(chosen) else 1


def _agreed(desk: Desk, count: int) -> bool:
    if not sys.stdin.isatty():
        raise ConfigurationError(
            "this forgets writes for good: where nobody can be asked, add --yes"
        )
    letters = "1 dead letter" if count == 1 else f"{count} dead letters"
    say(f"{safe(desk.queue)}: forget {letters} for good? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _chosen(desk: Desk, versions: Sequence[int], every: bool) -> tuple[list[int], dict[int, str]]:
    """Versions in their order, and the keys of those that are there."""
    if bool(versions) == every:
        raise ConfigurationError("give --version (once or more often) or --all, one of the two")
    if every:
        keys = {letter.record.version: letter.record.key for letter in desk.letters()}
        return sorted(keys), keys
    found = [letter for v in sorted(set(versions)) if (letter := desk.letter(v)) is not None]
    return sorted(set(versions)), {one.record.version: one.record.key for one in found}


def _batches(versions: Sequence[int]) -> Iterator[Sequence[int]]:
    for at in range(0, len(versions), PAGE):
        yield versions[at : at + PAGE]


def _none(chosen: Sequence[int], desk: Desk) -> None:
    if not chosen:
        say(f"no dead letters in {safe(desk.queue)}")
