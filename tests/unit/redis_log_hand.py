"""The write-back queue in Redis with its verbs as plain functions, from either world."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Self

import pytest
from redis_faults import WORLDS

from cachekit.backends.redis import RedisBackend
from cachekit.backends.redis.log import RedisLog
from cachekit.protocols import Letter, OpKind, Record
from cachekit.runtime import Runtime, drive

BOTH = pytest.mark.parametrize("kind", WORLDS)
A, B = b"a" * 16, b"b" * 16
STREAM, INDEX, STATE = (f"{{ns:wb:q:0}}:{name}" for name in ("log", "index", "state"))


def put(key: str, data: bytes = b"v", at: float = 1.0) -> Record:
    return Record(key, OpKind.PUT, data, 0, at)


class Hand:
    """One log, used from one world; its verbs as plain functions."""

    def __init__(self, log: Any, kind: str = "threads") -> None:
        self.log = log
        self._runner = asyncio.Runner() if kind == "asyncio" else None
        runtime = Runtime()

        async def open_world() -> Any:
            return runtime.asyncio()

        self.world = self._runner.run(open_world()) if self._runner else runtime.threads

    def __call__(self, verb: str, *args: Any, timeout: float = 5.0, **more: Any) -> Any:
        async def call() -> Any:
            deadline = self.world.deadline(timeout)
            return await getattr(self.log, verb)(self.world, *args, deadline, **more)

        return self._runner.run(call()) if self._runner else drive(call())

    def append(self, *records: Record, timeout: float = 5.0) -> list[Any]:
        found: list[Any] = self("append", records, timeout=timeout)
        return found

    def pending(self, *keys: str) -> list[bytes | None]:
        seen = self("look", keys, 0).pending
        return [record and record.data for record in seen]

    def read(self, after: int = 0, part: int = 0) -> list[Record]:
        found: list[Record] = self("read", part, after, 1_000_000)
        return found

    def own(self, owner: bytes = A, part: int = 0) -> int:
        epoch = self("claim", part, owner, 60.0)
        assert isinstance(epoch, int)
        return epoch

    def settle(
        self, epoch: int, records: Sequence[Record], letters: Sequence[Letter] = (), part: int = 0
    ) -> bool:
        done = [(record.key, record.version) for record in records]
        settled: bool = self("settle", part, epoch, done, letters, timeout=20.0)
        return settled

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._close()
        if self._runner:
            self._runner.close()

    def _close(self) -> None:
        if self._runner:
            self._runner.run(self.log.close(self.world))
        else:
            drive(self.log.close(self.world))


def log_at(url: str, queue: str = "q", namespace: str = "ns", **options: Any) -> RedisLog:
    opened = RedisBackend(url, namespace=namespace).log
    assert opened is not None
    log: Any = opened(queue, **options)
    return log
