"""How requests to a DAX cluster are read and replies written, in amazon-dax-client's forms."""

from __future__ import annotations

from typing import Any

from amazondax import AttributeValueDecoder as Decode
from amazondax import AttributeValueEncoder as Encode
from amazondax.CborEncoder import CborEncoder
from amazondax.CborSExprGenerator import FUNCS, OPERATORS, Func
from amazondax.Constants import DaxDataRequestParam as Ask
from amazondax.Constants import DynamoDBOperationNumerals as Verbs
from amazondax.Constants import ReturnConsumedCapacityValues, ReturnValuesValues, SelectValues
from amazondax.DaxCborDecoder import DaxCborDecoder
from amazondax.DaxCborTypes import DocumentPathOrdinal


class Attribute:
    """An attribute's value, to be written in its own form."""

    def __init__(self, value: Any) -> None:
        self.value = value


def write(enc: Any, value: Any) -> None:
    if isinstance(value, Attribute):
        Encode.encode_attribute_value_direct(enc, value.value)
    elif value is None:
        enc.append_null()
    elif isinstance(value, bool):
        enc.append_boolean(value)
    elif isinstance(value, int):
        enc.append_int(value)
    elif isinstance(value, str):
        enc.append_string(value)
    elif isinstance(value, bytes):
        enc.append_binary(value)
    elif isinstance(value, dict):
        enc.append_map_header(len(value))
        for name, each in value.items():
            write(enc, name)
            write(enc, each)
    else:
        enc.append_array_header(len(value))
        for each in value:
            write(enc, each)


def text(value: Any) -> str:
    return value if isinstance(value, str) else bytes(value).decode()


def capacity(table: str, units: int) -> bytes:
    enc = CborEncoder()
    for each in (table, units, None, None, None):
        write(enc, each)
    return bytes(enc.as_bytes())


def _nested(data: bytes) -> Any:
    rest = [data]

    def more(buffer: bytearray, wanted: int) -> int:
        given = rest.pop() if rest else b""
        buffer.extend(given)
        return len(given)

    return DaxCborDecoder(more)


# -- expressions ---------------------------------------------------------------------------

_SIGNS = {code: sign for sign, code in OPERATORS.items()}
_CALLS = {code: name for name, code in FUNCS.items()}
_ACTIONS = {
    Func.SetAction: "SET",
    Func.AddAction: "ADD",
    Func.DeleteAction: "DELETE",
    Func.RemoveAction: "REMOVE",
}


class Texts:
    """Expressions as text, with names and values of their own."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.values: dict[str, Any] = {}

    def condition(self, data: bytes) -> str:
        return self._of(*self._parts(data))

    def update(self, data: bytes) -> str:
        expression, offset = self._parts(data)
        clauses: dict[str, list[str]] = {}
        for code, *parts in expression:
            sign = " = " if code == Func.SetAction else " "
            told = sign.join(self._of(part, offset) for part in parts)
            clauses.setdefault(_ACTIONS[code], []).append(told)
        return " ".join(f"{verb} {', '.join(parts)}" for verb, parts in clauses.items())

    def paths(self, data: bytes) -> list[list[Any]]:
        """A projection's paths, each as names and places in lists."""
        dec = _nested(data)
        dec._decode_array_header()
        dec.decode_int()
        return [path[1:] for path in dec.decode_object()]

    def into(self, params: dict[str, Any]) -> None:
        if self.names:
            params["ExpressionAttributeNames"] = self.names
        if self.values:
            params["ExpressionAttributeValues"] = self.values

    def _parts(self, data: bytes) -> tuple[Any, int]:
        dec = _nested(data)
        dec._decode_array_header()
        dec.decode_int()
        expression, offset = dec.decode_object(), len(self.values)
        for _ in dec.decode_array_iter():
            self.values[f":v{len(self.values)}"] = Decode._decode_attribute_value(dec)
        return expression, offset

    def _of(self, expression: Any, offset: int) -> str:
        code, *parts = expression
        if code == Func.Variable:
            return f":v{parts[0] + offset}"
        if code == Func.DocumentPath:
            return self._path(parts)
        if code == Func.In:
            inner = ", ".join(self._of(each, offset) for each in parts[1])
            return f"{self._of(parts[0], offset)} IN ({inner})"
        told = [self._of(each, offset) for each in parts]
        if code == Func.Between:
            return f"{told[0]} BETWEEN {told[1]} AND {told[2]}"
        if code == Func.Not:
            return f"NOT ({told[0]})"
        if code in (Func.And, Func.Or):
            return f"({told[0]}) {'AND' if code == Func.And else 'OR'} ({told[1]})"
        if code in _CALLS:
            return f"{_CALLS[code]}({', '.join(told)})"
        return f"{told[0]} {_SIGNS[code]} {told[1]}"

    def _path(self, parts: list[Any]) -> str:
        told = ""
        for part in parts:
            if isinstance(part, DocumentPathOrdinal):
                told += f"[{part.ordinal}]"
            else:
                name = f"#n{len(self.names)}"
                self.names[name] = part
                told += f".{name}" if told else name
        return told


def at_path(item: Any, path: list[Any]) -> Any:
    """The attribute at a path of an item; None where there is none."""
    found: Any = {"M": item}
    for part in path:
        if isinstance(part, DocumentPathOrdinal):
            inside = found.get("L", [])
            found = inside[part.ordinal] if part.ordinal < len(inside) else None
        else:
            found = found.get("M", {}).get(part)
        if found is None:
            return None
    return found


# -- requests ------------------------------------------------------------------------------


def _name_of(kinds: Any, number: int) -> str:
    return next(n for n, v in vars(kinds).items() if v == number and not n.startswith("_"))


def _more(server: Any, dec: Any, params: dict[str, Any], texts: Texts) -> dict[str, Any]:
    """The named parameters at the end of a request."""
    if dec.try_decode_null():
        texts.into(params)
        return params
    for _ in dec.decode_map_iter():
        what = dec.decode_int()
        if what == Ask.ExpressionAttributeValues:
            for _ in dec.decode_map_iter():
                dec.decode_string()
                Decode._decode_attribute_value(dec)
        elif what == Ask.ExclusiveStartKey:
            if "IndexName" in params:
                key = Decode._decode_compound_key(dec.decode_cbor())
            else:
                key = Decode._decode_key_bytes(dec, server.schema(params["TableName"]))
            params["ExclusiveStartKey"] = key
        else:
            _one(what, dec.decode_object(), params, texts)
    texts.into(params)
    return params


def _one(what: int, value: Any, params: dict[str, Any], texts: Texts) -> None:
    if what == Ask.ConditionExpression and value[:1] >= b"\x80":  # before it comes its text
        params["ConditionExpression"] = texts.condition(value)
    elif what == Ask.FilterExpression:
        params["FilterExpression"] = texts.condition(value)
    elif what == Ask.UpdateExpression:
        params["UpdateExpression"] = texts.update(value)
    elif what == Ask.ProjectionExpression:
        params["paths"] = texts.paths(value)
    elif what == Ask.ReturnConsumedCapacity:
        params["ReturnConsumedCapacity"] = _name_of(ReturnConsumedCapacityValues, value)
    elif what == Ask.ReturnValues:
        params["ReturnValues"] = _name_of(ReturnValuesValues, value)
    elif what == Ask.Select:
        params["Select"] = _name_of(SelectValues, value)
    elif what == Ask.IndexName:
        params["IndexName"] = text(value)
    elif what in (Ask.ConsistentRead, Ask.ScanIndexForward):
        name = "ConsistentRead" if what == Ask.ConsistentRead else "ScanIndexForward"
        params[name] = bool(value)
    elif what in (Ask.Limit, Ask.Segment, Ask.TotalSegments):
        params[_name_of(Ask, what)] = value


def _keyed(server: Any, dec: Any) -> dict[str, Any]:
    table = text(dec.decode_object())
    params = {"TableName": table, "Key": Decode._decode_key_bytes(dec, server.schema(table))}
    return _more(server, dec, params, Texts())


def _put(server: Any, dec: Any) -> dict[str, Any]:
    table = text(dec.decode_object())
    key = Decode._decode_key_bytes(dec, server.schema(table))
    item = {**key, **server.read_value(dec)}
    return _more(server, dec, {"TableName": table, "Item": item}, Texts())


def _page(server: Any, dec: Any) -> dict[str, Any]:
    return _more(server, dec, {"TableName": text(dec.decode_object())}, Texts())


def _query(server: Any, dec: Any) -> dict[str, Any]:
    params, texts = {"TableName": text(dec.decode_object())}, Texts()
    params["KeyConditionExpression"] = texts.condition(dec.decode_binary())
    return _more(server, dec, params, texts)


def _gets(server: Any, dec: Any) -> dict[str, Any]:
    asked = {}
    for _ in dec.decode_map_iter():
        table = dec.decode_string()
        dec._decode_array_header()
        strong, _paths = dec.decode_object(), dec.decode_object()
        keys = [
            Decode._decode_key_bytes(dec, server.schema(table)) for _ in dec.decode_array_iter()
        ]
        asked[table] = {"Keys": keys, "ConsistentRead": strong}
    return _more(server, dec, {"RequestItems": asked}, Texts())


def _writes(server: Any, dec: Any) -> dict[str, Any]:
    asked: dict[str, list[Any]] = {}
    for _ in dec.decode_map_iter():
        table = dec.decode_string()
        requests = asked[table] = []
        for _ in range(dec._decode_array_header() // 2):
            key = Decode._decode_key_bytes(dec, server.schema(table))
            if dec.try_decode_null():
                requests.append({"DeleteRequest": {"Key": key}})
            else:
                requests.append({"PutRequest": {"Item": {**key, **server.read_value(dec)}}})
    return _more(server, dec, {"RequestItems": asked}, Texts())


def _transact_gets(server: Any, dec: Any) -> dict[str, Any]:
    tables = [text(each) for each in dec.decode_array()]
    keys = [
        Decode._decode_key_bytes(dec, server.schema(tables[at]))
        for at, _ in enumerate(dec.decode_array_iter())
    ]
    dec.decode_object()  # projections
    dec.decode_object()
    gets = [{"Get": {"TableName": t, "Key": k}} for t, k in zip(tables, keys, strict=True)]
    return {"TransactItems": gets}


def _transaction(server: Any, dec: Any) -> dict[str, Any]:
    verbs, tables = dec.decode_array(), [text(each) for each in dec.decode_array()]
    keys = [
        Decode._decode_key_bytes(dec, server.schema(tables[at]))
        for at, _ in enumerate(dec.decode_array_iter())
    ]
    values = [
        None if dec.try_decode_null() else server.read_value(dec) for _ in dec.decode_array_iter()
    ]
    dec.decode_object(), dec.decode_object()  # what is to be returned
    conditions, updates = dec.decode_object(), dec.decode_object()
    actions = []
    for at, verb in enumerate(verbs):
        texts, action = Texts(), {"TableName": tables[at]}
        if verb == Verbs.PUT:
            action["Item"] = {**keys[at], **values[at]}
        else:
            action["Key"] = keys[at]
        if conditions[at]:
            action["ConditionExpression"] = texts.condition(conditions[at])
        if updates[at]:
            action["UpdateExpression"] = texts.update(updates[at])
        texts.into(action)
        kinds = {Verbs.PUT: "Put", Verbs.DELETE: "Delete", Verbs.CHECK: "ConditionCheck"}
        actions.append({kinds.get(verb, "Update"): action})
    if not dec.try_decode_null():
        for _ in dec.decode_map_iter():
            dec.decode_object(), dec.decode_object()
    return {"TransactItems": actions}


READERS = {
    "GetItem": _keyed,
    "PutItem": _put,
    "DeleteItem": _keyed,
    "UpdateItem": _keyed,
    "Query": _query,
    "Scan": _page,
    "BatchGetItem": _gets,
    "BatchWriteItem": _writes,
    "TransactGetItems": _transact_gets,
    "TransactWriteItems": _transaction,
}
