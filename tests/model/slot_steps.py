"""The atomic steps on one slot and on one tag, as pure functions of small values.

A slot is None, ("T", token), ("E", stamp, data), ("R", stamp, data, token) or
("B", writers, contested); a tag's nonce is None, (run, number) or ("B", writers). ``broken``
names the one rule that is left out, see ``RULES`` in the models.
"""

from __future__ import annotations

from typing import Any

Slot = Any
Tag = Any


def acquire(slot: Slot, token: Any, over: Any, keep: bool) -> tuple[bool, Slot]:
    if slot is None:
        return True, ("T", token)
    if slot[0] in "ER" and slot[1] == over:
        if not keep:
            return True, ("T", token)
        if slot[0] == "E":
            return True, ("R", slot[1], slot[2], token)
    return False, slot


def fill(slot: Slot, token: Any, data: Any, broken: str = "") -> tuple[bool, Slot]:
    mine = slot is not None and (
        (slot[0] == "T" and slot[1] == token) or (slot[0] == "R" and slot[3] == token)
    )
    if broken == "FILL compares the token":
        mine = slot is None or slot[0] != "B"
    return (True, ("E", token, data)) if mine else (False, slot)


def release(slot: Slot, token: Any) -> Slot:
    if slot is not None and slot[0] == "T" and slot[1] == token:
        return None
    if slot is not None and slot[0] == "R" and slot[3] == token:
        return ("E", slot[1], slot[2])
    return slot


def put(slot: Slot, stamp: Any, data: Any, broken: str = "") -> tuple[bool, Slot]:
    if slot is not None and slot[0] == "B":
        contested = slot[2] if broken == "PUT contests a block" else True
        return False, ("B", slot[1], contested)
    return True, ("E", stamp, data)


def void(slot: Slot, broken: str = "") -> Slot:
    if slot is None:
        return None
    if slot[0] == "B" and broken != "VOID keeps a block":
        return ("B", slot[1], True if broken != "VOID contests a block" else slot[2])
    if broken == "VOID takes tokens":
        if slot[0] == "T":
            return slot
        if slot[0] == "R":
            return ("T", slot[3])
    return None


def seize(slot: Slot, me: Any, broken: str = "") -> Slot:
    if slot is None or slot[0] != "B" or broken == "SEIZE joins a block":
        return ("B", (me,), False)
    if broken == "SEIZE contests a block":
        return ("B", tuple(sorted({*slot[1], me})), slot[2])
    if me in slot[1]:
        return slot
    return ("B", tuple(sorted((*slot[1], me))), True)


def commit(slot: Slot, me: Any, data: Any, broken: str = "") -> tuple[bool, Slot]:
    alone = slot is not None and slot[0] == "B" and slot[1] == (me,)
    if alone and (not slot[2] or broken == "COMMIT heeds contest"):
        return True, ("E", me, data)
    return False, end(slot, me, broken)


def end(slot: Slot, me: Any, broken: str = "") -> Slot:
    if slot is None or slot[0] != "B":
        return slot if broken == "END deletes what is not a block" else None
    others = tuple(w for w in slot[1] if w != me)
    if not others or broken == "END leaves the others' block":
        return None
    strange = me not in slot[1] and broken != "END contests others' block"
    return ("B", others, slot[2] or strange)


def nonce(tag: Tag, run: int, fresh: Any, broken: str = "") -> Tag:
    """The tag after set-if-absent; one of another run of the server counts as absent."""
    if tag is None or (tag[0] != "B" and tag[0] != run):
        return (run, 1 if broken == "nonces are random" else fresh)
    return tag


def drop(tag: Tag, broken: str = "") -> Tag:
    if tag is None:
        return None
    if tag[0] == "B":
        return tag if broken != "a drop keeps a tag's block" else None
    if broken == "nonces are random":
        return (tag[0], tag[1] + 1)  # a counter, incremented
    return None


def seize_tag(tag: Tag, me: Any) -> Tag:
    if tag is None or tag[0] != "B":
        return ("B", (me,))
    return tag if me in tag[1] else ("B", tuple(sorted((*tag[1], me))))


def end_tag(tag: Tag, me: Any, broken: str = "") -> Tag:
    if tag is None or tag[0] != "B":
        return None
    others = tuple(w for w in tag[1] if w != me)
    if not others or broken == "the first of two intents leaves a tag's block":
        return None
    return ("B", others)
