"""The logs under the contract: the reference (of one partition and of three), SQLite, Redis."""

from __future__ import annotations

from pathlib import Path

import pytest
from reference_log import Place, ReferenceLog

from cachekit.backends.redis import RedisBackend
from cachekit.logs.sqlite import SQLiteLog
from cachekit.protocols import Bounds, Log
from cachekit.testing import LogContract, RedisServer


class TestReferenceLog(LogContract):
    manual_time = True
    many_settled = 2_500
    parts = 1

    @pytest.fixture(autouse=True)
    def _shelf(self) -> None:
        self.places: dict[str, Place] = {}

    def make_log(self, place: str, queue: str, bounds: Bounds) -> Log:
        at = self.places.setdefault(place, Place(self.clock, self.parts))
        return ReferenceLog(at, queue, bounds)


class TestReferenceLogOfThreePartitions(TestReferenceLog):
    parts = 3


class TestSQLiteLog(LogContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_log(self, place: str, queue: str, bounds: Bounds) -> Log:
        return SQLiteLog(self.folder / f"{place}.db", queue, bounds=bounds)


@pytest.mark.server
class TestRedisLog(LogContract):
    many_settled = 1_000  # it tells nothing
    parts = 1

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer) -> None:
        self.url = redis_server.url

    def make_log(self, place: str, queue: str, bounds: Bounds) -> Log:
        return RedisBackend(self.url, namespace=place).log(queue, bounds=bounds, parts=self.parts)


class TestRedisLogOfThreePartitions(TestRedisLog):
    parts = 3
