"""How a call of the user's code ended, carried as a value.

A user's exception must reach the caller unchanged, ``StopIteration`` included, which can not
travel through a coroutine; so the slow road returns outcomes and only plain functions raise.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Outcome(NamedTuple):
    value: Any = None
    error: BaseException | None = None

    def settle(self) -> Any:
        """The value, or the error raised as it was."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                # The traceback refers to this frame, and this frame to the error: cut the circle.
                del self
        return self.value
