"""Dead letters: looked at, revived and dropped, from outside the application."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..core.ops import OpKind
from ..errors import CodecError, ConfigurationError
from ..protocols import Letter
from ..strategies.journal import Payload
from .desks import PAGE, Desk, Where, one, opened
from .text import safe, say, short, table, utc

KEY, ERROR = 50, 80  # characters of a line
PEEK = 64  # bytes of what can not be decoded


def list_letters(where: Where, *, as_json: bool, limit: int) -> int:
    """One line a letter, oldest versions first, at most ``limit`` in all."""
    rows: list[tuple[Desk, Letter]] = []
    more = 0
    with opened(where) as desks:
        for desk in desks:
            here = list(desk.letters(limit=limit - len(rows)))
            rows += [(desk, _light(letter)) for letter in here]
            more += max(0, desk.dead() - len(here))
        names = [desk.full_name for desk in desks]
    if as_json:
        say(json.dumps([_facts(desk, letter) for desk, letter in rows], indent=2))
    elif rows:
        heads = ["queue", "version", "key", "kind", "attempts", "parked", "outdated", "error"]
        lines = [_line(desk, letter) for desk, letter in rows]
        if any(desk.namespace for desk, _ in rows):
            heads.insert(0, "namespace")
            spaces = [safe(desk.namespace) or "-" for desk, _ in rows]
            lines = [(space, *line) for space, line in zip(spaces, lines, strict=True)]
        for line in table(heads, lines):
            say(line)
    else:
        told = f"no dead letters in {', '.join(map(safe, names))}" if names else "no queues there"
        say(told)
    if more:
        say(f"cachekit: {more} more; give --limit, or --queue", to=sys.stderr)
    if names or where.sees_all:
        return 0
    say("cachekit: none without a namespace; give --namespace, as the cache has it", sys.stderr)
    return 1


def _light(letter: Letter) -> Letter:
    return letter._replace(record=letter.record._replace(data=b""))


def _line(desk: Desk, letter: Letter) -> tuple[str, ...]:
    record = letter.record
    return (
        safe(desk.queue),
        str(record.version),
        short(record.key, KEY),
        record.kind.value,
        str(letter.attempts),
        utc(letter.parked),
        "outdated" if letter.outdated else "-",
        short(letter.error, ERROR),
    )


def _facts(desk: Desk, letter: Letter) -> dict[str, Any]:
    record = letter.record
    return {
        **({"namespace": desk.namespace} if desk.namespace else {}),
        "queue": desk.queue,
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
        facts = _facts(desk, letter)
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
