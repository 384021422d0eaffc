"""Callers, invalidators and writers of a process, each as a step machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import near_model
import slot_steps as slots

DONE = ("done",)
TRIES = 2

Moves = Iterator[tuple[str, Any, Any]]


# -- callers: ("board", tries, begun) with begun = (floor here, floor anywhere) -------------


def call(m: Any, w: Any, a: Any, me: int, p: int) -> Moves:
    step = a[0]
    if step == "board":
        begun = a[2] or (w.floor(p), max(w.returned))
        leader = w.table[p]
        if leader is None:
            flight = near_model.Flight()
            after = w.at("flights", me, flight).at("table", p, me)
            yield "leads a flight", after, ("ask",)
            return
        flight = w.flights[leader]
        whole = m.strict or (flight.loading and not flight.filled)
        after = w.at("flights", leader, flight._replace(joined=True))
        early = not flight.loading
        yield "joins the flight", after, ("wait", leader, early, begun[whole], a[1], begun)
    elif step == "wait":
        yield from _wait(m, w, a)
    elif step in ("ask", "load", "fill", "holds"):
        yield from _obtain(m, w, a, me, p)
    else:
        yield from _land(m, w, a, me, p)


def _wait(m: Any, w: Any, a: Any) -> Moves:
    _, leader, early, floor, tries, begun = a
    flight = w.flights[leader]
    if not flight.landed:
        return
    certain = flight.certain or m.broken == "a joiner heeds certainty"
    if certain or early:
        old = flight.version < floor
        yield "takes the result", w, ("served too old",) if old else DONE
    elif tries + 1 < TRIES:
        yield "starts anew", w, ("board", tries + 1, begun)
    else:
        yield "loads by itself", w, DONE


def _obtain(m: Any, w: Any, a: Any, me: int, p: int) -> Moves:
    """The far tier, or the source. ("load", granted, tag) -> ("fill", tag) -> ("holds", tag)"""
    step, flight = a[0], w.flights[me]
    if step == "ask":
        slot, tag = w.slot, w.tag
        asked = flight._replace(loading=m.strict, asked=m.trusts(w, p, True))
        if slot is not None and slot[0] == "E" and near_model.slots_hold(m, w):
            found = asked._replace(version=slot[2][0])
            yield "reads the far entry", w.at("flights", me, found), ("keep", True)
            return
        over = slot[1] if slot is not None and slot[0] == "E" else None
        granted, slot = slots.acquire(slot, me, over, False)
        after = w._replace(slot=slot).at("flights", me, asked)
        if m.by_tag and tag is None:
            tag = (1, 10 + me)
            after = after._replace(tag=tag)
        yield "acquires" if granted else "is not granted", after, ("load", granted, tag)
    elif step == "load":
        _, granted, tag = a
        # A loaded value counts from when its load began.
        began = flight._replace(loading=True, version=w.src, asked=m.trusts(w, p, True))
        after = w.at("flights", me, began)
        yield "loads", after, ("fill", tag) if granted else ("land", False)
    elif step == "fill":
        kept, slot = slots.fill(w.slot, me, (flight.version, a[1]))
        after = w._replace(slot=slot).at("flights", me, flight._replace(filled=True))
        checks = m.by_tag and flight.joined and m.broken != "joined results need their nonces"
        if not kept:
            yield "may not fill", after, ("land", False)
        else:
            yield "fills", after, ("holds", a[1]) if checks else ("keep", True)
    elif step == "holds":
        yield "compares its nonces", w, ("keep", True) if w.tag == a[1] else ("land", False)


def _land(m: Any, w: Any, a: Any, me: int, p: int) -> Moves:
    step, flight = a[0], w.flights[me]
    if step == "keep":
        trusted = m.trusts(w, p, flight.asked)
        yield "trusts" if trusted else "does not trust", w, ("store" if trusted else "land", a[1])
    elif step == "store":
        moved = flight.detached and m.broken != "a near fill needs its flight"
        if moved or w.block[p] is not None:
            yield "may not keep it near", w, ("land", a[1])
        else:
            yield "keeps it near", w.at("near", p, flight.version), ("land", a[1])
    elif step == "land":
        certain = a[1] and (not m.strict or m.broken == "strict reads are not shared")
        after = w.at("flights", me, flight._replace(landed=True, certain=certain))
        yield "lands", after, ("leave",)
    elif step == "leave":
        yield "leaves", w.at("table", p, None) if w.table[p] == me else w, DONE


# -- invalidators --------------------------------------------------------------------------


def invalidate(m: Any, w: Any, a: Any, me: int, p: int) -> Moves:
    step = a[0]
    if step == "change":
        yield "changes the source", w._replace(src=w.src + 1), ("flights", False, 0)
    elif step == "flights":
        _, told, version = a
        late = told and m.broken == "the own near tier goes after the far one too"
        yield "detaches flights", w if late else w.detach(p), ("entry", told, version)
    elif step == "entry":
        _, told, version = a
        late = told and m.broken == "the own near tier goes after the far one too"
        after = w if late else w.kill(p)
        if told:
            after = after.at("returned", me, version).hears(p, (me,))
            yield "kills the near entry and returns", after, DONE
        else:
            yield "kills the near entry", after, ("tell",)
    elif step == "tell":
        if m.by_tag:
            after = w._replace(tag=slots.drop(w.tag))
        else:
            after = w._replace(slot=slots.void(w.slot))
        then = ("flights", True, w.src)
        yield "tells the far tier", after.tell(me, p), then


# -- writers: ("block", version, asked) ----------------------------------------------------


def write(m: Any, w: Any, a: Any, me: int, p: int) -> Moves:
    if a == DONE:
        return
    step, version, asked = a
    if step == "block":
        block = w.block[p]
        block = ((me,), False) if block is None else ((*block[0], me), True)
        trusted = m.trusts(w, p, True)
        after = w.detach(p).at("near", p, None)
        if m.broken != "a writer blocks its near tier":
            after = after.at("block", p, block)
        yield "blocks here", after, ("seize", 0, trusted)
    elif step == "seize":
        after = w._replace(slot=slots.seize(w.slot, me)).tell(me, p)
        yield "seizes", after, ("source", 0, asked)
    elif step == "source":
        yield "writes the source", w._replace(src=w.src + 1), ("commit", w.src + 1, asked)
    elif step == "commit":
        kept, slot = slots.commit(w.slot, me, (version, w.tag))
        keeps = kept and m.trusts(w, p, asked)
        then = ("keep" if keeps else "detach", version, asked)
        yield "commits" if kept else "may not commit", w._replace(slot=slot), then
    elif step == "keep":
        block = w.block[p]
        alone = block == ((me,), False) or m.broken == "a writer keeps only if it was alone"
        after = w.at("near", p, version) if alone else w
        yield "keeps it near" if alone else "may not keep it near", after, ("detach", *a[1:])
    elif step == "detach":
        skips = m.broken == "a writer detaches flights at its end"
        yield "detaches flights", w if skips else w.detach(p), ("end", *a[1:])
    elif step == "end":
        after = w
        if w.block[p] is not None:
            others = tuple(i for i in w.block[p][0] if i != me)
            after = w.at("block", p, (others, True) if others else None)
        yield "returns", after.at("returned", me, version).hears(p, (me,)), DONE


PLAYS = {"caller": call, "invalidator": invalidate, "writer": write}
FIRST = {
    "caller": ("board", 0, ()),
    "invalidator": ("change",),
    "writer": ("block", 0, False),
}
