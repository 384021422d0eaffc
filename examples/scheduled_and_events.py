"""Three ways to make cached values outdated: a schedule, a domain event, an ORM's transaction."""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.pool import StaticPool

import cachekit
from cachekit.feeds.sqlalchemy import session_feed

cache = cachekit.Cache()
engine = sa.create_engine("sqlite://", poolclass=StaticPool)
Session = sessionmaker(engine)


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "product"
    sku: Mapped[str] = mapped_column(primary_key=True)
    shelf: Mapped[str]


@dataclass(frozen=True)
class Restocked:
    shelf: str


@cache.cached(tags=["shelf:{name}", "shelves"])
def shelf(name: str) -> list[str]:
    with Session() as session:
        return sorted(session.scalars(sa.select(Product.sku).where(Product.shelf == name)))


def main() -> None:
    Base.metadata.create_all(engine)
    cache.follow(session_feed(Session, lambda row, change: [f"shelf:{row.shelf}"]))
    cache.on(Restocked, lambda event: [f"shelf:{event.shelf}"])

    with Session.begin() as session:
        session.add_all([Product(sku="nut", shelf="a"), Product(sku="bolt", shelf="a")])
    print("shelves:", shelf("a"), shelf("b"))

    with Session.begin() as session:
        session.get_one(Product, "nut").shelf = "b"
    print("after the commit that moved a row:", shelf("a"), shelf("b"))

    with Session() as session:
        session.get_one(Product, "bolt").shelf = "b"
        session.flush()
        session.rollback()
    print("after a rollback, still cached:", shelf.peek("a"), shelf.peek("b"))

    print("an event drops", cache.emit(Restocked("a")), "and leaves", shelf.peek("b"))

    shelf("a")
    schedule = cache.schedule(tags=["shelves"], every="0.2s")
    end = time.monotonic() + 10
    while shelf.peek("b") is not cachekit.MISSING and time.monotonic() < end:
        time.sleep(0.01)
    print("after a planned time:", shelf.peek("a"), shelf.peek("b"))
    schedule.cancel()
    cache.close()
    engine.dispose()


if __name__ == "__main__":
    main()
