"""The SQLite backend under the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachekit.backends.sqlite import SQLiteBackend
from cachekit.protocols import Backend
from cachekit.testing import BackendContract


class TestSQLite(BackendContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "cache.db"

    def make_backend(self, namespace: str) -> Backend:
        return SQLiteBackend(f"sqlite:///{self.path}", namespace=namespace)
