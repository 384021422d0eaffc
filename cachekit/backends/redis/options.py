"""A Redis URL to addresses, login and topology; an unknown option is an error.

``redis://[user:password@]host[:port][/db]``, ``rediss://`` the same over TLS,
``unix://[user:password@]/path/to/socket``, ``redis+cluster://host:port,host:port`` and
``redis+sentinel://host:port,host:port/service[/db]``; a trailing ``s`` on ``redis+cluster`` or
``redis+sentinel`` means TLS. Options in the query: see ``OPTIONS``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ...errors import ConfigurationError
from .layout import MAX_PARTITIONS
from .wire import TLS, Address, Login

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
DEFAULT_PARTITIONS = 64


class Topology(Enum):
    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


# scheme: topology, TLS
SCHEMES = {
    "redis": (Topology.SINGLE, False),
    "rediss": (Topology.SINGLE, True),
    "unix": (Topology.SINGLE, False),
    "redis+cluster": (Topology.CLUSTER, False),
    "redis+clusters": (Topology.CLUSTER, True),
    "redis+sentinel": (Topology.SENTINEL, False),
    "redis+sentinels": (Topology.SENTINEL, True),
}

OPTIONS = {
    "db": int,
    "username": str,
    "password": str,
    "client_name": str,
    "max_connections": int,
    "partitions": int,
    "trust_restart": bool,
    "bus": str,
    "sentinel_username": str,
    "sentinel_password": str,
    "ssl_ca_certs": str,
    "ssl_ca_path": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_password": str,
    "ssl_cert_reqs": str,
    "ssl_check_hostname": bool,
}
BUSES = ("push", "tracking")
TIMEOUTS = frozenset({"timeout", "socket_timeout", "socket_connect_timeout", "retry_on_timeout"})


@dataclass(frozen=True)
class Options:
    """Where to connect and as whom. ``trust_restart`` and ``bus``: see ``RedisBackend``."""

    topology: Topology
    addresses: tuple[Address, ...]
    login: Login
    partitions: int = DEFAULT_PARTITIONS
    trust_restart: bool = False
    bus: str = "push"
    service: str = ""
    sentinel_login: Login = field(default_factory=Login)


def parse_url(url: str, **overrides: Any) -> Options:
    """Raises ConfigurationError; its message quotes no part of the URL but option names."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ConfigurationError(f"a Redis URL begins with one of {known}")
    topology, tls = SCHEMES[scheme]
    try:
        parts = urlsplit(url)
    except ValueError:  # its message quotes the URL
        raise ConfigurationError("the Redis URL can not be read: is a bracket missing?") from None
    if parts.fragment:
        raise ConfigurationError("percent-encode '#' in a Redis URL as %23")
    found = _query(parts.query)
    found.update(overrides)
    userinfo, at, hosts = parts.netloc.rpartition("@")
    if at:
        username, colon, password = userinfo.partition(":")
        if username:
            found.setdefault("username", unquote(username))
        if colon:
            found.setdefault("password", unquote(password))
    path = unquote(parts.path)
    service = ""
    if scheme == "unix":
        if hosts or not path:
            raise ConfigurationError("a socket is written unix:///absolute/path")
        addresses: tuple[Address, ...] = (Address(path, 0),)
    else:
        port = SENTINEL_PORT if topology is Topology.SENTINEL else DEFAULT_PORT
        addresses = tuple(_address(host, port) for host in hosts.split(","))
        if topology is Topology.SENTINEL:
            service, _, path = path.strip("/").partition("/")
            if not service:
                raise ConfigurationError("name the service: redis+sentinel://host:port/service")
        if path.strip("/"):
            found.setdefault("db", _number("db", path.strip("/")))
    if topology is Topology.SINGLE and len(addresses) != 1:
        raise ConfigurationError("several hosts need redis+cluster:// or redis+sentinel://")
    if topology is Topology.CLUSTER and found.get("db"):
        raise ConfigurationError("a cluster has only database 0")
    if found.get("bus", "push") not in BUSES:
        raise ConfigurationError(f"bus: use one of {', '.join(BUSES)}")
    return Options(
        topology=topology,
        addresses=addresses,
        login=_login(found, tls, topology),
        partitions=_within("partitions", found.get("partitions"), MAX_PARTITIONS),
        trust_restart=bool(found.get("trust_restart")),
        bus=found.get("bus", "push"),
        service=service,
        sentinel_login=Login(
            username=found.get("sentinel_username"),
            password=found.get("sentinel_password"),
            tls=_tls(found) if tls else None,
        ),
    )


def _query(query: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in TIMEOUTS:
            raise ConfigurationError(
                f"{name} is not an option of the URL: Cache(timeout=...) bounds the whole call"
            )
        if name not in OPTIONS:
            # What is no word may be the rest of a password with a question mark in it.
            shown = repr(name) if name.isidentifier() else "(not shown)"
            raise ConfigurationError(
                f"unknown option {shown} in the Redis URL; known: {', '.join(sorted(OPTIONS))}"
            )
        if OPTIONS[name] is int:
            found[name] = _number(name, value)
        else:
            found[name] = _truth(name, value) if OPTIONS[name] is bool else value
    return found


def _address(text: str, port: int) -> Address:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        given = rest.removeprefix(":")
    else:
        host, _, given = text.partition(":")
    # not quoted in the message: a wrongly encoded password ends up here
    if given and not (given.isascii() and given.isdigit() and 0 < int(given) < 65536):
        raise ConfigurationError(
            "the port of a Redis URL is a number; percent-encode special characters of the password"
        )
    return Address(unquote(host) or "localhost", int(given) if given else port)


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigurationError(f"{name} in the Redis URL is a whole number")
    return int(text)


def _truth(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ConfigurationError(f"{name} is true or false")
    return text.lower() == "true"


def _within(name: str, value: Any, most: int) -> int:
    if value is None:
        return DEFAULT_PARTITIONS
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigurationError(f"{name} is a whole number from 1 to {most}")
    return value


def _login(found: dict[str, Any], tls: bool, topology: Topology) -> Login:
    limit = found.get("max_connections", 50)
    if limit < 1:
        raise ConfigurationError("max_connections is at least 1")
    if found.get("username") and found.get("password") is None:
        raise ConfigurationError("a Redis user name needs a password")
    return Login(
        username=found.get("username"),
        password=found.get("password"),
        db=found.get("db", 0),
        client_name=found.get("client_name"),
        tls=_tls(found) if tls else None,
        master_only=topology is Topology.SENTINEL,
        ask_run=not found.get("trust_restart"),
        max_connections=limit,
    )


def _tls(found: dict[str, Any]) -> TLS:
    verify = found.get("ssl_cert_reqs", "required")
    if verify not in ("required", "none"):
        raise ConfigurationError("ssl_cert_reqs is required or none")
    return TLS(
        ca_file=found.get("ssl_ca_certs"),
        ca_path=found.get("ssl_ca_path"),
        cert_file=found.get("ssl_certfile"),
        key_file=found.get("ssl_keyfile"),
        key_password=found.get("ssl_password"),
        verify=verify == "required",
        check_hostname=found.get("ssl_check_hostname", True),
    )
