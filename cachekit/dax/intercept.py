"""Where botocore and boto3 are entered: a class in front of the client's, and of a Table's reads.

``creating-client-class.dynamodb`` puts the class first among the bases, so every generated method,
paginator and waiter passes it; an object that exists already changes its class. Nothing of
botocore is replaced, and what is handed to it is what the caller gave.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from importlib import import_module
from typing import Any, Final

from ..core.outcome import Outcome
from ..errors import MissingDependencyError
from .sent import sending
from .store import Scope

LINK: Final = "_cachekit_dax_link"
_RESOURCE: Final = "dynamodb-attr-value-input"  # as boto3 names what makes a client a resource's
_STUBBER: Final = "boto_stubber"


class Link:
    """What a handle knows of one client. ``ids`` are the names of its event handlers."""

    __slots__ = ("ids", "scope")

    def __init__(self, scope: Scope, ids: Mapping[str, Any]) -> None:
        self.scope = scope
        self.ids = ids

    @property
    def plain(self) -> bool:
        """Whether its values are in the resource's form."""
        return _RESOURCE in self.ids

    @property
    def stubbed(self) -> bool:
        """Whether a botocore Stubber answers now: it wins over the cache."""
        return _STUBBER in self.ids


def handler_ids(client: Any) -> Mapping[str, Any] | None:
    """The named event handlers of a client; None where botocore does not tell any more."""
    emitter = getattr(getattr(getattr(client, "meta", None), "events", None), "_emitter", None)
    ids = getattr(emitter, "_unique_id_handlers", None)
    return ids if isinstance(ids, dict) else None


def place_of(client: Any) -> Hashable:
    return (client.meta.endpoint_url, client.meta.region_name)


def principal_of(client: Any) -> Hashable:
    """Equal for clients that ask with the same credentials."""
    credentials: Any = getattr(getattr(client, "_request_signer", None), "_credentials", None)
    if getattr(credentials, "method", None) == "explicit":
        given = [credentials.access_key, credentials.secret_key, credentials.token]
        return hashlib.sha256(repr(given).encode()).hexdigest()
    found: Hashable = credentials
    return found


class _Recorder:
    """Stands in for a client: records what a generated method asks of it."""

    def __init__(self) -> None:
        self.asked: Any = None

    def _make_api_call(self, operation: str, params: Any) -> None:
        self.asked = (operation, params)


def is_asynchronous(get_item: Any, bases: Iterable[type]) -> bool:
    """Whether these are the parts of an asyncio client. Asks for the library too: what others put
    around a coroutine function may look like a plain one."""
    classes = [each for base in bases for each in base.__mro__]
    if any(each.__module__.partition(".")[0] == "aiobotocore" for each in classes):
        return True
    calls = [get_item, *(getattr(base, "_make_api_call", None) for base in bases)]
    return any(inspect.iscoroutinefunction(call) for call in calls)


def passes_through(get_item: Any) -> bool:
    """Whether a generated ``get_item`` still makes its request by ``_make_api_call``."""
    recorder = _Recorder()
    try:
        get_item(recorder, TableName="t")
    except Exception:
        return False
    return bool(recorder.asked == ("GetItem", {"TableName": "t"}))


def sync_send(forward: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """botocore's own call as what the engine sends with, in the thread world."""

    async def send(operation: str, params: Any) -> Outcome:
        try:
            return Outcome(forward(operation, params))
        except Exception as error:
            return Outcome(error=error)

    return send


def note_request(params: Any = None, **_: Any) -> None:
    """Event ``before-call``: what is about to be sent, for the write that waits for it."""
    sent = sending.get()
    if sent is not None and sent.request is None:
        sent.request = params


def note_attempt(response: Any = None, caught_exception: Any = None, **_: Any) -> None:
    """Event ``needs-retry``: how one attempt ended."""
    sent = sending.get()
    if sent is not None:
        sent.note_attempt(response, caught_exception)


def watch(events: Any) -> None:
    """Have a client's events noted."""
    events.register_first("before-call.dynamodb", note_request, unique_id="cachekit-dax-request")
    events.register_first("needs-retry.dynamodb", note_attempt, unique_id="cachekit-dax-attempt")


def unwatch(events: Any) -> None:
    events.unregister("before-call.dynamodb", note_request, unique_id="cachekit-dax-request")
    events.unregister("needs-retry.dynamodb", note_attempt, unique_id="cachekit-dax-attempt")


def client_mixin(call: Callable[..., Any]) -> type:
    """The class in front of a client's own. ``call(client, operation, params, forward)``."""

    class DaxClient:
        _cachekit_dax = True

        def _make_api_call(self, operation_name: str, api_params: Any) -> Any:
            return call(self, operation_name, api_params, super()._make_api_call)  # type: ignore[misc]  # of the class behind

    return DaxClient


def events_mixin(attach: Callable[[Any], None]) -> type:
    """A class before a client's own that calls ``attach(client)`` once it is made."""

    class DaxEvents:
        _cachekit_dax = True

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            attach(self)

    return DaxEvents


def with_hits(get_item: Any, hit: Callable[[Any, dict[str, Any]], Any]) -> Any:
    """A Table's ``get_item`` that looks first."""

    def get_item_or_hit(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not args:
            found = hit(self, kwargs)
            if found is not None:
                return found
        return get_item(self, *args, **kwargs)

    get_item_or_hit.__name__ = "get_item"
    get_item_or_hit.__doc__ = getattr(get_item, "__doc__", None)
    return get_item_or_hit


def require_botocore() -> None:
    try:
        import_module("botocore")
    except ImportError:
        raise MissingDependencyError(
            "cachekit.dax needs boto3: pip install 'cachekit-strategies[dynamodb]'"
        ) from None
