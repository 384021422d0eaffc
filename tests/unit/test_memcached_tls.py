"""``memcacheds://``: certificate and host name are verified, and connections are kept."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cachekit.backends.memcached import MemcachedBackend
from cachekit.errors import BackendUnavailable
from cachekit.protocols import Note, NoteKind
from cachekit.runtime import Runtime, drive
from cachekit.testing import MemcachedServer
from cachekit.testing.servers import memcached_program

pytest.importorskip("cryptography")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _certificate(folder: Path) -> Path:
    """A file with a key and its own certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


class TlsServer:
    """Answers every ``gets`` with nothing found, over TLS."""

    def __init__(self, certificate: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.served = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            with plain, contextlib.suppress(OSError):
                plain.settimeout(5)
                with self._context.wrap_socket(plain, server_side=True) as secure:
                    self.served += 1
                    while secure.recv(65536):
                        secure.sendall(b"END\r\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return _certificate(tmp_path)


@pytest.fixture
def server(certificate: Path) -> Iterator[TlsServer]:
    server = TlsServer(certificate)
    yield server
    server.close()


def _ask(url: str, times: int) -> list[Any]:
    here = Runtime().threads
    store = MemcachedBackend(url).open(here)
    try:
        return [drive(store.get_many(["k"], here.deadline(2))) for _ in range(times)]  # type: ignore[arg-type]
    finally:
        drive(store.close())  # type: ignore[arg-type]


def test_a_certificate_nobody_vouches_for_is_refused(server: TlsServer) -> None:
    with pytest.raises(BackendUnavailable):
        _ask(f"memcacheds://127.0.0.1:{server.port}", 1)
    assert server.served == 0


def test_a_trusted_certificate_is_accepted_and_its_connection_kept(
    server: TlsServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert _ask(f"memcacheds://127.0.0.1:{server.port}", 4) == [[None]] * 4
    assert server.served == 1


def test_a_trusted_certificate_of_another_host_is_refused(
    server: TlsServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(BackendUnavailable):
        _ask(f"memcacheds://localhost:{server.port}", 1)
    assert server.served == 0


class Heard:
    """Ears that only know whether they joined and what they heard."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.told = threading.Event()
        self.notes: list[Note] = []

    def joined(self) -> None:
        self.ready.set()

    def heard(self, notes: Sequence[Note]) -> None:
        self.notes += notes
        self.told.set()

    def lost(self) -> None:
        self.ready.clear()

    def lag(self, seconds: float) -> None:
        assert seconds > 0.0

    def foreign(self, count: int) -> None:
        raise AssertionError(count)


@pytest.mark.server
def test_the_bus_polls_over_tls_too_and_joins_nobody_it_can_not_verify(
    certificate: Path, memcached_tls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memcacheds://127.0.0.1:{memcached_tls}"
    stranger = MemcachedBackend(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    mine, theirs = MemcachedBackend(url), MemcachedBackend(url)
    here = Runtime().threads
    store: Any = theirs.open(here)
    ears, refused = Heard(), Heard()
    assert mine.bus is not None
    assert stranger.bus is not None
    stops = [mine.bus.listen(ears), stranger.bus.listen(refused)]
    try:
        assert ears.ready.wait(5)
        drive(store.slots.void(["k"], here.deadline(2)))
        assert ears.told.wait(2)
        assert ears.notes == [Note(NoteKind.SPACE, "")]
        assert not refused.ready.is_set()
    finally:
        for stop in stops:
            stop()
        drive(store.close())


@pytest.fixture
def memcached_tls(certificate: Path, memcached_server: MemcachedServer) -> Iterator[int]:
    """The port of a real server that speaks TLS."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [memcached_program(), "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-u", "root"]
    command += ["-Z", "-o", f"ssl_chain_cert={certificate},ssl_key={certificate}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            end = time.monotonic() + 5
            while process.poll() is None and time.monotonic() < end:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.02)
            if process.poll() is not None:
                pytest.skip("this memcached was built without TLS")
            yield port
        finally:
            process.kill()
