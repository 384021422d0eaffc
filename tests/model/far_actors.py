"""Who uses the far tier, each as a step machine: (step, registers...) to what may follow.

A play function gives (label, world, actor) for each thing its actor can do now; nothing while it
has to wait. Ids of actors serve as writer ids; tokens and nonces are numbered so that none is
made twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import slot_steps as slots

DONE = ("done",)
# Steps at which a write has not reached the source; the last register of these: block gone.
BEFORE_SOURCE = ("seize", "seize tag", "own space", "own tag", "source")
AT_REST = ("done", "first", "see")  # at their end, or with nothing to look at
TRIES = 2

Moves = Iterator[tuple[str, Any, Any]]


def make_space(m: Any, w: Any, me: int, tries: int = 0) -> Any:
    fresh = 100 + me * TRIES + tries
    space = slots.nonce(w.space, w.run, fresh, m.broken)
    if m.broken == "space nonces carry the run" and w.space is not None:
        space = w.space
    return w._replace(space=space), space


def make_tag(m: Any, w: Any, me: int, tries: int = 0) -> Any:
    fresh = 200 + me * TRIES + tries
    if m.broken in ("tag nonces carry the run", "space nonces carry the run") and w.tag is not None:
        tag = w.tag
    else:
        tag = slots.nonce(w.tag, w.tag_run, fresh, m.broken)
    return w._replace(tag=tag), None if tag[0] == "B" else tag


# -- reading ------------------------------------------------------------------------------
# ("read", tries) -> ("acquire", tries, over, keep, space, tag) -> ("space" | "tag" | "load",
# tries, space, tag) -> ("fill", tries, space, tag, version)


def read(m: Any, w: Any, a: Any, me: int, discovering: bool = False) -> Moves:
    step, tries = a[0], a[1] if len(a) > 1 else 0
    token = me * TRIES + tries
    wants = m.tags
    if step == "recall":
        yield "recalls the tags", w, ("read", tries, w.known)
    elif step == "read":
        told = (a[2],) if discovering else ()
        slot = w.slot
        if slot is not None and slot[0] in "TB":
            yield "gives up waiting", w, DONE
            return
        space = w.read_space(m.broken)
        tag = w.read_tag(m.broken)
        over = None if slot is None else slot[1]
        if m.readable(w):
            yield "finds it stale", w, ("acquire", tries, over, True, space, tag, *told)
        if slot is not None or not m.readable(w):
            yield "finds nothing", w, ("acquire", tries, over, False, space, tag, *told)
    elif step == "acquire":
        _, _, over, keep, space, tag, *told = a
        wants = m.tags and told != [False]
        granted, slot = slots.acquire(w.slot, token, over, keep)
        if not granted:
            yield "is refused", w, DONE
            return
        after = w._replace(slot=slot)
        known = (not m.spaces or space) and (not wants or tag)
        if m.broken == "nonces before the load" or known:
            yield "acquires", after, ("load", tries, space, tag, *told)
        else:
            yield "acquires", after, ("space", tries, None, None, *told)
    elif step in ("space", "tag", "load"):
        yield from _load(m, w, a, me)
    elif step in ("late space", "late tag"):
        yield from _late_nonces(m, w, a, me)
    elif step == "fill":
        _, _, space, tag, version, *told = a
        if told == [False]:
            yield from _discover(m, w, a, me, token)
            return
        kept, slot = slots.fill(w.slot, token, (version, space, tag), m.broken)
        yield "fills" if kept else "may not fill", w._replace(slot=slot), DONE


def _load(m: Any, w: Any, a: Any, me: int) -> Moves:
    step, tries, space, tag, *told = a
    token = me * TRIES + tries
    wants = m.tags and told != [False]
    if step == "space":
        if not m.spaces:
            yield "asks for nonces", w, ("tag" if wants else "load", tries, None, None, *told)
            return
        after, space = make_space(m, w, me, tries)
        then = "tag" if wants else "load"
        yield "reads the namespace's nonce", after, (then, tries, space, None, *told)
    elif step == "tag":
        after, tag = make_tag(m, w, me, tries)
        if tag is not None:
            yield "reads the tag's nonce", after, ("load", tries, space, tag, *told)
        else:
            slot = slots.release(after.slot, token)
            again = ("read", tries + 1) if tries + 1 < TRIES and not told else DONE
            yield "finds the tag blocked", after._replace(slot=slot), again
    else:
        then = "late space" if m.broken == "nonces before the load" else "fill"
        yield "loads", w, (then, tries, space, tag, w.src, *told)


def _late_nonces(m: Any, w: Any, a: Any, me: int) -> Moves:
    step, tries, space, tag, version = a
    if step == "late space":
        after, space = make_space(m, w, me, tries) if m.spaces else (w, None)
        yield "reads the namespace's nonce", after, ("late tag", tries, space, tag, version)
    else:
        after, tag = make_tag(m, w, me, tries) if m.tags else (w, None)
        yield "reads the tag's nonce", after, ("fill", tries, space, tag, version)


def _discover(m: Any, w: Any, a: Any, me: int, token: int) -> Moves:
    """The value has a tag that was not known: its nonce was not read before the load."""
    _, tries, space, _, version, _ = a
    if m.broken == "discovered tags wait for the next load":
        after, tag = make_tag(m, w, me, tries)
        _, slot = slots.fill(after.slot, token, (version, space, tag))
        yield "fills with the tag's nonce read now", after._replace(slot=slot), DONE
        return
    slot = slots.release(w.slot, token)
    again = ("recall", tries + 1) if tries + 1 < TRIES else DONE
    yield "remembers the tag and keeps nothing", w._replace(slot=slot, known=True), again


def discover(m: Any, w: Any, a: Any, me: int) -> Moves:
    return read(m, w, a, me, discovering=True)


def look(m: Any, w: Any, a: Any, me: int) -> Moves:
    """Reads slot and namespace, then in a second round trip the tags that the entry names."""
    if a[0] == "first":
        slot = w.slot
        if slot is None or slot[0] not in "ER" or slot[2][1] != w.read_space(m.broken):
            return
        yield "reads the entry", w, ("second", slot[2][0], slot[2][2], w.floor)
    elif a[0] == "second":
        _, version, tag, floor = a
        old = version < floor and tag is not None and tag == w.read_tag(m.broken)
        yield "reads the tag", w, ("served too old",) if old else DONE


# -- writing ------------------------------------------------------------------------------
# (step, space, tag, version, lapsed)


def _write(m: Any, w: Any, a: Any, me: int, fills: bool) -> Moves:
    step = a[0]
    late_nonces = m.broken == "a writer's nonces before the source"
    if step == "seize":
        first = "source" if late_nonces or not fills else "own space"
        after = w._replace(slot=slots.seize(w.slot, me, m.broken))
        yield "seizes", after, (first, None, None, 0, a[-1])
    elif step in ("own space", "late space"):
        after, space = make_space(m, w, me) if m.spaces else (w, None)
        then = "late tag" if step == "late space" else "own tag"
        yield "reads the namespace's nonce", after, (then, space, *a[2:])
    elif step in ("own tag", "late tag"):
        after, tag = make_tag(m, w, me) if m.tags else (w, None)
        then = "commit" if step == "late tag" else "source"
        if m.tags and tag is None and then == "commit":
            then = "end"
        yield "reads the tag's nonce", after, (then, a[1], tag, a[3], a[4])
    elif step == "source":
        then = "commit" if fills and not (m.tags and a[2] is None) else "end"
        if fills and late_nonces:
            then = "late space"
        _, space, tag, _, lapsed = a
        new = w.src + 1
        yield "writes the source", w._replace(src=new), (then, space, tag, new, lapsed)
        yield "is refused by the source", w, ("give up", space, tag, 0, lapsed)
        if not lapsed:
            yield from _unknown(m, w, me)
    elif step == "late":
        yield from _land(w)
    elif step == "commit":
        data = (a[3], a[1], a[2])
        kept, slot = slots.commit(w.slot, me, data, m.broken)
        after = w._replace(slot=slot, floor=max(w.floor, a[3]))
        yield "commits" if kept else "may not commit", after, DONE
        yield from _unreachable(m, w, a)
    elif step in ("end", "give up"):
        slot = slots.end(w.slot, me, m.broken)
        yield "ends", w._replace(slot=slot, floor=max(w.floor, a[3])), DONE
        yield from _unreachable(m, w, a)
    elif step == "owes":
        slot = slots.void(w.slot, m.broken)
        yield "voids what it owed", w._replace(slot=slot, floor=max(w.floor, a[1])), DONE


def _unknown(m: Any, w: Any, me: int) -> Moves:
    after = w
    if m.broken == "an unknown outcome keeps its block":
        after = w._replace(slot=slots.end(w.slot, me))
    yield "does not learn the outcome", after, ("late", None)


def _land(w: Any) -> Moves:
    """What was of unknown outcome takes place after all, or never."""
    yield "lands late", w._replace(src=w.src + 1, floor=w.src + 1), DONE
    yield "never lands", w, DONE


def _unreachable(m: Any, w: Any, a: Any) -> Moves:
    """The far tier does not answer the last step: the invalidation is owed."""
    if m.broken == "a lost END is owed":
        yield "returns, its last step lost", w._replace(floor=max(w.floor, a[3])), DONE
    else:
        yield "can not reach the far tier", w, ("owes", a[3])


def write(m: Any, w: Any, a: Any, me: int) -> Moves:
    return _write(m, w, a, me, True)


def write_around(m: Any, w: Any, a: Any, me: int) -> Moves:
    return _write(m, w, a, me, False)


def write_aside(m: Any, w: Any, a: Any, me: int) -> Moves:
    """Source, then VOID; after an unknown outcome SEIZE. ("unknown", landed version)"""
    if a[0] == "ask":
        yield "writes the source", w._replace(src=w.src + 1), ("void", w.src + 1)
        yield "asks the source", w, ("unknown", 0)
    elif a[0] == "unknown":
        if not a[1]:
            yield "lands", w._replace(src=w.src + 1), ("unknown", w.src + 1)
        slot = slots.seize(w.slot, me, m.broken)
        after = w._replace(slot=slot, floor=max(w.floor, a[1]))
        yield "knows nothing and seizes", after, DONE if a[1] else ("late", None)
    elif a[0] == "late":
        yield from _land(w)
    elif a[0] == "void":
        after = w._replace(slot=slots.void(w.slot, m.broken), floor=max(w.floor, a[1]))
        yield "voids", after, DONE


def put(m: Any, w: Any, a: Any, me: int) -> Moves:
    """A value set directly: here the cache's own step is the write."""
    if a[0] == "space":
        after, space = make_space(m, w, me) if m.spaces else (w, None)
        yield "reads the namespace's nonce", after, ("tag", space, None)
    elif a[0] == "tag":
        after, tag = make_tag(m, w, me) if m.tags else (w, None)
        then = DONE if m.tags and tag is None else ("put", a[1], tag)
        yield "reads the tag's nonce", after, then
    elif a[0] == "put":
        new = w.src + 1
        kept, slot = slots.put(w.slot, me + 50, (new, a[1], a[2]), m.broken)
        after = w._replace(slot=slot)
        if kept or m.broken == "PUT contests a block":
            after = after._replace(src=new, floor=new)
        yield "puts" if kept else "may not put", after, DONE


# -- invalidating -------------------------------------------------------------------------


def _invalidate(act: Any) -> Any:
    def play(m: Any, w: Any, a: Any, me: int) -> Moves:
        if a[0] == "change":
            yield "changes the source", w._replace(src=w.src + 1), ("tell",)
        elif a[0] == "tell":
            label, after = act(m, w)
            yield label, after._replace(floor=w.src), DONE

    return play


def _void(m: Any, w: Any) -> Any:
    return "voids the key", w._replace(slot=slots.void(w.slot, m.broken))


def _drop(m: Any, w: Any) -> Any:
    if m.broken == "a drop needs no entry" and (w.slot is None or w.slot[0] not in "ER"):
        return "finds no entry with the tag", w
    return "drops the tag", w._replace(tag=slots.drop(w.tag, m.broken))


def _clear(m: Any, w: Any) -> Any:
    return "clears the namespace", w._replace(space=None)


def renew(m: Any, w: Any, a: Any, me: int) -> Moves:
    """Prolongs the tag's nonce: EXPIRE changes nothing here, SET brings back what it read."""
    if a[0] == "see":
        tag = w.read_tag(m.broken)
        if tag is not None:
            yield "reads the tag's nonce", w, ("prolong", tag)
    elif a[0] == "prolong":
        after = w
        if m.broken == "renewal never sets":
            after = w._replace(tag=a[1])
        yield "prolongs it", after, DONE


# -- write intents ------------------------------------------------------------------------


def _intend(m: Any, w: Any, a: Any, me: int, keys: bool) -> Moves:
    """Blocks on key and tag, the user's own transaction, and their ends."""
    step = a[0]
    blocks = m.broken != "an intent blocks its tags"
    if step == "seize":
        slot = slots.seize(w.slot, me, m.broken) if keys else w.slot
        yield "seizes the key", w._replace(slot=slot), ("seize tag", 0, a[-1])
    elif step == "seize tag":
        tag = slots.seize_tag(w.tag, me) if blocks else None
        yield "seizes the tag", w._replace(tag=tag), ("source", 0, a[-1])
    elif step == "source":
        new = w.src + 1
        yield "commits its transaction", w._replace(src=new), ("end", new, a[-1])
        yield "rolls back", w, ("end", 0, a[-1])
        if not a[-1]:
            yield "does not learn the outcome", w, ("late", None)
    elif step == "late":
        yield from _land(w)
    elif step == "end":
        slot = slots.end(w.slot, me, m.broken) if keys else w.slot
        yield "ends the key", w._replace(slot=slot), ("end tag", a[1], a[-1])
    elif step == "end tag":
        tag = slots.end_tag(w.tag, me, m.broken) if blocks else None
        yield "ends the tag", w._replace(tag=tag, floor=max(w.floor, a[1])), DONE
    if step in ("end", "end tag"):
        if m.broken == "an intent's lost END is owed":
            yield "leaves, its end lost", w._replace(floor=max(w.floor, a[1])), DONE
        else:
            yield "can not reach the far tier", w, ("owe", a[1])
    elif step == "owe":
        slot = slots.void(w.slot, m.broken) if keys else w.slot
        yield "voids what it owed", w._replace(slot=slot), ("owe tag", a[1])
    elif step == "owe tag":
        after = w._replace(tag=slots.drop(w.tag, m.broken), floor=max(w.floor, a[1]))
        yield "drops what it owed", after, DONE


def intend(m: Any, w: Any, a: Any, me: int) -> Moves:
    return _intend(m, w, a, me, True)


def intend_tag(m: Any, w: Any, a: Any, me: int) -> Moves:
    return _intend(m, w, a, me, False)


WRITER = ("seize", None, None, 0, False)

# Name -> (how it plays, where it begins).
CAST = {
    "reader": (read, ("read", 0)),
    "discoverer": (discover, ("recall", 0)),
    "looker": (look, ("first",)),
    "writer": (write, WRITER),
    "arounder": (write_around, WRITER),
    "asider": (write_aside, ("ask",)),
    "putter": (put, ("space", None, None)),
    "invalidator": (_invalidate(_void), ("change",)),
    "dropper": (_invalidate(_drop), ("change",)),
    "clearer": (_invalidate(_clear), ("change",)),
    "renewer": (renew, ("see",)),
    "intender": (intend, ("seize", 0, False)),
    "tag intender": (intend_tag, ("seize", 0, False)),
}
