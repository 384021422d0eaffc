"""The one Redis dialect: what each verb says to the server, the same in both worlds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from ...core.deadline import Deadline
from ...errors import CacheKitError
from ...protocols import Asking, Filling, Grant, Item, Nonces, Reading, Slot, Slots, SlotState
from . import scripts
from .layout import (
    ENTRY,
    MAX_PARTITIONS,
    Layout,
    expiry,
    lease_end,
    milliseconds,
    parse_nonce,
    parse_slot,
    partitions_key,
)
from .routes import Call, Route, checked, values_of
from .verb import Verb, translate
from .wire import ErrorReply, ProtocolViolation, Reply, remaining

_IS_ENTRY, _IS_REFRESHING = SlotState.ENTRY, SlotState.REFRESHING
_FIRST = [0]


class RedisStore:
    """A :class:`~cachekit.protocols.Store` with slots, over any route.

    Thread and task safe as far as its route is. One round trip per verb, except: the first verb
    also learns the number of partitions, ``nonces`` takes a second one to create what is
    missing, and ``read`` one to see whether a refresh lease it met is still running."""

    def __init__(self, route: Route, namespace: str, partitions: int) -> None:
        self._route = route
        self._namespace = namespace
        self._wanted = partitions
        self._layout: Layout | None = None
        self.slots: Slots = self

    # -- plain records -------------------------------------------------------------------

    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        if not keys:
            return []
        with Verb("get_many", deadline, keys) as verb:
            layout = self._layout or await self._learn(verb.until)
            found = await self._route.fetch([layout.record(key) for key in keys], verb.until)
            return [value if isinstance(value, bytes) else None for value in found]

    async def set_many(self, items: Sequence[Item], deadline: Deadline) -> None:
        if not items:
            return
        with Verb("set_many", deadline, [item.key for item in items]) as verb:
            layout = self._layout or await self._learn(verb.until)
            calls: list[Call] = []
            for key, data, ttl in items:
                name = layout.record(key)
                px = () if ttl is None else (b"PX", milliseconds(ttl))
                calls.append((name, (b"SET", name, data, *px)))
            await self._send(calls, verb.until)

    async def delete_many(self, keys: Sequence[str], deadline: Deadline) -> None:
        if not keys:
            return
        with Verb("delete_many", deadline, keys) as verb:
            layout = self._layout or await self._learn(verb.until)
            await self._route.delete([layout.record(key) for key in keys], verb.until)

    async def close(self) -> None:
        await self._route.close()

    # -- slots: reading ------------------------------------------------------------------

    async def read(self, keys: Sequence[str], tags: Sequence[str], deadline: Deadline) -> Reading:
        # The one hot verb: flat, and without the context manager of the others.
        until = monotonic() + deadline.left()
        try:
            layout = self._layout or await self._learn(until)
            if len(keys) == 1:
                names = layout.place(keys[0])
                partitions = spaces = _FIRST
            elif keys or tags:
                names, partitions = layout.locate(keys)
                spaces = list(dict.fromkeys(partitions))
                names += [layout.spaces[p] for p in spaces]
            else:
                return Reading([], [], [])
            if tags:
                names += [layout.tag(tag) for tag in tags]
            found = await self._route.fetch(names, until)
            count = len(keys)
            slots = [parse_slot(value) for value in found[:count]]
            nonces = [parse_nonce(value) for value in found[count:]]
            if any([slot[0] is _IS_REFRESHING for slot in slots]):
                await self._look_again(names, found, slots, until)
            if partitions is spaces:
                return Reading(slots, nonces[:1], nonces[1:])
            present = dict(zip(spaces, nonces, strict=False))
            return Reading(slots, [present[p] for p in partitions], nonces[len(spaces) :])
        except CacheKitError:
            raise
        except Exception as error:
            raise translate(error, "read", keys) from error

    async def _look_again(
        self,
        names: Sequence[bytes],
        found: Sequence[Reply],
        slots: list[Slot],
        until: float,
    ) -> None:
        """A refresh token whose lease is over (its holder died) is no token."""
        leased = [i for i, slot in enumerate(slots) if slot.state is _IS_REFRESHING]
        calls = [(names[i], (b"PTTL", names[i])) for i in leased]
        for i, left in zip(leased, await self._send(calls, until), strict=True):
            if isinstance(left, int) and left <= lease_end(found[i]):
                slots[i] = slots[i]._replace(state=_IS_ENTRY)

    async def acquire(
        self,
        key: str,
        token: bytes,
        lease: float,
        deadline: Deadline,
        *,
        over: bytes = b"",
        keep: bool = False,
    ) -> Grant:
        with Verb("acquire", deadline, (key,)) as verb:
            args = (token, b"%d" % milliseconds(lease), over, b"1" if keep else b"0")
            [reply] = await self._run(scripts.ACQUIRE, (key,), args, verb.until)
            if isinstance(reply, bytes):
                return Grant(False, parse_slot(reply))
            return Grant(reply == 1, parse_slot(None))

    async def renew(self, key: str, token: bytes, lease: float, deadline: Deadline) -> bool:
        args = (token, b"%d" % milliseconds(lease))
        return await self._one("renew", scripts.RENEW, key, args, deadline)

    async def fill(
        self, key: str, token: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        args = (token, expiry(ttl), ENTRY + token + data)
        return await self._one("fill", scripts.FILL, key, args, deadline)

    async def acquire_many(
        self, asked: Sequence[Asking], lease: float, deadline: Deadline
    ) -> list[Grant]:
        with Verb("acquire_many", deadline, [ask.key for ask in asked]) as verb:
            px = b"%d" % milliseconds(lease)
            args = [(ask.token, px, ask.over, b"0") for ask in asked]
            replies = await self._each(scripts.ACQUIRE, [a.key for a in asked], args, verb.until)
            return [
                Grant(False, parse_slot(reply))
                if isinstance(reply, bytes)
                else Grant(reply == 1, parse_slot(None))
                for reply in replies
            ]

    async def fill_many(self, fills: Sequence[Filling], deadline: Deadline) -> list[bool]:
        with Verb("fill_many", deadline, [fill.key for fill in fills]) as verb:
            args = [(f.token, expiry(f.ttl), ENTRY + f.token + f.data) for f in fills]
            replies = await self._each(scripts.FILL, [f.key for f in fills], args, verb.until)
            return [reply == 1 for reply in replies]

    async def release(self, key: str, token: bytes, deadline: Deadline) -> None:
        await self._one("release", scripts.RELEASE, key, (token,), deadline)

    async def put(
        self, key: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        args = (expiry(ttl), ENTRY + stamp + data)
        return await self._one("put", scripts.PUT, key, args, deadline)

    # -- slots: voiding and writing ------------------------------------------------------

    async def void(self, keys: Sequence[str], deadline: Deadline) -> None:
        with Verb("void", deadline, keys) as verb:
            await self._run(scripts.VOID, keys, (), verb.until)

    async def seize(
        self, keys: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        with Verb("seize", deadline, keys) as verb:
            await self._run(scripts.SEIZE, keys, (writer, b"%d" % milliseconds(lease)), verb.until)

    async def commit(
        self, key: str, writer: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        args = (writer, expiry(ttl), ENTRY + writer + data)
        return await self._one("commit", scripts.COMMIT, key, args, deadline)

    async def end(self, keys: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        with Verb("end", deadline, keys) as verb:
            await self._run(scripts.END, keys, (writer,), verb.until)

    # -- nonces --------------------------------------------------------------------------

    async def nonces(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        fresh: Callable[[], bytes],
        ttl: float | None,
        deadline: Deadline,
    ) -> Nonces:
        if not keys and not tags:
            return Nonces([], [])
        with Verb("nonces", deadline, keys) as verb:
            layout = self._layout or await self._learn(verb.until)
            partitions = [layout.partition(key) for key in keys]
            spaces = list(dict.fromkeys(partitions))
            names = [layout.spaces[p] for p in spaces] + [layout.tag(tag) for tag in tags]
            found = await self._present(names, len(spaces), ttl, verb.until)
            missing = list(dict.fromkeys(n for n in names if found[n] is None))
            if any(name in missing for name in names[: len(spaces)]):
                await self._check_partitions(layout, verb.until)
            if missing:
                fixed = set(names[: len(spaces)])
                args = [(fresh(), b"0" if name in fixed else expiry(ttl)) for name in missing]
                replies = await self._eval(scripts.NONCE, missing, args, verb.until)
                found.update(zip(missing, map(parse_nonce, replies), strict=True))
            return Nonces(
                [found[layout.spaces[p]] for p in partitions],
                [found[name] for name in names[len(spaces) :]],
            )

    async def _present(
        self, names: Sequence[bytes], fixed: int, ttl: float | None, until: float
    ) -> dict[bytes, bytes | None]:
        """The nonces that stand. Those of tags (from ``fixed`` on) that have less than half of
        ``ttl`` left are prolonged, by EXPIRE only: SET could bring back what was just dropped."""
        calls: list[Call] = [(name, (b"MGET", name)) for name in names[:fixed]]
        for name in names[fixed:]:
            calls += [(name, (b"MGET", name)), (name, (b"PTTL", name))]
        replies = iter(await self._send(calls, until))
        found: dict[bytes, bytes | None] = {}
        prolong: list[Call] = []
        for i, name in enumerate(names):
            found[name] = parse_nonce(values_of(next(replies), 1)[0])
            left = next(replies) if i >= fixed else -1
            if found[name] is None or not isinstance(left, int) or left < 0:
                continue
            if ttl is None:
                prolong.append((name, (b"PERSIST", name)))
            elif left < milliseconds(ttl) / 2:
                prolong.append((name, (b"PEXPIRE", name, milliseconds(ttl))))
        if prolong:
            await self._send(prolong, until)
        return found

    async def drop_tags(self, tags: Sequence[str], deadline: Deadline) -> None:
        if not tags:
            return
        with Verb("drop_tags", deadline) as verb:
            layout = self._layout or await self._learn(verb.until)
            await self._route.delete([layout.tag(tag) for tag in tags], verb.until)

    async def drop_space(self, deadline: Deadline) -> None:
        with Verb("drop_space", deadline) as verb:
            layout = self._layout or await self._learn(verb.until)
            await self._route.delete(layout.spaces, verb.until)

    # -- the number of partitions --------------------------------------------------------

    async def _learn(self, until: float) -> Layout:
        layout = Layout(self._namespace, await self._recorded(self._wanted, until))
        self._layout = layout
        return layout

    async def _recorded(self, wanted: int, until: float) -> int:
        remaining(until)
        name = partitions_key(self._namespace)
        calls: list[Call] = [
            (name, (b"SET", name, wanted, b"NX")),
            (name, (b"GET", name)),
        ]
        _, recorded = await self._send(calls, until)
        if isinstance(recorded, bytes) and recorded.isdigit():
            count = int(recorded)
            if 1 <= count <= MAX_PARTITIONS:
                return count
        raise ProtocolViolation(
            "the recorded number of partitions is damaged; delete the key "
            f"{name.decode()!r} while no process uses this namespace"
        )

    async def _check_partitions(self, layout: Layout, until: float) -> None:
        """Nonces that are gone may mean a flushed server, where a process configured otherwise
        recorded another number first: then nothing may be filled under the old names."""
        if await self._recorded(layout.partitions, until) != layout.partitions:
            self._layout = None
            raise ConnectionError("the number of partitions changed on the server")

    # -- talking -------------------------------------------------------------------------

    async def _one(
        self,
        operation: str,
        script: scripts.Script,
        key: str,
        args: tuple[Any, ...],
        deadline: Deadline,
    ) -> bool:
        with Verb(operation, deadline, (key,)) as verb:
            [reply] = await self._run(script, (key,), args, verb.until)
            if reply not in (0, 1):
                raise ProtocolViolation(f"no answer to {operation}")
            return bool(reply)

    async def _run(
        self, script: scripts.Script, keys: Sequence[str], args: tuple[Any, ...], until: float
    ) -> list[Reply]:
        return await self._each(script, keys, [args] * len(keys), until)

    async def _each(
        self,
        script: scripts.Script,
        keys: Sequence[str],
        args: Sequence[tuple[Any, ...]],
        until: float,
    ) -> list[Reply]:
        """The script on every key with its own arguments, in one pipeline."""
        if not keys:
            return []
        layout = self._layout or await self._learn(until)
        return await self._eval(script, [layout.slot(key) for key in keys], args, until)

    async def _eval(
        self,
        script: scripts.Script,
        names: Sequence[bytes],
        args: Sequence[tuple[Any, ...]],
        until: float,
    ) -> list[Reply]:
        """The script once per name. EVALSHA first: a server that does not know the digest has
        done nothing, and gets the source."""
        replies = await self._route.send(
            [
                (name, (b"EVALSHA", script.digest, b"1", name, *arg))
                for name, arg in zip(names, args, strict=True)
            ],
            until,
        )
        unknown = [
            i for i, r in enumerate(replies) if isinstance(r, ErrorReply) and r.code == "NOSCRIPT"
        ]
        if unknown:
            again: list[Call] = [
                (names[i], (b"EVAL", script.source, b"1", names[i], *args[i])) for i in unknown
            ]
            for i, reply in zip(unknown, await self._route.send(again, until), strict=True):
                replies[i] = reply
        return checked(replies)

    async def _send(self, calls: Sequence[Call], until: float) -> list[Reply]:
        return checked(await self._route.send(calls, until))
