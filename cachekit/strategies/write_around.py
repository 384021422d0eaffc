"""Write-around: writes go past the cache; the next read loads."""

from __future__ import annotations

from .read_through import ReadThrough


class WriteAround(ReadThrough):
    """For data that is written often and read seldom: a write blocks the key, writes the source
    and leaves the key empty, so that it costs no room in the cache. Reads as read-through."""

    description = "a write goes to the source only; the next read loads"
