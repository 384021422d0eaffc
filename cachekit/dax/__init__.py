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
    """Put a cache in front of a session of boto3, botocore, aioboto3 or aiobotocore (every
    DynamoDB client it makes from now on), of a client, or of a resource or Table; the last two
    may exist already.

    Options (see :class:`~cachekit.dax.settings.Settings` and ``TableSettings``): ``preset``,
    ``item_ttl``, ``query_ttl``, ``negative_ttl``, ``max_bytes``, ``query_invalidation``,
    ``tables``, ``settle``, ``quarantine``, ``flight_wait``, ``fill_from_strong``,
    ``read_strongly``, ``return_images``; ``cache`` and ``streams``, so that it hears of writes of
    other processes; ``endpoint``, a DAX cluster to ask instead of DynamoDB
    (:class:`~cachekit.dax.endpoint_link.EndpointSettings`). Two installations share nothing that
    is kept. Raises ConfigurationError where it can not be put, MissingDependencyError without
    boto3."""
    require_botocore()
    dax = Dax(Settings.make(**options))
    dax.placing.put(target)
    return dax
