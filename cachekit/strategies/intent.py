"""Keys and tags that nobody may fill while their source is being written (protocols, 1 and 4).

A process that dies inside leaves blocks that end by themselves: misses, never an old value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.near import Near
from ..core.place import Place
from ..errors import BackendError
from ..invalidation import Invalidator
from ..runtime import AnyWorld, Runtime
from ..tiers import Far

# Errors that say nothing about whether the write landed, known by name whatever the driver.
# PEP 249: "an unexpected disconnect occurs, ... a transaction could not be processed". Network
# errors of libraries that do not derive them from Python's own: botocore, requests, redis, urllib3,
# httpx, aiohttp, pymongo, elastic_transport; and of http.client and ssl.
_UNKNOWN_BY_NAME = frozenset({
    "OperationalError", "InterfaceError", "ConnectionError", "TimeoutError", "Timeout",
    "ConnectionTimeout", "TimeoutException", "NetworkError", "RemoteProtocolError",
    "HTTPClientError", "ClientConnectionError", "ClientPayloadError", "AutoReconnect",
    "ChunkedEncodingError", "IncompleteRead", "BadStatusLine", "SSLError",
})  # fmt: skip


def outcome_unknown(error: BaseException) -> bool:
    """Whether a source's error leaves open if the write took place (or will, later)."""
    if not isinstance(error, Exception):  # cancelled, interrupted: whoever called it is gone
        return True
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    status = http_status(error)
    if 400 <= status < 500:
        return False
    return status >= 500 or any(cls.__name__ in _UNKNOWN_BY_NAME for cls in type(error).__mro__)


def http_status(error: BaseException) -> int:
    """The HTTP status of 400 and above that an error tells, as botocore, requests, httpx, aiohttp,
    urllib and others do; or 0."""
    try:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            metadata = response.get("ResponseMetadata")
            told = [metadata.get("HTTPStatusCode")] if isinstance(metadata, Mapping) else []
        else:
            told = [getattr(response, "status_code", None), getattr(response, "status", None)]
        told += [getattr(error, name, None) for name in ("status_code", "status", "code")]
    except Exception:  # of a third party's property
        return 0
    return next((int(one) for one in told if isinstance(one, int) and 400 <= one < 600), 0)


class Intent:
    """One writer's blocks. ``lease``: seconds after which they end by themselves; at least the
    source's own deadline for the write, since they are all that guards one that lands late."""

    def __init__(
        self,
        runtime: Runtime,
        near: Near,
        far: Far | None,
        invalidator: Invalidator,
        places: Sequence[Place],
        tags: Sequence[str],
        lease: float,
    ) -> None:
        self.runtime = runtime
        self.near = near
        self.far = far
        self.invalidator = invalidator
        self.places = places
        self.tags = tags
        self.lease = lease
        self.writer = runtime.token()
        self.keys = [place.text for place in places if place.text is not None]
        self.told = False  # whether the far tier holds the blocks

    async def enter(self, world: AnyWorld) -> None:
        """Block. Raises BackendError if the far tier could not be told: then only this process
        holds the blocks, and the end must be told by replay."""
        self._block_here()
        far = self.far
        if far is None:
            self.told = True
            return
        deadline = far.deadline(world)
        if self.keys:
            await far.seize(world, self.keys, self.writer, self.lease, deadline)
        if self.tags:
            await far.seize_tags(world, self.tags, self.writer, self.lease, deadline)
        self.told = True

    async def leave(self, world: AnyWorld, keys: Sequence[str] | None = None) -> bool:
        """The source has been written, or has refused: empty the slots and end the blocks.
        ``keys``: those still to be ended in the far tier (None = all). False if the far tier
        could not be told: it is queued, and other processes may still see the old value."""
        told = await self._end_far(world, self.keys if keys is None else keys)
        self.end_here()
        return told

    async def _end_far(self, world: AnyWorld, keys: Sequence[str]) -> bool:
        far = self.far
        if far is None:
            return True
        if self.told:
            try:
                deadline = far.deadline(world)
                if keys:
                    await far.end(world, keys, self.writer, deadline)
                if self.tags:
                    await far.end_tags(world, self.tags, self.writer, deadline)
                return True
            except BackendError:
                pass  # the blocks end by themselves; but they may have done so too early
        self.invalidator.postpone(
            [*(("key", k) for k in self.keys), *(("tag", tag) for tag in self.tags)]
        )
        return False

    def owe(self) -> None:
        """The outcome is unknown, or its caller is gone: the blocks stay until their lease ends,
        and what is older goes from this process now, from the far tier in the background."""
        self.invalidator.owe(self.places, self.tags)

    def leave_behind(self, world: AnyWorld) -> None:
        """Leave in the background: for a caller that was cancelled before it wrote anything."""

        async def work() -> None:
            await self.leave(world)

        if not world.spawn(work, "end blocks"):
            self.owe()

    def end_here(self) -> None:
        """This process's part of the end. Loads that began in between may be old."""
        self.invalidator.detach_flights(self.places, self.tags)
        self.near.end(self.places, self.writer)
        if self.tags:
            self.near.end_tags(self.tags, self.writer)

    def _block_here(self) -> None:
        self.near.seize(self.places, self.writer, self.lease)
        if self.tags:
            self.near.seize_tags(self.tags, self.writer, self.lease)
        self.invalidator.detach_flights(self.places, self.tags)
