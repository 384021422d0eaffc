"""A pytest plug-in with the fixtures that ministack's tests ask for: its source distribution has
the tests alone. The server is that of ``MINISTACK_ENDPOINT``, which checks no permissions."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.config import Config

REGION = "us-east-1"


def _made(service: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=os.environ["MINISTACK_ENDPOINT"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name=REGION,
        config=Config(retries={"mode": "standard"}, proxies={}),
    )


def _fixture(name: str, service: str) -> Any:
    return pytest.fixture(scope="session", name=name)(lambda: _made(service))


ddb = _fixture("ddb", "dynamodb")
ddb_streams = _fixture("ddb_streams", "dynamodbstreams")
kin = _fixture("kin", "kinesis")
kms_client = _fixture("kms_client", "kms")
lam = _fixture("lam", "lambda")
s3 = _fixture("s3", "s3")


@pytest.fixture
def auth_enabled() -> bool:
    return False


@pytest.fixture
def iam_user() -> Callable[..., Any]:
    """``iam_user(policy=...).client("dynamodb")``: as permissions are not checked, anyone."""
    return lambda **_: SimpleNamespace(client=_made)


@pytest.fixture(autouse=True)
def _own_account() -> None:
    """Some tests call the server's functions in this process, as other accounts and regions."""
    from ministack.core.responses import set_request_account_id, set_request_region

    set_request_account_id("")
    set_request_region(None)
