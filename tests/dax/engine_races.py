"""Random schedules of whole requests over a table whose replicas lag, played on a manual clock.

Each request is a step of the real engine over the real store: it begins, is served by
:class:`Source` some time later, and ends later still; others run between. Whenever nobody writes
and nothing can land any more, every item and page that is kept must be what the table says.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ClientError
from dax_desk import item, key

from cachekit.dax import Dax
from cachekit.dax.expressions import Asked
from cachekit.dax.reads import Step
from cachekit.dax.settings import Settings
from cachekit.dax.values import key_of, wire_atom
from cachekit.dax.writes import WriteStep
from cachekit.runtime import Runtime
from cachekit.testing.clock import ManualClock

LAG = 1.0
HOLD = 8.0
TABLE = "t"
KEYS = [("a", 1), ("a", 2), ("b", 1)]
QUERIES: list[tuple[str, dict[str, Any]]] = [
    *(
        (
            "Query",
            {"KeyConditionExpression": "pk = :p", "ExpressionAttributeValues": {":p": {"S": pk}}},
        )
        for pk in "ab"
    ),
    (
        "Query",
        {
            "IndexName": "by_g",
            "KeyConditionExpression": "g = :g",
            "ExpressionAttributeValues": {":g": {"S": "x"}},
        },
    ),
    ("Scan", {}),
]
SCHEMA = {
    "KeySchema": [
        {"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"},
    ],
    "TableArn": "arn:aws:dynamodb:r:1:table/t",
}  # fmt: skip
Rows = dict[tuple[str, int], dict[str, Any]]


class Lost(Exception):
    """No reply."""


class Source:
    """The table: its states in time, and what may still land."""

    def __init__(self, clock: ManualClock, draw: random.Random) -> None:
        self.clock = clock
        self.draw = draw
        self.states: list[tuple[float, Rows]] = [(0.0, {})]
        self.landing: list[tuple[float, dict[tuple[str, int], Any]]] = []
        self.version = 0

    @property
    def now(self) -> Rows:
        return self.states[-1][1]

    def land(self, *, all_of_it: bool = False) -> None:
        """Called whenever time has passed: each lands at its own moment, before anything else."""
        now = self.clock()
        due = [each for each in self.landing if all_of_it or each[0] <= now]
        for each in sorted(due, key=lambda each: each[0]):
            self.landing.remove(each)
            self.apply(each[1], min(each[0], now))

    def apply(self, changes: dict[tuple[str, int], Any], at: float | None = None) -> None:
        rows = dict(self.now)
        for which, change in changes.items():
            row = change(rows.get(which)) if callable(change) else change
            if row is None:
                rows.pop(which, None)
            else:
                rows[which] = row
        self.states.append((self.clock() if at is None else at, rows))

    def seen(self, *, strong: bool) -> Rows:
        if strong:
            return self.now
        at = self.clock() - self.draw.random() * LAG
        return next(rows for since, rows in reversed(self.states) if since <= at)

    def page(self, operation: str, params: dict[str, Any], rows: Rows) -> dict[str, Any]:
        wanted = params.get("ExpressionAttributeValues", {})
        found = [
            row
            for row in rows.values()
            if (":p" not in wanted or row["pk"] == wanted[":p"])
            and (":g" not in wanted or row.get("g") == wanted[":g"])
        ]
        found.sort(key=repr)
        return {"Items": found, "Count": len(found), "ScannedCount": len(found)}

    def serve(self, operation: str, params: Any) -> dict[str, Any]:
        meta = {"HTTPStatusCode": 200, "RetryAttempts": 0, "HTTPHeaders": {}}
        strong = bool(params.get("ConsistentRead"))
        if operation == "GetItem":
            row = self.seen(strong=strong).get(_at(params["Key"]))
            return {**({"Item": row} if row else {}), "ResponseMetadata": meta}
        if operation == "BatchGetItem":
            asked = params["RequestItems"][TABLE]
            rows = self.seen(strong=bool(asked.get("ConsistentRead")))
            found = [rows[_at(k)] for k in asked["Keys"] if _at(k) in rows]
            return {
                "Responses": {TABLE: found}, "UnprocessedKeys": {}, "ResponseMetadata": meta,
            }  # fmt: skip
        if operation in ("Query", "Scan"):
            assert not (strong and "IndexName" in params), "a global index is never strong"
            return {
                **self.page(operation, params, self.seen(strong=strong)), "ResponseMetadata": meta,
            }  # fmt: skip
        return self.write(operation, params, meta)

    def write(self, operation: str, params: Any, meta: dict[str, Any]) -> dict[str, Any]:
        changes = self.changes(operation, params)
        fate = self.draw.random()
        if fate < 0.1:
            code = {"Error": {"Code": "ConditionalCheckFailedException"}}
            answer = {**code, "ResponseMetadata": {**meta, "HTTPStatusCode": 400}}
            raise ClientError(answer, operation)  # type: ignore[arg-type]  # shaped as botocore's
        if fate < 0.25:
            if self.draw.random() < 0.7:
                self.landing.append((self.clock() + self.draw.random() * (HOLD - 1), changes))
            raise Lost
        self.apply(changes)
        answer: dict[str, Any] = {"ResponseMetadata": meta}
        if params.get("ReturnValues") == "ALL_NEW":
            answer["Attributes"] = self.now[_at(params["Key"])]
        return answer

    def changes(self, operation: str, params: Any) -> dict[tuple[str, int], Any]:
        if operation == "PutItem":
            return {_at(params["Item"]): params["Item"]}
        if operation == "DeleteItem":
            return {_at(params["Key"]): None}
        if operation == "BatchWriteItem":
            puts = [each["PutRequest"]["Item"] for each in params["RequestItems"][TABLE]]
            return {_at(row): row for row in puts}
        if operation == "TransactWriteItems":
            puts = [each["Put"]["Item"] for each in params["TransactItems"]]
            return {_at(row): row for row in puts}
        value = params["ExpressionAttributeValues"][":v"]
        own = params["Key"]
        return {_at(own): lambda row: {**(row or own), "v": value}}


def _at(row: Any) -> tuple[str, int]:
    return row["pk"]["S"], int(row["sk"]["N"])


class Course:
    """One schedule. ``wrong``: what was kept and was not so, at rest; ``kept``: how much was."""

    def __init__(self, seed: int, **options: Any) -> None:
        self.draw = random.Random(seed)
        self.clock = ManualClock(100.0)
        self.source = Source(self.clock, self.draw)
        settings = Settings.make(
            **{"settle": LAG, "quarantine": HOLD, "item_ttl": None, "query_ttl": None,
               "negative_ttl": None, **options}
        )  # fmt: skip
        self.dax = Dax(settings, runtime=Runtime(clock=self.clock))
        self.store, self.engine = self.dax._store, self.dax._engine
        self.scope = self.store.scope("place", "somebody")
        state = self.scope.table(TABLE)
        assert state is not None
        self.state = state
        self.engine._learned(state, SCHEMA)
        self.writing = 0
        self.wrong: list[str] = []
        self.kept = 0

    def play(self, requests: int) -> None:
        running: list[Iterator[None]] = []
        left = requests
        while left or running:
            if left and (not running or (len(running) < 4 and self.draw.random() < 0.5)):
                left -= 1
                running.append(self.request(*self.drawn()))
            mover = self.draw.choice(running)
            if next(mover, self) is self:
                running.remove(mover)
            if self.draw.random() < 0.5:
                self.clock.advance(self.draw.random() * self.draw.choice((0.1, 0.5, 4.0)))
            self.source.land()
            self.look()
        self.source.land(all_of_it=True)
        self.clock.advance(LAG)
        self.look()
        for flight in list(self.store.flights._flights.values()):
            self.wrong.append(f"a flight never landed: {flight.ident}")
        if self.dax.stats()["faults"]:
            self.wrong.append("a fault of the cache")
        self.dax.uninstall()

    def drawn(self) -> tuple[str, dict[str, Any]]:
        draw, at = self.draw, self.draw.choice(KEYS)
        kind = draw.random()
        if kind < 0.3:
            return "GetItem", {"TableName": TABLE, "Key": key(*at)}
        if kind < 0.5:
            operation, params = draw.choice(QUERIES)
            return operation, {"TableName": TABLE, **params}
        if kind < 0.6:
            return "BatchGetItem", {"RequestItems": {TABLE: {"Keys": [key(*k) for k in KEYS]}}}
        self.source.version += 1
        row = item(*at, v=self.source.version, g=draw.choice("xy"))
        if kind < 0.7:
            return "PutItem", {"TableName": TABLE, "Item": row}
        if kind < 0.8:
            return "UpdateItem", {
                "TableName": TABLE, "Key": key(*at), "UpdateExpression": "SET v = :v",
                "ExpressionAttributeValues": {":v": row["v"]},
            }  # fmt: skip
        if kind < 0.9:
            return "DeleteItem", {"TableName": TABLE, "Key": key(*at)}
        if kind < 0.95:
            return "BatchWriteItem", {"RequestItems": {TABLE: [{"PutRequest": {"Item": row}}]}}
        return "TransactWriteItems", {"TransactItems": [{"Put": {"TableName": TABLE, "Item": row}}]}

    def request(self, operation: str, params: dict[str, Any]) -> Iterator[None]:
        step = self.engine._step(self.scope, operation, params, plain=False)
        assert step is not None
        writes = isinstance(step, WriteStep)
        self.writing += writes
        try:
            yield from self.course(step, operation)
        finally:
            self.writing -= writes

    def course(self, step: Step, operation: str) -> Iterator[None]:
        while step.flight is not None:
            if step.flight.landed or self.draw.random() < 0.1:
                step.joined()
            yield
        if step.answer is not None:
            return
        if isinstance(step, WriteStep):
            step.sent.request = {"body": json.dumps(step.params)}
        yield
        try:
            response = self.source.serve(operation, step.params)
        except (ClientError, Lost) as error:
            yield
            step.failed(error)
            return
        yield
        step.landed(response)

    def look(self) -> None:
        """What is kept, if the table is at rest."""
        if self.writing or self.source.landing:
            return
        for at in KEYS:
            kept = self._kept("GetItem", {"TableName": TABLE, "Key": key(*at)})
            if kept is not None and kept.get("Item") != self.source.now.get(at):
                self.wrong.append(f"{at}: {kept.get('Item')}, it is {self.source.now.get(at)}")
        for operation, params in QUERIES:
            kept = self._kept(operation, {"TableName": TABLE, **params})
            want = self.source.page(operation, params, self.source.now)
            if kept is not None and kept["Items"] != want["Items"]:
                self.wrong.append(f"{params}: {kept['Items']}, it is {want['Items']}")

    def _kept(self, operation: str, params: dict[str, Any]) -> dict[str, Any] | None:
        """The answer of the cache alone."""
        if operation == "GetItem":
            found = self.store.item(self.state, key_of(params["Key"], wire_atom) or ())
            if found is None:
                return None
            self.kept += 1
            return {"Item": found.wire()} if hasattr(found, "wire") else {}
        page = self.store.page(self.state, Asked(operation, params, plain=False).ident)
        self.kept += page is not None
        return None if page is None else page.read(False)


def stale_courses(seeds: range, requests: int = 14, **options: Any) -> tuple[list[str], int]:
    """What was wrong in all these schedules, and how often something was kept at rest."""
    wrong: list[str] = []
    kept = 0
    for seed in seeds:
        course = Course(seed, **options)
        course.play(requests)
        wrong += [f"seed {seed}: {each}" for each in course.wrong]
        kept += course.kept
    return wrong, kept
