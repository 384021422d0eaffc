"""A pytest plug-in that puts ``cachekit.dax`` in front of every DynamoDB client of other people's
test-suites, unedited: ``-p conformance_plugin``. Every test has an installation of its own.

``CACHEKIT_DAX_OPTIONS``: options of ``install`` as JSON. ``CACHEKIT_DAX_WEAK=1``: strong reads are
taken as eventual ones, so that they too are answered by the cache.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import botocore.handlers
import pytest

from cachekit.dax import Dax
from cachekit.dax.settings import Settings

_OPTIONS = json.loads(os.environ.get("CACHEKIT_DAX_OPTIONS", "{}"))
_WEAK = os.environ.get("CACHEKIT_DAX_WEAK") == "1"
_totals: Counter[str] = Counter()


class _Weak(Dax):
    """Strips ConsistentRead before anything looks at it."""

    def _call(self, client: Any, operation: str, params: Any, forward: Any) -> Any:
        # With an index it stays: DynamoDB may refuse it there.
        reads = operation in ("GetItem", "Query", "Scan")
        if reads and isinstance(params, dict) and "IndexName" not in params:
            params = {k: v for k, v in params.items() if k != "ConsistentRead"}
        return super()._call(client, operation, params, forward)


class _Current:
    dax: Dax | None = None


def _client(**event: Any) -> None:
    if _Current.dax is not None:
        _Current.dax._creating_client(**event)


def _table(**event: Any) -> None:
    if _Current.dax is not None:
        _Current.dax._creating_table(**event)


botocore.handlers.BUILTIN_HANDLERS += [
    ("creating-client-class.dynamodb", _client),
    ("creating-resource-class.dynamodb.Table", _table),
]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: Any) -> Iterator[None]:
    dax = _Current.dax = (_Weak if _WEAK else Dax)(Settings.make(**_OPTIONS))
    try:
        return (yield)
    finally:
        _Current.dax = None
        _totals.update({n: v for n, v in dax.stats().items() if isinstance(v, int)})
        dax.uninstall()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    told = {name: _totals[name] for name in ("item_hits", "query_hits", "fills", "faults")}
    terminalreporter.write_line(f"cachekit.dax: {told}")
