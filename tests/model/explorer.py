"""Visits every state that a model can reach, breadth first, so that a trace is a shortest one.

A model is what :class:`Model` says; its states are hashable values. Each step of it is atomic, and
whoever could move next does, in one branch or another: all interleavings. An actor that is
killed is one that never moves again, so every prefix of a run with others going on covers it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Hashable, Iterable
from typing import NamedTuple, Protocol

State = Hashable


class Model(Protocol):
    def first(self) -> State: ...

    def steps(self, state: State) -> Iterable[tuple[str, State]]:
        """(what happens, the state after it) for all that can happen now."""

    def wrong(self, state: State) -> str:
        """What must not be; empty where all is well."""

    def done(self, state: State) -> bool:
        """Whether every actor came to its end, or may stand still here."""

    def goal(self, state: State) -> bool:
        """A state that some run must reach, else the model proves nothing."""


class Report(NamedTuple):
    states: int
    steps: int
    seconds: float
    wrong: str  # empty: no state is
    trace: tuple[str, ...]  # to the wrong state, or a goal
    goal: bool  # reached

    def __str__(self) -> str:
        lines = [f"{self.states} states, {self.steps} steps, {self.seconds:.2f} s"]
        if self.wrong:
            lines.append(f"WRONG: {self.wrong}")
            lines += [f"  {number}. {label}" for number, label in enumerate(self.trace, 1)]
        return "\n".join(lines)


class TooManyStates(AssertionError):
    """The model is larger than it was meant to be: nothing is known about the rest."""


def explore(model: Model, *, most: int = 2_000_000) -> Report:
    """Every reachable state, or the shortest run to a wrong one. Raises TooManyStates."""
    collects = gc.isenabled()
    gc.disable()  # states make no circles, and it would walk all of them again and again
    try:
        return _explore(model, most)
    finally:
        if collects:
            gc.enable()


def _explore(model: Model, most: int) -> Report:
    began = time.perf_counter()
    first = model.first()
    came: dict[State, tuple[State, str] | None] = {first: None}
    ahead, steps, reached = [first], 0, False
    while ahead:
        layer, ahead = ahead, []
        for state in layer:
            wrong = model.wrong(state)
            moved = False
            if not wrong:
                reached = reached or model.goal(state)
                for label, after in model.steps(state):
                    steps += 1
                    if after == state:
                        continue
                    moved = True
                    if after not in came:
                        came[after] = (state, label)
                        ahead.append(after)
                if not moved and not model.done(state):
                    wrong = "nobody can move and not everybody is done"
            if wrong:
                spent = time.perf_counter() - began
                return Report(len(came), steps, spent, wrong, _trace(came, state), reached)
        if len(came) > most:
            raise TooManyStates(f"more than {most} states")
    return Report(len(came), steps, time.perf_counter() - began, "", (), reached)


def _trace(came: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    labels: list[str] = []
    at = came[state]
    while at is not None:
        state, label = at
        labels.append(label)
        at = came[state]
    return tuple(reversed(labels))
