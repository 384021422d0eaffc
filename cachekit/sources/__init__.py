"""Ready-made sources for ``cache.repository``: tables that load and save records.

Each imports its driver on first use only.
"""

from __future__ import annotations

from .dynamodb import DynamoDBTable
from .errors import Throttled, Unsettled, VersionConflict

__all__ = ["DynamoDBTable", "Throttled", "Unsettled", "VersionConflict"]
