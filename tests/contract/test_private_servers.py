"""The private servers of ``cachekit.testing``: real processes, really killed and frozen."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cachekit.testing import MemcachedServer, RedisServer, ServerFailed, ServerMissing, servers
from cachekit.testing.servers import Server

CONFTEST = Path(__file__).parent.parent / "conftest.py"

pytestmark = pytest.mark.server


@pytest.fixture(params=[RedisServer, MemcachedServer])
def server(request: pytest.FixtureRequest) -> Server:
    try:
        servers.redis_program()
        servers.memcached_program()
    except ServerMissing as missing:
        if os.environ.get("CACHEKIT_REQUIRE_SERVERS") == "1":
            raise
        pytest.skip(str(missing))
    made: Server = request.param()
    return made


def talk(server: Server, line: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), 2.0) as connection:
        connection.settimeout(0.3)
        connection.sendall(line)
        return connection.recv(4096)


def test_a_killed_server_comes_back_on_its_port_with_nothing_kept(server: Server) -> None:
    with server:
        port, url, folder = server.port, server.url, server.folder
        if isinstance(server, RedisServer):
            assert talk(server, b"SET k v\r\n") == b"+OK\r\n"
        else:
            assert talk(server, b"set k 0 0 1\r\nv\r\n") == b"STORED\r\n"
        server.kill()
        assert server.process.returncode == -9
        with pytest.raises(OSError):
            talk(server, b"GET k\r\n")
        server.start()
        assert (server.port, server.url, server.folder) == (port, url, folder)
        assert talk(server, b"get k\r\n") in (b"$-1\r\n", b"END\r\n")
    assert server.process.poll() is not None
    assert not folder.exists()


def test_a_paused_server_accepts_and_does_not_answer_until_resumed(server: Server) -> None:
    with server:
        server.pause()
        with pytest.raises(TimeoutError):
            talk(server, b"get k\r\n")
        server.resume()
        assert talk(server, b"get k\r\n")
        server.pause()
        server.stop()
        assert server.process.poll() is not None


def test_a_port_that_was_taken_meanwhile_is_left_for_another(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RedisServer() as stranger:
        ports = iter([stranger.port, stranger.port, servers._free_port()])
        monkeypatch.setattr(servers, "_free_port", lambda: next(ports))
        with server:
            assert server.port != stranger.port
            assert talk(server, b"get k\r\n")


def test_a_server_that_can_not_start_says_why(server: Server) -> None:
    server.options = ("--no-such-option", "1")
    with pytest.raises(ServerFailed, match="no-such-option"):
        server.start()
    server.close()


@pytest.mark.usefixtures("redis_server")
def test_a_unix_socket_is_in_the_url() -> None:
    with RedisServer(unix_socket=True) as local:
        assert local.url == f"unix://{local.socket_path}"
        assert local.socket_path.is_socket()


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(servers.importlib.util, "find_spec", lambda name: None)
    for server in (RedisServer(), MemcachedServer()):
        with pytest.raises(ServerMissing, match="install"):
            server.start()


def test_the_servers_need_no_pytest() -> None:
    code = "import sys, cachekit.testing.servers; sys.exit('pytest' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment())


@pytest.mark.parametrize(("required", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
def test_a_missing_server_skips_unless_servers_are_required(
    tmp_path: Path, required: str, outcome: str
) -> None:
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_it.py").write_text("def test_it(memcached_server): pass\n")
    environment = _environment(PATH=str(tmp_path), CACHEKIT_REQUIRE_SERVERS=required)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert outcome in ran.stdout
    assert "no memcached on PATH" in ran.stdout or required == "0"


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CONFTEST.parent.parent), **more}
