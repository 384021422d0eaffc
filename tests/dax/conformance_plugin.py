"""A pytest plug-in that puts ``cachekit.dax`` in front of every DynamoDB client of other people's
test-suites, unedited: ``-p conformance_plugin``.

Its settings are environment variables: ``CACHEKIT_DAX_OPTIONS``, options of ``install`` as JSON;
``CACHEKIT_DAX_SPAN``: one installation for every ``test`` (tests that share names of tables but
not their contents), or one for the whole ``session``; ``CACHEKIT_DAX_WEAK=1``: strong reads are
taken as eventual ones, so that they too are answered by the cache; ``CACHEKIT_DAX_TWICE=1``: so is
every read, made twice, and the second answer is given: tests seldom read the same thing twice.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from typing import Any

import botocore.handlers
import conformance_report
import pytest

from cachekit.dax import Dax
from cachekit.dax.settings import Settings

_OPTIONS = json.loads(os.environ.get("CACHEKIT_DAX_OPTIONS", "{}"))
_WEAK = os.environ.get("CACHEKIT_DAX_WEAK") == "1"
_TWICE = os.environ.get("CACHEKIT_DAX_TWICE") == "1"
_SESSION = os.environ.get("CACHEKIT_DAX_SPAN") == "session"
_READS = ("GetItem", "BatchGetItem", "Query", "Scan")
_COUNTS = ("item_hits", "query_hits", "fills", "faults", "not_served")


class _Changed(Dax):
    """Strips ConsistentRead before anything looks at it, and reads twice."""

    def _call(self, client: Any, operation: str, params: Any, forward: Any) -> Any:
        if operation in _READS and type(params) is dict:
            if _WEAK:
                params = _weakened(operation, params)
            if _TWICE:
                super()._call(client, operation, copy.deepcopy(params), forward)
        return super()._call(client, operation, params, forward)


def _weakened(operation: str, params: Any) -> Any:
    if operation == "BatchGetItem":
        return _stripped(params)
    if "IndexName" in params:  # there it stays: DynamoDB may refuse it
        return params
    return {k: v for k, v in params.items() if k != "ConsistentRead"}


def _stripped(params: Any) -> Any:
    """A BatchGetItem without ConsistentRead; as it is where it is not one."""
    try:
        asked = {
            table: {k: v for k, v in each.items() if k != "ConsistentRead"}
            for table, each in params["RequestItems"].items()
        }
    except (TypeError, KeyError, AttributeError):
        return params
    return {**params, "RequestItems": asked}


class _Current:
    dax: Dax | None = None


def _client(**event: Any) -> None:
    if _Current.dax is not None:
        _Current.dax.placing.creating_client(**event)


def _table(**event: Any) -> None:
    if _Current.dax is not None:
        _Current.dax.placing.creating_table(**event)


botocore.handlers.BUILTIN_HANDLERS += [
    ("creating-client-class.dynamodb", _client),
    ("creating-resource-class.dynamodb.Table", _table),
]


def _open() -> None:
    _Current.dax = (_Changed if _WEAK or _TWICE else Dax)(Settings.make(**_OPTIONS))


def _close() -> None:
    dax, _Current.dax = _Current.dax, None
    assert dax is not None
    stats = dax.stats()
    for name in _COUNTS:
        conformance_report.told[name] = conformance_report.told.get(name, 0) + stats[name]
    dax.uninstall()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    if _SESSION:
        return (yield)
    _open()
    try:
        return (yield)
    finally:
        _close()


def pytest_sessionstart() -> None:
    if _SESSION:
        _open()


def pytest_sessionfinish() -> None:
    if _SESSION:
        _close()
