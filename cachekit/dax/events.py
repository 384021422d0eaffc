"""The second road: botocore's events, where its methods do not pass ``_make_api_call`` any more.

``before-call`` may answer a request, ``after-call`` sees what came. A request that failed on its
way is not told of, so its step is ended when botocore lets go of the request's context. A hit costs
botocore's serializing and signing on top; all else is the same.
"""

from __future__ import annotations

import base64
import json
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..core.outcome import Outcome
from ..runtime import drive
from .aio import Worlds
from .engine import READS, Engine
from .expressions import NotUnderstood
from .fleet import Mark
from .intercept import Link
from .reads import Step
from .sent import sending
from .writes import UpdateItem, WriteStep

_MARK = "cachekit_dax"


class _Held:
    """A step under way; whoever drops it has ended it."""

    __slots__ = ("engine", "mark", "step")

    def __init__(self, step: Step, mark: Mark | None, engine: Engine) -> None:
        self.step: Step | None = step
        self.mark = mark
        self.engine = engine

    def __del__(self) -> None:
        step, self.step = self.step, None
        if step is not None:
            step.failed(None)
            self.engine.conclude_behind(self.mark, step)


class EventRoad:
    """One client's requests by its events. ``serves()``: whether reads may be answered now; None:
    nothing is to be done at all."""

    def __init__(
        self,
        engine: Engine,
        worlds: Worlds,
        client: Any,
        link: Link,
        serves: Callable[[], bool | None],
    ) -> None:
        self._engine = engine
        self._worlds = worlds
        self._client = weakref.ref(client)
        self._link = link
        self._serves = serves
        events = client.meta.events
        events.register_first("before-call.dynamodb", self._before, unique_id="cachekit-dax-in")
        # First, so that it sees the answer before a resource changes its form.
        events.register_first("after-call.dynamodb", self._after, unique_id="cachekit-dax-out")

    def leave(self) -> None:
        client = self._client()
        if client is not None:
            events = client.meta.events
            events.unregister("before-call.dynamodb", self._before, unique_id="cachekit-dax-in")
            events.unregister("after-call.dynamodb", self._after, unique_id="cachekit-dax-out")

    def _before(self, model: Any, params: Any, context: Any, **_: Any) -> Any:
        serves = self._serves()
        if serves is None or self._link.stubbed:
            return None
        operation = model.name
        if operation in READS and not serves:
            return None
        try:
            step = self._step(operation, params)
        except NotUnderstood:
            return None
        except Exception:
            self._engine._fault(operation)
            return None
        if step is None:
            return None
        if step.answer is not None:
            response = import_module("botocore.awsrequest").AWSResponse
            return response("cache", 200, {}, None), step.answer
        engine = self._engine
        mark = drive(engine.announce(self._worlds.plain(), step, operation))
        context[_MARK] = _Held(step, mark, engine)
        return None

    def _step(self, operation: str, params: Any) -> Step | None:
        body = json.loads(params["body"])
        asked = _decoded(body)
        engine, scope = self._engine, self._link.scope
        drive(engine._describe(self._worlds.plain(), scope, operation, asked, self._describe))
        step = engine._step(scope, operation, asked, plain=False)
        if step is None:
            return None
        drive(engine.join(self._worlds.plain(), step))
        if isinstance(step, WriteStep):
            step.sent.request = params
            sending.set(step.sent)  # until the next write: attempts are noted here
        elif step.answer is None and operation == "BatchGetItem":
            # What is known can not leave a request that is serialized: all of it is sent.
            step.failed(None)
            return None
        if isinstance(step, UpdateItem):
            step.as_asked()  # if it were refused, nobody here could send it again
        elif step.answer is None and "ConsistentRead" in step.params:
            body["ConsistentRead"] = step.params["ConsistentRead"]
            params["body"] = json.dumps(body).encode()
        return step

    async def _describe(self, _: str, params: Any) -> Outcome:
        client = self._client()
        try:
            return Outcome(client.describe_table(**params))  # type: ignore[union-attr]  # it asks now
        except Exception as error:
            return Outcome(error=error)

    def _after(self, http_response: Any, parsed: Any, model: Any, context: Any, **_: Any) -> None:
        held = context.pop(_MARK, None) if isinstance(context, dict) else None
        if held is None:
            return
        step, held.step = held.step, None
        try:
            if http_response.status_code < 300:
                step.landed(parsed)
            else:
                step.failed(_Answered(parsed))
        except Exception:
            self._engine._end(step, model.name, None)
            self._engine._fault(model.name)
        if held.mark is not None:
            threads = self._worlds.plain()
            drive(self._engine.conclude(threads, held.mark, step, model.name))


class _Answered(Exception):
    """Stands for the error that botocore will raise."""

    def __init__(self, response: Any) -> None:
        super().__init__()
        self.response = response


def _decoded(value: Any) -> Any:
    """A serialized body with its binary values as bytes."""
    if isinstance(value, dict):
        if len(value) == 1:
            ((tag, inner),) = value.items()
            if tag == "B" and isinstance(inner, str):
                return {"B": base64.b64decode(inner)}
            if tag == "BS" and isinstance(inner, list):
                return {"BS": [base64.b64decode(each) for each in inner]}
        return {name: _decoded(each) for name, each in value.items()}
    return [_decoded(each) for each in value] if isinstance(value, list) else value
