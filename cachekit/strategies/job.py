"""What is read: a recipe (how a kind of value is kept) and a job (one key of it)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..core.outcome import Outcome
from ..core.place import Place, Tally
from ..core.policy import Policy
from ..protocols import Codec
from ..runtime import AnyWorld
from .discovery import Discovery


@dataclass(slots=True)
class Recipe:
    """What is cached and how: shared by all keys of a function or strategy."""

    name: str
    policy: Policy
    codec: Codec
    tally: Tally
    discovery: Discovery | None = None  # tags known only from the result


@dataclass(slots=True)
class Job:
    """One read: where the key lives, its tags, and how to load it."""

    recipe: Recipe
    place: Place
    load: Callable[[AnyWorld], Awaitable[Outcome]]
    tags: tuple[str, ...] = ()


def nonce_life(policy: Policy) -> float | None:
    return None if policy.ttl is None or callable(policy.ttl) else policy.ttl + policy.grace
