"""What a cache is made of, as strategies, decorators and repositories see it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..core.near import Near
from ..core.place import Table
from ..core.policy import Policy
from ..errors import ConfigurationError
from ..invalidation import Invalidator
from ..observe import Meter
from ..protocols import Codec
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
    reader: Reader
    writer: Writer
    policy: Policy  # the cache's defaults
    codec: Codec
    clock: Any  # what generated wrappers compare with: a callable, or a ticker
    coarse: bool
    count: str
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


Ident = Hashable
