"""DynamoDB as a shared backend: ``dynamodb://TABLE?region=eu-west-1``.

One item per key. How the slots of ``protocols.Slots`` lie in a table whose key is a string:

- A slot is one item, a tag's or namespace's nonce another. Every step on one is a conditional write
  (``steps``): nearly always one request, two where it met another client's step.
- Reading an entry takes one BatchGetItem: the slot, the nonce of its namespace and those of its
  tags, all ``ConsistentRead``. There are no eventual reads: they may show a value after its
  invalidation returned, for which nothing bounds the time. A hit costs one read unit for each
  4 KB of the entry, one for the namespace and one for each tag.
- Expiry is exact to the millisecond and checked when reading; the table's own deletion (attribute
  ``t``, switched on with the table) comes minutes to days later and only gives back room.
- Times of entries and nonces are Unix times of the client that wrote them. Clocks that differ by
  ten minutes let an entry end that much early or late, against its ttl; never against an
  invalidation. Leases of blocks and tokens do not depend on clocks (``sightings``): elsewhere
  than where it was written, a lease may stand longer, up to twice as long where it is read at
  once. What is left behind by a process that died costs misses for that time.
- Steps on several keys are sent eight at a time: a conditional write is a request for itself.
- botocore's retries are off (``table``): a conditional write repeated after a lost answer could
  report a failure although it had been applied, or be applied after its key was invalidated.

There is no bus: a bump of one counter behind every invalidation would cost a second write, on one
item that takes 1000 of them a second. Near copies follow by ``coherence=<seconds>`` (default), or
by ``"strict"``, which reads the far tier at every call.

Use one Region: replicas of a global table overwrite each other's items without conditions. Do not
put DAX between: its reads are eventual. A table restored from a backup is older than its
invalidations: ``clear()`` it.

Rights: BatchGetItem, BatchWriteItem, PutItem, UpdateItem, DeleteItem; with ``create`` also
CreateTable, DescribeTable, DescribeTimeToLive and UpdateTimeToLive.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from ...errors import ConfigurationError, MissingDependencyError
from ...protocols import Bus, LogFactory, Store, World
from .account import Account
from .driver import DynamoDBDriver, DynamoDBStore
from .items import Names
from .sightings import Sightings

__all__ = ["DynamoDBBackend"]

CONNECTIONS = 32
OPTIONS = ("connections", "create", "endpoint", "region")

_table_name = re.compile(r"[A-Za-z0-9_.-]{3,255}").fullmatch
_region_name = re.compile(r"[a-z0-9-]{1,40}").fullmatch


class DynamoDBBackend:
    """A backend on one DynamoDB table; the factory of ``dynamodb://``.

    ``dynamodb://TABLE`` with these options, all of which may be left out:

    - ``region=eu-west-1``: else that of the environment or the profile.
    - ``endpoint=http://127.0.0.1:8000``: a server other than AWS's of that region.
    - ``create=true``: make the table at first use where it is missing (key ``k``, a string; on
      demand; time to live on ``t``), and wait for it. Until then calls end at their deadline.
    - ``connections=32``: the most connections of each world.

    Credentials come by boto3's own chain only (environment, profile, role) and are never in the
    URL. ``client`` makes the client instead: it is given the botocore ``Config`` to use.

    The first use makes the client in a thread (0.1 s to seconds): a call that can not wait so
    long ends at its deadline, and the next finds it ready. Behind an HTTP proxy botocore's own
    connections are used, whose timeouts (2 s, 5 s) then bound a plain call. Credentials that must
    be fetched again while a call runs, and the system's resolver, keep no deadline either.

    Values and keys: an item holds 400 KB, so a larger value is a BackendRefused, and what stood
    under the key is gone.

    Raises ConfigurationError for a URL it can not use, MissingDependencyError without boto3."""

    shared = True
    bus: Bus | None = None
    log: LogFactory | None = None

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "",
        timeout: float = 0.25,
        client: Callable[[Any], Any] | None = None,
    ) -> None:
        self.name = "dynamodb"
        place = parse_url(url)
        if find_spec("boto3") is None:
            raise MissingDependencyError(
                "the dynamodb backend needs boto3: pip install 'cachekit-strategies[dynamodb]'"
            )
        self._table = place.table
        self._names = Names(namespace)
        # One for all worlds: a lease that one of them saw is known to the others.
        self._sightings = Sightings(time.time, time.monotonic)
        self._account = Account(
            place.table,
            region=place.region,
            endpoint=place.endpoint,
            create=place.create,
            make=client,
            connections=place.connections,
        )

    def open(self, world: World) -> Store:
        driver = DynamoDBDriver(self._account, self._names, self._sightings, name=self.name)
        return DynamoDBStore(world, driver)

    def __repr__(self) -> str:
        return f"DynamoDBBackend({self._table})"


class Place(NamedTuple):
    """What a URL says."""

    table: str
    region: str | None = None
    endpoint: str | None = None
    create: bool = False
    connections: int = CONNECTIONS


def parse_url(url: str) -> Place:
    """Raises ConfigurationError; its message quotes no part of the URL but names of options."""
    scheme, separator, _ = url.partition("://")
    if scheme != "dynamodb" or not separator:
        raise ConfigurationError("a DynamoDB URL begins with dynamodb://")
    try:
        parts = urlsplit(url)
    except ValueError:  # its message quotes the URL
        raise ConfigurationError("the DynamoDB URL can not be read") from None
    if "@" in parts.netloc:
        raise ConfigurationError(
            "dynamodb URL: credentials are not taken from it; use AWS_PROFILE, a role, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
        )
    if parts.path.strip("/") or parts.fragment or not _table_name(parts.netloc):
        raise ConfigurationError(
            "dynamodb URL: write dynamodb://TABLE, a table's name of 3 to 255 letters, digits, "
            "and any of _ . -"
        )
    found: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in OPTIONS:
            # What is no word may be the rest of a secret that was not encoded.
            shown = repr(name) if name.isidentifier() and len(name) <= 20 else "(not shown)"
            raise ConfigurationError(
                f"dynamodb URL: unknown option {shown}; known: {', '.join(OPTIONS)}. Credentials "
                "come from the environment, a profile or a role"
            )
        found[name] = value
    region = found.get("region")
    if region is not None and not _region_name(region):
        raise ConfigurationError("dynamodb URL: region is a name such as eu-west-1")
    return Place(
        parts.netloc,
        region,
        _endpoint(found.get("endpoint")),
        _truth(found.get("create", "false")),
        _connections(found.get("connections", str(CONNECTIONS))),
    )


def _endpoint(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        parts = urlsplit(text)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or "@" in text or parts.query or parts.fragment:
        raise ConfigurationError(
            "dynamodb URL: endpoint is http://host:port or https://host:port, without user and "
            "password"
        )
    return text


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ConfigurationError("dynamodb URL: create is true or false")
    return text.lower() == "true"


def _connections(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise ConfigurationError("dynamodb URL: connections is a number from 1 to 1000")
    return int(text)
