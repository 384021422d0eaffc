"""Every rule of the near tier that can be left out, and a configuration in which that is seen."""

from __future__ import annotations

from typing import Any

C0, C1, I0, I1, W0, W1 = (
    (kind, process) for kind in ("caller", "invalidator", "writer") for process in (0, 1)
)

RULES: dict[str, tuple[tuple[tuple[str, int], ...], dict[str, Any]]] = {
    "a near fill needs its flight": ((C0, I0), {}),
    "a note detaches flights first": ((C0, I1), {}),
    "the own near tier goes after the far one too": ((C0, C0, I0), {}),
    "a joiner heeds certainty": ((C0, C0, I1), {}),
    "joined results need their nonces": ((C0, C0, I1), {"by_tag": True}),
    "strict reads are not shared": ((C0, C0, I1), {"strict": True}),
    "joined after the subscription is confirmed": ((C0, I1), {"bus": 0}),
    "copies asked for before joining are not kept": ((C0, I1), {"bus": 0}),
    "a lost bus empties the near tier": ((C0, I1), {"bus": 0, "cuts": 1}),
    "trust ends before the near tier is emptied": ((C0, I1), {"bus": 0, "cuts": 1}),
    "a writer blocks its near tier": ((C0, W0, I1), {}),
    "a writer keeps only if it was alone": ((W0, I1), {}),
    "a writer detaches flights at its end": ((C0, C0, W0), {}),
}
