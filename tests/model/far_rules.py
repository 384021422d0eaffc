"""Every rule of the far tier that can be left out, and a configuration in which that is seen."""

from __future__ import annotations

from typing import Any

TAGS = {"tags": True}
AGE = {"tags": True, "spaces": True, "restart": True, "misfortune": False}

# Rule -> (actors, options).
RULES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "FILL compares the token": (("reader", "invalidator"), {}),
    "VOID takes tokens": (("reader", "invalidator"), {}),
    "VOID keeps a block": (("reader", "arounder", "invalidator"), {}),
    "VOID contests a block": (("writer", "invalidator"), {}),
    "PUT contests a block": (("writer", "putter"), {}),
    "SEIZE joins a block": (("writer", "arounder"), {}),
    "SEIZE contests a block": (("writer", "writer"), {}),
    "COMMIT heeds contest": (("writer", "invalidator"), {}),
    "END deletes what is not a block": (("reader", "arounder"), {}),
    "END leaves the others' block": (("reader", "arounder", "arounder"), {}),
    "END contests others' block": (("writer", "arounder"), {}),
    "an unknown outcome keeps its block": (("reader", "arounder"), {}),
    "a lost END is owed": (("reader", "arounder"), {}),
    "nonces before the load": (("reader", "dropper"), TAGS),
    "a writer's nonces before the source": (("writer", "dropper"), TAGS),
    "nonces are random": (("reader", "reader", "dropper"), TAGS),
    "a drop needs no entry": (("reader", "dropper"), TAGS),
    "discovered tags wait for the next load": (("discoverer", "dropper"), TAGS),
    "renewal never sets": (("reader", "renewer", "dropper"), TAGS),
    "an intent blocks its tags": (("reader", "tag intender"), TAGS),
    "an intent's lost END is owed": (("reader", "tag intender"), TAGS),
    "a drop keeps a tag's block": (("reader", "tag intender", "dropper"), TAGS),
    "the first of two intents leaves a tag's block": (
        ("reader", "tag intender", "tag intender"),
        TAGS,
    ),
    "space nonces carry the run": (("reader", "invalidator"), AGE),
    "tag nonces carry the run": (("reader", "dropper"), {**AGE, "nodes": True}),
    "tag nonces carry the run, read in two trips": (("reader", "looker", "dropper"), AGE),
}
