"""Calls through redis-py clients that the caller made: fakeredis, or what no URL can say.

The wires of this package are not used then, so the total deadline holds in asyncio only; plain
calls are as bounded as the client's own ``socket_timeout`` makes them. Nor is the server's run
known: namespace nonces count whichever run stored them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import redis.exceptions

from .routes import Call, OneServer
from .wire import ErrorReply, Replies, Reply, remaining


def _translate(reply: Reply) -> Reply:
    if not isinstance(reply, Exception):
        return reply
    if isinstance(reply, redis.exceptions.NoScriptError):
        return ErrorReply("NOSCRIPT")
    code = getattr(reply, "status_code", None)
    return ErrorReply(f"{code} {reply}" if code else str(reply))


def _replies(found: Sequence[Any]) -> Replies:
    replies = Replies(map(_translate, found))
    replies.run = b""
    return replies


def _pipeline(client: Any, calls: Sequence[Call]) -> Any:
    pipeline = client.pipeline(transaction=False)
    for _, command in calls:
        pipeline.execute_command(*command)
    return pipeline


class _DriverRoute(OneServer):
    def __init__(self, client: Any) -> None:
        self._client = client


class BlockingDriverRoute(_DriverRoute):
    """Over a ``redis.Redis``."""

    async def send(self, calls: Sequence[Call], until: float) -> Replies:
        remaining(until)
        try:
            replies = _pipeline(self._client, calls).execute(raise_on_error=False)
        except redis.exceptions.TimeoutError as error:
            raise TimeoutError("the client's own timeout passed") from error
        except redis.exceptions.ResponseError as error:
            raise _translate(error) from error
        return _replies(replies)

    async def close(self) -> None:
        self._client.close()


class AsyncDriverRoute(_DriverRoute):
    """Over a ``redis.asyncio.Redis``."""

    async def send(self, calls: Sequence[Call], until: float) -> Replies:
        try:
            async with asyncio.timeout(remaining(until)):
                replies = await _pipeline(self._client, calls).execute(raise_on_error=False)
        except redis.exceptions.TimeoutError as error:
            raise TimeoutError("the client's own timeout passed") from error
        except redis.exceptions.ResponseError as error:
            raise _translate(error) from error
        return _replies(replies)

    async def close(self) -> None:
        await self._client.aclose()
