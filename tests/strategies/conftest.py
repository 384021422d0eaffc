from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stage import PLACES, SHARED, WORLDS, Opener, Stage, opener_for


@pytest.fixture(params=PLACES)
def open_cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens caches over each place; closed at the end."""
    opener = opener_for(request.param, request, tmp_path)
    yield opener
    opener.close()


@pytest.fixture(params=SHARED)
def open_shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """As ``open_cache``, but only places that two caches can share."""
    opener = opener_for(request.param, request, tmp_path)
    yield opener
    opener.close()


@pytest.fixture(params=WORLDS)
def stage(request: pytest.FixtureRequest, open_cache: Opener) -> Stage:
    return Stage(request.param, open_cache)


@pytest.fixture(params=WORLDS)
def shared_stage(request: pytest.FixtureRequest, open_shared: Opener) -> Stage:
    return Stage(request.param, open_shared)


@pytest.fixture(params=WORLDS)
def embedded(request: pytest.FixtureRequest) -> Iterator[Stage]:
    opener = Opener("embedded", None)
    yield Stage(request.param, opener)
    opener.close()
