"""Domain events: what happened, mapped to the tags it makes outdated, here and in other processes.

Whoever emits runs his own maps and invalidates before ``emit`` returns. Where the backend has a
stream, the event also travels: processes that mapped it (perhaps to other tags) run their maps
too, at least once. Whoever may have missed events clears his whole namespace: which tags they
stood for can not be known any more.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .codecs import ExactJson
from .errors import BackendError, CacheKitError, CodecError, InvalidationFailed
from .invalidation import Invalidator
from .observe import Meter
from .protocols import MOST_EVENT
from .runtime import AnyWorld, Runtime, drive

TagsOf = Callable[[Any], Iterable[str]]
CONTEXT = b"cachekit event"


class Events:
    """One cache's events. Without a stream they stay in this process."""

    def __init__(self, runtime: Runtime, invalidator: Invalidator, meter: Meter) -> None:
        self.runtime = runtime
        self.invalidator = invalidator
        self.meter = meter
        self.stream = invalidator.stream
        self._maps: dict[type, list[TagsOf]] = {}
        self._names: dict[str, type] = {}
        self._sender = os.urandom(8).hex()
        self._stop: Callable[[], None] | None = None
        self._closed = False

    def on(self, event: type, tags_of: TagsOf) -> None:
        """Map a class of events, subclasses included. With a stream this starts a thread, which
        listens for the events of other processes."""
        if not isinstance(event, type):
            raise TypeError(f"on() takes an event class, got {type(event).__name__}")
        self._maps.setdefault(event, []).append(tags_of)
        self._names[_name(event)] = event
        self._follow()

    def tags_of(self, event: Any) -> list[str]:
        """The tags of an event: by its class and the classes it derives from."""
        tags: list[str] = []
        for cls in type(event).__mro__:
            for tags_of in self._maps.get(cls, ()):
                tags.extend(tags_of(event))
        return list(dict.fromkeys(tags))

    async def share(self, world: AnyWorld, event: Any, done: Sequence[str]) -> None:
        """Tell other processes, which need not invalidate the tags that are ``done``.

        Raises InvalidationFailed where the event has no exact form as bytes, or the stream can
        not be reached (unless such failures are queued for replay)."""
        if self.stream is None:
            return
        cls = type(event)
        try:
            body = ExactJson([cls]).encode(event, CONTEXT)
        except (CacheKitError, TypeError) as error:
            raise InvalidationFailed(
                f"other processes can not be told of a {cls.__qualname__}: {error}",
                operation="emit",
            ) from error
        if cls.__module__ == "__main__":
            self.meter.warn_once(
                f"event {cls.__qualname__}",
                "events of %s reach no other process: its module is __main__ here",
                cls.__qualname__,
            )
        head = {"names": [_name(c) for c in cls.__mro__], "done": list(done), "by": self._sender}
        payload = json.dumps(head).encode() + b"\n" + body
        if len(payload) > MOST_EVENT:
            payload = json.dumps({**head, "done": []}).encode() + b"\n" + body
        if len(payload) > MOST_EVENT:
            raise InvalidationFailed(
                f"other processes can not be told of a {cls.__qualname__}: it takes {len(body)} "
                "bytes; emit what names the change, not the change itself",
                operation="emit",
            )
        await self.invalidator.append(world, payload)

    # -- what other processes tell --------------------------------------------------------

    def receive(self, payload: bytes) -> None:
        """One event of another process. Contained: a map that raises is counted."""
        try:
            first, _, body = payload.partition(b"\n")
            head = json.loads(first)
            names, done, sender = list(head["names"]), set(head["done"]), head["by"]
        except (ValueError, KeyError, TypeError):
            self.meter.event("events_unreadable")
            return
        if sender == self._sender or not any(name in self._names for name in names):
            return
        cls = self._names.get(names[0])
        try:
            if cls is None:
                raise CodecError(f"{names[0]} is not known in this process")
            tags = self.tags_of(ExactJson([cls]).decode(body, CONTEXT))
        except Exception as error:
            self.meter.event("events_unreadable", event=str(names[0]), error=type(error).__name__)
            self.gap()
            return
        left = [tag for tag in tags if tag not in done]
        self.meter.count("events_received")
        if left:
            self._invalidate(left)

    def gap(self) -> None:
        """Events were missed: everything may be outdated."""
        self.meter.event("events_missed")
        self.invalidator.forget_near()
        self.invalidator.postpone_clear()

    def _invalidate(self, tags: Sequence[str]) -> None:
        try:
            drive(self.invalidator.invalidate(self.runtime.threads, (), tags, replay=True))
        except BackendError:
            self.gap()

    # -- life -----------------------------------------------------------------------------

    def _follow(self) -> None:
        if self.stream is None or self._stop is not None or self._closed:
            return
        ear, gap = weakref.WeakMethod(self.receive), weakref.WeakMethod(self.gap)
        with self.runtime.once:
            if self._stop is not None or self._closed:
                return
            self._stop = lambda: None
        stop = self._stop = self.stream.follow(
            lambda payload: _call(ear, payload), lambda: _call(gap)
        )
        weakref.finalize(self, stop)
        if self._closed:
            stop()

    def close(self) -> None:
        self._closed = True
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()

    def reset_after_fork(self) -> None:
        """The child listens with a thread and a name of its own."""
        followed, self._stop = self._stop is not None, None
        self._sender = os.urandom(8).hex()
        if followed:
            self._follow()


def _call(method: weakref.WeakMethod[Any], *args: Any) -> None:
    found = method()
    if found is not None:
        found(*args)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
