"""Everything that a cache lets out, so that it can be searched for what must stay inside."""

from __future__ import annotations

import base64
import dataclasses
import logging
import threading
from typing import Any
from urllib.parse import quote

import pytest

import cachekit


def forms(secret: str | bytes) -> list[str]:
    """A secret as it may be shown."""
    raw = secret.encode() if isinstance(secret, str) else secret
    shown = [repr(raw)[2:-1], raw.hex(), base64.b64encode(raw).decode()]
    if isinstance(secret, str):
        shown += [secret, quote(secret), quote(secret, safe=""), repr(secret)[1:-1], "hunter2"]
    return shown


def told_by(error: BaseException | None) -> list[str]:
    """All that an exception and those behind it say."""
    found: list[str] = []
    seen: set[int] = set()
    todo = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        found += [str(one), repr(one), repr(one.args), repr(getattr(one, "__notes__", ""))]
        found.append(repr({k: v for k, v in vars(one).items() if not k.startswith("__")}))
        todo += [one.__cause__, one.__context__]
    return found


class Watch:
    """Everything that a cache lets out: log records, observers' fields, statistics, reprs."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        self._caplog = caplog
        self.texts: list[str] = []
        self.events: list[str] = []

    def observe(self, event: str, fields: Any) -> None:
        self.events.append(event)
        self.texts.append(f"{event} {fields!r}")

    def take(self, *objects: object) -> None:
        for one in objects:
            self.texts += told_by(one) if isinstance(one, BaseException) else [str(one), repr(one)]

    def take_cache(self, cache: cachekit.Cache) -> None:
        parts = cache.parts
        self.take(cache, cache.aio, cache.settings, cache.stats(), parts.codec)
        self.take(repr(dataclasses.asdict(cache.stats())))
        if parts.far is not None:
            backend: Any = parts.far.backend
            self.take(backend, vars(backend), backend.bus, getattr(backend, "stream", None))
            self.take(vars(parts.far), getattr(backend, "_options", None))
        self.take([thread.name for thread in threading.enumerate()])

    def records(self, level: int = logging.DEBUG) -> list[str]:
        found = []
        for record in self._caplog.records:
            if record.levelno >= level:
                found += [record.getMessage(), repr(record.args), str(record.exc_text)]
                found += told_by(record.exc_info[1]) if record.exc_info else []
        return found

    def leaks(self, hidden: list[str]) -> list[tuple[str, str]]:
        everything = [*self.texts, *self.records()]
        return [(h, text[:300]) for text in everything for h in hidden if h in text]
