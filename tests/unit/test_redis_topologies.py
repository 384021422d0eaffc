"""The Redis backend over TLS, under a least-privilege user, and behind Sentinel."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis_faults import (
    VERBS,
    WORLDS,
    FaultServer,
    every_verb_at_once,
    free_port,
    in_world,
    scripted,
    the_whole_story,
)

from cachekit.backends.redis import RedisBackend
from cachekit.errors import BackendRefused, BackendUnavailable
from cachekit.protocols import Item
from cachekit.testing.servers import RedisServer, redis_program

pytestmark = pytest.mark.server
BOTH = pytest.mark.parametrize("world", WORLDS)
LEAST = "+@read +@write +@scripting +@pubsub +@connection -@dangerous +info"


# -- least privilege -----------------------------------------------------------------------


@BOTH
def test_a_least_privilege_user_is_enough(world: str) -> None:
    users = []
    for name, rules in (
        ("app", f"&* {LEAST}"),
        ("mute", f"resetchannels {LEAST}"),
        ("blind", f"&* {LEAST} -info"),
    ):
        users += ["--user", *f"{name} on >s3cret ~* {rules}".split()]
    with RedisServer([*users, "--user", "default", "nopass", "+@all", "-@read"]) as server:
        urls = {u: server.url.replace("//", f"//{u}:s3cret@") for u in ("app", "mute", "blind")}
        for user, url in urls.items():

            async def body(store: Any, w: Any, user: str = user) -> None:
                calls = []
                store.on_refused = lambda: calls.append(1)
                await the_whole_story(store, w)
                assert (store.refused > 0) == (user == "mute")
                assert len(calls) == store.refused

            in_world(world, RedisBackend(url, namespace=f"least-{user}"), body)
        wrong = urls["app"].replace("s3cret", "wrong")
        for url in (wrong, server.url):
            outcomes = every_verb_at_once(world, RedisBackend(url), 2)
            assert all(isinstance(outcome, BackendRefused) for _, outcome in outcomes.values())


@BOTH
def test_a_namespace_can_be_fenced_in_by_a_key_pattern(world: str) -> None:
    fence = "~{tenant%3A1:* ~{tenant%3A1}*"
    with RedisServer(["--user", *f"app on >pw {fence} {LEAST}".split()]) as server:
        url = server.url.replace("//", "//app:pw@")
        in_world(world, RedisBackend(url, namespace="tenant:1"), the_whole_story)
        outcomes = every_verb_at_once(world, RedisBackend(url, namespace="tenant"), 2)
        assert all(isinstance(outcome, BackendRefused) for _, outcome in outcomes.values())


# -- TLS -----------------------------------------------------------------------------------


def certify(folder: Path, name: str) -> None:
    """A self-signed certificate for a host name (and 127.0.0.1 if that is the name)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    host: x509.GeneralName = (
        x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([host]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@pytest.fixture(scope="module", params=["127.0.0.1", "elsewhere.example"])
def tls_server(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, str]]:
    """The certified name, the URL without options, and the certificate's path."""
    folder = Path(tempfile.mkdtemp())
    certify(folder, request.param)
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    for option, file in (("cert", "cert"), ("key", "key"), ("ca-cert", "cert")):
        options += [f"--tls-{option}-file", str(folder / f"{file}.pem")]
    try:
        with RedisServer(options) as server:
            assert server.port
            yield request.param, f"rediss://127.0.0.1:{port}/0", str(folder / "cert.pem")
    finally:
        shutil.rmtree(folder)


@BOTH
def test_tls_checks_certificate_and_host_name_unless_told_otherwise(
    world: str, tls_server: tuple[str, str, str]
) -> None:
    name, url, certificate = tls_server
    trusted = f"{url}?ssl_ca_certs={certificate}"
    good = [f"{url}?ssl_cert_reqs=none", f"{trusted}&ssl_check_hostname=false"]
    bad = [url]
    (good if name == "127.0.0.1" else bad).append(trusted)
    for url in good:
        in_world(world, RedisBackend(url, namespace="tls"), the_whole_story)
    for url in bad:
        for _, outcome in every_verb_at_once(world, RedisBackend(url), 2).values():
            assert isinstance(outcome, BackendUnavailable)
            assert "CERTIFICATE_VERIFY_FAILED" in str(outcome)


@BOTH
def test_megabytes_pass_through_tls_whole(world: str, tls_server: tuple[str, str, str]) -> None:
    _, url, _ = tls_server
    blobs = [os.urandom(3_000_000) for _ in range(3)]

    async def body(store: Any, w: Any) -> None:
        items = [Item(f"k{i}", blob, 60) for i, blob in enumerate(blobs)]
        await store.set_many(items, w.deadline(10))
        assert await store.get_many(["k0", "k1", "k2"], w.deadline(10)) == blobs

    in_world(world, RedisBackend(f"{url}?ssl_cert_reqs=none", namespace="big"), body)


# -- Sentinel ------------------------------------------------------------------------------


@BOTH
def test_sentinel_names_the_master(world: str) -> None:
    with ExitStack() as stack:
        master = stack.enter_context(RedisServer())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        (folder / "sentinel.conf").write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
        )
        process = stack.enter_context(
            subprocess.Popen(
                [redis_program(), str(folder / "sentinel.conf"), "--sentinel"],
                stdout=subprocess.DEVNULL,
            )
        )
        stack.callback(process.terminate)
        sentinel = stack.enter_context(redis.Redis(port=port))
        wait_for(lambda: sentinel.sentinel_master("main"))
        sentinels = f"127.0.0.1:{free_port()},127.0.0.1:{port}"  # the first is dead
        backend = RedisBackend(f"redis+sentinel://{sentinels}/main/0", namespace="s")
        in_world(world, backend, the_whole_story)
        unknown = RedisBackend(f"redis+sentinel://{sentinels}/other/0")
        for _, outcome in every_verb_at_once(world, unknown, 2).values():
            assert isinstance(outcome, BackendUnavailable)


@BOTH
def test_a_failover_is_followed_and_a_demoted_master_is_not_read(world: str) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(RedisServer(["--repl-diskless-sync-delay", "0"]))
        second = stack.enter_context(RedisServer(["--replicaof", "127.0.0.1", str(first.port)]))
        named = [first.port]  # what the sentinel says

        def answer(command: list[bytes]) -> bytes:
            port = b"%d" % named[0]
            return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(port), port)

        sentinel = stack.enter_context(FaultServer(scripted(answer)))
        clients = [stack.enter_context(redis.Redis(port=s.port)) for s in (first, second)]
        wait_for(lambda: clients[1].info("replication")["master_link_status"] == "up")
        backend = RedisBackend(f"redis+sentinel://127.0.0.1:{sentinel.port}/main", namespace="f")

        async def body(store: Any, w: Any) -> None:
            await store.set_many([Item("k", b"old", None)], w.deadline(2))
            clients[1].execute_command("REPLICAOF NO ONE")
            clients[0].execute_command(f"REPLICAOF 127.0.0.1 {second.port}")
            clients[0].execute_command("CLIENT KILL TYPE normal")  # as Sentinel does
            with pytest.raises(BackendUnavailable, match="not a master"):
                await store.get_many(["k"], w.deadline(2))
            named[0] = second.port
            await store.set_many([Item("k", b"new", None)], w.deadline(2))
            assert await store.get_many(["k"], w.deadline(2)) == [b"new"]
            first.kill()
            assert await store.get_many(["k"], w.deadline(2)) == [b"new"]

        in_world(world, backend, body)


def wait_for(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (redis.RedisError, KeyError):
            pass
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_verbs_of_this_file_cover_the_contract() -> None:
    from cachekit.protocols import Slots

    verbs = {name for name in vars(Slots) if not name.startswith("_")}
    assert verbs <= VERBS.keys()
    assert asyncio.iscoroutinefunction(the_whole_story)
