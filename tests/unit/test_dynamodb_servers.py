"""The private DynamoDB servers: started on loopback alone, killed, frozen, gone afterwards."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from dynamodb_desk import started

from cachekit.testing.dynamodb import (
    DynaliteServer,
    DynamoDBServer,
    MinistackServer,
    MotoServer,
    dynalite_program,
    ministack_program,
)
from cachekit.testing.servers import ServerMissing

SERVERS: list[type[DynamoDBServer]] = [MinistackServer, DynaliteServer, MotoServer]
NIGHTLY = os.environ.get("CACHEKIT_NIGHTLY") == "1"


def _made(client: Any) -> None:
    client.create_table(
        TableName="table",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )


@pytest.mark.server
@pytest.mark.parametrize("kind", SERVERS if NIGHTLY else SERVERS[:2])
def test_a_server_is_frozen_killed_and_started_again_on_its_port(
    kind: type[DynamoDBServer],
) -> None:
    for server in started(kind()):
        client, brisk = server.client(), server.client(read_timeout=0.3)
        _made(client)
        server.pause()
        with pytest.raises(Exception, match="timeout"):
            brisk.list_tables()
        server.resume()
        assert client.list_tables()["TableNames"] == ["table"]
        port, first = server.port, server.process
        server.kill()
        assert first.poll() is not None
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
        server.start()
        assert server.port == port
        assert client.list_tables()["TableNames"] == [], "it keeps nothing"
        folder, last = server.folder, server.process
        server.close()
        assert last.poll() is not None
        assert not folder.exists()
        client.close()
        brisk.close()


@pytest.mark.server
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")
@pytest.mark.parametrize("kind", SERVERS if NIGHTLY else SERVERS[:1])
def test_a_server_listens_on_loopback_alone(kind: type[DynamoDBServer]) -> None:
    for server in started(kind()):
        pid = server.process.pid
        handles = {os.readlink(handle) for handle in Path(f"/proc/{pid}/fd").iterdir()}
        listening = []
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                row = line.split()
                if row[3] == "0A" and f"socket:[{row[9]}]" in handles:
                    listening.append(row[1])
        assert listening == [f"0100007F:{server.port:04X}"]


def test_a_program_that_is_missing_is_told_with_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setenv("CACHEKIT_MINISTACK", "/nowhere/ministack")
    monkeypatch.setenv("CACHEKIT_DYNALITE", "/nowhere/cli.js")
    with pytest.raises(ServerMissing, match="pip install ministack"):
        ministack_program()
    with pytest.raises(ServerMissing, match="CACHEKIT_MINISTACK"):
        MinistackServer().start()
    with pytest.raises(ServerMissing):
        dynalite_program()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ServerMissing, match="node"):
        dynalite_program()
