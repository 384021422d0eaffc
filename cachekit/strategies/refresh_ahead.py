"""Refresh-ahead: hot values are renewed before they expire."""

from __future__ import annotations

from typing import Any

from .read_through import ReadThrough


class RefreshAhead(ReadThrough):
    """A read in the last part of a value's life starts a background load and is answered at once
    with the present value, so that readers of hot keys never wait. ``early`` is the fraction of
    the ttl after which that begins (default 0.8), or ``beta`` for XFetch. Needs a ttl."""

    description = "renews hot values in the background before they expire"

    def _own_options(self, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("early") is None and options.get("beta") is None:
            options["early"] = 0.8
        return options
