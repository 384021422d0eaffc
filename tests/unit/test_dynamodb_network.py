"""The ways to DynamoDB: URLs, TLS verified, connections kept, a proxy, a client of one's own."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dynamodb_desk import Desk, Plain, backend_at, late, started

from cachekit.backends.dynamodb import DynamoDBBackend
from cachekit.errors import BackendRefused, BackendUnavailable, ConfigurationError
from cachekit.runtime import Runtime
from cachekit.testing.dynamodb import CREDENTIALS, DynamoDBServer, MinistackServer

pytest.importorskip("cryptography")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@pytest.fixture(scope="module")
def server() -> Iterator[DynamoDBServer]:
    yield from started(MinistackServer())


@pytest.fixture
def desk(server: DynamoDBServer) -> Iterator[Desk]:
    with Desk(server).open() as desk:
        yield desk


def certificate(folder: Path, host: str) -> Path:
    """A file with a key and the certificate that it signed itself, for one address."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "desk")])
    today = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    path = folder / f"{host}.pem"
    path.write_bytes(private + made.public_bytes(pem))
    return path


def over_tls(desk: Desk, file: Path) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    desk._http.socket = context.wrap_socket(desk._http.socket, server_side=True)
    return desk.url.replace("http:", "https:")


@pytest.mark.server
def test_tls_is_verified_by_the_authorities_of_the_environment_and_kept(
    server: DynamoDBServer, tmp_path: Path, monkeypatch: Any
) -> None:
    desk = Desk(server)
    file = certificate(tmp_path, "127.0.0.1")
    url = over_tls(desk, file)
    with desk.open():
        trusting = f"dynamodb://cache?region=us-east-1&endpoint={url}"
        stranger = Plain(DynamoDBBackend(trusting).open(Runtime().threads))
        with pytest.raises(BackendUnavailable, match="SSLCertVerificationError"):
            stranger.get_many(["k"], deadline=late(5.0))
        stranger.close()
        assert not desk.asked
        monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
        store = Plain(backend_at(url, "tls").open(Runtime().threads))
        for n in range(5):
            store.put(f"k{n}", os.urandom(16), b"%d" % n * 100_000, None)
            assert store.slot(f"k{n}").data == b"%d" % n * 100_000
        (pool,) = store.store._driver._table._transport._pools.values()
        assert len(pool._idle) == 1
        assert isinstance(pool._idle[0]._wire._socket, ssl.SSLSocket)
        store.close()


@pytest.mark.server
def test_a_certificate_for_another_host_is_refused(
    server: DynamoDBServer, tmp_path: Path, monkeypatch: Any
) -> None:
    desk = Desk(server)
    file = certificate(tmp_path, "127.0.0.2")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    with desk.open():
        store = Plain(backend_at(over_tls(desk, file)).open(Runtime().threads))
        with pytest.raises(BackendUnavailable, match="SSLCertVerificationError"):
            store.get_many(["k"], deadline=late(5.0))
        store.close()


@pytest.mark.server
def test_connections_are_kept_and_one_the_server_closed_is_noticed(desk: Desk) -> None:
    store = Plain(backend_at(desk.url, "kept").open(Runtime().threads))
    store.slot("k")
    (pool,) = store.store._driver._table._transport._pools.values()
    (first,) = pool._idle
    for _ in range(3):
        store.void(["k"])
    assert pool._idle == [first]
    desk.plan("BatchGetItem", "lose reply")
    store.slot("k")  # asks again, over another
    (second,) = pool._idle
    assert second is not first
    store.close()
    assert not pool._alive


@pytest.mark.server
def test_behind_a_proxy_botocores_own_connections_are_used(desk: Desk, monkeypatch: Any) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", desk.url)
    store = Plain(backend_at("http://dynamodb.invalid:8000", "proxy").open(Runtime().threads))
    token = os.urandom(16)
    assert store.acquire("k", token, 30.0).granted
    assert store.fill("k", token, b"1", None)
    assert store.slot("k").data == b"1"
    assert desk.asked["PutItem"] == 2
    assert not store.store._driver._table._transport._pools
    store.close()


@pytest.mark.server
def test_a_client_of_the_users_own_gets_the_settings_that_make_it_safe(
    server: DynamoDBServer,
) -> None:
    import boto3

    asked: list[Any] = []

    def make(config: Any) -> Any:
        asked.append(config)
        session = boto3.session.Session(region_name="us-east-1", **CREDENTIALS)
        return session.client("dynamodb", endpoint_url=server.url, config=config)

    Plain(backend_at(server.url).open(Runtime().threads)).slot("k")  # so that there is a table
    store = Plain(DynamoDBBackend("dynamodb://cache", client=make).open(Runtime().threads))
    assert store.get_many(["k"]) == [None]
    began = time.monotonic()
    server.pause()
    try:
        with pytest.raises(TimeoutError):
            store.get_many(["k"], deadline=late(0.2))
    finally:
        server.resume()
    assert time.monotonic() - began < 2.0
    assert [config.retries["total_max_attempts"] for config in asked] == [1]
    store.close()


@pytest.mark.server
def test_a_client_that_retries_by_itself_is_refused(server: DynamoDBServer) -> None:
    def make(config: Any) -> Any:
        return server.client(retries={"max_attempts": 3, "mode": "standard"})

    store = Plain(DynamoDBBackend("dynamodb://cache", client=make).open(Runtime().threads))
    with pytest.raises(BackendRefused, match="retries by itself"):
        store.get_many(["k"])
    store.close()


# -- URLs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "dynamodb://",
        "dynamodb://ab",
        "dynamodb://AKIAS3CRET:hush@table",
        "dynamodb://table?secret=hush",
        "dynamodb://table?hush/S3CRET=1",
        "dynamodb://table/hush",
        "dynamodb://table?region=hush!",
        "dynamodb://table?create=hush",
        "dynamodb://table?connections=hush",
        "dynamodb://table?endpoint=http://me:hush@host",
        "dynamodb://table?endpoint=hush",
        "dynamodb://[hush",
        "redis://hush",
    ],
)
def test_a_url_that_can_not_be_used_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        DynamoDBBackend(url)
    told = f"{refused.value!r} {refused.value.__cause__!r}"
    assert "hush" not in told
    assert "S3CRET" not in told


def test_nothing_is_opened_or_started_by_construction() -> None:
    threads = threading.active_count()
    backend = DynamoDBBackend("dynamodb://table?region=eu-west-1&connections=3")
    backend.open(Runtime().threads)
    assert threading.active_count() == threads
    assert backend._account._client is None
    assert repr(backend) == "DynamoDBBackend(table)"
