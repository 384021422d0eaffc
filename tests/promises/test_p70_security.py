"""P70: TLS verifies, secrets and argument values appear nowhere, and the Redis user that the
documentation describes may do all that is needed, and does no more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from own_authority import Authority
from plights import free_port, wait_for
from watching import Watch, forms, told_by
from whole_api import Changed, use_all, use_all_async

import cachekit
from cachekit.codecs import Encrypted, ExactJson, Pickle, Signed
from cachekit.errors import BackendError, BackendUnavailable, ConfigurationError
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
BOTH = pytest.mark.parametrize("world", ["plain", "async"])
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def value_of(cache: cachekit.Cache, world: str, key: str = "k") -> object:
    """Of a load through the cache in one of the worlds."""
    if world == "plain":
        return cache.get_or_set(key, lambda: 7, ttl=60)

    async def run() -> object:
        try:
            return await cache.aio.get_or_set(key, lambda: 7, ttl=60)
        finally:
            await cache.aio.close(0.1)

    return asyncio.run(run())


# -- TLS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "own")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module", params=["127.0.0.1", "elsewhere.example"])
def tls(request: pytest.FixtureRequest, own: Authority) -> Iterator[tuple[str, RedisServer, int]]:
    """The certified host, the server, and the port on which it speaks TLS."""
    certificate, key = own.certify(request.param)
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    options += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    with RedisServer([*options, "--tls-ca-cert-file", str(own.ca)]) as server:
        yield request.param, server, port


@BOTH
def test_p70_tls_verifies_certificate_and_host_name_by_default(
    tls: tuple[str, RedisServer, int], own: Authority, stranger: Authority, world: str
) -> None:
    host, server, port = tls
    url = f"rediss://127.0.0.1:{port}/0"
    trusted = f"{url}?ssl_ca_certs={own.ca}"
    refused = [url, f"{url}?ssl_ca_certs={stranger.ca}"]
    if host != "127.0.0.1":
        refused.append(trusted)
    with redis.Redis(port=server.port) as control:
        control.flushall()
        for bad in refused:
            with cachekit.Cache(bad, timeout=1.0) as cache:
                assert value_of(cache, world) == 7  # all the same
            with (
                cachekit.Cache(bad, timeout=1.0, strict=True) as cache,
                pytest.raises(BackendUnavailable, match="CERTIFICATE_VERIFY_FAILED"),
            ):
                value_of(cache, world)
        assert control.dbsize() == 0
        if host == "127.0.0.1":
            with cachekit.Cache(trusted, timeout=1.0, strict=True) as cache:
                assert value_of(cache, world) == 7
                wait_for(lambda: cache.stats().coherence == "push")
            assert control.dbsize() > 0


def test_p70_the_bus_and_the_stream_join_no_server_that_can_not_be_verified(
    tls: tuple[str, RedisServer, int], stranger: Authority
) -> None:
    _, server, port = tls
    url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={stranger.ca}&client_name=intruder"
    with redis.Redis(port=server.port) as control, cachekit.Cache(url) as cache:
        cache.on(Changed, lambda event: ["t"])
        value_of(cache, "plain")
        time.sleep(0.5)
        assert cache.stats().coherence != "push"
        assert not [c for c in control.client_list() if c["name"] == "intruder"]


# -- secrets -----------------------------------------------------------------------------------

PASSWORD = "hunter2&%/Ü"
SECRET = b"sixteen-secret-bytes-of-a-codec!"


HIDDEN = [*forms(PASSWORD), *forms(SECRET), SECRET.decode()]


@pytest.fixture
def mute() -> Iterator[int]:
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def guarded() -> Iterator[RedisServer]:
    with RedisServer(["--requirepass", "another"]) as server:
        yield server


CODECS = {
    "signed": lambda: Signed(ExactJson(), secret=SECRET),
    "encrypted": lambda: Encrypted(ExactJson(), key=SECRET),
    "pickle": lambda: Pickle(secret=[SECRET, SECRET]),
}


@pytest.mark.parametrize(
    ("world", "codec"), [("plain", "signed"), ("async", "encrypted"), ("plain", "pickle")]
)
def test_p70_secrets_appear_nowhere_when_nothing_works(
    guarded: RedisServer,
    mute: int,
    own: Authority,
    caplog: pytest.LogCaptureFixture,
    world: str,
    codec: str,
) -> None:
    watch = Watch(caplog)
    user = f"app:{quote(PASSWORD, safe='')}@"
    closed = free_port()
    locked = own.certify("locked.example", PASSWORD.encode())
    files = f"ssl_certfile={locked[0]}&ssl_keyfile={locked[1]}&ssl_password=hunter2-wrong"
    sentinel = f"sentinel_username=s&sentinel_password={quote(PASSWORD)}"
    for url in (
        f"redis://{user}127.0.0.1:{guarded.port}/0",
        f"redis://127.0.0.1:{guarded.port}/0?password={quote(PASSWORD)}",
        f"redis://{user}127.0.0.1:{closed}/0",
        f"redis://{user}127.0.0.1:{mute}/0",
        f"redis://{user}no.such.host.invalid/0",
        f"rediss://{user}127.0.0.1:{guarded.port}/0",
        f"rediss://{user}127.0.0.1:{guarded.port}/0?{files}",
        f"redis+cluster://{user}127.0.0.1:{guarded.port}",
        f"redis+sentinel://{user}127.0.0.1:{guarded.port}/main?{sentinel}",
        f"unix://{user}/no/such/socket",
    ):
        for strict in (False, True):
            cache = cachekit.Cache(
                url,
                timeout=0.05,
                strict=strict,
                codec=CODECS[codec](),
                invalidation="raise",
                observers=[watch.observe],
            )
            cache.on(Changed, lambda event: ["t"])
            try:
                assert value_of(cache, world) == 7
                assert not strict
            except BackendError as error:
                watch.take(error)
            try:
                cache.invalidate(keys=["k"], tags=["t"])
            except cachekit.InvalidationFailed as error:
                watch.take(error)
            try:
                cache.emit(Changed("x"))
            except cachekit.InvalidationFailed as error:
                watch.take(error)
            cache.schedule(tags=["t"], every="1h")
            watch.take_cache(cache)
            cache.close()
            watch.take(cache)
    assert watch.events.count("backend_errors") >= 20
    assert len(watch.texts) > 500
    assert any("WRONGPASS" in text or "NOAUTH" in text for text in watch.texts)
    assert watch.leaks(HIDDEN) == []


MALFORMED = [
    "redis://app:hunter2@host:port/0",
    "redis://app:hunter2@[::1/0",
    "redis://app:hun#ter2@host/0",
    "redis://app:hunter2?x@host/0",
    "redis://app:x?hunter2@host/0",
    "redis://app:x/hunter2@host/0",
    "redis://hunter2/x@host/0",
    "redsi://app:hunter2@host/0",
    "redsi://app:x/hunter2@host/0",
    "redis://host/0?password=hunter2&nope=1",
    "redis://host/0?db=hunter2",
    "redis+sentinel://app:hunter2@host",
    "redis+cluster://app:hunter2@host/3",
    "unix://app:hunter2@host/path",
    "memcached://app:hunter2@host:11211",
    "memcached://app:x/hunter2@host:11211",
    "sqlite://app:hunter2@host/x.db",
    "app:hunter2@host",
]


@pytest.mark.parametrize("url", MALFORMED)
def test_p70_a_url_that_is_refused_is_not_quoted_with_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        cachekit.Cache(url)
    assert [text for text in told_by(refused.value) if "hunter2" in text or "ter2" in text] == []


# -- arguments ---------------------------------------------------------------------------------

PERSONAL = "alice@example.org"


class Unkeepable:
    """No codec gives it back."""


@BOTH
def test_p70_argument_values_are_in_no_log_line_and_no_name_of_a_figure(
    caplog: pytest.LogCaptureFixture, world: str
) -> None:
    watch = Watch(caplog)
    with RedisServer() as server:
        cache = cachekit.Cache(server.url, timeout=0.2, invalidation="replay", breaker_reset=0.1)

        def fails(*args: Any) -> Any:
            raise RuntimeError("of the caller")

        def cached(load: Callable[[], Any], **options: Any) -> Callable[[str], Any]:
            """A function of one argument in this world, and a plain way to call it."""
            if world == "plain":

                @cache.cached(**options)
                def plain(email: str) -> Any:
                    return load()

                return plain

            @cache.cached(**options)
            async def asynchronous(email: str) -> Any:
                return load()

            async def run(email: str) -> Any:
                try:
                    return await asynchronous(email)
                finally:
                    await cache.aio.close(0.1)

            return lambda email: asyncio.run(run(email))

        missing = [False]

        def row() -> int:
            if missing[0]:
                raise LookupError("no such row")
            return 1

        tags = ["of:{email}"]
        unkeepable = cached(Unkeepable, name="unkeepable", ttl=60)
        odd_ttl = cached(row, name="ttl", ttl=fails)
        odd_tags = cached(row, name="tags", ttl=60, tags=fails)
        failing = cached(row, name="fails", ttl=60, tags=tags)
        stale = cached(row, name="stale", ttl=0.05, grace=60, tags=tags)

        def calls() -> None:
            missing[0] = False
            for function in (unkeepable, odd_ttl, odd_tags, stale):
                function(PERSONAL)
            missing[0] = True
            time.sleep(0.06)
            with pytest.raises(LookupError):
                failing(PERSONAL)
            with contextlib.suppress(LookupError):
                stale(PERSONAL)  # in grace, where it was kept; its renewal fails behind
            cache.set(f"user:{PERSONAL}", 1, ttl=60, tags=[f"of:{PERSONAL}"])
            cache.invalidate(keys=[f"user:{PERSONAL}"], tags=[f"of:{PERSONAL}"])

        with redis.Redis(port=server.port) as control:
            calls()
            for name in control.scan_iter():
                if control.type(name) == b"string" and not name.endswith(b":partitions"):
                    control.set(name, b"E\1" + b"x" * 100)  # cannot be read
            calls()
        server.kill()
        calls()
        time.sleep(0.1)
        stats = cache.stats()
        labels = [*stats.counts, *stats.timings, *stats.functions]
        cache.close()
    assert stats.counts["backend_errors"] > 0
    for seen in ("ttl_errors", "tag_errors", "refused_values", "unreadable", "refresh_failed"):
        assert stats.counts[seen] > 0, seen
    lines = watch.records(logging.INFO)
    assert len(lines) > 6
    assert [text for text in (*lines, *labels) if "alice" in text] == []


# -- the Redis user ----------------------------------------------------------------------------


def documented_user(namespace: str, password: str) -> list[str]:
    """The rules of ACL SETUSER as the documentation has them."""
    [line] = [x for x in OPERATIONS.read_text().splitlines() if x.startswith("ACL SETUSER")]
    rules = line.removeprefix("ACL SETUSER ").replace(">password", f">{password}")
    return rules.replace("{ns", "{" + namespace).split(" ")


NEVER = {"keys", "scan", "flushall", "flushdb", "config|set", "config|get", "monitor", "debug"}


@BOTH
def test_p70_the_documented_user_is_enough_for_all_of_the_api(world: str) -> None:
    rules = documented_user("shop", "pw")
    with RedisServer(["--user", *rules]) as server, redis.Redis(port=server.port) as control:
        url = f"redis://app:pw@127.0.0.1:{server.port}/0"
        events: list[tuple[str, object]] = []

        def opened() -> cachekit.Cache:
            observer = [lambda event, fields: events.append((event, dict(fields)))]
            return cachekit.Cache(
                url, namespace="shop", timeout=2.0, strict=True, observers=observer
            )

        mine, other = opened(), opened()
        for cache in (mine, other):
            cache.on(Changed, lambda event: [f"name:{event.name}"])
            value_of(cache, "plain", "first")
            wait_for(lambda cache=cache: cache.stats().coherence == "push")
        if world == "plain":
            use_all(mine, other)
        else:
            asyncio.run(use_all_async(mine, other))
        planned = mine.schedule(tags=["planned"], every=1.0, name="each second")
        wait_for(lambda: "schedule_fired" in [event for event, _ in events])
        planned.cancel()
        denied = control.execute_command("ACL LOG")
        errors = control.info("errorstats")
        used = {name.removeprefix("cmdstat_") for name in control.info("commandstats")}
        mine.close()
        other.close()
    assert denied == []
    assert "errorstat_NOPERM" not in errors
    bad = ("backend_errors", "bus_refused", "schedule_failed", "invalidations_failed")
    assert [event for event in events if event[0] in bad] == []
    assert not used & NEVER, used & NEVER


def test_p70_another_namespace_is_closed_to_the_documented_user() -> None:
    with RedisServer(["--user", *documented_user("shop", "pw")]) as server:
        url = f"redis://app:pw@127.0.0.1:{server.port}/0"
        with (
            cachekit.Cache(url, namespace="office", strict=True) as cache,
            pytest.raises(cachekit.errors.BackendRefused, match="NOPERM"),
        ):
            cache.set("k", 1, ttl=60)
