"""A private DAX cluster of one node for tests, in threads of this process, on real sockets.

It speaks what amazon-dax-client speaks, with that package's own encoder and decoder, keeps items
as a cluster does (for ever, but for writes that pass it), and asks a DynamoDB server for the rest.
It can be killed, be silent, and lose or cut one reply. It checks no signatures.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import dax_words as words
from amazondax import AttributeValueDecoder as Decode
from amazondax import AttributeValueEncoder as Encode
from amazondax.CborDecoder import NoMoreData
from amazondax.CborEncoder import CborEncoder
from amazondax.Constants import DaxMethodIds as Ids
from amazondax.Constants import DaxResponseParam as Tell
from amazondax.DaxCborDecoder import DaxCborDecoder
from botocore.exceptions import ClientError

HOST = "127.0.0.1"
OPERATIONS = {
    Ids.getItem_263244906_1_Id: "GetItem",
    Ids.putItem_N2106490455_1_Id: "PutItem",
    Ids.deleteItem_1013539361_1_Id: "DeleteItem",
    Ids.updateItem_1425579023_1_Id: "UpdateItem",
    Ids.batchGetItem_N697851100_1_Id: "BatchGetItem",
    Ids.batchWriteItem_116217951_1_Id: "BatchWriteItem",
    Ids.query_N931250863_1_Id: "Query",
    Ids.scan_N1875390620_1_Id: "Scan",
    Ids.transactGetItems_1866287579_1_Id: "TransactGetItems",
    Ids.transactWriteItems_N1160037738_1_Id: "TransactWriteItems",
}
ERRORS = {
    "ProvisionedThroughputExceededException": [4, 37, 38, 39, 40],
    "ResourceNotFoundException": [4, 37, 38, 39, 41],
    "ConditionalCheckFailedException": [4, 37, 38, 39, 43],
    "ValidationException": [4, 37, 38, 39, 46],
    "TransactionCanceledException": [4, 37, 38, 39, 58],
    "InternalServerError": [3, 37, 54],
}


def _refused(error: ClientError) -> bytes:
    told, enc = error.response["Error"], CborEncoder()
    words.write(enc, ERRORS.get(told["Code"], [4, 37, 38, 39]))
    words.write(enc, told["Message"])
    more = ["request", told["Code"], 400]
    if reasons := error.response.get("CancellationReasons"):
        more.append([part for r in reasons for part in (r["Code"], r.get("Message"), None)])
    words.write(enc, more)
    return bytes(enc.as_bytes())


def _projected(item: Any, paths: Any) -> dict[int, words.Attribute]:
    parts = [words.at_path(item, path) for path in paths]
    return {at: words.Attribute(part) for at, part in enumerate(parts) if part is not None}


class DaxServer:
    """``dynamodb``: a client of boto3 that nothing is in front of. ``asked``: the operations that
    came; ``accepted``: how many connections. ``fail``: an error for the next operations, by name.
    ``spoil``: what becomes of the next one, once it is done: ``"lose"`` its reply, or ``"cut"``."""

    def __init__(self, dynamodb: Any) -> None:
        self.dynamodb = dynamodb
        self.asked: list[str] = []
        self.accepted = 0
        self.kept: dict[Any, Any] = {}
        self.silent = threading.Event()
        self.fail: list[str] = []
        self.spoil: str | None = None
        self.port = 0
        self.lists: list[tuple[str, ...]] = [(), ()]  # 1 is the empty one
        self._schemas: dict[str, list[dict[str, str]]] = {}
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"dax://{HOST}:{self.port}"

    def start(self) -> None:
        """Listen, on the former port if there was one; what was kept is gone."""
        self.kept.clear()
        self._listener = listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, self.port))
        listener.listen()
        self.port = listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def kill(self) -> None:
        """Refuse what comes, and reset what is open."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # A thread that is in accept() would keep it listening.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            connections = list(self._open)
            self._open.clear()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with self._lock:
                    self.accepted += 1
                    self._open.add(connection)
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        def more(buffer: bytearray, wanted: int) -> int:
            got = connection.recv(65536)
            buffer.extend(got)
            return len(got)

        dec = DaxCborDecoder(more)
        with contextlib.suppress(OSError, NoMoreData), connection:
            for _ in range(5):  # magic word, layers, session, who asks, types
                dec.decode_object()
            while True:
                dec.decode_int()
                reply = self._reply(dec.decode_int(), dec)
                if self.silent.is_set():
                    continue
                spoil = None
                if reply and reply[1]:
                    spoil, self.spoil = self.spoil, None
                if spoil == "lose":
                    return
                if reply:
                    connection.sendall(reply[0][:2] if spoil == "cut" else reply[0])
                if spoil == "cut":
                    return

    def _reply(self, method: int, dec: Any) -> tuple[bytes, bool] | None:
        """The bytes, and whether of an operation on items."""
        try:
            return self._of_method(method, dec)
        except ClientError as error:
            return _refused(error), False

    def _of_method(self, method: int, dec: Any) -> tuple[bytes, bool] | None:
        enc = CborEncoder()
        enc.append_array_header(0)
        if method == Ids.authorizeConnection_1489122155_1_Id:
            for _ in range(5):
                dec.decode_object()
            return None
        if method == Ids.endpoints_455855874_1_Id:
            node = {0: 1, 1: HOST, 2: socket.inet_aton(HOST), 3: self.port, 4: 1, 5: "a", 6: 1}
            words.write(enc, [node])
        elif method == Ids.defineKeySchema_N742646399_1_Id:
            schema = self.schema(words.text(dec.decode_object()))
            words.write(enc, {each["AttributeName"]: each["AttributeType"] for each in schema})
        elif method == Ids.defineAttributeListId_N1230579644_1_Id:
            words.write(enc, self.list_id(tuple(dec.decode_array())))
        elif method == Ids.defineAttributeList_670678385_1_Id:
            words.write(enc, list(self.lists[dec.decode_int()]))
        else:
            return self._operation(OPERATIONS[method], dec, enc), True
        return enc.as_bytes(), False

    def _operation(self, operation: str, dec: Any, enc: Any) -> bytes:
        do: Callable[[Any, Any], None] = getattr(self, f"_{operation}")
        read = words.READERS[operation](self, dec)
        self.asked.append(operation)
        try:
            if self.fail:
                raise ClientError({"Error": {"Code": self.fail.pop(0), "Message": "x"}}, operation)
            do(read, enc)
        except ClientError as error:
            return _refused(error)
        return bytes(enc.as_bytes())

    # -- what both sides name ------------------------------------------------------------

    def schema(self, table: str) -> list[dict[str, str]]:
        if table not in self._schemas:
            told = self.dynamodb.describe_table(TableName=table)["Table"]
            types = {d["AttributeName"]: d["AttributeType"] for d in told["AttributeDefinitions"]}
            keys = sorted(told["KeySchema"], key=lambda each: each["KeyType"])  # HASH, RANGE
            self._schemas[table] = [
                {"AttributeName": k["AttributeName"], "AttributeType": types[k["AttributeName"]]}
                for k in keys
            ]
        return self._schemas[table]

    def list_id(self, names: tuple[str, ...]) -> int:
        with self._lock:
            if not names:
                return 1
            if names not in self.lists:
                self.lists.append(names)
            return self.lists.index(names)

    def key_of(self, table: str, item: Any) -> dict[str, Any]:
        return {each["AttributeName"]: item[each["AttributeName"]] for each in self.schema(table)}

    def value_of(self, table: str, item: Any) -> bytes:
        """All of an item but its key."""
        names = Encode._get_canonical_attribute_list(item, self.schema(table))
        return bytes(Encode.encode_values(item, self.schema(table), names, self.list_id(names)))

    def read_value(self, dec: Any) -> dict[str, Any]:
        got = Decode._decode_stream_item(dec.decode_cbor())
        names = self.lists[got.pop("_attr_list_id")]
        return dict(zip(names, got["_anonymous_attribute_values"], strict=True))

    def _forget(self, table: str, item: Any) -> None:
        self.kept.pop((table, repr(self.key_of(table, item))), None)

    # -- operations ----------------------------------------------------------------------

    def _GetItem(self, params: Any, enc: Any) -> None:
        table, ident = params["TableName"], (params["TableName"], repr(params["Key"]))
        strong, paths = params.get("ConsistentRead"), params.pop("paths", None)
        if strong or ident not in self.kept:
            whole = {"TableName": table, "Key": params["Key"], "ConsistentRead": bool(strong)}
            found = self.dynamodb.get_item(**whole).get("Item")
            if not strong:
                self.kept[ident] = found
        else:
            found = self.kept[ident]
        told: dict[int, Any] = {}
        if found is not None and paths is None:
            told[Tell.Item] = self.value_of(table, found)
        elif found is not None:
            told[Tell.Item] = _projected(found, paths)
        if params.get("ReturnConsumedCapacity", "NONE") != "NONE":
            told[Tell.ConsumedCapacity] = words.capacity(table, 1)
        words.write(enc, told)

    def _written(self, call: Callable[..., Any], params: Any, enc: Any) -> None:
        table = params["TableName"]
        self._forget(table, params.get("Key") or params["Item"])
        got = call(**params)
        told = {}
        changed = got.get("Attributes")
        if changed and params["ReturnValues"].startswith("UPDATED"):
            names = tuple(sorted(changed))
            value = CborEncoder()
            value.append_int(self.list_id(names))
            words.write(value, {at: words.Attribute(changed[n]) for at, n in enumerate(names)})
            told[Tell.Attributes] = value.as_bytes()
        elif changed:
            told[Tell.Attributes] = self.value_of(table, changed)
        words.write(enc, told)

    def _PutItem(self, params: Any, enc: Any) -> None:
        self._written(self.dynamodb.put_item, params, enc)

    def _DeleteItem(self, params: Any, enc: Any) -> None:
        self._written(self.dynamodb.delete_item, params, enc)

    def _UpdateItem(self, params: Any, enc: Any) -> None:
        self._written(self.dynamodb.update_item, params, enc)

    def _BatchGetItem(self, params: Any, enc: Any) -> None:
        got = self.dynamodb.batch_get_item(RequestItems=params["RequestItems"])["Responses"]
        told = {
            table: [
                part
                for item in items
                for part in (
                    bytes(Encode.encode_key(item, self.schema(table))),
                    self.value_of(table, item),
                )
            ]
            for table, items in got.items()
        }
        words.write(enc, [told, {}])
        words.write(enc, [])

    def _BatchWriteItem(self, params: Any, enc: Any) -> None:
        for table, requests in params["RequestItems"].items():
            for each in requests:
                put = each.get("PutRequest", {}).get("Item")
                self._forget(table, put or each["DeleteRequest"]["Key"])
        self.dynamodb.batch_write_item(RequestItems=params["RequestItems"])
        for empty in ({}, [], {}):
            words.write(enc, empty)

    def _TransactWriteItems(self, params: Any, enc: Any) -> None:
        for each in params["TransactItems"]:
            for action in each.values():
                self._forget(action["TableName"], action.get("Item") or action["Key"])
        self.dynamodb.transact_write_items(TransactItems=params["TransactItems"])
        words.write(enc, [None, [], {}])

    def _TransactGetItems(self, params: Any, enc: Any) -> None:
        asked = params["TransactItems"]
        got = self.dynamodb.transact_get_items(TransactItems=asked)["Responses"]
        told = [
            self.value_of(each["Get"]["TableName"], found["Item"]) if "Item" in found else None
            for each, found in zip(asked, got, strict=True)
        ]
        words.write(enc, [told, []])

    def _page(self, ask: Callable[..., Any], params: Any, enc: Any) -> None:
        table, paths = params["TableName"], params.pop("paths", None)
        got = ask(**params)
        items: list[Any] = [
            [bytes(Encode.encode_key(item, self.schema(table))), self.value_of(table, item)]
            for item in got["Items"]
        ]
        if paths is not None:
            items = [_projected(item, paths) for item in got["Items"]]
        told = {Tell.Items: items, Tell.Count: got["Count"], Tell.ScannedCount: got["ScannedCount"]}
        last = got.get("LastEvaluatedKey")
        if last:
            index = "IndexName" in params
            key = (
                Encode.encode_compound_key(last)
                if index
                else Encode.encode_key(last, self.schema(table))
            )
            told[Tell.LastEvaluatedKey] = bytes(key)
        words.write(enc, told)

    def _Query(self, params: Any, enc: Any) -> None:
        self._page(self.dynamodb.query, params, enc)

    def _Scan(self, params: Any, enc: Any) -> None:
        self._page(self.dynamodb.scan, params, enc)
