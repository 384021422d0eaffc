"""SQLAlchemy sessions as an event source: what a transaction changed is invalidated by tags.

    feed = session_feed(Session, lambda row, change: [f"{row.__tablename__}:{row.id}"])
    detach = feed.attach(cache)

The tags are collected while the session flushes. Right before COMMIT they are put under a write
intent, right after it the intent ends: no reader keeps what it loaded in between, and a process
that dies there costs misses for ``ttl``, never an old value. A transaction that is rolled back
touches no cache.

Not seen: textual SQL, statements on a ``Connection``, the legacy ``bulk_*`` methods, cascades
and triggers of the database (``feed.touch(session, ...)`` names their tags). On an engine with
isolation level AUTOCOMMIT, and in a session joined into an outer transaction, "before COMMIT"
is not before the change is visible; a prepared two-phase transaction must be committed within
``ttl``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any, Literal

from ..core.keys import tag_name
from ..core.policy import Duration, seconds
from ..errors import ConfigurationError, InvalidationFailed, MissingDependencyError
from ..pending import SPACE
from .sqlalchemy_rows import AsItWas, complete, replaced, stored, tables_written, unknown

__all__ = ["Change", "SessionFeed", "session_feed"]

Change = Literal["insert", "update", "delete"]
TagsOf = Callable[..., Iterable[str]]
TablesOf = Mapping[str, Iterable[str]] | Callable[[str], Iterable[str]]

# What a database answers when it has certainly not committed.
_REFUSALS = {"IntegrityError", "DataError", "ProgrammingError", "NotSupportedError", "FlushError"}


def _sqlalchemy() -> Any:
    try:
        return import_module("sqlalchemy")
    except ImportError:
        raise MissingDependencyError(
            "this feed needs SQLAlchemy: pip install 'cachekit-strategies[sqlalchemy]'"
        ) from None


def session_feed(
    target: Any,
    tags_of: TagsOf,
    *,
    tables_of: TablesOf | None = None,
    ttl: Duration = 30,
) -> SessionFeed:
    """A feed of the sessions of ``target``: a Session class, sessionmaker, scoped_session, one
    session, or their asyncio kinds.

    ``tags_of(row, change)`` gives the tags of one row, ``change`` being "insert", "update" or
    "delete". Of a changed row it is asked a second time, with a stand-in for the row as it was, so
    that one moved from group A to B makes both outdated; a function of three parameters is called
    once instead, with ``previous``: {attribute: old value} of what changed ({} otherwise). Old
    values that the session does not have are read by one SELECT per row before the flush.

    ``tables_of``: the tags of a table's name, for bulk ``insert()``, ``update()`` and
    ``delete()`` statements, whose rows are not known. ``ttl``: seconds, longer than a COMMIT can
    take. A function that raises makes the whole namespace outdated; it never fails a commit.

    Raises ConfigurationError naming what does not fit."""
    _sqlalchemy()
    if not callable(tags_of):
        raise ConfigurationError("session_feed: tags_of must be a function")
    if tables_of is not None and not callable(tables_of) and not isinstance(tables_of, Mapping):
        raise ConfigurationError("session_feed: tables_of must be a mapping or a function")
    try:
        life = seconds(ttl, "ttl")
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"session_feed: {error}") from None
    if not life:
        raise ConfigurationError("session_feed: ttl: must be more than 0")
    return SessionFeed(_listening_to(target), tags_of, tables_of, life)


class SessionFeed:
    """Made by :func:`session_feed`; may be attached to several caches. Safe for threads."""

    def __init__(
        self, target: Any, tags_of: TagsOf, tables_of: TablesOf | None, ttl: float
    ) -> None:
        self.target = target
        self.tags_of = tags_of
        self.tables_of = tables_of
        self.ttl = ttl
        self.wants_previous = _takes_three(tags_of)
        self._links: list[_Link] = []

    def attach(self, cache: Any) -> Callable[[], None]:
        """Follow the sessions; gives the function that ends it. Transactions under way then are
        no longer followed."""
        event = _sqlalchemy().event
        link = _Link(self, cache)
        for name, listener in link.listeners():
            try:
                event.listen(self.target, name, listener)
            except Exception as error:
                kind = type(self.target).__name__
                raise ConfigurationError(
                    f"session_feed: can not follow a {kind}: {error}"
                ) from None
        self._links = [*self._links, link]

        def detach() -> None:
            if link not in self._links:
                return
            self._links = [other for other in self._links if other is not link]
            for name, listener in link.listeners():
                event.remove(self.target, name, listener)

        return detach

    def touch(self, session: Any, *tags: str) -> None:
        """These tags too are outdated once the session's transaction commits: for changes that
        the feed can not see."""
        for tag in tags:
            tag_name(tag)
        for link in self._links:
            link.add(getattr(session, "sync_session", session), tags)


class _Work:
    """What one transaction of a session changed."""

    def __init__(self) -> None:
        self.tags: dict[str, None] = {}  # an ordered set
        self.everything = False
        self.open = False  # COMMIT is about to be tried
        self.held: list[Any] = []  # intents
        self.told: set[str] = set()  # tags under an intent
        self.previous: dict[Any, dict[str, Any]] = {}  # by the row's state, for one flush


class _Link:
    """One feed attached to one cache."""

    def __init__(self, feed: SessionFeed, cache: Any) -> None:
        self.feed = feed
        self.cache = cache
        self._listeners: list[tuple[str, Callable[..., None]]] = [
            ("before_flush", self._before_flush),
            ("after_flush", self._after_flush),
            ("do_orm_execute", self._on_execute),
            ("before_commit", self._before_commit),
            ("after_commit", self._after_commit),
            ("after_transaction_end", self._after_end),
        ]

    def listeners(self) -> list[tuple[str, Callable[..., None]]]:
        return self._listeners

    def add(self, session: Any, tags: Iterable[str]) -> None:
        work = self._work(session)
        work.tags.update(dict.fromkeys(tags))
        if work.open:  # flushed after the intent was made
            self._hold(work)

    def _work(self, session: Any) -> _Work:
        work: _Work | None = session.info.get(self)
        if work is None:
            work = session.info.setdefault(self, _Work())
        return work

    # -- collecting -----------------------------------------------------------------------

    def _before_flush(self, session: Any, context: Any, instances: Any) -> None:
        work = self._work(session)
        work.previous = {}
        for row in (*session.dirty, *session.deleted):
            state = import_module("sqlalchemy").inspect(row)
            if row in session.deleted:
                complete(row, state)
            keys = unknown(state)
            if keys:
                work.previous[state] = stored(session, state, keys)

    def _after_flush(self, session: Any, context: Any) -> None:
        work = self._work(session)
        found: list[str] = []
        changed: list[tuple[Any, Change]] = [
            (session.new, "insert"),
            (session.dirty, "update"),
            (session.deleted, "delete"),
        ]
        for rows, change in changed:
            for row in rows:
                if change != "update" or session.is_modified(row):
                    found += self._contained(work, partial(self._tags, work, row, change))
        work.previous = {}
        if found or work.everything:
            self.add(session, found)

    def _tags(self, work: _Work, row: Any, change: Change) -> Iterator[str]:
        feed = self.feed
        previous: dict[str, Any] = {}
        if change != "insert":
            state = import_module("sqlalchemy").inspect(row)
            previous = {**work.previous.get(state, {}), **replaced(state)}
        if feed.wants_previous:
            yield from _texts(feed.tags_of(row, change, previous))
            return
        yield from _texts(feed.tags_of(row, change))
        if previous:
            yield from _texts(feed.tags_of(AsItWas(row, previous), change))

    def _on_execute(self, state: Any) -> None:
        if not (state.is_insert or state.is_update or state.is_delete):
            return
        work, tables_of = self._work(state.session), self.feed.tables_of
        for table in tables_written(state):
            if tables_of is None:
                self._failed("unmapped", f"a bulk statement on {table!r}, and no tables_of=")
            else:
                self.add(state.session, self._contained(work, partial(self._of_table, table)))

    def _of_table(self, table: str) -> Iterator[str]:
        tables_of = self.feed.tables_of
        found = tables_of(table) if callable(tables_of) else (tables_of or {}).get(table)
        if found is None:
            self._failed("unmapped", f"a bulk statement on {table!r}, which tables_of lacks")
        else:
            yield from _texts(found)

    def _contained(self, work: _Work, ask: Callable[[], Iterable[str]]) -> list[str]:
        """The tags; where the user's function fails they are not known, so everything goes."""
        try:
            found = list(ask())
            for tag in found:
                tag_name(tag)  # refuses what is none, here where that can still be helped
            return found
        except Exception as error:
            work.everything = True
            self._failed("tags", f"the tags of a change: {type(error).__name__}")
            return []

    # -- the transaction ------------------------------------------------------------------

    def _before_commit(self, session: Any) -> None:
        if session.in_nested_transaction():
            return  # a savepoint: the real one comes
        session.flush()  # SQLAlchemy would do it right after this event
        work = session.info.get(self)
        if work is not None:
            work.open = True
            self._hold(work)

    def _hold(self, work: _Work) -> None:
        tags = [tag for tag in work.tags if tag not in work.told]
        if not tags:
            return
        work.told.update(tags)
        try:
            intent = self._intent(tags)
            _finish(intent.__aenter__ if _in_asyncio() else intent.__enter__)
        except Exception as error:
            self._failed("intent", f"a write intent: {type(error).__name__}")
            intent = _Plain(self.cache, tags)  # strict: without the block, but invalidated after
        work.held.append(intent)

    def _intent(self, tags: list[str]) -> Any:
        face = self.cache.aio if _in_asyncio() else self.cache
        return face.write_intent(tags=tags, ttl=self.feed.ttl)

    def _after_commit(self, session: Any) -> None:
        if session.in_nested_transaction():
            return
        work = session.info.pop(self, None)
        if work is None:
            return
        self._end(work, None)
        if work.everything:
            try:
                _finish(self.cache.aio.clear if _in_asyncio() else self.cache.clear)
            except Exception as error:
                self._failed("clear", f"clearing the namespace: {type(error).__name__}")
                self.cache.parts.invalidator.postpone([SPACE])

    def _after_end(self, session: Any, transaction: Any) -> None:
        if transaction.parent is not None:
            return
        work = session.info.pop(self, None)
        if work is None or not work.held:
            return  # rolled back, closed, or nothing changed: COMMIT was never tried
        error = sys.exc_info()[1]
        if error is None or type(error).__name__ not in _REFUSALS:
            doubt = TimeoutError("whether the transaction was committed is not known")
            doubt.__cause__ = error
            error = doubt
        self._end(work, error)

    def _end(self, work: _Work, error: BaseException | None) -> None:
        held, work.held = work.held, []
        for intent in held:
            try:
                kind = None if error is None else type(error)
                leave = getattr(intent, "__aexit__", None) or intent.__exit__
                _finish(leave, kind, error, None)
            except Exception as failure:
                self._failed("end", f"the end of a write intent: {type(failure).__name__}")

    def _failed(self, step: str, what: str) -> None:
        meter = self.cache.parts.meter
        meter.event("feed_failed", feed="sqlalchemy", step=step)
        meter.warn_once(f"sqlalchemy feed {what}", "the SQLAlchemy feed: %s", what)


class _Plain:
    """In place of an intent that could not be had: the tags go after the commit."""

    def __init__(self, cache: Any, tags: list[str]) -> None:
        self.cache = cache
        self.tags = tags

    def __exit__(self, *_: object) -> None:
        try:
            self.cache.invalidate(tags=self.tags)
        except InvalidationFailed:
            names = [("tag", tag_name(tag)) for tag in self.tags]
            self.cache.parts.invalidator.postpone(names)


def _texts(tags: Iterable[str]) -> Iterable[str]:
    if isinstance(tags, str):
        raise TypeError("tags must be a list of str, got one str")
    return tags


def _takes_three(tags_of: Callable[..., Any]) -> bool:
    try:
        inspect.signature(tags_of).bind(None, None, None)
    except (TypeError, ValueError):
        return False
    return True


# -- sessions ----------------------------------------------------------------------------


def _listening_to(target: Any) -> Any:
    """What SQLAlchemy's events know: asyncio sessions work through plain ones."""
    asyncio_kinds: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    if asyncio_kinds is None:  # never imported (it needs greenlet), so this is none of its kinds
        return target
    if isinstance(target, asyncio_kinds.AsyncSession):
        return target.sync_session
    if isinstance(target, asyncio_kinds.async_scoped_session):
        target = target.session_factory
    if isinstance(target, asyncio_kinds.async_sessionmaker):
        plain = target.kw.get("sync_session_class") or target.class_.sync_session_class
        own = _own(plain)
        if own is not plain:  # else every session of the process would be followed
            target.configure(sync_session_class=own)
        return own
    if isinstance(target, type) and issubclass(target, asyncio_kinds.AsyncSession):
        plain = inspect.getattr_static(target, "sync_session_class")
        if _own(plain) is not plain:
            raise ConfigurationError(
                f"session_feed: {target.__name__} needs a sync_session_class of its own; "
                "or give the async_sessionmaker"
            )
        return plain
    return target


def _own(plain: Any) -> Any:
    """A class of plain sessions that nobody else uses."""
    session = import_module("sqlalchemy.orm").Session
    return type("FollowedSession", (session,), {}) if plain is session else plain


def _in_asyncio() -> bool:
    """Whether this runs for an asyncio session, on its event loop."""
    if "greenlet" not in sys.modules:
        return False
    return bool(import_module("sqlalchemy.util.concurrency").in_greenlet())


def _finish(call: Callable[..., Any], *args: Any) -> None:
    result = call(*args)
    if inspect.isawaitable(result):
        util = import_module("sqlalchemy.util")
        wait = getattr(util, "await_", None) or util.await_only  # its name before 2.1
        wait(result)
