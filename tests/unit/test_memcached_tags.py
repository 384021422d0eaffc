"""A tag's block on real Memcached: it stands for the nonce, and nothing makes one over it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cachekit.backends.memcached import MemcachedBackend
from cachekit.runtime import Runtime, drive
from cachekit.testing import MemcachedServer

ME, OTHER = b"m" * 16, b"o" * 16


class Tags:
    """The verbs of one store, driven in the thread world, over two nodes."""

    def __init__(self, url: str, namespace: str) -> None:
        self.world = Runtime().threads
        self.store: Any = MemcachedBackend(url, namespace=namespace).open(self.world)

    def __getattr__(self, verb: str) -> Any:
        return lambda *args: drive(getattr(self.store, verb)(*args, self.world.deadline(5.0)))

    def made(self, *tags: str) -> list[bytes | None]:
        answer: list[bytes | None] = self.nonces([], tags, lambda: os.urandom(16), None).tags
        return answer

    def seen(self, *tags: str) -> list[bytes | None]:
        # With a key, the road of one trip on one node; without, the road over many.
        one: list[bytes | None] = self.read(["k"], tags).nonces
        assert self.read([], tags).nonces == one
        return one


@pytest.fixture(params=[1, 2], ids=["one node", "two nodes"])
def tags(request: Any, memcached_server: MemcachedServer) -> Iterator[Tags]:
    url = memcached_server.url
    namespace = f"tags-{os.urandom(4).hex()}"
    with contextlib.ExitStack() as servers:
        if request.param == 2:
            other = servers.enter_context(MemcachedServer())
            url = f"{url},127.0.0.1:{other.port}"
        opened = Tags(url, namespace)
        yield opened
        drive(opened.store.close())


@pytest.mark.server
def test_while_a_block_stands_the_tag_has_no_nonce_and_gets_none(tags: Tags) -> None:
    names = [f"t{n}" for n in range(12)]
    before = tags.made(*names)
    tags.seize_tags([*names[:6], "new"], ME, 30.0)
    tags.drop_tags(names[:3])
    assert tags.seen(*names, "new") == [None] * 6 + before[6:] + [None]
    assert tags.made(*names, "new") == [None] * 6 + before[6:] + [None]
    tags.end_tags([*names, "new"], ME)  # the last six had no block of mine: their nonces go
    assert tags.seen(*names, "new") == [None] * 13
    after = tags.made(*names)
    assert None not in after
    assert set(after).isdisjoint(before)


@pytest.mark.server
def test_a_block_of_two_writers_ends_with_the_last_of_them(tags: Tags) -> None:
    tags.seize_tags(["t"], ME, 30.0)
    tags.seize_tags(["t", "t"], OTHER, 30.0)
    for _ in range(2):
        tags.end_tags(["t"], ME)
        assert tags.made("t") == [None]
    tags.end_tags(["t"], b"stranger" * 2)
    assert tags.made("t") == [None]
    tags.end_tags(["t"], OTHER)
    assert None not in tags.made("t")


@pytest.mark.server
def test_a_tags_block_keeps_the_longer_lease_and_ends_by_itself(tags: Tags) -> None:
    tags.seize_tags(["short", "long"], ME, 1.0)
    tags.seize_tags(["long"], OTHER, 30.0)
    end = time.monotonic() + 6.0
    while tags.made("short") == [None] and time.monotonic() < end:
        time.sleep(0.1)
    assert None not in tags.made("short")
    assert tags.made("long") == [None]


@pytest.mark.server
def test_no_nonce_that_was_read_before_a_seize_is_there_after_it_whoever_races(tags: Tags) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def creators() -> None:
        try:
            while not stop.is_set():
                tags.made("t")
                tags.drop_tags(["t"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=creators) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            old = tags.made("t")
            tags.seize_tags(["t"], ME, 30.0)
            for _ in range(3):
                assert tags.seen("t") == [None]
            tags.end_tags(["t"], ME)
            assert tags.read(["k"], ["t"]).nonces != old
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert failures == []
