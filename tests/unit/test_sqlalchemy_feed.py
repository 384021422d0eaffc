"""Transactions of SQLAlchemy sessions, on real SQLite files, make the right tags outdated."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from shop_database import (
    ALL,
    Item,
    Memo,
    Shelf,
    Stage,
    orm,
    sa,
    tags_of,
)

import cachekit
from cachekit.errors import ConfigurationError
from cachekit.feeds.sqlalchemy import session_feed


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


# -- rows --------------------------------------------------------------------------------


def test_inserted_updated_and_deleted_rows_make_their_tags_outdated(followed: Stage) -> None:
    with followed.Session.begin() as session:
        session.add(Item(id=8, name="bolt", shelf_id=2))
    assert followed.kept(*ALL) == {"item:7", "shelf:1", "shelf:None"}
    followed.fill(*ALL)
    with followed.Session.begin() as session:
        session.get(Item, 8).name = "gear"
    assert followed.kept(*ALL) == {"item:7", "shelf:1", "shelf:None"}
    followed.fill(*ALL)
    with followed.Session.begin() as session:
        session.delete(session.get(Item, 8))
    assert followed.kept(*ALL) == {"item:7", "shelf:1", "shelf:None"}


def test_a_key_that_the_database_makes_is_known(followed: Stage) -> None:
    with followed.Session.begin() as session:
        session.add(Item(name="bolt"))
    assert followed.kept("item:8", "shelf:None") == set()


def test_a_transaction_that_is_rolled_back_touches_nothing(followed: Stage) -> None:
    with followed.Session() as session:
        session.get(Item, 7).name = "bolt"
        session.flush()
        session.rollback()
    with followed.Session() as session:
        session.get(Item, 7).name = "bolt"
        session.flush()
    assert followed.kept(*ALL) == set(ALL)
    with followed.Session() as session:
        session.add(Item(id=8, name="nut"))
        with pytest.raises(sa.exc.IntegrityError):
            session.commit()
        session.rollback()
        session.commit()
    assert followed.kept(*ALL) == set(ALL)


def test_nothing_goes_before_the_commit(followed: Stage) -> None:
    with followed.Session() as session:
        session.get(Item, 7).name = "bolt"
        session.flush()
        assert followed.kept(*ALL) == set(ALL)
        session.commit()
        assert followed.kept("item:7") == set()
        followed.fill("item:7")
        session.commit()
        assert followed.kept("item:7") == {"item:7"}, "told a second time"


def test_a_row_that_moves_makes_both_groups_outdated(followed: Stage) -> None:
    with followed.Session.begin() as session:
        item = session.get(Item, 7)
        item.shelf_id = 2
    assert followed.kept(*ALL) == {"item:8", "shelf:None"}


@pytest.mark.parametrize("move", ["column", "relationship", "backref", "away"])
def test_a_row_that_moves_is_known_by_its_old_group_though_it_was_expired(
    followed: Stage, move: str
) -> None:
    with followed.Session() as session:
        item, shelf = session.get(Item, 7), session.get(Shelf, 2)
        session.commit()  # expires both
        if move == "column":
            item.shelf_id = 2
        elif move == "relationship":
            item.shelf = shelf
        elif move == "backref":
            shelf.items.append(item)
        else:
            item.shelf_id = None
        session.commit()
    kept = followed.kept(*ALL)
    assert "shelf:1" not in kept
    assert ("shelf:None" if move == "away" else "shelf:2") not in kept


def test_a_row_changed_and_then_deleted_is_known_by_what_the_database_has(
    followed: Stage,
) -> None:
    with followed.Session() as session:
        item = session.get(Item, 7)
        session.commit()
        item.shelf_id = 2
        session.delete(item)
        session.commit()
    assert "shelf:1" not in followed.kept(*ALL)


def test_an_expired_row_can_be_deleted(followed: Stage) -> None:
    followed.fill("topic:x")
    with followed.Session() as session:
        memo, item = session.get(Memo, 1), session.get(Item, 7)
        session.delete(memo)
        session.expire(memo, ["topic"])
        session.delete(item)
        session.expire(item)
        session.commit()
    assert followed.kept(*ALL) == {"item:8", "shelf:2", "shelf:None"}
    assert followed.kept("topic:x") == set()


def test_children_that_lose_their_parent_are_changed_rows(followed: Stage) -> None:
    with followed.Session.begin() as session:
        session.delete(session.get(Shelf, 1))
    assert followed.kept(*ALL) == {"item:8", "shelf:2"}


def test_a_function_of_three_gets_the_previous_values(stage: Stage) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def tags(row: Any, change: str, previous: Mapping[str, Any]) -> list[str]:
        seen.append((change, dict(previous)))
        return []

    session_feed(stage.Session, tags).attach(stage.cache)
    with stage.Session.begin() as session:
        session.add(Item(id=8, name="bolt"))
        session.get(Item, 7).name = "gear"
    with stage.Session.begin() as session:
        session.delete(session.get(Item, 8))
    assert sorted(seen, key=str) == [("delete", {}), ("insert", {}), ("update", {"name": "nut"})]


def test_the_stand_in_answers_properties_and_methods_as_it_was(stage: Stage) -> None:
    session_feed(stage.Session, lambda row, change: [row.address("a")]).attach(stage.cache)
    stage.fill("a:shelf:1", "a:shelf:2")
    with stage.Session.begin() as session:
        session.get(Item, 7).shelf_id = 2
    assert stage.kept("a:shelf:1", "a:shelf:2") == set()


def test_a_savepoint_that_is_released_counts_with_the_transaction(followed: Stage) -> None:
    with followed.Session() as session:
        with session.begin_nested():
            session.get(Item, 7).name = "bolt"
        assert followed.kept(*ALL) == set(ALL), "a savepoint is no commit"
        session.commit()
    assert "item:7" not in followed.kept(*ALL)


def test_a_savepoint_that_is_rolled_back_forgets_no_other_change(followed: Stage) -> None:
    with followed.Session() as session:
        session.get(Item, 7).name = "bolt"
        session.flush()
        nested = session.begin_nested()
        session.add(Item(id=8, name="gear"))
        session.flush()
        nested.rollback()
        session.commit()
    assert "item:7" not in followed.kept(*ALL)


def test_a_savepoint_left_open_is_committed_with_the_rest(followed: Stage) -> None:
    with followed.Session() as session:
        session.begin_nested()
        session.get(Item, 7).name = "bolt"
        session.commit()
        if session.in_transaction():
            session.commit()
    assert "item:7" not in followed.kept(*ALL)


def test_what_another_listener_adds_at_the_last_moment_counts_too(followed: Stage) -> None:
    def audit(session: Any) -> None:
        if not session.info.get("audited"):
            session.info["audited"] = True
            session.add(Item(id=8, name="audit", shelf_id=2))

    sa.event.listen(followed.Session, "before_commit", audit)
    with followed.Session.begin() as session:
        session.get(Item, 7).name = "bolt"
    assert followed.kept(*ALL) == {"shelf:None"}


# -- statements --------------------------------------------------------------------------


def test_bulk_statements_make_their_tables_tags_outdated(stage: Stage) -> None:
    tables = {"item": ["items"], "shelf": ["shelves"]}
    session_feed(stage.Session, tags_of, tables_of=tables).attach(stage.cache)
    for statement in (
        sa.update(Item).values(name="bolt"),
        sa.insert(Item).values(id=8, name="gear"),
        sa.delete(Item).where(Item.id == 8),
        sa.update(Item.__table__).values(name="nut"),
    ):
        stage.fill("items", "shelves")
        with stage.Session.begin() as session:
            session.execute(statement)
            assert stage.kept("items", "shelves") == {"items", "shelves"}
        assert stage.kept("items", "shelves") == {"shelves"}
    stage.fill("items", "shelves")
    with stage.Session.begin() as session:
        session.query(Shelf).update({"label": "x"})
        session.execute(sa.select(Item)).all()
    assert stage.kept("items", "shelves") == {"items"}


def test_a_bulk_statement_that_nobody_maps_is_counted(stage: Stage) -> None:
    session_feed(stage.Session, tags_of).attach(stage.cache)
    session_feed(stage.Session, tags_of, tables_of=lambda table: None).attach(stage.cache)
    with stage.Session.begin() as session:
        session.execute(sa.update(Item).values(name="bolt"))
    assert stage.cache.stats().counts["feed_failed"] == 2


def test_what_the_feed_can_not_see_can_be_named(stage: Stage) -> None:
    feed = session_feed(stage.Session, tags_of)
    feed.attach(stage.cache)
    with stage.Session() as session:
        session.execute(sa.text("UPDATE item SET name = 'bolt'"))
        feed.touch(session, "item:7")
        assert stage.kept("item:7") == {"item:7"}
        session.commit()
    assert stage.kept("item:7") == set()


# -- targets -----------------------------------------------------------------------------


def test_any_kind_of_target_is_followed_until_it_is_detached(stage: Stage) -> None:
    class Own(orm.Session):  # type: ignore[misc,name-defined]
        pass

    registry = orm.scoped_session(orm.sessionmaker(stage.engine))
    instance = orm.Session(stage.engine)
    targets = [
        (Own, lambda: Own(stage.engine)),
        (registry, lambda: registry()),
        (instance, lambda: instance),
        (orm.sessionmaker(stage.engine, class_=Own), None),
    ]
    for number, (target, make) in enumerate(targets):
        detach = session_feed(target, tags_of).attach(stage.cache)
        for followed in (True, False):
            stage.fill("item:7")
            session = (make or target)()  # type: ignore[operator]
            session.get(Item, 7).name = f"{number} {followed}"
            session.commit()
            session.close()
            assert stage.kept("item:7") == (set() if followed else {"item:7"}), target
            detach()
            detach()


def test_other_sessions_are_not_followed(followed: Stage) -> None:
    with orm.Session(followed.engine) as session:
        session.get(Item, 7).name = "bolt"
        session.commit()
    assert followed.kept(*ALL) == set(ALL)


def test_one_feed_tells_several_caches(stage: Stage) -> None:
    feed = session_feed(stage.Session, tags_of)
    with cachekit.Cache() as other:
        feed.attach(stage.cache)
        detach = feed.attach(other)
        other.set("k", 1, tags=["item:7"])
        with stage.Session.begin() as session:
            session.get(Item, 7).name = "bolt"
        assert other.get("k") is None
        assert "item:7" not in stage.kept(*ALL)
        detach()


def test_a_session_keeps_nothing_of_a_transaction_that_ended(followed: Stage) -> None:
    with followed.Session() as session:
        for end in (session.commit, session.rollback, session.close):
            session.get(Item, 7).name = f"by {end.__name__}"
            session.flush()
            end()
            assert not session.info


def test_asyncio_sessions_are_followed(tmp_path: Path) -> None:
    pytest.importorskip("aiosqlite")
    pytest.importorskip("greenlet")
    asyncio_kinds = pytest.importorskip("sqlalchemy.ext.asyncio")
    stage = Stage(tmp_path / "shop.db", cachekit.Cache())
    used: list[str] = []

    async def main() -> None:
        engine = asyncio_kinds.create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")
        maker = asyncio_kinds.async_sessionmaker(engine)
        detach = session_feed(maker, tags_of).attach(stage.cache)
        face = stage.cache.aio
        made = face.write_intent
        face.write_intent = lambda **options: used.append("aio") or made(**options)  # type: ignore[func-returns-value,method-assign]
        stage.fill(*ALL)
        async with maker() as session, session.begin():
            (await session.get(Item, 7)).shelf_id = 2
        assert stage.kept(*ALL) == {"item:8", "shelf:None"}
        stage.fill(*ALL)
        with contextlib.suppress(ZeroDivisionError):
            async with maker() as session, session.begin():
                (await session.get(Item, 7)).name = "bolt"
                await session.flush()
                raise ZeroDivisionError
        assert stage.kept(*ALL) == set(ALL)
        detach()
        await engine.dispose()
        await face.close()

    asyncio.run(main())
    assert used == ["aio"]
    stage.close()


def test_an_async_sessionmaker_is_followed_alone(stage: Stage) -> None:
    pytest.importorskip("greenlet")
    asyncio_kinds = pytest.importorskip("sqlalchemy.ext.asyncio")
    feed = session_feed(asyncio_kinds.async_sessionmaker(), tags_of)
    assert feed.target is not orm.Session
    assert issubclass(feed.target, orm.Session)
    with pytest.raises(ConfigurationError, match="sync_session_class"):
        session_feed(asyncio_kinds.AsyncSession, tags_of)
