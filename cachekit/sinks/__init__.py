"""Ready-made sinks: what carries a write-back strategy's batches into a database, fenced.

Each imports its driver on first use only.
"""

from __future__ import annotations

from .dbapi import DBAPISink
from .dynamodb import DynamoDBSink
from .sqlalchemy import AsyncSQLAlchemySink, SQLAlchemySink

__all__ = ["AsyncSQLAlchemySink", "DBAPISink", "DynamoDBSink", "SQLAlchemySink"]
