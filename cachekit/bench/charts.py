"""Charts as inline SVG: horizontal, one row a result, grouped by backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH = 680
LABEL = 196  # where the plot begins
RIGHT = 84  # kept free for the number behind a bar
ROW = 21
HEAD = 24


class Mark(NamedTuple):
    """One row of a chart. ``numbers`` None: nothing was measured there."""

    group: str
    label: str
    numbers: tuple[float, ...] | None
    text: str
    muted: bool = False  # the reference


def bars(marks: Sequence[Mark], *, full: float | None = None, name: str, right: int = RIGHT) -> str:
    """Bars from zero, their numbers stacked.

    ``full`` is the end of the scale (default: the largest); ``right`` is kept free for texts."""
    end = full or max((sum(m.numbers) for m in marks if m.numbers), default=0.0) or 1.0
    room = WIDTH - LABEL - right

    def draw(mark: Mark, y: float) -> str:
        x, parts = float(LABEL), []
        for series, number in enumerate(mark.numbers or ()):
            if not number:
                continue
            width = max(1.5, room * min(1.0, number / end))
            style = "muted" if mark.muted else f"s{series}"
            parts.append(
                f'<rect class="{style}" x="{x:.1f}" y="{y + 3:.1f}" width="{width:.1f}" '
                f'height="{ROW - 7}" rx="2"><title>{escape(mark.label)}: {escape(mark.text)}'
                "</title></rect>"
            )
            x += width
        parts.append(_text(x + 6, y + ROW / 2, mark.text, "value"))
        return "".join(parts)

    return _chart(marks, draw, name=name)


def ranges(marks: Sequence[Mark], *, tick: Callable[[float], str], name: str) -> str:
    """From the first number (a dot) over the second to the third, on a logarithmic scale."""
    seen = [n for m in marks for n in m.numbers or () if n > 0]
    if not seen:
        return ""
    low = math.floor(math.log10(min(seen)))
    high = max(low + 1, math.ceil(math.log10(max(seen))))
    room = WIDTH - LABEL - 2 * RIGHT

    def place(number: float) -> float:
        share = (math.log10(max(number, 10.0**low)) - low) / (high - low)
        return LABEL + room * share

    def draw(mark: Mark, y: float) -> str:
        middle = y + ROW / 2
        if not mark.numbers:
            return _text(LABEL + 6, middle, "none in this workload", "value")
        first, second, third = (place(n) for n in mark.numbers)
        style = "muted" if mark.muted else "s0"
        return (
            f'<line class="span {style}" x1="{first:.1f}" x2="{third:.1f}" y1="{middle}" '
            f'y2="{middle}"/><circle class="{style}" cx="{first:.1f}" cy="{middle}" r="5">'
            f"<title>{escape(mark.label)}: {escape(mark.text)}</title></circle>"
            f'<rect class="{style}" x="{second - 1.5:.1f}" y="{middle - 6}" width="3" '
            f'height="12"/><circle class="hollow {style}" cx="{third:.1f}" cy="{middle}" r="4"/>'
            + _text(third + 9, middle, mark.text, "value")
        )

    grid = "".join(
        f'<line class="grid" x1="{place(10.0**p):.1f}" x2="{place(10.0**p):.1f}" y1="18" '
        'y2="{bottom}"/>' + _text(place(10.0**p), 9, tick(10.0**p), "tick")
        for p in range(low, high + 1)
    )
    return _chart(marks, draw, name=name, top=20, under=grid)


def _chart(
    marks: Sequence[Mark],
    draw: Callable[[Mark, float], str],
    *,
    name: str,
    top: float = 0,
    under: str = "",
) -> str:
    parts: list[str] = []
    y, group = top, ""
    for mark in marks:
        if mark.group != group:
            group = mark.group
            parts.append(_text(0, y + HEAD / 2 + 2, group, "group"))
            y += HEAD
        parts.append(_text(LABEL - 8, y + ROW / 2, mark.label, "label"))
        parts.append(draw(mark, y))
        y += ROW
    bottom = y + 6
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom:.0f}" role="img" aria-label="{escape(name)}">'
        + under.replace("{bottom}", f"{bottom:.0f}")
        + "".join(parts)
        + "</svg>"
    )


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
