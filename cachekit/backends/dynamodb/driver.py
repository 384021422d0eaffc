"""The verbs of a store over one table; blocking, safe for threads and across fork."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ...core.deadline import Deadline
from ...errors import BackendError, BackendRefused
from ...protocols import Asking, Filling, Grant, Item, Nonces, Reading, World
from ..base import BlockingStore
from . import items
from .account import Account
from .crew import carry_out
from .items import KEY, Names, Row
from .sightings import Sightings
from .steps import Steps
from .table import Table

T = TypeVar("T")


class DynamoDBDriver:
    """``wall`` is Unix seconds, ``clock`` monotonic; stores of one process share their
    ``sightings``."""

    def __init__(
        self,
        account: Account,
        names: Names,
        sightings: Sightings | None = None,
        *,
        name: str = "dynamodb",
    ) -> None:
        self.name = name
        self.sightings = sightings or Sightings(time.time, time.monotonic)
        self._names = names
        self._table = Table(account)
        self._steps = Steps(self._table, self.sightings)

    def close(self) -> None:
        self._table.close()

    # -- plain records

    def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        names = [self._names.record(key) for key in keys]
        found = self._table.look(names, "get_many", deadline)
        present = self.sightings.present
        return [present(Row.of(found.get(name))).data for name in names]

    def set_many(self, items_: Sequence[Item], deadline: Deadline) -> None:
        now = self.sightings.now()
        requests = {}
        refused: str | None = None
        for item in items_:
            name = self._names.record(item.key)
            if items.fits(name, item.data):
                made = items.record(name, item.data, item.ttl, now)
                requests[name] = {"PutRequest": {"Item": made}}
            else:  # nothing older stays under it
                refused = item.key
                requests[name] = {"DeleteRequest": {"Key": {KEY: {"S": name}}}}
        self._table.write_all(list(requests.values()), "set_many", deadline)
        if refused is not None:
            raise self._too_large(refused, "set_many")

    def delete_many(self, keys: Sequence[str], deadline: Deadline) -> None:
        self._remove([self._names.record(key) for key in keys], "delete_many", deadline)

    # -- slots

    def read(self, keys: Sequence[str], tags: Sequence[str], deadline: Deadline) -> Reading:
        slots = [self._names.slot(key) for key in keys]
        spaces = [self._names.space(key) for key in keys]
        labels = [self._names.tag(tag) for tag in tags]
        found = self._table.look([*slots, *spaces, *labels], "read", deadline)
        present = self.sightings.present
        return Reading(
            [present(Row.of(found.get(name))).slot() for name in slots],
            [present(Row.of(found.get(name))).nonce for name in spaces],
            [present(Row.of(found.get(name))).nonce for name in labels],
        )

    def acquire(
        self,
        key: str,
        token: bytes,
        lease: float,
        deadline: Deadline,
        *,
        over: bytes = b"",
        keep: bool = False,
    ) -> Grant:
        name = self._names.slot(key)
        return self._at(
            key, lambda: self._steps.acquire(name, token, lease, deadline, over=over, keep=keep)
        )

    def renew(self, key: str, token: bytes, lease: float, deadline: Deadline) -> bool:
        name = self._names.slot(key)
        return self._at(key, lambda: self._steps.renew(name, token, lease, deadline))

    def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        name = self._names.slot(key)
        if not items.fits(name, data):
            self.void([key], deadline)  # a kept entry would stand on
            raise self._too_large(key, "fill")
        return self._at(key, lambda: self._steps.fill(name, token, data, ttl, deadline))

    def acquire_many(
        self, asked: Sequence[Asking], lease: float, deadline: Deadline
    ) -> list[Grant]:
        jobs = [
            functools.partial(self.acquire, each.key, each.token, lease, deadline, over=each.over)
            for each in asked
        ]
        return carry_out(jobs, deadline)

    def fill_many(self, fills: Sequence[Filling], deadline: Deadline) -> list[bool]:
        jobs = [
            functools.partial(self.fill, each.key, each.token, each.data, each.ttl, deadline)
            for each in fills
        ]
        return carry_out(jobs, deadline)

    def release(self, key: str, token: bytes, deadline: Deadline) -> None:
        name = self._names.slot(key)
        self._at(key, lambda: self._steps.release(name, token, deadline))

    def put(
        self, key: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        name = self._names.slot(key)
        if not items.fits(name, data):
            self.void([key], deadline)
            raise self._too_large(key, "put")
        return self._at(key, lambda: self._steps.put(name, stamp, data, ttl, deadline))

    def void(self, keys: Sequence[str], deadline: Deadline) -> None:
        self._each(keys, lambda key: self._steps.void(self._names.slot(key), deadline), deadline)

    def seize(self, keys: Sequence[str], writer: bytes, lease: float, deadline: Deadline) -> None:
        names = self._names
        self._each(
            keys, lambda key: self._steps.seize(names.slot(key), writer, lease, deadline), deadline
        )

    def commit(
        self, key: str, writer: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        name = self._names.slot(key)
        if not items.fits(name, data):
            self.end([key], writer, deadline)
            raise self._too_large(key, "commit")
        return self._at(key, lambda: self._steps.commit(name, writer, data, ttl, deadline))

    def end(self, keys: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        self._each(
            keys, lambda key: self._steps.end(self._names.slot(key), writer, deadline), deadline
        )

    # -- nonces

    def nonces(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> Nonces:
        spaces = [self._names.space(key) for key in keys]
        labels = [self._names.tag(tag) for tag in tags]
        found = self._table.look([*spaces, *labels], "nonces", deadline)
        lives = {**dict.fromkeys(spaces), **dict.fromkeys(labels, ttl)}
        jobs = [
            functools.partial(self._steps.nonce, name, found.get(name), fresh, life, deadline)
            for name, life in lives.items()
        ]
        known = dict(zip(lives, carry_out(jobs, deadline), strict=True))
        return Nonces([known[name] for name in spaces], [known[name] for name in labels])

    def drop_tags(self, tags: Sequence[str], deadline: Deadline) -> None:
        self._each(tags, lambda tag: self._steps.drop_tag(self._names.tag(tag), deadline), deadline)

    def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        def seize(tag: str) -> None:
            name = self._names.tag(tag)
            self._steps.seize(name, writer, lease, deadline, verb="seize_tags")

        self._each(tags, seize, deadline)

    def end_tags(self, tags: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        self._each(
            tags, lambda tag: self._steps.end_tag(self._names.tag(tag), writer, deadline), deadline
        )

    def drop_space(self, deadline: Deadline) -> None:
        self._remove(self._names.spaces, "drop_space", deadline)

    # -- several items

    def _remove(self, names: Sequence[str], verb: str, deadline: Deadline) -> None:
        keys = [{KEY: {"S": name}} for name in items.unique(names)]
        requests = [{"DeleteRequest": {"Key": key}} for key in keys]
        self._table.write_all(requests, verb, deadline)

    def _at(self, key: str, step: Callable[[], T]) -> T:
        try:
            return step()
        except BackendError as error:
            error.key = key
            raise

    def _each(self, names: Sequence[str], step: Callable[[str], None], deadline: Deadline) -> None:
        """Every name gets its step, also after another's failed; then the first failure is raised.

        An invalidation must reach what can be reached."""
        carry_out([functools.partial(step, name) for name in items.unique(names)], deadline)

    def _too_large(self, key: str, verb: str) -> BackendRefused:
        return BackendRefused(
            f"dynamodb: the value is too large: an item holds at most 400 KB ({verb})",
            backend=self.name,
            operation=verb,
            key=key,
        )


class DynamoDBStore(BlockingStore):
    """A store over the driver, with the steps on several keys sent at once."""

    def __init__(self, world: World, driver: DynamoDBDriver) -> None:
        super().__init__(world, driver)
        self._many = driver

    async def acquire_many(
        self, asked: Sequence[Asking], lease: float, deadline: Deadline
    ) -> list[Grant]:
        verb = self._many.acquire_many
        return await self._hop("acquire_many", deadline, verb, asked, lease, deadline)

    async def fill_many(self, fills: Sequence[Filling], deadline: Deadline) -> list[bool]:
        return await self._hop("fill_many", deadline, self._many.fill_many, fills, deadline)
