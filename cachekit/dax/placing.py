"""Putting an installation in front of sessions, clients, resources and Tables; and off again."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from ..errors import ConfigurationError
from . import aio
from .engine import Engine
from .events import EventRoad
from .intercept import (
    LINK,
    Link,
    client_mixin,
    events_mixin,
    handler_ids,
    is_asynchronous,
    passes_through,
    place_of,
    principal_of,
    unwatch,
    watch,
    with_hits,
)


class Placing:
    """What one installation is in front of. ``call`` answers a client's request, ``call_aio`` an
    asyncio client's, ``table_hit`` a Table's read if it can; ``serves()``: whether reads may be
    answered now, None: not at all."""

    def __init__(
        self,
        engine: Engine,
        worlds: aio.Worlds,
        *,
        call: Callable[..., Any],
        call_aio: Callable[..., Awaitable[Any]],
        table_hit: Callable[[Any, dict[str, Any]], Any],
        serves: Callable[[], bool | None],
    ) -> None:
        self._engine = engine
        self._store = engine.store
        self._meter = engine.store.meter
        self._worlds = worlds
        self._table_hit = table_hit
        self._serves = serves
        self._mixin = client_mixin(call)
        self._mixin_aio = aio.client_mixin(call_aio)
        self._undo: list[Callable[[], None]] = []

    def put(self, target: Any) -> None:
        """In front of a session, a client, a resource or a Table. Raises TypeError for anything
        else, ConfigurationError where it can not be put."""
        if hasattr(target, "create_client") and hasattr(target, "register"):
            self._on_session(target)
        elif hasattr(target, "events") and hasattr(target, "client"):
            self._on_session(target.events)
        elif hasattr(target, "_make_api_call"):
            self._on_client(target)
        elif hasattr(getattr(target, "meta", None), "client"):
            self._on_resource(target)
        else:
            raise TypeError(
                "install: expected a boto3 or botocore session, a DynamoDB client, resource or"
                f" Table, got {type(target).__name__}"
            )

    def undo(self) -> None:
        """Take it off everything. Twice is fine."""
        while self._undo:
            self._undo.pop()()

    # -- clients -------------------------------------------------------------------------

    def adopt(self, client: Any) -> Link | None:
        """The link of a client, made at its first call; None: this client can not be served."""
        ids = handler_ids(client)
        if ids is None:
            self._meter.count("not_served")
            return None
        scope = self._store.scope(place_of(client), principal_of(client), client)
        link = Link(scope, ids)
        watch(client.meta.events)
        client.__dict__[LINK] = link
        return link

    def creating_client(self, class_attributes: Any, base_classes: Any, **_: Any) -> None:
        """botocore's event before it makes a client's class."""
        get_item = class_attributes.get("get_item")
        mixin = self._mixin_for(get_item, base_classes)
        if mixin is not None:
            base_classes.insert(0, mixin)
        elif is_asynchronous(get_item, base_classes):
            self._not_served()
        else:
            base_classes.insert(0, events_mixin(self._attach))

    def _mixin_for(self, get_item: Any, bases: Iterable[type]) -> type | None:
        """The class to put in front; None where requests do not pass ``_make_api_call``."""
        if is_asynchronous(get_item, bases):
            return self._mixin_aio if aio.passes_through(get_item) else None
        return self._mixin if passes_through(get_item) else None

    def _not_served(self) -> None:
        self._meter.count("not_served")
        self._meter.warn_once(
            "dax", "cachekit.dax: this aiobotocore is not understood, so its clients are left alone"
        )

    def _attach(self, client: Any) -> None:
        """By its events: slower, but for any botocore that has them."""
        link = self.adopt(client)
        if link is not None:
            self._meter.count("by_events")
            road = EventRoad(self._engine, self._worlds, client, link, self._serves)
            self._undo.append(road.leave)

    def creating_table(self, class_attributes: Any, **_: Any) -> None:
        """boto3's event before it makes the class of a Table."""
        if "get_item" in class_attributes:
            class_attributes["get_item"] = self._with_hits(class_attributes["get_item"])

    def _with_hits(self, get_item: Any) -> Any:
        is_coroutine = inspect.iscoroutinefunction(get_item)
        return (aio.with_hits if is_coroutine else with_hits)(get_item, self._table_hit)

    # -- targets -------------------------------------------------------------------------

    def _on_session(self, events: Any) -> None:
        """In front of every client that this session makes from now on."""
        for name, handler in (
            ("creating-client-class.dynamodb", self.creating_client),
            ("creating-resource-class.dynamodb.Table", self.creating_table),
        ):
            ident = f"cachekit-dax-{id(self)}-{name}"
            events.register(name, handler, unique_id=ident)
            self._undo.append(
                lambda name=name, handler=handler, ident=ident: events.unregister(  # type: ignore[misc]  # bound
                    name, handler, unique_id=ident
                )
            )

    def _on_client(self, client: Any) -> None:
        """In front of a client that exists."""
        own = type(client)
        if getattr(own, "_cachekit_dax", False):
            raise ConfigurationError("another cachekit.dax is installed here; uninstall it first")
        if not hasattr(own, "get_item"):
            raise ConfigurationError("this is no DynamoDB client")
        mixin = self._mixin_for(own.get_item, [own])
        if mixin is None:
            if is_asynchronous(own.get_item, [own]):
                raise ConfigurationError("this aiobotocore is not understood: nothing is installed")
            self._attach(client)
            return
        client.__class__ = type(own.__name__, (mixin, own), {"__module__": own.__module__})

        def undo() -> None:
            client.__class__ = own
            client.__dict__.pop(LINK, None)
            unwatch(client.meta.events)

        self._undo.append(undo)

    def _on_resource(self, resource: Any) -> None:
        """In front of a resource or Table that exists, and of its client."""
        self._on_client(resource.meta.client)
        own = type(resource)
        if hasattr(own, "get_item"):
            reads = {"get_item": self._with_hits(own.get_item)}
            resource.__class__ = type(own.__name__, (own,), {"__module__": own.__module__, **reads})
            self._undo.append(lambda: setattr(resource, "__class__", own))
