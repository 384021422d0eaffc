"""A private PostgreSQL cluster, in a temporary folder of its own.

    with PostgreSQLServer() as server:
        psycopg.connect(server.dsn)

Nothing is kept on disk safely: ``fsync`` is as the server has it by default, the folder goes at the
end. Needs psycopg 3 to see that it is up, and no test framework.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .servers import START_SECONDS, STOP_SECONDS, ServerFailed, ServerMissing


class PostgreSQLServer:
    """One server process, reached by a socket in its folder: ``dsn`` for psycopg, ``url`` for
    SQLAlchemy. Raises ServerMissing where none is installed."""

    def __init__(self, *settings: str) -> None:
        """``settings`` such as "deadlock_timeout=100ms"."""
        initdb, postgres = _program("initdb"), _program("postgres")
        if initdb is None or postgres is None:
            raise ServerMissing("no PostgreSQL server: install the package postgresql")
        self._initdb, self._postgres, self._settings = initdb, postgres, settings
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = Path()

    @property
    def dsn(self) -> str:
        return f"host={self.folder} user=postgres dbname=postgres"

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@/postgres?host={self.folder}"

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="cachekit-postgresql-"))
        atexit.register(self.close)
        try:
            self._create()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _who(self) -> dict[str, Any]:
        """The server refuses to run as root."""
        if os.geteuid() != 0:
            return {}
        try:
            entry = pwd.getpwnam("postgres")
        except KeyError as error:
            raise ServerMissing("PostgreSQL can not run as root, and has no user") from error
        os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def _create(self) -> None:
        data = str(self.folder / "data")
        made = subprocess.run(
            [self._initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
            capture_output=True,
            cwd=self.folder,
            **self._who(),
        )
        if made.returncode:
            raise ServerFailed(f"initdb failed: {made.stderr.decode(errors='replace')[-500:]}")

    def start(self) -> None:
        """Start it, again after :meth:`kill` or :meth:`stop` with what it had on disk."""
        data = str(self.folder / "data")
        command = [self._postgres, "-D", data, "-k", str(self.folder), "-c", "listen_addresses="]
        for setting in self._settings:
            command += ["-c", setting]
        with (self.folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
                **self._who(),
            )
        import psycopg

        end = time.monotonic() + 3 * START_SECONDS
        while True:
            try:
                psycopg.connect(self.dsn).close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > end:
                    told = (self.folder / "output").read_text(errors="replace")[-500:]
                    raise ServerFailed(f"PostgreSQL did not start: {told}") from error
                time.sleep(0.05)

    def stop(self) -> None:
        """At once: its sessions are cut, and what was committed stays."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Without any shutdown; it recovers at its next start."""
        self._end(signal.SIGQUIT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stop it and remove its folder. Twice is fine."""
        self._end(signal.SIGQUIT)
        atexit.unregister(self.close)
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)


def _program(name: str) -> str | None:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(installed[-1]) if installed else None)
