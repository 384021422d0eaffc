"""The memory backend under the contract, on a clock moved by hand."""

from __future__ import annotations

from cachekit.backends.memory import MemoryBackend
from cachekit.protocols import Backend
from cachekit.testing import BackendContract


class TestMemory(BackendContract):
    manual_time = True

    def make_backend(self, namespace: str) -> Backend:
        return MemoryBackend(clock=self.clock)
