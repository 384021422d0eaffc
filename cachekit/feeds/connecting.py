"""Clients for reading a stream: of the usual credentials, or as another client's."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from ..errors import MissingDependencyError

__all__ = ["Connect", "connect_as", "default_connect", "is_aws"]

Connect = Callable[[str], Any]  # "dynamodb" or "dynamodbstreams" -> a client

_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
# They wait for seconds only: a reader that hangs can not tell that it lags.
BRIEF: dict[str, Any] = {
    "connect_timeout": 2, "read_timeout": 5, "retries": {"total_max_attempts": 1},
}  # fmt: skip


def is_aws(endpoint: str) -> bool:
    """Whether it is one of AWS's own endpoints, of which a region has many."""
    return (urlsplit(endpoint).hostname or "").endswith(_AWS)


def default_connect() -> Connect:
    """Clients of the usual credentials and region. Raises MissingDependencyError."""
    try:
        boto3, config = import_module("boto3"), import_module("botocore.config").Config
    except ImportError:
        raise MissingDependencyError(
            "this feed needs boto3: pip install 'cachekit-strategies[dynamodb]'"
        ) from None

    def connect(service: str) -> Any:
        return boto3.session.Session().client(service, config=config(**BRIEF))

    return connect


def connect_as(client: Any) -> Connect:
    """Clients with the credentials, region, endpoint, proxies and TLS of a DynamoDB client. Where
    that is an endpoint of AWS's, streams have another: the region's own is taken. The client is not
    kept. An asyncio client's credentials are taken if they are fixed, else the usual ones are
    looked up."""
    credentials: Any = getattr(getattr(client, "_request_signer", None), "_credentials", None)
    endpoint, region = client.meta.endpoint_url, client.meta.region_name
    where: dict[str, Any] = {"region_name": region}
    network = getattr(getattr(client, "_endpoint", None), "http_session", None)
    verify = getattr(network, "_verify", None)
    if isinstance(verify, (bool, str)):
        where["verify"] = verify
    proxies = getattr(client.meta.config, "proxies", None)

    def connect(service: str) -> Any:
        config = import_module("botocore.config").Config
        session = import_module("botocore.session").Session()
        if not type(credentials).__name__.startswith("Aio"):
            session._credentials = credentials
        elif getattr(credentials, "method", None) == "explicit":
            session.set_credentials(
                credentials.access_key, credentials.secret_key, credentials.token
            )
        own = service == "dynamodb" or not is_aws(endpoint)
        return session.create_client(
            service,
            config=config(proxies=proxies, **BRIEF),
            endpoint_url=endpoint if own else None,
            **where,
        )

    return connect
