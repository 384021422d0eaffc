"""What botocore, the network and DynamoDB say, as cachekit's errors."""

from __future__ import annotations

from http.client import HTTPException
from typing import Any

from ...errors import BackendError, BackendRefused, BackendTimeout, BackendUnavailable

THROTTLED = frozenset(
    {
        "ProvisionedThroughputExceededException",
        "ThrottlingException",
        "ThrottledException",
        "Throttling",
        "RequestLimitExceeded",
        "TransactionConflictException",
        "ReplicatedWriteConflictException",
    }
)
"""Answers after which nothing was applied, and a later try may go through."""
FAILED = "ConditionalCheckFailedException"
_DOWN = frozenset({"InternalServerError", "InternalFailure", "ServiceUnavailable"})
_ADVICE = {
    "ResourceNotFoundException": (
        "there is no such table in this region and account; make it, or add ?create=true"
    ),
    "AccessDeniedException": "the credentials have no right to this; see the list of rights",
    "UnrecognizedClientException": "the credentials are not valid",
    "InvalidSignatureException": "wrong credentials, or a clock that is minutes off",
    "ExpiredTokenException": "the credentials have expired",
    "ItemCollectionSizeLimitExceededException": "the table has a local index that is full",
    "NoCredentialsError": "no credentials were found; set AWS_PROFILE or the like",
    "NoRegionError": "no region was found; add ?region=... or set AWS_REGION",
}


def code_of(error: BaseException) -> str:
    """DynamoDB's name for an error; "" where it is none of DynamoDB's."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return ""
    return str(response.get("Error", {}).get("Code", ""))


def status_of(error: BaseException) -> int:
    response: Any = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)


def is_down(error: BaseException) -> bool:
    """A fault of the service or the network: a write's outcome is then unknown."""
    if code_of(error):
        return code_of(error) in _DOWN or status_of(error) >= 500
    return isinstance(error, (OSError, HTTPException)) or _is_network(error)


def translated(error: BaseException, operation: str, table: str) -> BackendError:
    """Quotes a code or the name of a class, never a message: that may hold what was sent."""
    if isinstance(error, BackendError):
        return error
    kind: type[BackendError] = BackendUnavailable
    code = code_of(error) or type(error).__name__
    if _is_late(error):
        kind, what = BackendTimeout, "did not answer within the deadline"
    elif code in THROTTLED:
        what = f"is throttled ({code}): too little capacity for the table, or for one item"
    elif is_down(error):
        what = f"can not be reached, or failed ({code})"
    elif code_of(error) or _is_botocore(error):
        advice = _ADVICE.get(code)
        kind, what = BackendRefused, f"refused: {code}" + (f": {advice}" if advice else "")
    else:
        what = f"gave an answer that can not be read ({code})"
    return kind(f"dynamodb: {table} {what} ({operation})", backend="dynamodb", operation=operation)


def _is_botocore(error: BaseException) -> bool:
    return any(each.__module__.startswith("botocore.") for each in type(error).__mro__)


def _is_network(error: BaseException) -> bool:
    """botocore's own HTTP, used behind a proxy, and its fetching of credentials."""
    names = {each.__name__ for each in type(error).__mro__}
    return bool(names & {"HTTPClientError", "ConnectionError", "MetadataRetrievalError"})


def _is_late(error: BaseException) -> bool:
    names = {each.__name__ for each in type(error).__mro__}
    return isinstance(error, TimeoutError) or bool(
        names & {"ConnectTimeoutError", "ReadTimeoutError"}
    )
