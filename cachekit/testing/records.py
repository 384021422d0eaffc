"""Contract of plain records: order, bytes, keys, namespaces, deadlines, close."""

from __future__ import annotations

import asyncio
import string
import time
from collections.abc import Callable

import pytest

from ..core.deadline import Deadline
from ..errors import BackendError, ConfigurationError
from ..protocols import Item, SlotState
from ..runtime import drive
from .lab import Job, Lab, Suite, in_both_worlds

PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))

HOSTILE_KEYS = [
    "k", "K", "0", "-1", "*", "?", "[a-z]", "{", "}", "{}", "{a}b", "{b}a", "}{", "!", "#",
    "~", "%", "%00", "%0d%0a", "\\", "\\r\\n", "'", '"', "`", "$", "$(k)",
    "k;k", "k'--", "k/../k", "../k", "/", "//", ":", "::", "k:", ":k", "|", "&", "@", "^", ".",
    "nil", "false", "null", "return(1)", "get", "flush_all", "FLUSHALL", "KEYS[1]", "k" * 230,
    "k" * 229, "k" * 229 + "x", "{" * 230, "%" * 230, "*" * 200, PRINTABLE, PRINTABLE[::-1],
    *string.punctuation,
]  # fmt: skip
HOSTILE_KEYS = list(dict.fromkeys(HOSTILE_KEYS))

VALUES = [b"", b"\0", b"\r\n", bytes(range(256)), b"VALUE k 0 1\r\nx\r\nEND\r\n", b"$-1\r\n"]


class RecordsContract(Suite):
    @in_both_worlds
    async def test_values_come_back_in_the_order_of_the_keys(self, lab: Lab) -> None:
        store = lab.open()
        await store.set_many([Item("a", b"1", None), Item("b", b"2", 60.0)], lab.deadline())
        got = await store.get_many(["b", "none", "a", "b", "none"], lab.deadline())
        assert got == [b"2", None, b"1", b"2", None]

    @in_both_worlds
    async def test_empty_lists_are_fine(self, lab: Lab) -> None:
        store = lab.open()
        slots = store.slots
        assert await store.get_many([], lab.deadline()) == []
        await store.set_many([], lab.deadline())
        await store.delete_many([], lab.deadline())
        assert await slots.read([], [], lab.deadline()) == ([], [], [])
        assert await slots.nonces([], [], lab.token, None, lab.deadline()) == ([], [])
        await slots.void([], lab.deadline())
        await slots.seize([], lab.token(), 10.0, lab.deadline())
        await slots.end([], lab.token(), lab.deadline())
        await slots.drop_tags([], lab.deadline())
        await slots.seize_tags([], lab.token(), 10.0, lab.deadline())
        await slots.end_tags([], lab.token(), lab.deadline())

    @in_both_worlds
    async def test_a_later_value_replaces_and_a_deleted_key_is_gone(self, lab: Lab) -> None:
        store = lab.open()
        for data in (b"1", b"", b"2"):
            await store.set_many([Item("k", data, None)], lab.deadline())
            assert await store.get_many(["k"], lab.deadline()) == [data]
        await store.set_many([Item("other", b"3", None)], lab.deadline())
        await store.delete_many(["k", "never-stored"], lab.deadline())
        assert await store.get_many(["k", "other"], lab.deadline()) == [None, b"3"]

    @in_both_worlds
    async def test_every_byte_survives(self, lab: Lab) -> None:
        store = lab.open()
        large = bytes(range(256)) * (self.max_value // 256)
        values = [*VALUES, large]
        for number, data in enumerate(values):
            await store.set_many([Item(f"v{number}", data, 60.0)], lab.deadline())
        got = await store.get_many([f"v{n}" for n in range(len(values))], lab.deadline())
        assert got == values

    @in_both_worlds
    async def test_hostile_keys_and_tags_stay_apart(self, lab: Lab) -> None:
        store = lab.open()
        keys = HOSTILE_KEYS
        await store.set_many([Item(k, k.encode() + b"|plain", None) for k in keys], lab.deadline())
        nonces = await store.slots.nonces(keys[:1], keys, lab.token, None, lab.deadline())
        for key in keys:
            assert await store.slots.put(key, lab.token(), key.encode(), None, lab.deadline())
        reading = await store.slots.read(keys, keys, lab.deadline())
        assert [slot.data for slot in reading.slots] == [key.encode() for key in keys]
        assert reading.nonces == nonces.tags
        assert len(set(reading.nonces)) == len(keys)
        got = await store.get_many(keys, lab.deadline())
        assert got == [key.encode() + b"|plain" for key in keys]

    @in_both_worlds
    async def test_a_record_a_slot_and_a_tag_of_one_name_are_three_things(self, lab: Lab) -> None:
        store = lab.open()
        slots = store.slots
        await store.set_many([Item("x", b"record", None)], lab.deadline())
        await slots.put("x", lab.token(), b"entry", None, lab.deadline())
        tag = (await slots.nonces(["x"], ["x"], lab.token, None, lab.deadline())).tags[0]
        await slots.void(["x"], lab.deadline())
        assert await store.get_many(["x"], lab.deadline()) == [b"record"]
        await store.delete_many(["x"], lab.deadline())
        reading = await slots.read(["x"], ["x"], lab.deadline())
        assert reading.slots[0].state is SlotState.NOTHING
        assert reading.nonces == [tag]
        await slots.put("x", lab.token(), b"entry", None, lab.deadline())
        await slots.drop_tags(["x"], lab.deadline())
        assert (await lab.slot(slots, "x")).data == b"entry"

    @in_both_worlds
    async def test_many_keys_at_once(self, lab: Lab) -> None:
        store = lab.open()
        items = [Item(f"many{n}", b"%d" % n, 60.0) for n in range(500)]
        await store.set_many(items, lab.deadline())
        got = await store.get_many([item.key for item in reversed(items)], lab.deadline())
        assert got == [item.data for item in reversed(items)]
        await store.delete_many([item.key for item in items], lab.deadline())
        assert set(await store.get_many([i.key for i in items], lab.deadline())) == {None}

    @in_both_worlds
    async def test_a_tenants_data_is_its_own(self, lab: Lab) -> None:
        # Names that meet when a backend glues namespace and key without a fence.
        first, second = lab.namespace + "x", lab.namespace + "xy"
        pairs = [(first, "yk"), (second, "k"), (first, "y:k"), (second, ":k"), (first, "k")]
        for namespace, key in pairs:
            store = lab.open(namespace)
            mine = f"{namespace}/{key}".encode()
            await store.set_many([Item(key, mine, None)], lab.deadline())
            await store.slots.put(key, lab.token(), mine, None, lab.deadline())
        for namespace, key in pairs:
            store = lab.open(namespace)
            mine = f"{namespace}/{key}".encode()
            assert await store.get_many([key], lab.deadline()) == [mine]
            assert (await lab.slot(store.slots, key)).data == mine

    @pytest.mark.parametrize("namespace", ["{a}", "a:b", "a*", "%", "a b", "ä", "a\r\nb", "!"])
    @in_both_worlds
    async def test_a_hostile_namespace_works_or_is_refused_at_wiring(
        self, lab: Lab, namespace: str
    ) -> None:
        try:
            store = lab.open(lab.namespace + namespace)
        except ConfigurationError:
            return
        slots = store.slots
        neighbour = lab.open(lab.namespace + "a")
        kept = await neighbour.slots.nonces(["k"], ["t"], lab.token, None, lab.deadline())
        await slots.nonces(["k"], ["t"], lab.token, None, lab.deadline())
        assert await slots.put("k", lab.token(), b"1", None, lab.deadline())
        assert (await lab.slot(slots, "k")).data == b"1"
        await slots.drop_tags(["t"], lab.deadline())
        await slots.drop_space(lab.deadline())
        assert await slots.read(["k"], ["t"], lab.deadline()) == (
            [await lab.slot(slots, "k")], [None], [None]
        )  # fmt: skip
        reading = await neighbour.slots.read(["k"], ["t"], lab.deadline())
        assert (reading.spaces, reading.nonces) == (kept.spaces, kept.tags)

    @in_both_worlds
    async def test_a_second_store_sees_what_the_first_did(self, lab: Lab) -> None:
        first, second = lab.open(), lab.open()
        await first.set_many([Item("k", b"1", None)], lab.deadline())
        assert await second.get_many(["k"], lab.deadline()) == [b"1"]
        token = lab.token()
        assert (await first.slots.acquire("k", token, 10.0, lab.deadline())).granted
        await second.slots.void(["k"], lab.deadline())
        assert not await first.slots.fill("k", token, b"old", None, lab.deadline())

    @in_both_worlds
    async def test_a_shared_backend_made_twice_shows_the_same_data(self, lab: Lab) -> None:
        first = lab.open()
        again = self.make_backend(lab.namespace)
        if not again.shared:
            return
        second = lab.adopt(again.open(lab.world))
        token = lab.token()
        assert (await first.slots.acquire("k", token, 10.0, lab.deadline())).granted
        assert not (await second.slots.acquire("k", lab.token(), 10.0, lab.deadline())).granted
        nonces = await first.slots.nonces(["k"], ["t"], lab.token, None, lab.deadline())
        assert await second.slots.nonces(["k"], ["t"], lab.token, None, lab.deadline()) == nonces
        await second.slots.void(["k"], lab.deadline())
        assert not await first.slots.fill("k", token, b"old", None, lab.deadline())

    @in_both_worlds
    async def test_the_other_world_sees_the_same_slots(self, lab: Lab) -> None:
        backend, mine, token = lab.backend(), lab.open(), lab.token()
        assert (await mine.slots.acquire("k", token, 10.0, lab.deadline())).granted
        if lab.world.name == "asyncio":
            plain = backend.open(lab.runtime.threads)

            async def other() -> None:
                await plain.slots.void(["k"], lab.deadline())
                await plain.close()

            await asyncio.to_thread(drive, other())
        else:

            async def in_loop() -> None:
                store = backend.open(lab.runtime.asyncio())
                await store.slots.void(["k"], lab.deadline())
                await store.close()

            asyncio.run(in_loop())
        assert not await mine.slots.fill("k", token, b"old", None, lab.deadline())

    @in_both_worlds
    async def test_a_deadline_that_passed_is_a_backend_error_at_once(self, lab: Lab) -> None:
        store = lab.open()
        await store.get_many(["warm"], lab.deadline())
        for name, job in _every_verb(lab, lab.deadline(-1.0)).items():
            begun = time.monotonic()
            with pytest.raises(BackendError):
                await job()
                pytest.fail(f"{name} did its work although its deadline had passed")
            assert time.monotonic() - begun < 2.0, name

    @in_both_worlds
    async def test_closing_twice_is_fine(self, lab: Lab) -> None:
        store = lab.backend().open(lab.world)
        await store.set_many([Item("k", b"1", None)], lab.deadline())
        await store.close()
        await store.close()
        unused = lab.backend().open(lab.world)
        await unused.close()
        await unused.close()
        assert await lab.open().get_many(["k"], lab.deadline()) == [b"1"]


def _every_verb(lab: Lab, late: Deadline) -> dict[str, Callable[[], Job]]:
    store = lab.open()
    slots, token = store.slots, lab.token()
    return {
        "get_many": lambda: store.get_many(["k"], late),
        "set_many": lambda: store.set_many([Item("k", b"", None)], late),
        "delete_many": lambda: store.delete_many(["k"], late),
        "read": lambda: slots.read(["k"], ["t"], late),
        "acquire": lambda: slots.acquire("k", token, 1.0, late),
        "renew": lambda: slots.renew("k", token, 1.0, late),
        "fill": lambda: slots.fill("k", token, b"", None, late),
        "release": lambda: slots.release("k", token, late),
        "put": lambda: slots.put("k", token, b"", None, late),
        "void": lambda: slots.void(["k"], late),
        "seize": lambda: slots.seize(["k"], token, 1.0, late),
        "commit": lambda: slots.commit("k", token, b"", None, late),
        "end": lambda: slots.end(["k"], token, late),
        "nonces": lambda: slots.nonces(["k"], ["t"], lab.token, None, late),
        "drop_tags": lambda: slots.drop_tags(["t"], late),
        "seize_tags": lambda: slots.seize_tags(["t"], token, 1.0, late),
        "end_tags": lambda: slots.end_tags(["t"], token, late),
        "drop_space": lambda: slots.drop_space(late),
    }
