"""What every fenced sink keeps over PostgreSQL, beside what all keep."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from sink_sources import LANE, Aside, Hold, at, gone, lost, put

from cachekit.errors import FencedOut

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
READ_ONLY = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
OTHERS_END = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


class ServerPromises:
    """For a class of tests; its file gives a fixture ``shop``."""

    def test_a_frozen_writer_holds_its_successor_up_no_longer_than_agreed(self, shop: Any) -> None:
        """A writer stands still between its rows and its commit; the next owner gets past it."""
        hold = Hold()
        frozen = shop.sink(hold=hold, idle_limit="400ms")
        new = shop.sink()
        new.last_epoch(LANE)
        hold.shut()
        old = Aside(lambda: frozen.write_many([put(1, {"name": "old", "stock": 1}, epoch=4)]))
        hold.wait_for_one()
        Aside(lambda: new.write_many([put(1, {"name": "new", "stock": 2}, epoch=5)])).result()
        assert not hold.open.is_set()
        hold.open.set()
        with pytest.raises(Exception) as caught:
            old.result()
        assert lost(caught.value)
        with pytest.raises(FencedOut):
            frozen.write_many([put(1, {"name": "old", "stock": 1}, epoch=4)])
        assert shop.rows() == [(1, "new", 2)]

    def test_the_fence_stands_without_a_limit_too(self, shop: Any) -> None:
        sink = shop.sink(idle_limit=None)
        for epoch in (1, 2):
            sink.write_many(at(epoch, [put(1, {"name": "pen", "stock": epoch})]))
            with pytest.raises(FencedOut):
                sink.write_many(at(epoch, [gone(1)]))
        assert shop.rows() == [(1, "pen", 2)]

    def test_a_lost_connection_is_told_as_one_and_not_used_again(self, shop: Any) -> None:
        sink = shop.sink()
        sink.write_many([put(1, {"stock": 1})])
        shop.execute(OTHERS_END)
        with pytest.raises(Exception) as caught:
            sink.write_many(at(2, [put(1, {"stock": 2})]))
        assert type(caught.value).__name__ in ("OperationalError", "AdminShutdown")
        assert lost(caught.value)
        sink.write_many(at(3, [put(1, {"stock": 3})]))
        assert shop.rows() == [(1, None, 3)]

    def test_a_connection_to_a_read_only_server_is_not_used_again(self, shop: Any) -> None:
        # The first connection leads to the old primary, the next one to the new.
        turned, found = [False], [0]

        def act(connection: Any) -> None:
            found[0] += turned[0]
            if turned[0] and found[0] == 1:
                connection.execute(READ_ONLY)
                connection.commit()

        sink = shop.sink_through(act)
        sink.last_epoch(LANE)
        shop.execute(OTHERS_END)
        with pytest.raises(Exception) as caught:
            sink.last_epoch(LANE)
        assert lost(caught.value)
        turned[0] = True
        with pytest.raises(ConnectionError, match="read-only"):
            sink.write_many([put(1, {"name": "pen", "stock": 1})])
        sink.write_many(at(2, [put(1, {"name": "pen", "stock": 1})]))
        assert found == [2]

    def test_a_source_that_takes_nothing_is_told_as_such(self, shop: Any) -> None:
        """Read-only, as after a switch-over, or without its table: no row is at fault."""
        sink = shop.sink()
        sink.write_many([put(1, {"name": "pen", "stock": 1})])
        user = shop.execute("SELECT current_user")[0][0]
        for before, after in [
            (
                f"ALTER ROLE {user} SET default_transaction_read_only = on",
                f"SET default_transaction_read_only = off; "
                f"ALTER ROLE {user} RESET default_transaction_read_only",
            ),
            ("ALTER TABLE items RENAME TO moved", "ALTER TABLE moved RENAME TO items"),
            ("ALTER TABLE items RENAME stock TO s", "ALTER TABLE items RENAME s TO stock"),
        ]:
            shop.execute(before)
            shop.execute(OTHERS_END)
            for _ in range(2):  # the first finds its connection lost
                with pytest.raises(Exception) as caught:
                    sink.write_many(at(2, [put(1, {"name": "pen", "stock": 2})]))
                assert lost(caught.value)
            assert isinstance(caught.value, ConnectionError)
            shop.execute(after)
        sink.write_many(at(2, [put(1, {"name": "pen", "stock": 2})]))
        assert shop.rows() == [(1, "pen", 2)]

    def test_a_row_too_large_for_its_index_is_told_as_the_rows_fault(self, shop: Any) -> None:
        sink = shop.sink()
        with pytest.raises(ValueError, match="index") as caught:
            sink.write_many([put(1, {"name": secrets.token_hex(9000), "stock": 1})])
        assert not lost(caught.value)
        assert caught.value.__cause__ is not None
        assert shop.rows() == []
        sink.write_many(at(2, [put(1, {"name": "short", "stock": 1})]))
