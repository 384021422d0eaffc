"""Between values and far bytes: codec, envelope, and the verdict on what was read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .core import envelope as wire
from .core.entry import INF, Verdict
from .core.keys import physical
from .core.policy import Span
from .errors import CodecError
from .observe import Meter
from .protocols import Codec, SlotState
from .runtime import Runtime

# A value made this much later than now was made by a clock ahead of ours: a miss, so that skew
# can never lengthen a life.
SKEW = 2.0


class Found(NamedTuple):
    """What a read of one key saw."""

    verdict: Verdict
    state: SlotState
    stamp: bytes = b""
    value: Any = None
    fresh: float = 0.0  # seconds until due for refresh
    kept: float = 0.0  # seconds until it may not be served
    tags: tuple[str, ...] = ()
    space: bytes | None = None  # the namespace's nonce as read
    nonces: Mapping[str, bytes | None] = {}  # as read, by tag
    asked: float = 0.0  # monotonic seconds before the read was sent
    row: int | None = None  # the source's version of the row in the slot, usable or not

    @property
    def readable(self) -> bool:
        return self.verdict is not Verdict.MISS


class Right(NamedTuple):
    """The right to fill one key: the token and the nonces from before the load."""

    token: bytes
    space: bytes
    nonces: Mapping[str, bytes]
    row: int | None = None  # the row version that stood there: nothing older may replace it


class Packer:
    """Makes entries of values and judges entries that were read. A value above ``max_value``
    encoded bytes is refused."""

    def __init__(self, runtime: Runtime, meter: Meter, max_value: int, namespace: str) -> None:
        self.runtime = runtime
        self.meter = meter
        self.max_value = max_value
        self._namespace = namespace.encode("utf-8", "surrogatepass")

    def pack(
        self,
        key: str,
        value: Any,
        codec: Codec,
        span: Span,
        cost: float,
        right: Right,
        row_version: int | None = None,
    ) -> bytes:
        """The entry's bytes. Raises CodecError for a value the codec can not give back."""
        header = wire.Envelope(
            payload=b"",
            mark=codec.mark,
            created=int(self.runtime.wall() * 1000),
            fresh=None if span.fresh == INF else int(span.fresh * 1000),
            ttl=None if span.kept == INF else max(1, int(span.kept * 1000)),
            negative=value is None,
            space=right.space,
            tags=tuple(right.nonces.items()),
            row_version=row_version,
            cost=min(int(cost * 1e6), 0xFFFFFFFF),
        )
        name = physical(key)
        payload = codec.encode(value, self._context(codec, header, name))
        if len(payload) > self.max_value:
            raise CodecError(f"value of {len(payload)} bytes is above max_value={self.max_value}")
        return wire.pack(header._replace(payload=payload), name)

    def judge(
        self,
        state: SlotState,
        stamp: bytes,
        data: bytes | None,
        entry: wire.Envelope | None,
        name: str,
        space: bytes | None,
        nonces: Mapping[str, bytes | None],
        codec: Codec,
    ) -> Found:
        miss = Found(Verdict.MISS, state, stamp, space=space, nonces=nonces)
        if data is None:
            return miss
        if entry is None or entry.mark != codec.mark:
            self.meter.event("unreadable", key=name)
            return miss
        miss = miss._replace(row=entry.row_version)
        if entry.space is None or entry.space != space:
            return miss
        for tag, nonce in entry.tags:
            if nonces.get(tag) != nonce:
                return miss
        age = self.runtime.wall() - entry.created / 1000
        if age < -SKEW:
            return miss
        age = max(age, 0.0)
        kept = INF if entry.ttl is None else entry.ttl / 1000 - age
        fresh = INF if entry.fresh is None else entry.fresh / 1000 - age
        if kept <= 0:
            return miss
        try:
            value = codec.decode(entry.payload, self._context(codec, entry, name))
        except CodecError:
            self.meter.event("unreadable", key=name)
            return miss
        except Exception as error:  # a third-party codec broke its word
            self.meter.event("unreadable", key=name, error=type(error).__name__)
            return miss
        verdict = Verdict.FRESH if fresh > 0 else Verdict.STALE
        tags = tuple(tag for tag, _ in entry.tags)
        return Found(
            verdict, state, stamp, value, fresh, kept, tags, space, nonces, row=entry.row_version
        )

    def _context(self, codec: Codec, entry: wire.Envelope, name: str) -> bytes:
        """What a signing codec authenticates beside the payload; nothing for one that does not."""
        if not getattr(codec, "signs", True):
            return b""
        return wire.context(entry, name) + b"\0" + self._namespace
