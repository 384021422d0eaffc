"""A third party's plain object, adapted by PlainBackend, under the contract."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from cachekit.backends.base import PlainBackend
from cachekit.errors import BackendError, BackendTimeout, BackendUnavailable
from cachekit.protocols import Backend, Item
from cachekit.runtime import Runtime, drive
from cachekit.testing import BackendContract, ManualClock


class Plain:
    """What a third party would write: four verbs, no deadline, no slots."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._items: dict[str, tuple[bytes, float | None]] = {}
        self._lock = threading.Lock()
        self.closed = 0

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        with self._lock:
            return [self._get(key) for key in keys]

    def set_many(self, items: Sequence[Item]) -> None:
        with self._lock:
            for key, data, ttl in items:
                self._items[key] = (data, None if ttl is None else self._clock() + ttl)

    def delete_many(self, keys: Sequence[str]) -> None:
        with self._lock:
            for key in keys:
                self._items.pop(key, None)

    def close(self) -> None:
        self.closed += 1

    def _get(self, key: str) -> bytes | None:
        data, until = self._items.get(key, (None, None))
        return None if until is not None and self._clock() >= until else data


class TestPlain(BackendContract):
    exact = False

    def make_backend(self, namespace: str) -> Backend:
        return PlainBackend(Plain(time.monotonic), name="plain")


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (ValueError("secret"), BackendUnavailable),
        (TimeoutError(), BackendTimeout),
        (MemoryError(), BackendUnavailable),
        (BackendError("its own"), BackendError),
    ],
)
def test_whatever_the_object_raises_is_a_backend_error(
    raised: Exception, kind: type[BackendError]
) -> None:
    class Broken(Plain):
        def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
            raise raised

    here = Runtime().threads
    store = PlainBackend(Broken(ManualClock()), name="broken").open(here)
    with pytest.raises(kind) as failed:
        drive(store.get_many(["k"], here.deadline(1)))  # type: ignore[arg-type]
    assert "secret" not in str(failed.value)


def test_an_object_that_answers_too_few_values_is_an_error_not_a_wrong_value() -> None:
    class Short(Plain):
        def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
            return [b"only one"]

    here = Runtime().threads
    store = PlainBackend(Short(ManualClock()), name="short").open(here)
    with pytest.raises(BackendError, match="one per key"):
        drive(store.get_many(["a", "b"], here.deadline(1)))  # type: ignore[arg-type]


def test_the_object_is_closed_once_with_the_last_store_open_on_it() -> None:
    plain = Plain(ManualClock())
    backend = PlainBackend(plain, name="plain")
    one, other = (backend.open(Runtime().threads) for _ in range(2))
    for _ in range(2):
        drive(one.close())  # type: ignore[arg-type]
    assert plain.closed == 0
    drive(other.close())  # type: ignore[arg-type]
    assert plain.closed == 1
