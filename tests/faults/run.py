"""Kill writers and servers by the hundred: ``python tests/faults/run.py --help``.

One line of counts for each kind; exit code 1 if anything acknowledged was lost, came out of order
or was delivered again more than it may be."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fault_sources import AsyncSQLiteSource, PostgreSQLSource, SQLiteSource
from kills import Campaign
from server_kills import ServerCampaign, slow_disk

from cachekit.testing import PostgreSQLServer, RedisServer, ServerMissing

KINDS: dict[str, dict[str, Any]] = {
    "sqlite-process": {"log": "sqlite"},
    "sqlite-host": {"log": "sqlite", "level": "host"},
    "redis-log": {"log": "redis"},
    "redis-cache": {"log": "redis", "cache": True},
    "sqlite-async-sink": {"log": "sqlite", "source": "sqlite-async"},
    "redis-parts": {"log": "redis", "parts": 3},
    "postgresql": {"log": "sqlite", "source": "postgresql"},
}
SERVERS: dict[str, dict[str, Any]] = {
    "redis-always": {"fsync": "always", "level": "host"},
    "redis-always-undrained": {"fsync": "always", "drained": False},
    "redis-everysec": {"fsync": "everysec"},
    "redis-everysec-undrained": {"fsync": "everysec", "drained": False},
    "redis-everysec-slow-disk": {"fsync": "everysec", "drained": False, "slow": True},
}
GROUPS = {
    "all": [*KINDS, *SERVERS],
    "sqlite": ["sqlite-process", "sqlite-host", "sqlite-async-sink"],
    "redis": ["redis-log", "redis-cache", "redis-parts", *SERVERS],
}


@contextmanager
def prepared(kind: str, folder: Path, seed: int) -> Iterator[Campaign]:
    """A campaign of a kind, with all that it needs."""
    asked = KINDS[kind]
    with ExitStack() as stack:
        if asked["log"] == "redis":
            url = stack.enter_context(RedisServer()).url
        else:
            url = f"sqlite:///{folder}/log.db"
        given = {"log": url, "level": asked.get("level"), "parts": asked.get("parts")}
        if asked.get("cache"):
            given["cache"] = url
        source: Any
        styles: tuple[str, ...] = ("sync", "async")
        if asked.get("source") == "postgresql":
            source = PostgreSQLSource.made(stack.enter_context(PostgreSQLServer()).url)
        elif asked.get("source") == "sqlite-async":
            source, styles = AsyncSQLiteSource.made(folder), ("async",)
        else:
            source = SQLiteSource.made(folder)
        grace = 1.0 if asked["log"] == "redis" else 0.0
        yield Campaign(folder / "trails", given, source, seed, styles=styles, grace=grace)


def kill_writers(kind: str, kills: int, seed: int, folder: Path) -> bool:
    with prepared(kind, folder, seed) as campaign:
        campaign.run(kills)
        campaign.drain()
        verdict = campaign.verdict()
    print(f"kills={campaign.kills} ({campaign.aimed} at a chosen point) ", end="")
    print(f"pauses={campaign.pauses} {verdict} raised={verdict.raised}", end="")
    return _told(verdict.violations)


def kill_servers(kind: str, kills: int, seed: int, folder: Path) -> bool:
    campaign = ServerCampaign(folder, seed, **SERVERS[kind])
    campaign.run(kills, load=3.0 if "slow" in SERVERS[kind] else 0.6)
    print(campaign, end="")
    return _told(campaign.violations())


def _told(violations: list[str]) -> bool:
    for sentence in violations[:20]:
        print(f"\n  {sentence}", end="")
    return not violations


def played(kind: str, asked: argparse.Namespace) -> bool:
    """One kind's line. One that can not be played here is told, and no failure."""
    if "slow" in SERVERS.get(kind, {}) and slow_disk() is None:
        print(f"{kind}: skipped, no C compiler to make a disk slow with")
        return True
    folder = Path(tempfile.mkdtemp(prefix=f"cachekit-faults-{kind}-"))
    began = time.monotonic()
    print(f"{kind}: ", end="", flush=True)
    try:
        if kind in KINDS:
            good = kill_writers(kind, asked.kills, asked.seed, folder)
        else:
            good = kill_servers(kind, asked.server_kills, asked.seed, folder)
    except ServerMissing as missing:
        print(f"skipped, {missing}")
        return os.environ.get("CACHEKIT_REQUIRE_SERVERS") != "1"
    print(f" seed={asked.seed} seconds={time.monotonic() - began:.0f}", flush=True)
    if good:
        shutil.rmtree(folder)
    else:
        print(f"  kept for a look: {folder}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", choices=[*GROUPS, *KINDS, *SERVERS], default="all")
    parser.add_argument("--kills", type=int, default=100, help="per kind of log")
    parser.add_argument("--server-kills", type=int, default=10, help="of redis-server, per kind")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    kinds = GROUPS.get(asked.log, [asked.log])
    right = [played(kind, asked) for kind in kinds]
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
