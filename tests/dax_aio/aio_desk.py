"""What the tests of asyncio clients share: a client behind a cache, its network, a proxy."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import cache, wraps
from typing import Any
from urllib.parse import urlsplit

import aioboto3
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.config import AioConfig
from dax_desk import Desk, item, key

import cachekit.dax
from cachekit.dax import Dax
from cachekit.testing.dynamodb import CREDENTIALS, REGION

PATIENCE = 30.0  # seconds: only a test that hangs meets it


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 3 * PATIENCE))

    return run


def session() -> Any:
    return aioboto3.Session(region_name=REGION, **CREDENTIALS)


@cache
def _shared_session() -> Any:
    """One that has read botocore's data once; what it makes belongs to the loop that asked."""
    return session()


def config(retries: int = 1) -> Any:
    attempts = {"total_max_attempts": retries, "mode": "standard"}
    return AioConfig(connect_timeout=2, read_timeout=10, retries=attempts)


class AioWire:
    """The network of one client. ``sent``: the operations that left. A rule may be awaited."""

    def __init__(self, client: Any) -> None:
        self.sent: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self._rules: list[Callable[[str, dict[str, Any]], Awaitable[Any]]] = []
        client.meta.events.register("before-send.dynamodb", self._before)

    async def _before(self, request: Any, event_name: str, **_: Any) -> Any:
        operation = event_name.rpartition(".")[2]
        body = json.loads(request.body)
        self.sent.append(operation)
        self.bodies.append(body)
        for rule in list(self._rules):
            answer = await rule(operation, body)
            if answer is not None:
                return answer
        return None

    def rule(
        self, rule: Callable[[str, dict[str, Any]], Awaitable[Any]]
    ) -> Callable[[str, dict[str, Any]], Awaitable[Any]]:
        """Every request passes it from now on: it gives an answer, raises, or gives None."""
        self._rules.append(rule)
        return rule

    def requests(self) -> list[str]:
        """What left since the last call, but for the one question about the table."""
        sent = [name for name in self.sent if name != "DescribeTable"]
        self.sent.clear()
        self.bodies.clear()
        return sent


class Gate:
    """A rule that keeps requests of one operation back until it is opened."""

    def __init__(self, wire: AioWire, operation: str) -> None:
        self.entered = asyncio.Event()
        self.opened = asyncio.Event()
        self.met = 0
        self._operation = operation
        wire.rule(self._wait)

    async def _wait(self, operation: str, _: Any) -> None:
        if operation == self._operation:
            self.met += 1
            self.entered.set()
            await self.opened.wait()


class AioStand:
    """A client behind a cache, its network, and the table. ``aio_stand`` makes it."""

    def __init__(self, desk: Desk, client: Any, dax: Dax) -> None:
        self.desk = desk
        self.table = desk.name
        self.client = client
        self.dax = dax
        self.wire = AioWire(client)

    async def get(self, pk: str, sk: int = 1, **params: Any) -> Any:
        return await self.client.get_item(TableName=self.table, Key=key(pk, sk), **params)

    async def put(self, pk: str, sk: int = 1, **attributes: Any) -> Any:
        return await self.client.put_item(TableName=self.table, Item=item(pk, sk, **attributes))

    async def query(self, pk: str, **params: Any) -> Any:
        return await self.client.query(
            TableName=self.table,
            KeyConditionExpression="pk = :p",
            ExpressionAttributeValues={":p": {"S": pk}},
            **params,
        )

    async def update(self, pk: str, value: int, sk: int = 1, **params: Any) -> Any:
        return await self.client.update_item(
            TableName=self.table,
            Key=key(pk, sk),
            UpdateExpression="SET v = :v",
            ExpressionAttributeValues={":v": {"N": str(value)}},
            **params,
        )

    async def served(self, pk: str, sk: int = 1) -> Any:
        """The item that the cache has, ``"missing"``; None if it had to ask."""
        self.wire.requests()
        answer = await self.get(pk, sk)
        return None if self.wire.requests() else answer.get("Item", "missing")

    async def learn(self) -> None:
        await self.client.describe_table(TableName=self.table)
        self.wire.requests()


@asynccontextmanager
async def aio_stand(
    desk: Desk,
    *,
    retries: int = 1,
    endpoint: str | None = None,
    learn: bool = True,
    **options: Any,
) -> AsyncIterator[AioStand]:
    """``settle=0`` unless asked: most tests are not about windows. ``learn``: have the table
    described before, so that no test's first request is that one."""
    made = _shared_session().client(
        "dynamodb", endpoint_url=endpoint or desk.server.endpoint, config=config(retries)
    )
    async with made as client:
        with cachekit.dax.install(client, **{"settle": 0, **options}) as dax:
            on = AioStand(desk, client, dax)
            if learn:
                await on.learn()
            yield on


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other tasks or threads bring about."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # a condition of threads too
            await asyncio.sleep(0.001)


def waiting(dax: Dax) -> int:
    """How many wait for somebody else's request."""
    return sum(len(flight._wake) for flight in list(dax._store.flights._flights.values()))


_HEADERS = {"content-type": "application/x-amz-json-1.0", "x-amzn-requestid": "T"}


class _Raw:
    raw_headers = [(k.encode(), v.encode()) for k, v in _HEADERS.items()]  # an old aiobotocore asks

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        return self._body


def response(status: int, body: dict[str, Any]) -> AioAWSResponse:
    """What a server would say."""
    raw = _Raw(json.dumps(body).encode())
    return AioAWSResponse("http://127.0.0.1", status, dict(_HEADERS), raw)


class Proxy:
    """A TCP proxy before a server, in a thread of its own. ``lose``: operations whose next reply
    is lost on its way, after the server gave it."""

    def __init__(self, endpoint: str) -> None:
        self._to = urlsplit(endpoint)
        self.lose: list[str] = []
        self.lost = 0
        self.endpoint = ""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        loop = self._loop
        served = loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{served.sockets[0].getsockname()[1]}"
        self._ready.set()
        loop.run_forever()
        served.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    async def _serve(self, reader: Any, writer: Any) -> None:
        there, back = await asyncio.open_connection(self._to.hostname, self._to.port)
        losing = [False]

        async def forward() -> None:
            while data := await reader.read(65536):
                for operation in list(self.lose):
                    if f"DynamoDB_20120810.{operation}\r\n".encode() in data:
                        self.lose.remove(operation)
                        losing[0] = True
                back.write(data)

        async def answer() -> None:
            while data := await there.read(65536):
                if losing[0]:
                    self.lost += 1
                    return
                writer.write(data)

        try:
            ways = [asyncio.ensure_future(forward()), asyncio.ensure_future(answer())]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        finally:
            back.close()
            writer.close()
