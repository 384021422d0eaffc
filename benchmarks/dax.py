"""What a hit of ``cachekit.dax`` costs beside boto3 alone, the network left out of both.

    python benchmarks/dax.py [--quick] [--rounds N] [--json FILE]

boto3's reference is a GetItem whose reply is ready the moment it is sent (a ``before-send``
handler): what is timed is serializing, signing, parsing. Interleaved in one run. The exit code says
nothing about the figures. Where amazon-dax-client is installed, its decoding of one item's bytes,
as they come from a cluster, is timed too; no socket, no request. P95: a hit costs at most 10 µs for
an item of 400 B and 30 µs for one of 4 KB, and at most 1/70 and 1/40 of boto3.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import boto3
import botocore
from botocore.awsrequest import AWSResponse
from interleave import Group, Promise, Row, as_json, table

import cachekit.dax

KEYS = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "eu-west-1"}
SPEED = {"400 B": 70.0, "4 KB": 40.0}
MICROSECONDS = {"400 B": 10.0, "4 KB": 30.0}
TABLE = "users"
WIRE_KEY = {"pk": {"S": "user-1"}}
PLAIN_KEY = {"pk": "user-1"}


def items() -> dict[str, dict[str, Any]]:
    """13 attributes of 400 B; the same with maps, lists and a set in 4 KB."""
    small: dict[str, Any] = {**WIRE_KEY, "active": {"BOOL": True}}
    for n in range(11):
        small[f"attribute{n}"] = {"N": str(n * 1001)} if n % 3 == 0 else {"S": f"value-{n}-abcdefg"}
    large = {
        **small,
        "map": {"M": {f"name{n}": {"S": "x" * 40} for n in range(20)}},
        "list": {"L": [{"N": str(n)} for n in range(30)]},
        "tags": {"SS": [f"tag{n}" for n in range(10)]},
        "text": {"S": "y" * 1700},
    }
    return {"400 B": small, "4 KB": large}


def replying(client: Any, item: dict[str, Any]) -> None:
    """No request of this client leaves: every reply has this item."""
    body = json.dumps({"Item": item}).encode()

    def reply(**_: Any) -> AWSResponse:
        raw = io.BytesIO(body)
        raw.stream = lambda *_, **__: iter([raw.read()])  # type: ignore[attr-defined]  # urllib3's
        return AWSResponse("https://dynamodb", 200, {"x-amzn-requestid": "R"}, raw)

    client.meta.events.register("before-send.dynamodb", reply)


def clients(item: dict[str, Any], session: Any) -> tuple[Any, Any]:
    """A client and a Table of a session."""
    client, resource = session.client("dynamodb"), session.resource("dynamodb")
    replying(client, item)
    replying(resource.meta.client, item)
    return client, resource.Table(TABLE)


def decoding(item: dict[str, Any]) -> Callable[[], Any]:
    """amazon-dax-client's work for the value of one item, checked once."""
    values = import_module("amazondax.AttributeValueDecoder")
    encode = import_module("amazondax.AttributeValueEncoder").encode_attribute_value_direct
    encoder = import_module("amazondax.CborEncoder").CborEncoder
    decoder = import_module("amazondax.DaxCborDecoder").DaxCborDecoder
    names = sorted(set(item) - set(WIRE_KEY))
    inner, outer = encoder(), encoder()
    inner.append_int(1)
    for name in names:
        encode(inner, item[name])
    outer.append_binary(inner.as_bytes())
    packed = outer.as_bytes()

    def decode() -> Any:
        def more(buffer: bytearray, n: int) -> int:
            buffer += packed
            return len(packed)

        return values.deanonymize_attribute_values(values._decode_scan_value(decoder(more)), names)

    if decode() != {name: item[name] for name in names}:
        raise SystemExit("amazon-dax-client decodes another item than was encoded")
    return decode


def group(size: str, item: dict[str, Any]) -> Group:
    plain_client, plain_table = clients(item, boto3.Session(**KEYS))
    session = boto3.Session(**KEYS)
    cachekit.dax.install(session)
    client, users = clients(item, session)
    made = Group(f"GetItem of {size}", "boto3 client", range(20_000), fill=range(20))
    made.add("boto3 client", "ask(TableName='users', Key=key)", ask=plain_client.get_item,
             key=WIRE_KEY)  # fmt: skip
    made.add("boto3 Table", "ask(Key=key)", ask=plain_table.get_item, key=PLAIN_KEY)
    promise = Promise("P95", SPEED[size], speed=True)
    made.add("hit by client", "ask(TableName='users', Key=key)", promise,
             ask=client.get_item, key=WIRE_KEY)  # fmt: skip
    made.add("hit by Table", "ask(Key=key)", promise, ask=users.get_item, key=PLAIN_KEY)
    if find_spec("amazondax") is not None:
        made.add("amazon-dax-client, decoding", "decode()", decode=decoding(item))
    else:
        made.missing["amazon-dax-client, decoding"] = "not installed"
    return made


def median_of_hits(item: dict[str, Any], calls: int) -> dict[str, float]:
    """The median of single hits, each timed by itself, in microseconds."""
    session = boto3.Session(**KEYS)
    cachekit.dax.install(session)
    client, users = clients(item, session)
    asks: dict[str, Callable[[], Any]] = {
        "client": lambda: client.get_item(TableName=TABLE, Key=WIRE_KEY),
        "Table": lambda: users.get_item(Key=PLAIN_KEY),
    }
    found = {}
    for name, ask in asks.items():
        for _ in range(100):
            ask()
        taken = []
        for _ in range(calls):
            start = time.perf_counter_ns()
            ask()
            taken.append(time.perf_counter_ns() - start)
        found[name] = statistics.median(taken) / 1000
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few rounds: a look, not a figure")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    rounds = 5 if asked.quick else asked.rounds
    print(f"Python {platform.python_version()}, boto3 {boto3.__version__}, "
          f"botocore {botocore.__version__}, {platform.machine()}")  # fmt: skip
    rows: list[Row] = []
    lines = []
    for size, item in items().items():
        rows += group(size, item).measure(rounds)
        for name, median in median_of_hits(item, 200 * rounds).items():
            limit = MICROSECONDS[size]
            verdict = "met" if median <= limit else "not met"
            lines.append(f"  {size:>5} by {name:6} {median:6.1f} µs  P95 ≤ {limit:g} {verdict}")
    print(table(rows))
    print("\nMedian of single hits, the clock's own cost included")
    print("\n".join(lines))
    if asked.json:
        with open(asked.json, "w", encoding="utf-8") as file:
            json.dump(as_json(rows), file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
