"""Private servers that speak DynamoDB's protocol, for tests: start, freeze, kill, start again.

    with MinistackServer() as server:
        server.client().create_table(...)

Each listens on a free loopback port only and keeps its tables in memory: ``kill`` and ``start``
give an empty server. None of them shows replica lag, throttling or a clock of its own.

=============  =====================  ==========================================================
server         from                   what it can not do
=============  =====================  ==========================================================
Ministack      PyPI ``ministack``     shares no environment with a current boto3 (it pins botocore)
Dynalite       npm ``dynalite``       time to live, transactions, streams, PartiQL; a conditional
                                      failure never brings the item along
Moto           PyPI ``moto[server]``  items above 405 000 bytes; it closes every connection
=============  =====================  ==========================================================
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from .servers import HOST, Server, ServerFailed, ServerMissing

REGION = "us-east-1"
CREDENTIALS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
START_SECONDS = 30.0
ASK_SECONDS = 2.0

_QUESTION = b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n"


class DynamoDBServer(Server):
    """One private server. Its process and all that it started end with it.

    ``options`` are more command-line options."""

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def endpoint(self) -> str:
        """What boto3 calls ``endpoint_url``; the same as ``url``."""
        return self.url

    def client(self, **config: Any) -> Any:
        """A boto3 client with dummy credentials and without retries; ``config`` as botocore's
        ``Config`` takes it. About 0.1 s, the first 0.5 s. The caller closes it."""
        boto3, config_of = import_module("boto3"), import_module("botocore.config").Config
        options = {
            "connect_timeout": 2,
            "read_timeout": 10,
            "retries": {"total_max_attempts": 1},
            "proxies": {},
            **config,
        }
        session = boto3.session.Session(region_name=REGION, **CREDENTIALS)
        return session.client("dynamodb", endpoint_url=self.url, config=config_of(**options))

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.process.wait()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, what: signal.Signals) -> None:
        # Started as the leader of a group of its own. Once it ended, the number may be another's.
        if self.process.poll() is None:
            os.killpg(self.process.pid, what)

    def _environment(self, port: int) -> dict[str, str]:
        # Nothing of the caller's account, region or proxies.
        mine = {k: v for k, v in os.environ.items() if not k.upper().startswith("AWS_")}
        return {**mine, "HOME": str(self.folder), "TMPDIR": str(self.folder)}

    def _launch(self, port: int) -> None:
        output = self.folder / "output"
        with output.open("wb") as sink:
            self._process = process = subprocess.Popen(
                self._command(port),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._environment(port),
                start_new_session=True,
            )
        end = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < end:
            if self._answers(port, process.pid):
                return
            time.sleep(0.02)
        if process.poll() is None:
            self.kill()
        told = output.read_bytes()[-500:].decode("utf-8", "replace").strip()
        raise ServerFailed(f"{self.program} did not start on port {port}: {told}")

    def _answers(self, port: int, pid: int) -> bool:
        try:
            with socket.create_connection((HOST, port), 0.2) as connection:
                connection.settimeout(ASK_SECONDS)
                connection.sendall(_QUESTION)
                if not connection.recv(64).startswith(b"HTTP/1."):
                    return False
        except OSError:
            return False
        return _listens(pid, port)


class MinistackServer(DynamoDBServer):
    """``ministack``, its DynamoDB alone: the program that CACHEKIT_MINISTACK names, else the one on
    PATH or beside this interpreter. By itself it would listen on every interface: here it is
    bound to 127.0.0.1. Starts in 0.6 s."""

    program = "ministack"

    def _command(self, port: int) -> list[str]:
        return [ministack_program(), *self.options]

    def _environment(self, port: int) -> dict[str, str]:
        return {
            **super()._environment(port),
            "BIND_HOST": HOST,
            "GATEWAY_PORT": str(port),
            "SERVICES": "dynamodb,dynamodbstreams",
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
        }


class DynaliteServer(DynamoDBServer):
    """``dynalite`` under node: the ``cli.js`` that CACHEKIT_DYNALITE names, else the one in a
    ``node_modules`` folder here or above, else npm's global one. Tables are ready at once. Starts
    in 0.5 s."""

    program = "dynalite"

    def _command(self, port: int) -> list[str]:
        command = [*dynalite_program(), "--host", HOST, "--port", str(port)]
        return [*command, "--createTableMs", "0", "--deleteTableMs", "0", *self.options]


class MotoServer(DynamoDBServer):
    """moto's server, of this interpreter's packages. Starts in 2 s."""

    program = "moto_server"

    def _command(self, port: int) -> list[str]:
        if any(importlib.util.find_spec(name) is None for name in ("moto", "flask")):
            raise ServerMissing("no moto: pip install 'moto[server]'")
        start = "import sys; from moto.server import main; main(sys.argv[1:])"
        return [sys.executable, "-c", start, "-H", HOST, "-p", str(port), *self.options]


def ministack_program() -> str:
    """Path of ministack; raises ServerMissing."""
    given = os.environ.get("CACHEKIT_MINISTACK")
    beside = str(Path(sys.executable).with_name("ministack"))
    for program in (given,) if given else ("ministack", beside):
        if found := shutil.which(program):
            return found
    raise ServerMissing(
        "no ministack: pip install ministack into an environment of its own, and set "
        "CACHEKIT_MINISTACK to its program"
    )


def dynalite_program() -> list[str]:
    """The command that starts dynalite; raises ServerMissing."""
    node = shutil.which("node")
    if node is None:
        raise ServerMissing("no node on PATH: dynalite needs it")
    for script in _scripts():
        if script.is_file():
            return [node, str(script)]
    raise ServerMissing(
        "no dynalite: npm install dynalite, and set CACHEKIT_DYNALITE to its cli.js"
    )


def _scripts() -> list[Path]:
    if given := os.environ.get("CACHEKIT_DYNALITE"):
        return [Path(given)]
    here = Path.cwd()
    local = [folder / "node_modules" for folder in (here, *here.parents)]
    modules = [*local, *([root] if (root := _global_modules()) else [])]
    return [folder / "dynalite" / "cli.js" for folder in modules]


@cache
def _global_modules() -> Path | None:
    npm = shutil.which("npm")
    if npm is None:
        return None
    try:
        told = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Path(told.stdout.strip()) if told.returncode == 0 and told.stdout.strip() else None


def _listens(pid: int, port: int) -> bool:
    """Whether it is this process that listens on the loopback port, and not a stranger that took
    it before. Where the system does not tell (no /proc), yes."""
    try:
        rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
        handles = [os.readlink(handle) for handle in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return not Path("/proc/self/fd").exists()
    mine = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and row[1] == _address(port)}
    return bool(mine & set(handles))


def _address(port: int) -> str:
    """127.0.0.1 and a port as /proc/net/tcp writes them."""
    host = int.from_bytes(socket.inet_aton(HOST), sys.byteorder)
    return f"{host:08X}:{port:04X}"
