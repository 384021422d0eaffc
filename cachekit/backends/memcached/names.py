"""Names on the wire: physical keys, and which node holds them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import quote

MAX_KEY = 250  # the server's limit, in bytes
MAX_SPACE = 64
WISHES = 1024
WISH_TAGS = 32

_PRINTABLE = re.compile(r"[!-~]+").fullmatch
# Everything but these is percent-encoded in a namespace; ':' ends it, '#' marks a hashed one.
_SPACE_SAFE = "!$&'()*+,;=@/?-._~"


def space_prefix(namespace: str) -> str:
    """A namespace as the first part of every key: at most 65 printable characters."""
    text = quote(namespace, safe=_SPACE_SAFE, errors="surrogatepass")
    if len(text) > MAX_SPACE:
        text = "#" + _digest(namespace)
    return text + ":"


class Wish(NamedTuple):
    """The command that reads one slot, its side key, the namespace nonce and tags."""

    request: bytes
    names: frozenset[bytes]
    slot: bytes
    side: bytes
    tags: list[bytes]


class Names:
    """Physical keys of one namespace: its prefix, one letter for the kind, the key.

    A key that would not fit 250 bytes, or that is not printable ASCII without blanks, is
    replaced by its 192-bit BLAKE2b under the capital letter of the kind, so that no key written
    out can equal a hashed one.
    """

    def __init__(self, namespace: str) -> None:
        prefix = space_prefix(namespace)
        self._room = MAX_KEY - len(prefix) - 2
        self._prefix = prefix
        self._wishes: dict[str | tuple[str, ...], Wish] = {}
        self.space = f"{prefix}n".encode("ascii")
        """The namespace's nonce; every node has its own under this one name."""
        self.epoch = f"{prefix}e".encode("ascii")
        """The namespace's counter of invalidations; every node has its own."""

    def slot(self, key: str) -> bytes:
        return self._name("k", key)

    def refresh(self, key: str) -> bytes:
        """Holds the refresh token of a slot; lies on the slot's node."""
        return self._name("r", key)

    def record(self, key: str) -> bytes:
        return self._name("d", key)

    def tag(self, tag: str) -> bytes:
        return self._name("t", tag)

    def wish(self, key: str, tags: Sequence[str] = ()) -> Wish:
        """For a key and tags that lie on one node; those asked for lately are kept ready."""
        known = (key, *tags) if tags else key
        wish = self._wishes.get(known)
        if wish is None:
            labels = [self.tag(tag) for tag in tags]
            names = (self.slot(key), self.refresh(key), self.space, *labels)
            request = b"gets %b\r\n" % b" ".join(names)
            wish = Wish(request, frozenset(names), names[0], names[1], labels)
            if len(self._wishes) >= WISHES:
                self._wishes = {}
            self._wishes[known] = wish
        return wish

    def _name(self, kind: str, key: str) -> bytes:
        if len(key) <= self._room and _PRINTABLE(key):
            return f"{self._prefix}{kind}:{key}".encode("ascii")
        return f"{self._prefix}{kind.upper()}:{_digest(key)}".encode("ascii")


class Ring:
    """Which node holds a name: rendezvous hashing (Thaler and Ravishankar, 1998).

    A name's node depends on the list of nodes alone, never on which of them answer: a name
    that moved while its node was away would show its deleted value when the node comes back."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self.nodes = list(nodes)
        self._seeds = [
            (hashlib.blake2b(node.encode("utf-8"), digest_size=8), node) for node in self.nodes
        ]

    def node(self, name: bytes) -> str:
        if len(self.nodes) == 1:
            return self.nodes[0]
        best, holder = b"", ""
        for seed, node in self._seeds:
            weight = seed.copy()
            weight.update(name)
            if (digest := weight.digest()) > best:
                best, holder = digest, node
        return holder

    def split(self, names: Iterable[bytes]) -> dict[str, list[bytes]]:
        """Node -> those of the names that it holds."""
        parts: dict[str, list[bytes]] = {}
        for name in names:
            parts.setdefault(self.node(name), []).append(name)
        return parts


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=24).hexdigest()
