"""The one Redis dialect: what each verb says to the server, the same in both worlds."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from ...core.deadline import Deadline
from ...errors import CacheKitError
from ...protocols import Asking, Filling, Grant, Item, Reading, Slot, Slots, SlotState
from . import scripts
from .layout import ENTRY, expiry, lease_end, milliseconds, nonces_of, parse_nonce, parse_slot
from .nonces import NonceSteps
from .routes import Call, Route
from .verb import NodeLost, Verb, translate
from .wire import InPart, Reply

_IS_ENTRY, _IS_REFRESHING = SlotState.ENTRY, SlotState.REFRESHING
_FIRST = [0]
_UNKNOWN = Slot(SlotState.BLOCK)  # nobody may fill what could not be looked at


class RedisStore(NonceSteps):
    """A :class:`~cachekit.protocols.Store` with slots, over any route.

    Thread and task safe as far as its route is. One round trip per verb, except: the first verb
    also learns the number of partitions, ``nonces`` takes a second one to create what is
    missing, ``drop_space`` one for its note, and ``read`` one to see whether a refresh lease it
    met is still running. In a Cluster a ``read``, and the verbs that tell, do what the nodes that
    answer can do, and raise ``NodeLost`` where others did not."""

    def __init__(
        self, route: Route, namespace: str, partitions: int, trust_restart: bool = False
    ) -> None:
        super().__init__(route, namespace, partitions, trust_restart)
        self.slots: Slots = self

    # -- plain records -------------------------------------------------------------------

    async def get_many(self, keys: Sequence[str], deadline: Deadline) -> list[bytes | None]:
        if not keys:
            return []
        with Verb("get_many", deadline, keys) as verb:
            layout = self._layout or await self._learn(verb.until)
            names = [layout.record(key) for key in keys]
            found, _ = await self._route.fetch(names, verb.until)
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
            found, runs = await self._route.fetch(names, until)
            if partitions is spaces:
                slots = [parse_slot(found[0])]
                if slots[0][0] is _IS_REFRESHING:
                    await self._look_again(names, found, slots, until)
                space = parse_nonce(found[1], runs if isinstance(runs, bytes) else runs[1])
                nonces = nonces_of(found, runs, 2) if tags else []
                return Reading(slots, [space], nonces)
            slots = [parse_slot(value) for value in found[: len(keys)]]
            if any([slot[0] is _IS_REFRESHING for slot in slots]):
                await self._look_again(names, found, slots, until)
            return _reading(slots, found, runs, partitions, spaces)
        except CacheKitError:
            raise
        except InPart as error:
            raise _in_part(keys, tags, partitions, spaces, error) from error
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
            [reply] = await self._each(scripts.ACQUIRE, (key,), (args,), verb.until)
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

    # -- slots: voiding and writing ------------------------------------------------------

    async def put(
        self, key: str, stamp: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        args = (expiry(ttl), ENTRY + stamp + data)
        [stored] = await self._tell("put", scripts.PUT, (key,), args, deadline)
        return stored

    async def void(self, keys: Sequence[str], deadline: Deadline) -> None:
        await self._tell("void", scripts.VOID, keys, (), deadline)

    async def seize(
        self, keys: Sequence[str], writer: bytes, lease: float, deadline: Deadline
    ) -> None:
        args = (writer, b"%d" % milliseconds(lease))
        await self._tell("seize", scripts.SEIZE, keys, args, deadline)

    async def commit(
        self, key: str, writer: bytes, data: bytes, ttl: float | None, deadline: Deadline
    ) -> bool:
        args = (writer, expiry(ttl), ENTRY + writer + data)
        [stored] = await self._tell("commit", scripts.COMMIT, (key,), args, deadline)
        return stored

    async def end(self, keys: Sequence[str], writer: bytes, deadline: Deadline) -> None:
        await self._tell("end", scripts.END, keys, (writer,), deadline)


def _reading(
    slots: list[Slot],
    found: Sequence[Reply],
    runs: bytes | Sequence[bytes],
    partitions: Sequence[int],
    spaces: Sequence[int],
) -> Reading:
    """``found``: the slots, the nonces of the partitions ``spaces``, those of the tags."""
    nonces = nonces_of(found, runs, len(slots))
    present = dict(zip(spaces, nonces, strict=False))
    return Reading(slots, [present[p] for p in partitions], nonces[len(spaces) :])


def _in_part(
    keys: Sequence[str],
    tags: Sequence[str],
    partitions: Sequence[int],
    spaces: Sequence[int],
    error: InPart,
) -> NodeLost:
    """What a read saw while nodes were lost. Whether a refresh lease still runs is not asked:
    there may be no time left, and its entry is readable all the same."""
    slots = [
        _UNKNOWN if i in error.lost else parse_slot(value)
        for i, value in enumerate(error.values[: len(keys)])
    ]
    part = _reading(slots, error.values, error.runs, partitions, spaces)
    first = len(keys) + len(spaces)
    return NodeLost(
        "read",
        error,
        keys=[key for i, key in enumerate(keys) if i in error.lost],
        tags=[tag for i, tag in enumerate(tags, first) if i in error.lost],
        part=part,
    )
