"""Test-suites of others: their source distributions and what they need, fetched with pip and kept
in a folder, and the server that one of them asks."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from cachekit.testing.dynamodb import MinistackServer, ministack_program
from cachekit.testing.servers import ServerMissing


@dataclass(frozen=True)
class Suite:
    """A suite that is ready to run: ``tests`` below ``root``, by ``python`` with ``path`` and
    ``plugins``. ``span``: as ``conformance_plugin`` has it. ``served()`` gives the environment of
    one run. ``expected``: why each test that may end otherwise with the cache does."""

    name: str
    root: Path
    tests: list[str]
    python: Path
    path: list[Path] = field(default_factory=list)
    plugins: list[str] = field(default_factory=list)
    span: str = "test"
    served: Callable[[], object] = nullcontext
    expected: dict[str, str] = field(default_factory=dict)


def pip(python: Path | str, *arguments: str) -> None:
    subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", "-q", *arguments],
        check=True,
        timeout=600,
    )


def made(target: Path, make: Callable[[Path], None]) -> Path:
    """``target``, made once: by ``make`` elsewhere first, so that a half-made one is never used."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as folder:
            fresh = Path(folder) / target.name
            make(fresh)
            try:
                fresh.rename(target)
            except OSError:
                if not target.exists():  # another one made it meanwhile
                    raise
    return target


def source(folder: Path, name: str, version: str) -> Path:
    """The unpacked source distribution."""

    def make(fresh: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="cachekit-") as loaded:
            # Of this one alone: what its metadata is made with may come ready-built.
            pip(sys.executable, "download", "--no-deps", "--no-binary", name,
                f"{name}=={version}", "-d", loaded)  # fmt: skip
            with tarfile.open(next(Path(loaded).glob(f"{name}-*.tar.gz"))) as packed:
                packed.extractall(loaded, filter="data")
            shutil.move(Path(loaded) / f"{name}-{version}", fresh)

    return made(folder / f"{name}-{version}", make)


_FREE = "asks what capacity a read used that the cache answers: it used none"

# -- moto --------------------------------------------------------------------------------------


def moto(folder: Path) -> Suite:
    """moto's own tests of its DynamoDB, of the version that is installed here, in its process."""
    version = importlib.metadata.version("moto")
    needed = made(
        folder / "moto-needs",
        lambda fresh: pip(
            sys.executable, "install", "--no-deps", "--target", str(fresh), "freezegun"
        ),
    )
    return Suite(
        f"moto {version}",
        source(folder, "moto", version),
        ["tests/test_dynamodb"],
        Path(sys.executable),
        [needed],
        expected={
            r".*::test_only_return_consumed_capacity_when_required\[(INDEXES|TOTAL)-.*\]": _FREE,
            r".*::test_consumed_capacity_get_unknown_item": _FREE,
            r".*::test_batch_items_should_return_16mb_max": (
                "asks for 25 MB; DynamoDB sends 16 at once, and what is cached comes beside that"
            ),
        },
    )


# -- ministack ---------------------------------------------------------------------------------


class _Whole(MinistackServer):
    """Also the other services that its tests of DynamoDB use."""

    def _command(self, port: int) -> list[str]:
        return [*self.options]

    def _environment(self, port: int) -> dict[str, str]:
        more = "dynamodb,dynamodbstreams,kinesis,kms,lambda,s3,iam,sts,logs"
        return {**super()._environment(port), "SERVICES": more}


def ministack(folder: Path) -> Suite:
    """ministack's own tests of its DynamoDB, against a server of the same version: that of the
    ministack that is installed, else the newest. In an environment of its own, as it pins
    botocore. Every run has a fresh server."""
    wanted = _installed_ministack()
    pinned = f"ministack=={wanted}" if wanted else "ministack"

    def make(fresh: Path) -> None:
        # Its programs would name the place where it is made: only its interpreter is used.
        subprocess.run([sys.executable, "-m", "venv", str(fresh)], check=True)
        pip(_bin(fresh), "install", "--prefer-binary", pinned, "boto3", "pytest",
            "cachetools>=5.3", "tenacity>=8.2")  # fmt: skip

    place = made(folder / f"ministack-{wanted or 'newest'}-environment", make)
    version = _version(_bin(place))
    assert version is not None

    @contextmanager
    def served() -> Iterator[dict[str, str]]:
        start = "from ministack.app import main; main()"
        with _Whole([str(_bin(place)), "-c", start]) as server:
            yield {"MINISTACK_ENDPOINT": server.url}

    root = source(folder, "ministack", version)
    tests = [str(each.relative_to(root)) for each in sorted(root.glob("tests/test_dynamodb*.py"))]
    return Suite(
        f"ministack {version}",
        root,
        tests,
        _bin(place),
        plugins=["conformance_ministack"],
        span="session",
        served=served,
    )


def _bin(environment: Path) -> Path:
    return environment / "bin" / "python"


def _installed_ministack() -> str | None:
    try:
        return _version(Path(os.path.realpath(ministack_program())).with_name("python"))
    except ServerMissing:
        return None


def _version(python: Path) -> str | None:
    ask = "import importlib.metadata as m; print(m.version('ministack'))"
    try:
        done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, timeout=60)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


SUITES: dict[str, Callable[[Path], Suite]] = {"moto": moto, "ministack": ministack}
