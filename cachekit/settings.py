"""What a cache is asked to be: one frozen record, from keywords or from the environment."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Mapping, MutableMapping
from dataclasses import dataclass, fields
from typing import Any, Literal
from urllib.parse import urlsplit

from .core.policy import Ttl, seconds
from .errors import ConfigurationError
from .protocols import Backend, Codec, Observer

# Seconds for which a near copy of a shared entry is trusted while no bus tells of invalidations.
DEFAULT_BOUND = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every option of :class:`cachekit.Cache`, validated at birth.

    - ``url``: None or ``memory://`` = this process only; else the far tier.
    - ``backend``: a backend object in place of a URL.
    - ``namespace``: prefix of every key in a shared backend.
    - ``max_entries``, ``max_weight`` (with ``weigh(value)``): bounds of the near tier.
    - ``near``: a cachetools cache or mutable mapping that decides what stays instead.
    - ``ttl`` and ``policy``: defaults of every function and strategy.
    - ``timeout``: seconds that one call may spend in the far tier, everything included.
    - ``strict``: backend errors reach the caller.
    - ``coherence``: how near tiers follow the invalidations of other processes: "push" (the
      backend's bus tells them; by 1.0 s while it is cut; the default where the bus names keys),
      seconds for which a near copy of a shared entry is trusted (the default elsewhere: 1.0), or
      "strict" (every read asks the far tier).
    - ``invalidation``: "raise" (InvalidationFailed) or "replay" (queued until the far tier is
      back).
    - ``replay_log``: a file in which what is queued survives the process; the next cache that is
      opened with it replays it. One file per namespace; processes of a host may share it.
    - ``codec``: "json" (exact, the default), "msgpack", "pickle", "raw" or a codec object.
    - ``clock``: "precise", or "coarse" (entries may live 5 ms longer; hits cost less).
    - ``stats``: "exact", or "sampled" (hit counts become lower bounds; hits cost less).
    - ``breaker_failures``, ``breaker_reset``: failures in a row that open it, seconds to a probe.
    - ``max_value``: encoded bytes above which a value is returned but not stored in the far tier.
    - ``observers``: called with (event, fields), off the hit road.
    """

    url: str | None = None
    backend: Backend | None = None
    namespace: str = ""
    max_entries: int = 100_000
    max_weight: float | None = None
    weigh: Callable[[Any], float] | None = None
    near: MutableMapping[Hashable, Any] | None = None
    ttl: Ttl = None
    policy: Mapping[str, Any] | None = None
    timeout: float = 0.25
    strict: bool = False
    coherence: float | str | None = None
    invalidation: Literal["raise", "replay"] = "raise"
    replay_log: str | None = None
    codec: str | Codec | None = None
    clock: Literal["precise", "coarse"] = "precise"
    stats: Literal["exact", "sampled"] = "exact"
    breaker_failures: int = 5
    breaker_reset: float = 1.0
    max_value: int = 64 * 1024 * 1024
    observers: tuple[Observer, ...] = ()

    def __post_init__(self) -> None:
        if self.url is not None and self.backend is not None:
            raise ConfigurationError("give a url or a backend, not both")
        if self.backend is not None and self.namespace:
            raise ConfigurationError("namespace= is the URL's; a backend object has its own")
        if self.url is not None and not isinstance(self.url, str):
            raise ConfigurationError(f"url must be a str, got {type(self.url).__name__}")
        if not isinstance(self.namespace, str):
            raise ConfigurationError("namespace must be a str")
        _one_of("invalidation", self.invalidation, ("raise", "replay"))
        _one_of("clock", self.clock, ("precise", "coarse"))
        _one_of("stats", self.stats, ("exact", "sampled"))
        if seconds(self.timeout, "timeout") <= 0:
            raise ConfigurationError("timeout must be more than 0 seconds")
        for name in ("timeout", "breaker_reset"):
            object.__setattr__(self, name, seconds(getattr(self, name), name))
        for name in ("max_entries", "breaker_failures", "max_value"):
            number = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ConfigurationError(f"{name} must be an int of at least 1, got {number!r}")
        if self.max_weight is not None and not 0 < self.max_weight < math.inf:
            raise ConfigurationError(f"max_weight must be more than 0, got {self.max_weight!r}")
        if (self.max_weight is None) != (self.weigh is None):
            raise ConfigurationError("max_weight and weigh belong together")
        if self.near is not None and self.weigh is not None:
            raise ConfigurationError("near= decides what stays; it knows no max_weight")
        self.bound()

    @classmethod
    def make(cls, url: str | None, options: Mapping[str, Any]) -> Settings:
        """From keywords; an unknown one is an error that names the known ones."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigurationError(f"unknown option {name!r}; known: {', '.join(known)}")
        given = dict(options)
        if "observers" in given:
            given["observers"] = tuple(given["observers"])
        return cls(url=url, **given)

    @classmethod
    def from_env(cls, prefix: str = "CACHEKIT_", env: Mapping[str, str] | None = None) -> Settings:
        """From variables such as CACHEKIT_URL, CACHEKIT_NAMESPACE, CACHEKIT_TTL,
        CACHEKIT_MAX_ENTRIES, CACHEKIT_TIMEOUT, CACHEKIT_STRICT, CACHEKIT_COHERENCE."""
        env = os.environ if env is None else env
        readers: dict[str, Callable[[str], Any]] = {
            "url": str,
            "namespace": str,
            "max_entries": int,
            "ttl": str,
            "timeout": lambda v: seconds(_number(v), "timeout"),
            "strict": _truth,
            "coherence": lambda v: (
                v if v in ("strict", "push") else seconds(_number(v), "coherence")
            ),
            "invalidation": str,
            "replay_log": str,
            "codec": str,
            "clock": str,
            "stats": str,
        }
        given: dict[str, Any] = {}
        for name, read in readers.items():
            text = env.get(prefix + name.upper())
            if text is None or text == "":
                continue
            try:
                given[name] = read(text)
            except ValueError as error:
                raise ConfigurationError(f"{prefix}{name.upper()}: {error}") from None
        return cls.make(given.pop("url", None), given)

    def bound(self) -> float:
        """Seconds a near copy of a shared entry is trusted without a bus; 0 = it is not kept."""
        if self.coherence is None or self.coherence == "push":
            return DEFAULT_BOUND
        if self.coherence == "strict":
            return 0.0
        return seconds(self.coherence, "coherence")

    def __repr__(self) -> str:
        where = "embedded" if self.url is None else safe_url(self.url)
        return f"Settings({where}, namespace={self.namespace!r})"


def safe_url(url: str) -> str:
    """A URL without user name, password and query: fit for messages."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("://")[0] + "://..."
    if "@" in parts.path + parts.query + parts.fragment:
        return f"{parts.scheme}://..."  # a password with a slash or the like, not encoded
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigurationError(f"{name}={value!r}: use one of {', '.join(map(repr, known))}")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _truth(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")
