"""Write-back logs: where an operation lives between ``put`` and the source."""

from .memory import MemoryLog

__all__ = ["MemoryLog"]
