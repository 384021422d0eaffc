"""The atomic steps on one key, on one connection: look, compare the token in the value, ``cas``.

A cas number alone proves nothing (a restarted server counts from the beginning again), so every
step compares what it read before it lets the number decide whether that still stands.
Steps that invalidate bump the node's epoch behind their change (``epochs``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...protocols import NOTHING, TOKEN_BYTES, Grant, Slot, SlotState
from .epochs import Epoch
from .values import REMOVE, Block, Refresh, entry_value, read_slot, token_value
from .wire import Connection, Found

Change = Callable[[bytes | None], tuple[bytes, int] | None]
"""An item's present value -> its new value and expiry, or None to leave it as it is."""

Names = tuple[bytes, bytes]
"""A slot and its side key."""

_GONE = (b"", REMOVE)


def _always(value: bytes | None) -> bool:
    return True


def slot_of(found: Found, slot: bytes, side: bytes) -> Slot:
    item = found.get(slot)
    if item is None:
        return NOTHING
    beside = found.get(side)
    return read_slot(item[0], beside[0] if beside is not None else None)


def nonce_of(found: Found, name: bytes) -> bytes | None:
    item = found.get(name)
    # No block is as long as a nonce: where one stands, there is none.
    return item[0] if item is not None and len(item[0]) == TOKEN_BYTES else None


def change(
    connection: Connection,
    names: Iterable[bytes],
    new: Change,
    epoch: Epoch,
    *,
    told: Callable[[bytes | None], bool] = _always,
    likely: bool = True,
) -> None:
    """Change every item from what it is, again for those that moved meanwhile.

    Behind the changes the epoch is bumped if one of the items found is to be ``told`` of. Two
    round trips; one where nothing is to be changed, if told that this is not ``likely``: then a
    bump goes behind the look too."""
    pending = list(dict.fromkeys(names))
    while pending:
        if likely:
            found = connection.get(pending)
        else:
            found, answer = connection.get_then(pending, epoch.bump)
            epoch.settle(connection, answer)
        values = {name: found[name][0] if name in found else None for name in pending}
        wanted = {name: new(value) for name, value in values.items()}
        moves = {name: _move(found, name, *to) for name, to in wanted.items() if to is not None}
        tell = any(told(value) for value in values.values()) and bool(moves or likely)
        answers = connection.run([*moves.values(), epoch.bump] if tell else [*moves.values()])
        if tell:
            epoch.settle(connection, answers.pop())
        pending = [name for name, done in zip(moves, answers, strict=True) if not _is_stored(done)]


def drop(connection: Connection, name: bytes, epoch: Epoch) -> None:
    """Remove an item whatever it is, and bump the epoch."""
    done, answer = connection.run([b"delete %b\r\n" % name, epoch.bump])
    if done not in (b"DELETED", b"NOT_FOUND"):
        raise ValueError("a reply that is not memcached's")
    epoch.settle(connection, answer)


def _move(found: Found, name: bytes, value: bytes, until: int) -> bytes:
    """The command that stores over what was found, or over nothing."""
    item = found.get(name)
    if item is None:
        return b"add %b 0 %d %d\r\n%b\r\n" % (name, until, len(value), value)
    return b"cas %b 0 %d %d %b\r\n%b\r\n" % (name, until, len(value), item[1], value)


def _is_stored(answer: bytes) -> bool:
    """False when it was something else by now."""
    if answer == b"STORED":
        return True
    if answer in (b"NOT_STORED", b"EXISTS", b"NOT_FOUND"):
        return False
    raise ValueError("a reply that is not memcached's")


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


def void(connection: Connection, names: Iterable[bytes], epoch: Epoch) -> None:
    change(connection, names, _voided, epoch, likely=False)


def seize(
    connection: Connection, names: Iterable[bytes], epoch: Epoch, writer: bytes, lease: int
) -> None:
    def seized(value: bytes | None) -> tuple[bytes, int]:
        block = _block(value)
        block = Block(lease, False, (writer,)) if block is None else block.joined(writer, lease)
        return block.value(), block.lease

    change(connection, names, seized, epoch)


def end(connection: Connection, names: Iterable[bytes], epoch: Epoch, writer: bytes) -> None:
    change(connection, names, lambda value: _ended(value, writer), epoch, told=_no_block)


def put(connection: Connection, names: Names, epoch: Epoch, entry: bytes, until: int) -> bool:
    stored = False

    def placed(value: bytes | None) -> tuple[bytes, int] | None:
        nonlocal stored
        stored = _block(value) is None
        return (entry, until) if stored else _voided(value)

    change(connection, names[:1], placed, epoch)
    return stored


def commit(
    connection: Connection, names: Names, epoch: Epoch, writer: bytes, entry: bytes, until: int
) -> bool:
    stored = False

    def committed(value: bytes | None) -> tuple[bytes, int] | None:
        nonlocal stored
        block = _block(value)
        stored = block is not None and block.alone(writer)
        return (entry, until) if stored else _ended(value, writer)

    change(connection, names[:1], committed, epoch, told=_no_block)
    return stored


# -- tags


def drop_tags(connection: Connection, names: Iterable[bytes], epoch: Epoch) -> None:
    def dropped(value: bytes | None) -> tuple[bytes, int] | None:
        return None if value is None or _block(value) is not None else _GONE

    change(connection, names, dropped, epoch, likely=False)


def end_tags(connection: Connection, names: Iterable[bytes], epoch: Epoch, writer: bytes) -> None:
    def ended(value: bytes | None) -> tuple[bytes, int] | None:
        block = _block(value)
        if block is not None and writer not in block.writers:
            return None
        return _ended(value, writer)

    change(connection, names, ended, epoch, told=_no_block)


def _no_block(value: bytes | None) -> bool:
    """Whether a writer that ends finds that its block has run out: others may have kept since
    what they loaded meanwhile, even where the item is gone again by now."""
    return _block(value) is None


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
) -> dict[bytes, bytes | None]:
    """The nonces under these names; what is missing is added with its expiry, never replaced.
    Where a block stands there is none."""
    known: dict[bytes, bytes | None] = {}
    while True:
        missing = [name for name in untils if name not in known]
        if not missing:
            return known
        found = connection.get(missing)
        for name in missing:
            nonce = nonce_of(found, name)
            if nonce is None and not (name in found and _block(found[name][0])):
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
