"""What a cache is made of, as strategies, decorators and repositories see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, get_type_hints

from ..codecs import registry_of, resolve
from ..coherence import Coherence
from ..core.near import Near
from ..core.place import Table
from ..core.policy import Policy
from ..errors import ConfigurationError
from ..events import Events
from ..invalidation import Invalidator
from ..observe import Meter
from ..protocols import Backend, Codec
from ..runtime import Runtime
from ..tiers import Far
from .reader import Reader
from .writer import Writer


@dataclass(slots=True)
class Parts:
    """The wired parts of one cache."""

    runtime: Runtime
    meter: Meter
    near: Near
    far: Far | None
    invalidator: Invalidator
    coherence: Coherence
    events: Events
    reader: Reader
    writer: Writer
    policy: Policy  # the cache's defaults
    codec: Codec
    clock: Any  # what generated wrappers compare with: a callable, or a ticker
    coarse: bool
    count: str
    namespace: str = ""
    timeout: float = 0.25  # seconds that one look at what is shared may take
    tables: dict[str, Table] = field(default_factory=dict)
    switches: list[Callable[[bool], None]] = field(default_factory=list)
    closers: list[Any] = field(default_factory=list)  # write-back strategies, to drain
    off: bool = False

    def table(
        self,
        name: str,
        fields: tuple[str, ...],
        text: Callable[[tuple[Any, ...]], str],
        *,
        explicit: bool,
        carries: Callable[[str], bool] | None,
    ) -> Table:
        """A table of the near tier. ``explicit``: the user wrote the key, so entries can be
        found by it; with a far tier all can, since messages name text keys."""
        table = Table(
            name,
            fields,
            text,
            indexed=explicit or self.far is not None,
            text_required=self.far is not None or explicit,
            carries=carries,
        )
        self.near.enlist(table)
        return table

    def codec_of(self, spec: str | Codec | None) -> Codec | None:
        """The codec of one function or strategy; refused where a cache of it would be."""
        if spec is None:
            return None
        codec = resolve(spec)
        if self.far is not None:
            check_codec(codec.safe, self.far.backend)
        return codec

    def claim(self, name: str, *, shared_ok: bool) -> str:
        """A name for a function's keys. In an embedded cache a second function of one name gets
        its own; with a far tier two processes could not agree on that, so it is an error."""
        if name not in self.tables:
            return name
        if self.far is not None and not shared_ok:
            raise ConfigurationError(
                f"{name}: a second function of this name would share its keys; give name="
            )
        number = 2
        while f"{name}#{number}" in self.tables:
            number += 1
        return f"{name}#{number}"


class HasParts(Protocol):
    """A cache."""

    @property
    def parts(self) -> Parts: ...


def check_codec(safe: bool, backend: Backend) -> None:
    """Refuse a codec that runs code from bytes others can write."""
    if not safe:
        raise ConfigurationError(
            f"{backend.name}: an unsigned pickle must not be read from a store that others can "
            "write; give codec=cachekit.codecs.Pickle(secret=...), or keep the default codec"
        )


def codec_for(codec: Codec, fn: Callable[..., Any]) -> Codec:
    """The codec with the classes of the function's return annotation registered."""
    with_types = getattr(codec, "with_types", None)
    if with_types is None:
        return codec
    try:
        returned = get_type_hints(fn).get("return")
    except Exception:  # a name that only a type checker sees: nothing to register
        return codec
    found = registry_of(returned) if returned is not None else ()
    return with_types(found) if found else codec
