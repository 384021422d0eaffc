"""Two tables on a real SQLite file, and a cache that can follow them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import cachekit
from cachekit.testing.servers import RedisServer

sa = pytest.importorskip("sqlalchemy")
orm = pytest.importorskip("sqlalchemy.orm")


class Base(orm.DeclarativeBase):  # type: ignore[misc,name-defined]  # sqlalchemy may be absent
    pass


class Shelf(Base):
    __tablename__ = "shelf"
    id = orm.mapped_column(sa.Integer, primary_key=True)
    label = orm.mapped_column(sa.String, default="")
    items = orm.relationship("Item", back_populates="shelf")


class Item(Base):
    __tablename__ = "item"
    id = orm.mapped_column(sa.Integer, primary_key=True)
    name = orm.mapped_column(sa.String, unique=True)
    shelf_id = orm.mapped_column(sa.ForeignKey("shelf.id"), nullable=True)
    shelf = orm.relationship("Shelf", back_populates="items")

    @property
    def place(self) -> str:
        return f"shelf:{self.shelf_id}"

    def address(self, prefix: str) -> str:
        return f"{prefix}:{self.place}"


class Memo(Base):
    __tablename__ = "memo"
    id = orm.mapped_column(sa.Integer, primary_key=True)
    topic = orm.mapped_column(sa.String)


def tags_of(row: Any, change: str) -> list[str]:
    tags = [f"{row.__tablename__}:{row.id}"]
    if isinstance(row, Memo):
        tags.append(f"topic:{row.topic}")
    if isinstance(row, Item):
        tags.append(row.place)
    return tags


class Stage:
    """A database with two shelves and an item, a cache that follows it, and a list of what was
    invalidated by tag."""

    def __init__(self, path: Path, cache: cachekit.Cache) -> None:
        self.engine = sa.create_engine(f"sqlite:///{path}")
        Base.metadata.create_all(self.engine)
        self.Session = orm.sessionmaker(self.engine)
        self.cache = cache
        with self.Session.begin() as session:
            session.add_all([Shelf(id=1), Shelf(id=2), Item(id=7, name="nut", shelf_id=1)])
            session.add(Memo(id=1, topic="x"))

    def fill(self, *tags: str) -> None:
        for tag in tags:
            assert self.cache.set(tag, "kept", tags=[tag])

    def kept(self, *tags: str) -> set[str]:
        return set(self.cache.get_many(tags))

    def close(self) -> None:
        self.cache.close()
        self.engine.dispose()


ALL = ("item:7", "item:8", "shelf:1", "shelf:2", "shelf:None")


def reader(stage: Stage) -> Callable[[], str]:
    @stage.cache.cached(tags=["item:7"], name="item-7")
    def name() -> str:
        with stage.engine.connect() as connection:
            return str(connection.execute(sa.text("SELECT name FROM item WHERE id = 7")).scalar())

    return name


def far_stage(path: Path, server: RedisServer, **options: Any) -> Stage:
    namespace = f"feed-{uuid4().hex[:8]}"
    return Stage(path, cachekit.Cache(server.url, namespace=namespace, **options))


def answer_commits(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, error: Exception, committed: bool
) -> None:
    """From now on the driver answers each COMMIT with this error."""
    real = stage.engine.dialect.do_commit

    def do_commit(connection: Any) -> None:
        if committed:
            real(connection)
        raise error

    monkeypatch.setattr(stage.engine.dialect, "do_commit", do_commit)
