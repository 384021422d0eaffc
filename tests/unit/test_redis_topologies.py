"""The Redis backend over TLS, under a least-privilege user, on a Cluster and behind Sentinel."""

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
)

from cachekit.backends.redis import RedisBackend
from cachekit.errors import BackendRefused, BackendUnavailable
from cachekit.protocols import Item, SlotState
from cachekit.testing.servers import RedisServer, redis_program

pytestmark = pytest.mark.server
BOTH = pytest.mark.parametrize("world", WORLDS)
LEAST = "+@read +@write +@scripting +@pubsub +@connection -@dangerous"


def new_id() -> bytes:
    return os.urandom(16)


async def the_whole_story(store: Any, world: Any) -> None:
    """Every step once, over keys of many partitions, with the answers the contract wants."""
    slots, late = store.slots, lambda: world.deadline(3)
    keys = [f"key{i}" for i in range(20)]
    found = await slots.nonces(keys, ["a", "b"], new_id, 60, late())
    assert all(found.spaces)
    assert all(found.tags)
    reading = await slots.read(keys, ["b", "a"], late())
    assert (reading.spaces, reading.nonces) == (found.spaces, found.tags[::-1])
    for key in keys:
        token, refresh = new_id(), new_id()
        assert (await slots.acquire(key, token, 5, late())).granted
        assert await slots.renew(key, token, 5, late())
        assert await slots.fill(key, token, key.encode(), 60, late())
        assert (await slots.acquire(key, refresh, 5, late(), over=token, keep=True)).granted
        await slots.release(key, refresh, late())
    reading = await slots.read(keys, [], late())
    assert [slot.data for slot in reading.slots] == [key.encode() for key in keys]
    writer = new_id()
    await slots.seize(keys, writer, 5, late())
    assert await slots.commit(keys[0], writer, b"new", None, late())
    assert not await slots.put(keys[1], new_id(), b"x", None, late())
    await slots.end(keys[1:], writer, late())
    await slots.void(keys[:1], late())
    assert {s.state for s in (await slots.read(keys, [], late())).slots} == {SlotState.NOTHING}
    await slots.drop_tags(["a"], late())
    await slots.drop_space(late())
    reading = await slots.read(keys, ["a", "b"], late())
    assert (set(reading.spaces), reading.nonces) == ({None}, [None, found.tags[1]])
    await store.set_many([Item(key, key.encode(), 60) for key in keys], late())
    assert await store.get_many([*keys, "no"], late()) == [*(k.encode() for k in keys), None]
    await store.delete_many(keys, late())
    assert await store.get_many(keys, late()) == [None] * 20


# -- least privilege -----------------------------------------------------------------------


@BOTH
def test_a_least_privilege_user_is_enough(world: str) -> None:
    users = ["--user", *f"app on >s3cret ~* &* {LEAST}".split(), "--user", "default", "nopass"]
    with RedisServer([*users, "+@all", "-@read"]) as server:
        url = server.url.replace("//", "//app:s3cret@")
        in_world(world, RedisBackend(url, namespace="least"), the_whole_story)
        outcomes = every_verb_at_once(world, RedisBackend(url.replace("s3cret", "wrong")), 2)
        assert all(isinstance(outcome, BackendRefused) for _, outcome in outcomes.values())
        outcomes = every_verb_at_once(world, RedisBackend(server.url), 2)
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


# -- Cluster -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    if not shutil.which("redis-cli"):
        pytest.skip("no redis-cli on PATH to put a cluster together")
    with ExitStack() as stack:
        nodes = []
        for _ in range(3):
            bus = free_port()  # the default, port + 10000, may lie beyond 65535
            options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
            nodes.append(stack.enter_context(RedisServer([*options, "--save", ""])))
        addresses = [f"127.0.0.1:{node.port}" for node in nodes]
        subprocess.run(
            ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        clients = [stack.enter_context(redis.Redis(port=node.port)) for node in nodes]
        end = time.monotonic() + 30
        while not all(c.cluster("info")["cluster_state"] == "ok" for c in clients):
            assert time.monotonic() < end
            time.sleep(0.05)
        yield nodes


@BOTH
def test_a_cluster_serves_every_step(world: str, cluster: list[RedisServer]) -> None:
    dead = free_port()
    url = f"redis+cluster://127.0.0.1:{dead},127.0.0.1:{cluster[1].port}"
    backend = RedisBackend(url, namespace=f"c{world}")
    in_world(world, backend, the_whole_story)

    async def leave_some(store: Any, w: Any) -> None:
        await store.set_many([Item(f"k{i}", b"v", 60) for i in range(50)], w.deadline(3))

    in_world(world, backend, leave_some)
    for node in cluster:
        with redis.Redis(port=node.port) as client:
            assert client.dbsize() > 0  # the partitions are spread


@BOTH
def test_a_slot_that_moves_is_followed_without_an_error(
    world: str, cluster: list[RedisServer]
) -> None:
    clients = [redis.Redis(port=node.port) for node in cluster]
    ids = [client.cluster("myid").decode() for client in clients]
    backend = RedisBackend(f"redis+cluster://127.0.0.1:{cluster[0].port}", namespace=f"m{world}")

    async def body(store: Any, w: Any) -> None:
        stamp = new_id()
        await store.slots.put("k", stamp, b"old", None, w.deadline(3))
        slot = clients[0].cluster("keyslot", store._layout.slot("k"))
        owner = next(i for i, client in enumerate(clients) if serves(client, slot))
        target = (owner + 1) % 3
        clients[target].cluster("setslot", slot, "importing", ids[owner])
        clients[owner].cluster("setslot", slot, "migrating", ids[target])

        async def data() -> bytes | None:
            return (await store.slots.read(["k"], [], w.deadline(3))).slots[0].data

        assert await data() == b"old"  # still there
        clients[owner].migrate(
            "127.0.0.1", cluster[target].port, [store._layout.slot("k")], 0, 2000
        )
        assert not (await store.slots.acquire("k", new_id(), 5, w.deadline(3))).granted  # ASK
        await store.slots.void(["k"], w.deadline(3))
        await store.slots.put("k", stamp, b"new", None, w.deadline(3))
        for client in clients:
            client.cluster("setslot", slot, "node", ids[target])
        assert await data() == b"new"  # MOVED
        assert await data() == b"new"

    in_world(world, backend, body)
    for client in clients:
        client.close()


def serves(client: redis.Redis, slot: int) -> bool:
    port = client.connection_pool.connection_kwargs["port"]
    return any(
        int(first) <= slot <= int(last) and int(primary["port"]) == port
        for first, last, primary in shards(client)
    )


def shards(client: redis.Redis) -> list[tuple[int, int, dict[str, int]]]:
    """First slot, last slot and port of each range, straight from CLUSTER NODES."""
    found = []
    for node in client.execute_command("CLUSTER NODES").items():
        address, facts = node
        for first, *last in facts["slots"]:
            found.append((first, (last or [first])[0], {"port": address.rpartition(":")[2]}))
    return found


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
