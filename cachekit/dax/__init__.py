"""An item and a query cache in front of DynamoDB, as DAX is one, inside the process.

    dax = cachekit.dax.install(boto3.Session())

and the application goes on as it was. What is cached when is the page ``docs/dax.md``.
"""

from __future__ import annotations

from typing import Any

from .handle import Dax
from .intercept import require_botocore
from .settings import Settings

__all__ = ["Dax", "install"]


def install(target: Any, **options: Any) -> Dax:
    """Put a cache in front of a boto3 or botocore session (every DynamoDB client it makes from
    now on), of a client, or of a resource or Table; the last two may exist already.

    Options (see :class:`~cachekit.dax.settings.Settings` and ``TableSettings``): ``preset``,
    ``item_ttl``, ``query_ttl``, ``negative_ttl``, ``max_bytes``, ``query_invalidation``,
    ``tables``, ``settle``, ``quarantine``, ``flight_wait``, ``fill_from_strong``,
    ``read_strongly``, ``return_images``. Two installations share nothing. Raises
    ConfigurationError where it can not be put, MissingDependencyError without boto3."""
    require_botocore()
    dax = Dax(Settings.make(**options))
    if hasattr(target, "create_client") and hasattr(target, "register"):
        dax.on_session(target)
    elif hasattr(target, "events") and hasattr(target, "client"):
        dax.on_session(target.events)
    elif hasattr(target, "_make_api_call"):
        dax.on_client(target)
    elif hasattr(getattr(target, "meta", None), "client"):
        dax.on_resource(target)
    else:
        raise TypeError(
            "install: expected a boto3 or botocore session, a DynamoDB client, resource or Table,"
            f" got {type(target).__name__}"
        )
    return dax
