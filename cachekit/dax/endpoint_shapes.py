"""What goes to a DAX cluster and what comes back from it: parameters it can take, answers in
boto3's form, and whose errors they are. Pure: no input or output.

The forms are those of amazon-dax-client 2.1.0, which ignores parameters it does not know, answers
numbers as they were sent, and leaves the key out of unprocessed puts.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .sent import REFUSALS
from .values import number

_EXPRESSIONS: Final = {"ExpressionAttributeNames", "ExpressionAttributeValues"}
_WRITE: Final = {
    "TableName", "ReturnValues", "ReturnConsumedCapacity", "ReturnItemCollectionMetrics",
    "ConditionExpression", "Expected", "ConditionalOperator", *_EXPRESSIONS,
}  # fmt: skip
_PAGE: Final = {
    "TableName", "IndexName", "Select", "Limit", "ConsistentRead", "ExclusiveStartKey",
    "ReturnConsumedCapacity", "ProjectionExpression", "FilterExpression", "AttributesToGet",
    "ConditionalOperator", *_EXPRESSIONS,
}  # fmt: skip
# What the client sends on; anything else it would drop without a word.
TAKEN: Final[Mapping[str, frozenset[str]]] = {
    "GetItem": frozenset({
        "TableName", "Key", "ConsistentRead", "ReturnConsumedCapacity", "ProjectionExpression",
        "ExpressionAttributeNames", "AttributesToGet",
    }),
    "PutItem": frozenset({*_WRITE, "Item"}),
    "DeleteItem": frozenset({*_WRITE, "Key"}),
    "UpdateItem": frozenset({*_WRITE, "Key", "UpdateExpression", "AttributeUpdates"}),
    "Query": frozenset({
        *_PAGE, "ScanIndexForward", "KeyConditionExpression", "KeyConditions", "QueryFilter",
    }),
    "Scan": frozenset({*_PAGE, "TotalSegments", "Segment", "ScanFilter"}),
    "BatchGetItem": frozenset({"RequestItems", "ReturnConsumedCapacity"}),
    "BatchWriteItem": frozenset({
        "RequestItems", "ReturnConsumedCapacity", "ReturnItemCollectionMetrics",
    }),
    "TransactGetItems": frozenset({"TransactItems", "ReturnConsumedCapacity"}),
    "TransactWriteItems": frozenset({
        "TransactItems", "ReturnConsumedCapacity", "ReturnItemCollectionMetrics",
        "ClientRequestToken",
    }),
}  # fmt: skip
READS: Final = frozenset({"GetItem", "BatchGetItem", "Query", "Scan", "TransactGetItems"})
METHODS: Final = {
    "GetItem": "get_item", "PutItem": "put_item", "DeleteItem": "delete_item",
    "UpdateItem": "update_item", "Query": "query", "Scan": "scan",
    "BatchGetItem": "batch_get_item", "BatchWriteItem": "batch_write_item",
    "TransactGetItems": "transact_get_items", "TransactWriteItems": "transact_write_items",
}  # fmt: skip
# Forms from before there were expressions. The client makes expressions of them.
_LEGACY: Final = frozenset({
    "AttributesToGet", "Expected", "AttributeUpdates", "KeyConditions", "QueryFilter",
    "ScanFilter", "ConditionalOperator",
})  # fmt: skip
_FOR_A_LOOK: Final = "ReturnValuesOnConditionCheckFailure"  # the client answers without the item


def takes(operation: str, params: Mapping[str, Any]) -> bool:
    """Whether the client sends all of these parameters, as they are meant. It takes names of
    tables, no ARNs; it would drop what a key has too much, and one of two forms that exclude each
    other: DynamoDB is to refuse those."""
    known = TAKEN.get(operation)
    if known is None or not known.issuperset(params):
        return False
    tables = tables_of(operation, params)
    if not tables or any(":" in table for table in tables):
        return False
    key = params.get("Key")
    if isinstance(key, Mapping) and len(key) > 2:
        return False
    if not _LEGACY.isdisjoint(params) and any(name.endswith("Expression") for name in params):
        return False
    if operation == "TransactWriteItems":
        actions = [action for each in params["TransactItems"] for action in each.values()]
        return not any(_FOR_A_LOOK in action for action in actions)
    return True


def tables_of(operation: str, params: Mapping[str, Any]) -> list[str] | None:
    """The tables that a request names; None: it can not be told."""
    try:
        if "RequestItems" in params:
            found = list(params["RequestItems"])
        elif "TransactItems" in params:
            found = [
                action["TableName"] for each in params["TransactItems"] for action in each.values()
            ]
        else:
            found = [params["TableName"]]
    except (KeyError, TypeError, AttributeError):
        return None
    return found if all(type(table) is str for table in found) else None


def own_copy(operation: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters for the client: it writes into those of batches."""
    if operation == "BatchGetItem":
        asked = {table: dict(each) for table, each in params["RequestItems"].items()}
        return {**params, "RequestItems": asked}
    if operation == "BatchWriteItem":
        asked_too = {
            table: [{kind: dict(what) for kind, what in each.items()} for each in requests]
            for table, requests in params["RequestItems"].items()
        }
        return {**params, "RequestItems": asked_too}
    return dict(params)


def body_of(params: Mapping[str, Any]) -> bytes:
    """A request as it would be sent to DynamoDB: what a write compares what it keeps with."""
    return json.dumps(params, default=_base64).encode()


def _base64(value: Any) -> str:
    return base64.b64encode(value).decode()


# -- answers -------------------------------------------------------------------------------


def metadata(attempts: int, status: int = 200, request_id: str | None = None) -> dict[str, Any]:
    """A ResponseMetadata as botocore makes it; its headers tell that a cluster answered."""
    ident = request_id or uuid.uuid4().hex.upper()
    return {
        "RequestId": ident,
        "HTTPStatusCode": status,
        "HTTPHeaders": {"server": "dax", "x-amzn-requestid": ident},
        "RetryAttempts": attempts,
    }


def answer(
    operation: str, params: Mapping[str, Any], got: Mapping[str, Any], attempts: int
) -> dict[str, Any]:
    """The client's answer in boto3's form."""
    told: dict[str, Any] = {}
    for name, value in got.items():
        if name in ("Item", "Attributes", "LastEvaluatedKey"):
            if value:
                told[name] = _item(value)
        elif name == "Items":
            told[name] = [_item(each or {}) for each in value]
        elif name == "Responses":
            told[name] = _responses(value)
        elif name == "UnprocessedItems":
            told[name] = {t: list(_unprocessed(params, t, each)) for t, each in value.items()}
        elif name in ("ConsumedCapacity", "ItemCollectionMetrics"):
            told[name] = _figures(value)
        else:
            told[name] = value
    told["ResponseMetadata"] = metadata(attempts)
    return told


def _responses(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {table: [_item(each) for each in items] for table, items in value.items()}
    return [{"Item": _item(each["Item"])} if each and each.get("Item") else {} for each in value]


def _item(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _attribute(each) for name, each in value.items()}


def _attribute(value: Mapping[str, Any]) -> dict[str, Any]:
    ((tag, inner),) = value.items()
    if tag == "N":
        return {"N": number(inner) or inner}
    if tag == "NS":
        return {"NS": [number(each) or each for each in inner]}
    if tag == "M":
        return {"M": _item(inner)}
    if tag == "L":
        return {"L": [_attribute(each) for each in inner]}
    if tag == "B":
        return {"B": bytes(inner)}
    if tag == "BS":
        return {"BS": [bytes(each) for each in inner]}
    return dict(value)


def _unprocessed(params: Mapping[str, Any], table: str, left: Any) -> Iterator[dict[str, Any]]:
    """Unprocessed requests; of a put every one that it may have been, as its key is not told."""
    asked = [each["PutRequest"]["Item"] for each in params["RequestItems"].get(table, ())
             if "PutRequest" in each]  # fmt: skip
    given: set[int] = set()
    for each in left:
        if "DeleteRequest" in each:
            yield {"DeleteRequest": {"Key": _item(each["DeleteRequest"]["Key"])}}
            continue
        wanted = _item(each["PutRequest"]["Item"])
        for at, item in enumerate(asked):
            mine = _item(item)
            if at not in given and all(mine.get(name) == v for name, v in wanted.items()):
                given.add(at)
                yield {"PutRequest": {"Item": item}}


def _figures(value: Any) -> Any:
    """Capacity and sizes are floats in boto3's answers."""
    if isinstance(value, Mapping):
        return {
            name: each if name == "ItemCollectionKey" else _figures(each)
            for name, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_figures(each) for each in value]
    return value if isinstance(value, (str, bool)) or value is None else float(value)


# -- errors --------------------------------------------------------------------------------


def refusal(error: Any, operation: str) -> dict[str, Any] | None:
    """The answer in an error of the client, in boto3's form; None: the cluster said nothing that
    is certain. Codes: the first is 4 for what DynamoDB or the cluster refused; 2 and 3 are troubles
    of the cluster itself."""
    codes = getattr(error, "codes", None)
    if not codes or codes[0] != 4:
        return None
    code = getattr(error, "code", None)
    if isinstance(code, tuple):  # ("ValidationException", what it is not able to do)
        code = code[0]
    if code is None and getattr(error, "auth_error", False):
        code = "UnrecognizedClientException"
    if code == "RequestLimitExceededException":
        code = "RequestLimitExceeded"
    if code not in REFUSALS and code != "LimitExceededException":
        return None
    given = getattr(error, "response", {})
    message = given.get("Error", {}).get("Message", "")
    request_id = given.get("ResponseMetadata", {}).get("RequestId")
    told: dict[str, Any] = {
        "Error": {"Message": message, "Code": code},
        "message": message,
        "ResponseMetadata": metadata(0, 400, request_id),
    }
    if code == "TransactionCanceledException":
        told["CancellationReasons"] = _reasons(getattr(error, "cancellation_reasons", None))
    return told


def _reasons(given: Any) -> list[dict[str, Any]]:
    """Why each action was cancelled: the cluster tells code, message and item by turns."""
    flat = list(given or ())
    if flat and all(isinstance(each, (list, tuple)) for each in flat):
        flat = [part for each in flat for part in [*each, None, None, None][:3]]
    found = []
    for at in range(0, len(flat) - len(flat) % 3, 3):
        code, message = _text(flat[at]), _text(flat[at + 1])
        found.append({"Code": code or "None", **({"Message": message} if message else {})})
    return found


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, (bytes, bytearray)) else value


def was_unsent(error: BaseException) -> bool:
    """Whether it is certain that the request itself never left whole, by where the client was: in
    all that it does before the reply is read, or in writing the request, whose last bytes the
    kernel then did not take. Where the client is not known, False."""
    frames: list[tuple[str, str]] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append((code.co_filename.replace("\\", "/").rpartition("/")[2], code.co_name))
        trace = trace.tb_next
    if not any(file == "AmazonDaxClient.py" for file, _ in frames):
        return False
    inside = [at for at, (file, _) in enumerate(frames) if file == "DaxClient.py"]
    if not inside:
        return not any(file == "Tube.py" for file, _ in frames)
    after = [name for _, name in frames[inside[0] + 1 :] if name not in ("<dictcomp>", "<setcomp>")]
    name = after[0] if after else ""
    return name in _BEFORE or name.startswith("write_")


# What an operation of the client calls before the reply to it is read.
_BEFORE: Final = frozenset({
    "get", "reauth", "convert_request", "_get_canonical_attribute_list",
    "_convert_to_transaction_write_items_format", "_convert_to_transaction_get_items_format",
})  # fmt: skip
