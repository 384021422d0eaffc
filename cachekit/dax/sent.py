"""What was really sent, and what its answer says about it.

botocore's event handlers may change a request on its way, so a write reads back the body that was
serialized before it keeps what it wrote.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from contextvars import ContextVar, Token
from typing import Any, Final

from .protocol import Outcome
from .values import Wire

# Codes of 4xx answers that say: nothing was written.
REFUSALS: Final = frozenset({
    "AccessDeniedException", "ConditionalCheckFailedException", "DuplicateItemException",
    "ExpiredTokenException", "IdempotentParameterMismatchException", "IncompleteSignature",
    "IncompleteSignatureException", "InvalidSignatureException",
    "ItemCollectionSizeLimitExceededException", "MissingAuthenticationTokenException",
    "ProvisionedThroughputExceededException", "RequestLimitExceeded", "ResourceInUseException",
    "ResourceNotFoundException", "SerializationException", "ThrottlingException",
    "TransactionCanceledException", "TransactionConflictException",
    "UnrecognizedClientException", "ValidationException",
})  # fmt: skip
# Raised by botocore before anything is sent.
UNSENT: Final = frozenset({
    "ParamValidationError", "NoCredentialsError", "PartialCredentialsError", "NoRegionError",
    "UnStubbedResponseError", "StubResponseError", "StubAssertionError",
})  # fmt: skip


def attempts_of(response: Any) -> int | None:
    """How often botocore sent the request again; None if it does not say."""
    try:
        return int(response["ResponseMetadata"]["RetryAttempts"])
    except (KeyError, TypeError, ValueError):
        return None


def is_refusal(answer: Any) -> bool:
    """Whether a parsed answer says for certain that nothing was written by this attempt."""
    if not isinstance(answer, dict):
        return False
    code = answer.get("Error", {}).get("Code")
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return code in REFUSALS and 400 <= status < 500


class Sent:
    """A write as this context sends it: the serialized request, and its attempts one by one.

    botocore retries by itself, and an attempt whose reply was lost may land after a later one was
    answered. So the events of every attempt are counted."""

    __slots__ = ("attempts", "request", "unclear")

    def __init__(self) -> None:
        self.request: Any = None  # botocore's own dictionary: handlers after ours may change it
        self.attempts = 0
        self.unclear = 0  # attempts that may have been applied

    def note_attempt(self, response: Any, error: Any) -> None:
        self.attempts += 1
        parsed = response[1] if isinstance(response, tuple) and len(response) == 2 else None
        if error is not None or not is_refusal(parsed):
            self.unclear += 1

    def of_success(self, response: Any) -> Outcome:
        again = attempts_of(response)
        if again and (self.attempts != again + 1 or self.unclear != 1):
            return Outcome.UNKNOWN
        return Outcome.APPLIED

    def of_error(self, error: BaseException | None) -> Outcome:
        """What an error says about the write."""
        if error is not None and self.request is None:
            return Outcome.REFUSED  # it was not even serialized
        answer = getattr(error, "response", None)
        again = attempts_of(answer)
        if again and (self.attempts != again + 1 or self.unclear):
            return Outcome.UNKNOWN
        return outcome_of(error)

    def item(self, path: Sequence[Any]) -> Wire | None:
        """The item at a path of the body, binary decoded; None if it can not be told."""
        try:
            found = json.loads(self.request["body"])
            for step in path:
                found = found[step]
            return {name: _decoded(value) for name, value in found.items()}
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, binascii.Error):
            return None


def outcome_of(error: BaseException | None) -> Outcome:
    """What an error says about a write that was sent once."""
    if type(error).__name__ in UNSENT or is_refusal(getattr(error, "response", None)):
        return Outcome.REFUSED
    return Outcome.UNKNOWN


sending: ContextVar[Sent | None] = ContextVar("cachekit_dax_sending", default=None)


def stop_sending(token: Token[Sent | None]) -> None:
    try:
        sending.reset(token)
    except ValueError:  # ended in another context: that one ends with its own
        return


def _decoded(value: Any) -> Any:
    ((tag, inner),) = value.items()
    if tag == "B":
        return {"B": base64.b64decode(inner, validate=True)}
    if tag == "BS":
        return {"BS": [base64.b64decode(each, validate=True) for each in inner]}
    if tag == "M":
        return {"M": {name: _decoded(each) for name, each in inner.items()}}
    if tag == "L":
        return {"L": [_decoded(each) for each in inner]}
    return value
