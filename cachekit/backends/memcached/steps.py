"""The atomic steps on one key, on one connection: look, compare the token in the value, ``cas``.

A cas number alone proves nothing (a restarted server counts from the beginning again), so every
step compares what it read before it lets the number decide whether that still stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...protocols import NOTHING, TOKEN_BYTES, Grant, Slot, SlotState
from .values import REMOVE, Block, Refresh, entry_value, read_slot, token_value
from .wire import Connection, Found

Change = Callable[[bytes | None], tuple[bytes, int] | None]
"""An item's present value -> its new value and expiry, or None to leave it as it is."""

Names = tuple[bytes, bytes]
"""A slot and its side key."""

_GONE = (b"", REMOVE)


def slot_of(found: Found, slot: bytes, side: bytes) -> Slot:
    item = found.get(slot)
    if item is None:
        return NOTHING
    beside = found.get(side)
    return read_slot(item[0], beside[0] if beside is not None else None)


def nonce_of(found: Found, name: bytes) -> bytes | None:
    item = found.get(name)
    return item[0] if item is not None and len(item[0]) == TOKEN_BYTES else None


def change(connection: Connection, names: Iterable[bytes], new: Change) -> None:
    """Change every item from what it is, again for those that moved meanwhile."""
    pending = list(names)
    while pending:
        found = connection.get(pending)
        pending = [name for name in pending if not _changed(connection, found, name, new)]


def _changed(connection: Connection, found: Found, name: bytes, new: Change) -> bool:
    item = found.get(name)
    wanted = new(item[0] if item is not None else None)
    return wanted is None or _stored(connection, found, name, *wanted)


def _stored(connection: Connection, found: Found, name: bytes, value: bytes, until: int) -> bool:
    """Store over what was found, or over nothing; False when it is something else by now."""
    item = found.get(name)
    if item is None:
        return connection.add(name, value, until)
    return connection.cas(name, value, item[1], until)


# -- the loader's side


def acquire(
    connection: Connection,
    names: Names,
    token: bytes,
    until: int,
    *,
    over: bytes,
    keep: bool,
) -> Grant:
    slot, side = names
    mine = token_value(token)
    if not over and connection.add(slot, mine, until):
        return Grant(True, NOTHING)
    while True:
        found = connection.get(names)
        now = slot_of(found, slot, side)
        if now.state is SlotState.NOTHING:
            name, value = slot, mine
        elif not over or now.stamp != over:
            return Grant(False, now)
        elif not keep:
            name, value = slot, mine
        elif now.state is SlotState.REFRESHING:
            return Grant(False, now)
        else:
            name, value = side, Refresh(token, over).value()
        if _stored(connection, found, name, value, until):
            return Grant(True, now)


def holder(found: Found, slot: bytes, side: bytes, token: bytes) -> bytes | None:
    """The name under which a token still stands: the slot, or its side key while the entry it
    was given for is there."""
    item = found.get(slot)
    if item is None:
        return None
    if item[0] == token_value(token):
        return slot
    beside = found.get(side)
    refresh = Refresh.parse(beside[0]) if beside is not None else None
    if refresh is None or refresh.token != token:
        return None
    return side if slot_of(found, slot, side).state is SlotState.REFRESHING else None


def renew(connection: Connection, names: Names, token: bytes, until: int) -> bool:
    while True:
        found = connection.get(names)
        name = holder(found, *names, token)
        if name is None:
            return False
        value, cas = found[name]
        if connection.cas(name, value, cas, until):
            return True


def fill(connection: Connection, names: Names, token: bytes, data: bytes, until: int) -> bool:
    slot = names[0]
    while True:
        found = connection.get(names)
        if holder(found, *names, token) is None:
            return False
        # A refresh token needs no look at the side key in the same instant: the entry it was
        # given for is still there when the cas succeeds, so nothing was voided since.
        if connection.cas(slot, entry_value(token, data), found[slot][1], until):
            return True


def release(connection: Connection, names: Names, token: bytes) -> None:
    while True:
        found = connection.get(names)
        name = holder(found, *names, token)
        if name is None or connection.cas(name, b"", found[name][1], REMOVE):
            return


# -- the writer's side


def void(connection: Connection, names: Iterable[bytes]) -> None:
    change(connection, names, _voided)


def seize(connection: Connection, names: Iterable[bytes], writer: bytes, lease: int) -> None:
    def seized(value: bytes | None) -> tuple[bytes, int]:
        block = _block(value)
        block = Block(lease, False, (writer,)) if block is None else block.joined(writer, lease)
        return block.value(), block.lease

    change(connection, names, seized)


def end(connection: Connection, names: Iterable[bytes], writer: bytes) -> None:
    change(connection, names, lambda value: _ended(value, writer))


def put(connection: Connection, names: Names, entry: bytes, until: int) -> bool:
    stored = False

    def placed(value: bytes | None) -> tuple[bytes, int] | None:
        nonlocal stored
        stored = _block(value) is None
        return (entry, until) if stored else _voided(value)

    change(connection, names[:1], placed)
    return stored


def commit(connection: Connection, names: Names, writer: bytes, entry: bytes, until: int) -> bool:
    stored = False

    def committed(value: bytes | None) -> tuple[bytes, int] | None:
        nonlocal stored
        block = _block(value)
        stored = block is not None and block.alone(writer)
        return (entry, until) if stored else _ended(value, writer)

    change(connection, names[:1], committed)
    return stored


def _block(value: bytes | None) -> Block | None:
    return Block.parse(value) if value else None


def _voided(value: bytes | None) -> tuple[bytes, int] | None:
    if value is None:
        return None
    block = Block.parse(value)
    if block is None:
        return _GONE
    if block.contested:
        return None
    return Block(block.lease, True, block.writers).value(), block.lease


def _ended(value: bytes | None, writer: bytes) -> tuple[bytes, int] | None:
    block = _block(value)
    if block is None or writer not in block.writers:
        return _voided(value)
    left = block.without(writer)
    return _GONE if left is None else (left.value(), left.lease)


# -- nonces


def nonces(
    connection: Connection, untils: dict[bytes, int], fresh: Callable[[], bytes]
) -> dict[bytes, bytes]:
    """The nonces under these names; what is missing is added with its expiry, never replaced."""
    known: dict[bytes, bytes] = {}
    while True:
        missing = [name for name in untils if name not in known]
        if not missing:
            return known
        found = connection.get(missing)
        for name in missing:
            nonce = nonce_of(found, name)
            if nonce is None:
                nonce = fresh()
                if not _stored(connection, found, name, nonce, untils[name]):
                    continue
            known[name] = nonce


# -- records


def store(
    connection: Connection, records: dict[bytes, tuple[bytes, int]], names: Iterable[bytes]
) -> None:
    """Store those of the records, in one trip for each expiry that occurs."""
    groups: dict[int, dict[bytes, bytes]] = {}
    for name in names:
        data, until = records[name]
        groups.setdefault(until, {})[name] = data
    for until, group in groups.items():
        connection.set_many(group, until)
