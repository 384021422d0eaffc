"""The connection to a DAX cluster, by amazon-dax-client: opened in the background at the first
use, given up after failures in a row, and tried again in the background."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from ..core.breaker import Breaker, BreakerState
from ..core.eventcount import Flag
from ..core.policy import seconds
from ..core.threads import begin
from ..errors import ConfigurationError, MissingDependencyError

FAILURES: Final = 3  # in a row, until the cluster is given up
CLOSING: Final = 2.0  # seconds that a close may take, of those who wait for it
_URL: Final = re.compile(r"daxs?://[A-Za-z0-9.\-_\[\]]+(:\d{1,5})?/?")


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """A cluster, and what is expected of it. Times are seconds.

    - ``url``: ``dax://host[:port]``, or ``daxs://host[:port]`` with TLS.
    - ``timeout``: how long connecting, and each answer, may take.
    - ``reset``: between tries to reach a lost cluster, which no request waits for.
    - ``cluster_ttl``: the longest that the cluster itself keeps an item or page.
    """

    url: str
    timeout: float = 2.0
    reset: float = 5.0
    cluster_ttl: float = 300.0

    @classmethod
    def make(cls, given: str | Mapping[str, Any]) -> EndpointSettings:
        """Of a URL, or of options with one. Raises ConfigurationError, TypeError or ValueError."""
        options = {"url": given} if isinstance(given, str) else dict(given)
        unknown = sorted(set(options) - set(cls.__dataclass_fields__))
        if unknown:
            raise ConfigurationError(
                f"endpoint: {unknown[0]} is not an option; there are url, timeout, reset, "
                "cluster_ttl"
            )
        url = options.pop("url", None)
        if not isinstance(url, str) or not _URL.fullmatch(url):
            raise ConfigurationError(
                f"endpoint: {url!r} is no cluster; write dax://host[:port] or daxs://host[:port]"
            )
        times = {name: seconds(value, f"endpoint.{name}") for name, value in options.items()}
        if not times.get("timeout", 1) or not times.get("reset", 1):
            raise ConfigurationError("endpoint: timeout and reset must be more than 0")
        return cls(url.rstrip("/"), **times)


def require_client() -> None:
    """Raises MissingDependencyError."""
    if find_spec("amazondax") is None:
        raise MissingDependencyError(
            "a DAX cluster needs its client: pip install 'cachekit-strategies[dax]'"
        )


class _Attempt:
    """One try to connect. ``until``: how long callers wait for it."""

    __slots__ = ("done", "until")

    def __init__(self, until: float) -> None:
        self.done = Flag()
        self.until = until


class ClusterLink:
    """One set of credentials at one cluster. Safe for threads.

    The first callers wait for the connection, at most ``timeout``; once it was lost nobody does."""

    def __init__(
        self,
        settings: EndpointSettings,
        region: str,
        credentials: Any,
        clock: Callable[[], float],
    ) -> None:
        self._url = settings.url
        self._region = region
        self._credentials = credentials
        self._timeout = settings.timeout
        self._clock = clock
        self._lock = threading.Lock()
        self._breaker = Breaker(clock, failures=FAILURES, reset=settings.reset)
        self._client: Any = None
        self._attempt: _Attempt | None = None
        self._closed = False

    def ready(self) -> bool:
        """Whether :meth:`client` may give one; starts to connect where it is time. Never waits."""
        if self._client is not None:
            return True
        with self._lock:
            if self._closed:
                return False
            attempt = self._attempt
            if attempt is None:
                fresh = self._breaker.state is BreakerState.CLOSED
                if not self._breaker.allow():
                    return False
                now = self._clock()
                attempt = self._attempt = _Attempt(now + self._timeout if fresh else now)
                thread = threading.Thread(
                    target=self._connect, args=(attempt,), name="cachekit-dax", daemon=True
                )
                if not begin(thread, self._give_up):
                    return False
            return self._clock() < attempt.until

    def _give_up(self) -> None:
        self._attempt = None

    def client(self) -> Any:
        """The cluster's client, waited for while it connects for the first time; None: it can not
        be reached now."""
        attempt = self._attempt
        if self._client is None and attempt is not None:
            attempt.done.wait(max(0.0, attempt.until - self._clock()))
        return self._client

    def answered(self) -> None:
        self._breaker.success()

    def failed(self, client: Any) -> None:
        """A request found it out of reach. Failures in a row give the connection up."""
        self._breaker.failure()
        with self._lock:
            lost = self._breaker.state is not BreakerState.CLOSED and self._client is client
            if lost:
                self._client = None
        if lost:
            # What others have sent over it may still be answered.
            _aside(client.close, self._timeout)

    def close(self) -> None:
        """Give up the connection; returns after at most ``CLOSING`` seconds. Twice is fine."""
        with self._lock:
            self._closed = True
            client, self._client = self._client, None
        if client is not None:
            thread = _aside(client.close)
            if thread is not None:
                thread.join(CLOSING)

    def reset_after_fork(self) -> None:
        """In a forked child: the parent's sockets are the parent's."""
        self._lock = threading.Lock()
        self._client = self._attempt = None
        self._breaker.reset_after_fork()

    def _connect(self, attempt: _Attempt) -> None:
        client = None
        try:
            client = self._made()
        except Exception:
            for _ in range(FAILURES):
                self._breaker.failure()
        with self._lock:
            self._attempt = None
            unwanted = self._closed
            if client is not None and not unwanted:
                self._breaker.success()
                self._client = client
        attempt.done.set()
        if client is not None and unwanted:
            client.close()

    def _made(self) -> Any:
        """A client that has asked the cluster for its nodes."""
        config = import_module("botocore.config").Config(
            region_name=self._region,
            connect_timeout=self._timeout,
            read_timeout=self._timeout,
            # A write whose reply was lost must not be sent again.
            retries={"max_attempts": 0},
        )
        return import_module("amazondax").AmazonDaxClient(
            _session(self._credentials),
            region_name=self._region,
            endpoint_url=self._url,
            config=config,
        )


def _session(credentials: Any) -> Any:
    """A session with these credentials, which may refresh themselves, and no handlers of anyone."""
    plain: Any = import_module("botocore.session").Session

    def get_credentials(self: Any) -> Any:
        return credentials

    return type("Session", (plain,), {"get_credentials": get_credentials})()


def _aside(work: Callable[[], Any], after: float = 0.0) -> threading.Thread | None:
    def run() -> None:
        time.sleep(after)
        try:
            work()
        except Exception:
            pass  # it is closed: what its parts say to that is no one's concern

    thread = threading.Thread(target=run, name="cachekit-dax-close", daemon=True)
    return thread if begin(thread) else None  # the interpreter ends: so do the sockets
