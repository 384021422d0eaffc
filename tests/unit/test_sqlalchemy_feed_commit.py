"""Around COMMIT: readers in between, lost answers, killed processes, and what else may fail."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shop_database import (
    ALL,
    Item,
    Stage,
    answer_commits,
    far_stage,
    reader,
    sa,
    tags_of,
)

import cachekit
from cachekit.errors import BackendUnavailable, ConfigurationError
from cachekit.feeds.sqlalchemy import session_feed
from cachekit.testing.servers import RedisServer

UNIT = Path(__file__).parent


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "shop.db", cachekit.Cache())
    made.fill(*ALL)
    yield made
    made.close()


@pytest.fixture
def followed(stage: Stage) -> Iterator[Stage]:
    detach = session_feed(stage.Session, tags_of).attach(stage.cache)
    yield stage
    detach()
    assert stage.cache.parts.meter.counts["feed_failed"] == 0


# -- the window of the commit ------------------------------------------------------------


@pytest.mark.server
@pytest.mark.parametrize("far", [False, True])
def test_a_reader_between_flush_and_commit_leaves_no_old_value(
    tmp_path: Path, redis_server: RedisServer, far: bool
) -> None:
    stage = (
        far_stage(tmp_path / "shop.db", redis_server)
        if far
        else Stage(tmp_path / "shop.db", cachekit.Cache())
    )
    name = reader(stage)
    session_feed(stage.Session, tags_of).attach(stage.cache)
    read: list[str] = []

    def read_before_commit(connection: Any) -> None:
        read.append(name())  # under the intent: it may not be kept

    with stage.Session() as session:
        session.get(Item, 7).name = "bolt"
        session.flush()
        assert name() == "nut"
        assert name.peek() == "nut"  # type: ignore[attr-defined]  # kept, for nothing is committed
        sa.event.listen(stage.engine, "commit", read_before_commit)
        session.commit()
    sa.event.remove(stage.engine, "commit", read_before_commit)
    assert read == ["nut"]
    assert name() == "bolt"
    assert name() == "bolt"
    stage.close()


@pytest.mark.server
@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_whose_outcome_is_unknown_leaves_misses_for_the_ttl(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    stage = far_stage(tmp_path / "shop.db", redis_server)
    name = reader(stage)
    session_feed(stage.Session, tags_of, ttl="20s").attach(stage.cache)
    assert name() == "nut"
    with monkeypatch.context() as patched:
        answer_commits(stage, patched, sqlite3.OperationalError("lost"), committed)
        with stage.Session() as session:
            session.get(Item, 7).name = "bolt"
            with pytest.raises(sa.exc.OperationalError):
                session.commit()
    stage.engine.dispose()
    assert name() == ("bolt" if committed else "nut")
    assert name.peek() is cachekit.MISSING  # type: ignore[attr-defined]  # it is not kept
    stage.close()


def test_a_commit_that_the_database_refuses_ends_the_intent(
    followed: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        answer_commits(followed, patched, sqlite3.IntegrityError("deferred"), False)
        with pytest.raises(sa.exc.IntegrityError), followed.Session.begin() as session:
            session.get(Item, 7).name = "bolt"
    followed.fill("item:7")
    assert followed.kept("item:7") == {"item:7"}


CHILD = """
import os, signal, sys
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker
import cachekit
from cachekit.feeds.sqlalchemy import session_feed

sys.path.insert(0, sys.argv[4])
from shop_database import Item, tags_of

cache = cachekit.Cache(sys.argv[1], namespace=sys.argv[2])
Session = sessionmaker(sa.create_engine("sqlite:///" + sys.argv[3]))
# After COMMIT, before the feed's own listener: nothing of it runs any more.
sa.event.listen(Session, "after_commit", lambda s: os.kill(os.getpid(), signal.SIGKILL))
session_feed(Session, tags_of, ttl=20).attach(cache)
with Session.begin() as session:
    session.get(Item, 7).name = "bolt"
"""


@pytest.mark.server
def test_a_process_killed_right_after_its_commit_leaves_no_old_value(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    stage = far_stage(tmp_path / "shop.db", redis_server, coherence="strict")
    name = reader(stage)
    assert name() == "nut"
    assert name.peek() == "nut"  # type: ignore[attr-defined]
    namespace = stage.cache.settings.namespace
    arguments = [redis_server.url, namespace, str(tmp_path / "shop.db"), str(UNIT)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        cwd=UNIT.parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert name() == "bolt"
    assert name.peek() is cachekit.MISSING  # type: ignore[attr-defined]  # the intent stands
    stage.close()


# -- what fails --------------------------------------------------------------------------


@pytest.mark.server
@pytest.mark.parametrize("strict", [False, True])
def test_a_far_tier_that_is_away_fails_no_commit_and_hears_of_it_later(
    tmp_path: Path, strict: bool
) -> None:
    with RedisServer() as server:
        stage = far_stage(tmp_path / "shop.db", server, strict=strict, breaker_reset=0.2)
        session_feed(stage.Session, tags_of).attach(stage.cache)
        server.stop()
        with stage.Session.begin() as session:
            session.get(Item, 7).name = "bolt"
        with stage.Session() as session:
            assert session.get(Item, 7).name == "bolt"
        assert len(stage.cache.parts.invalidator.pending)
        stage.close()


def test_a_function_that_raises_makes_everything_outdated_and_fails_no_commit(
    stage: Stage,
) -> None:
    def wrong(row: Any, change: str) -> list[str]:
        raise KeyError(row.name)

    session_feed(stage.Session, wrong).attach(stage.cache)
    with stage.Session.begin() as session:
        session.get(Item, 7).name = "bolt"
    assert stage.kept(*ALL) == set()
    assert stage.cache.stats().counts["feed_failed"] >= 1


@pytest.mark.parametrize("tags", ["item:7", [7], [""], None])
def test_tags_that_are_none_make_everything_outdated(stage: Stage, tags: Any) -> None:
    session_feed(stage.Session, lambda row, change: tags).attach(stage.cache)
    with stage.Session.begin() as session:
        session.get(Item, 7).name = "bolt"
    assert stage.kept(*ALL) == set()


def test_a_cache_that_breaks_its_word_fails_no_commit(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise BackendUnavailable("away")

    session_feed(stage.Session, tags_of).attach(stage.cache)
    monkeypatch.setattr(stage.cache, "write_intent", broken)
    with stage.Session.begin() as session:
        session.get(Item, 7).name = "bolt"
    assert "item:7" not in stage.kept(*ALL)
    assert stage.cache.parts.meter.counts["feed_failed"] == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tags_of": None}, "tags_of"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": "soon"}, "ttl"),
        ({"tables_of": 5}, "tables_of"),
    ],
)
def test_a_wrong_option_is_refused_by_its_name(
    stage: Stage, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        session_feed(stage.Session, **{"tags_of": tags_of, **options})


def test_a_target_that_is_no_session_is_refused(stage: Stage) -> None:
    with pytest.raises(ConfigurationError, match="follow"):
        session_feed(object(), tags_of).attach(stage.cache)
