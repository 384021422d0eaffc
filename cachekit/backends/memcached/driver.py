"""The verbs of a store over one or more memcached nodes; blocking, safe for threads."""

from __future__ import annotations

import functools
import os
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from ...core.deadline import Deadline
from ...core.notes import SENDER_BYTES
from ...errors import BackendError, BackendRefused
from ...protocols import Grant, Item, Nonces, Reading
from ..pool import Pool
from . import steps
from .epochs import Epoch
from .names import WISH_TAGS, Names, Ring, Wish
from .values import entry_value, expiry
from .wire import Address, Connection, Found, translated

P = ParamSpec("P")
T = TypeVar("T")


class MemcachedDriver:
    """Every step on one key runs on one connection to the key's node.

    Loops end at the deadline: each trip asks for what is left of it."""

    def __init__(
        self,
        nodes: dict[str, Address],
        names: Names,
        epochs: dict[str, Epoch] | None = None,
        *,
        name: str = "memcached",
        connections: int = 32,
        tls: ssl.SSLContext | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.sender = os.urandom(SENDER_BYTES)
        self._names = names
        epochs = epochs or {node: Epoch(names.epoch) for node in nodes}
        self._epochs = {node: epoch.of(self.sender) for node, epoch in epochs.items()}
        self._ring = Ring(nodes)
        self._wall = wall
        self._pools = {
            node: Pool(
                functools.partial(Connection, address, tls),
                Connection.close,
                limit=connections,
                ready=Connection.ready,
            )
            for node, address in nodes.items()
        }

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    # -- plain records

    def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        names = [self._names.record(key) for key in keys]
        found: Found = {}
        for part in self._look("get_many", self._ring.split(names), deadline).values():
            found.update(part)
        return [found[name][0] if name in found else None for name in names]

    def set_many(self, items: Sequence[Item], deadline: Deadline) -> None:
        wall = self._wall()
        records = {self._names.record(i.key): (i.data, expiry(i.ttl, wall)) for i in items}

        def store(node: str, names: list[bytes]) -> None:
            try:
                self._on(node, "set_many", deadline, steps.store, records, names)
            except BackendRefused:
                # One refusal hides the answers to the items after it: they go one by one, and
                # under a name that was refused nothing older stays.
                refused: BackendRefused | None = None
                for name in names:
                    try:
                        self._on(node, "set_many", deadline, Connection.set, name, *records[name])
                    except BackendRefused as error:
                        refused = error
                        self._on(node, "set_many", deadline, Connection.delete, [name])
                if refused is not None:
                    raise refused from None

        self._each(self._ring.split(records), store)

    def delete_many(self, keys: Sequence[str], deadline: Deadline) -> None:
        self._delete("delete_many", [self._names.record(key) for key in keys], deadline)

    # -- slots

    def read(self, keys: Sequence[str], tags: Sequence[str], deadline: Deadline) -> Reading:
        names, ring = self._names, self._ring
        if len(keys) == 1 and (not tags or (len(ring.nodes) == 1 and len(tags) <= WISH_TAGS)):
            return self._read_one(names.wish(keys[0], tags), deadline)
        slots = [names.slot(key) for key in keys]
        sides = [names.refresh(key) for key in keys]
        homes = [ring.node(slot) for slot in slots]
        labels = [names.tag(tag) for tag in tags]
        places = [ring.node(label) for label in labels]
        wanted: dict[str, list[bytes]] = {}
        for home, slot, side in zip(homes, slots, sides, strict=True):
            wanted.setdefault(home, [names.space]).extend((slot, side))
        for place, label in zip(places, labels, strict=True):
            wanted.setdefault(place, []).append(label)
        seen = self._look("read", wanted, deadline)
        return Reading(
            [steps.slot_of(seen[h], s, r) for h, s, r in zip(homes, slots, sides, strict=True)],
            [steps.nonce_of(seen[home], names.space) for home in homes],
            [steps.nonce_of(seen[p], label) for p, label in zip(places, labels, strict=True)],
        )

    def _read_one(self, wish: Wish, deadline: Deadline) -> Reading:
        node = self._ring.node(wish.slot)
        try:
            found = self._pools[node].use(deadline, Connection.ask, wish.request, wish.names)
        except Exception as error:
            raise translated(error, self.name, node, "read") from error
        nonce = steps.nonce_of
        return Reading(
            [steps.slot_of(found, wish.slot, wish.side)],
            [nonce(found, self._names.space)],
            [nonce(found, tag) for tag in wish.tags] if wish.tags else [],
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
        until = expiry(lease, self._wall())
        return self._at(key, "acquire", deadline, steps.acquire, token, until, over=over, keep=keep)

    def renew(self, key: str, token: bytes, lease: float, deadline: Deadline) -> bool:
        return self._at(key, "renew", deadline, steps.renew, token, expiry(lease, self._wall()))

    def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        until = expiry(ttl, self._wall())
        try:
            return self._at(key, "fill", deadline, steps.fill, token, data, until)
        except BackendRefused:
            self.void([key], deadline)  # a refused cas leaves the older entry standing
            raise

    def release(self, key: str, token: bytes, deadline: Deadline) -> None:
        self._at(key, "release", deadline, steps.release, token)

    def put(
        self, key: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        entry, until = entry_value(stamp, data), expiry(ttl, self._wall())
        try:
            return self._change_one(key, "put", deadline, steps.put, entry, until)
        except BackendRefused:
            self.void([key], deadline)
            raise

    def void(self, keys: Sequence[str], deadline: Deadline) -> None:
        self._change("void", self._slots(keys), deadline, steps.void)

    def seize(self, keys: Sequence[str], writer: bytes, lease: float, deadline: Deadline) -> None:
        until = expiry(lease, self._wall())
        self._change("seize", self._slots(keys), deadline, steps.seize, writer, until)

    def commit(
        self, key: str, writer: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        entry, until = entry_value(writer, data), expiry(ttl, self._wall())
        try:
            return self._change_one(key, "commit", deadline, steps.commit, writer, entry, until)
        except BackendRefused:
            self.end([key], writer, deadline)
            raise

    def end(self, keys: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        self._change("end", self._slots(keys), deadline, steps.end, writer)

    # -- nonces

    def nonces(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> Nonces:
        names, ring = self._names, self._ring
        homes = [ring.node(names.slot(key)) for key in keys]
        labels = [names.tag(tag) for tag in tags]
        places = [ring.node(label) for label in labels]
        until = expiry(ttl, self._wall())
        wanted: dict[str, dict[bytes, int]] = {home: {names.space: 0} for home in homes}
        for place, label in zip(places, labels, strict=True):
            wanted.setdefault(place, {})[label] = until
        known = {
            node: self._on(node, "nonces", deadline, steps.nonces, untils, fresh)
            for node, untils in wanted.items()
        }
        return Nonces(
            [known[home][names.space] for home in homes],
            [known[place][label] for place, label in zip(places, labels, strict=True)],
        )

    def drop_tags(self, tags: Sequence[str], deadline: Deadline) -> None:
        self._change("drop_tags", self._tags(tags), deadline, steps.drop_tags)

    def seize_tags(
        self, tags: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        until = expiry(lease, self._wall())
        self._change("seize_tags", self._tags(tags), deadline, steps.seize, writer, until)

    def end_tags(self, tags: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        self._change("end_tags", self._tags(tags), deadline, steps.end_tags, writer)

    def drop_space(self, deadline: Deadline) -> None:
        def drop(node: str, names: list[bytes]) -> None:
            epoch = self._epochs[node]
            for name in names:
                self._on(node, "drop_space", deadline, steps.drop, name, epoch)

        self._each({node: [self._names.space] for node in self._ring.nodes}, drop)

    # -- nodes

    def _at(
        self,
        key: str,
        operation: str,
        deadline: Deadline,
        step: Callable[Concatenate[Connection, tuple[bytes, bytes], P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """A step on one key: it gets the names of the slot and of its side key."""
        names = self._names.slot(key), self._names.refresh(key)
        node = self._ring.node(names[0])
        try:
            return self._on(node, operation, deadline, step, names, *args, **kwargs)
        except BackendError as error:
            error.key = key
            raise

    def _change_one(
        self,
        key: str,
        operation: str,
        deadline: Deadline,
        step: Callable[Concatenate[Connection, tuple[bytes, bytes], Epoch, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """``_at`` for a step that invalidates."""

        def change(connection: Connection, names: tuple[bytes, bytes]) -> T:
            epoch = self._epochs[self._ring.node(names[0])]
            return step(connection, names, epoch, *args, **kwargs)

        return self._at(key, operation, deadline, change)

    def _change(
        self,
        operation: str,
        names: Iterable[bytes],
        deadline: Deadline,
        step: Callable[Concatenate[Connection, list[bytes], Epoch, P], None],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """A step that invalidates, on every node for those of the names that it holds."""

        def change(node: str, part: list[bytes]) -> None:
            self._on(node, operation, deadline, step, part, self._epochs[node], *args, **kwargs)

        self._each(self._ring.split(names), change)

    def _slots(self, keys: Sequence[str]) -> list[bytes]:
        return [self._names.slot(key) for key in keys]

    def _tags(self, tags: Sequence[str]) -> list[bytes]:
        return [self._names.tag(tag) for tag in tags]

    def _delete(self, operation: str, names: Iterable[bytes], deadline: Deadline) -> None:
        def delete(node: str, part: list[bytes]) -> None:
            self._on(node, operation, deadline, Connection.delete, part)

        self._each(self._ring.split(names), delete)

    def _look(
        self, operation: str, wanted: dict[str, list[bytes]], deadline: Deadline
    ) -> dict[str, Found]:
        return {
            node: self._on(node, operation, deadline, Connection.get, names)
            for node, names in wanted.items()
        }

    def _each(
        self, parts: dict[str, list[bytes]], step: Callable[[str, list[bytes]], None]
    ) -> None:
        """Every node gets its part, also after another failed; then the first failure is raised.

        An invalidation must reach the nodes that can be reached."""
        failure: BackendError | None = None
        for node, names in parts.items():
            try:
                step(node, names)
            except BackendError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _on(
        self,
        node: str,
        operation: str,
        deadline: Deadline,
        step: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        try:
            return self._pools[node].use(deadline, step, *args, **kwargs)
        except Exception as error:
            raise translated(error, self.name, node, operation) from error
