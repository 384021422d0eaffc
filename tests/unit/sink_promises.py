"""What every fenced sink keeps."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sink_sources import LANE, Aside, Hold, Item, Shop, at, gone, put, until

from cachekit.core.ops import Op
from cachekit.errors import ConfigurationError, FencedOut


class SinkPromises:
    """For a class of tests; its file gives a fixture ``shop``."""

    def test_puts_and_deletes_of_a_batch_become_the_state_of_the_table(self, shop: Shop) -> None:
        sink = shop.sink()
        assert not sink.write_many(
            [put(1, {"name": "pen", "stock": 3}), put(2, Item(2, "ink", 5)), gone(9)]
        )
        assert shop.rows() == [(1, "pen", 3), (2, "ink", 5)]
        assert not sink.write_many([put(1, {"stock": 4, "name": "pen"}, epoch=2), gone(2, epoch=2)])
        assert shop.rows() == [(1, "pen", 4)]
        assert not sink.write_many([])

    def test_a_late_batch_changes_nothing_after_a_newer_put_and_a_newer_delete(
        self, shop: Shop
    ) -> None:
        paused = [put(1, {"name": "old", "stock": 0}), put(2, {"name": "zombie", "stock": 0})]
        late, new = shop.sink(), shop.sink()
        new.write_many([put(1, {"name": "new", "stock": 1}, epoch=2), gone(2, epoch=2)])
        with pytest.raises(FencedOut, match="shop/0"):
            late.write_many(paused)
        with pytest.raises(FencedOut):
            late.write_many([gone(1)])
        assert shop.rows() == [(1, "new", 1)]
        assert late.last_epoch(LANE) == 2

    def test_the_same_late_batch_does_damage_where_the_fence_is_open(self, shop: Shop) -> None:
        paused = [put(1, {"name": "old", "stock": 0}), put(2, {"name": "zombie", "stock": 0})]
        new = shop.sink()
        new.write_many([put(1, {"name": "new", "stock": 1}, epoch=2), gone(2, epoch=2)])
        shop.unfenced().write_many(paused)
        assert shop.rows() == [(1, "old", 0), (2, "zombie", 0)]

    def test_an_earlier_delivery_of_the_same_owner_is_refused_too(self, shop: Shop) -> None:
        sink = shop.sink()
        batch = [put(1, {"name": "pen", "stock": 1})]
        sink.write_many(at(5, batch))
        for epoch in (4, 5):
            with pytest.raises(FencedOut):
                sink.write_many(at(epoch, [put(1, {"name": "pen", "stock": 9})]))
        sink.write_many(at(6, batch))  # the same again under its next number converges
        assert shop.rows() == [(1, "pen", 1)]
        assert shop.epochs() == {LANE: 6}

    def test_lanes_have_epochs_of_their_own(self, shop: Shop) -> None:
        sink = shop.sink()
        assert sink.last_epoch("a/0") == 0
        sink.write_many([put(1, {"name": "a", "stock": 1}, epoch=8, lane="a/0")])
        sink.write_many([put(2, {"name": "b", "stock": 1}, epoch=1, lane="b/0")])
        assert (sink.last_epoch("a/0"), sink.last_epoch("b/0")) == (8, 1)

    @pytest.mark.parametrize("first", ["old", "new"])
    def test_of_two_that_race_the_newer_one_stays(self, shop: Shop, first: str) -> None:
        old = [put(1, {"name": "old", "stock": 1}, epoch=1)]
        new = [put(1, {"name": "new", "stock": 2}, epoch=2)]
        hold = Hold()
        holder, other = shop.sink(hold=hold), shop.sink()
        other.last_epoch(LANE)
        hold.shut()
        one = Aside(lambda: holder.write_many(old if first == "old" else new))
        hold.wait_for_one()  # its rows are written and not committed
        two = Aside(lambda: other.write_many(new if first == "old" else old))
        until(shop.someone_waits, 0.3)
        assert two.is_alive(), "the second did not wait for the first"
        hold.open.set()
        one.result()
        if first == "old":
            two.result()
        else:
            with pytest.raises(FencedOut):
                two.result()
        assert shop.rows() == [(1, "new", 2)]
        assert shop.epochs() == {LANE: 2}

    def test_what_was_not_committed_fences_nobody(self, shop: Shop) -> None:
        hold = Hold()
        hold.error = RuntimeError("power")
        with pytest.raises((RuntimeError, ConnectionError), match="power"):
            shop.sink(hold=hold).write_many([put(1, {"name": "new", "stock": 2}, epoch=9)])
        shop.sink().write_many([put(1, {"name": "old", "stock": 1}, epoch=3)])
        assert shop.rows() == [(1, "old", 1)]
        assert shop.epochs() == {LANE: 3}

    def test_a_batch_that_the_source_refuses_leaves_no_trace(self, shop: Shop) -> None:
        sink = shop.sink()
        sink.write_many([put(1, {"name": "pen", "stock": 1})])
        with pytest.raises(Exception, match=r"(?i)unique") as caught:
            sink.write_many(
                at(2, [put(2, {"name": "ok", "stock": 1}), put(3, {"name": "pen", "stock": 1})])
            )
        assert type(caught.value).__name__ in ("IntegrityError", "UniqueViolation")
        assert shop.rows() == [(1, "pen", 1)]
        assert shop.epochs() == {LANE: 1}
        sink.write_many(at(3, [put(2, {"name": "ok", "stock": 1})]))
        assert len(shop.rows()) == 2

    def test_deletes_make_room_for_the_puts_of_their_batch(self, shop: Shop) -> None:
        sink = shop.sink()
        sink.write_many([put(1, {"name": "pen", "stock": 1})])
        sink.write_many(at(2, [put(2, {"name": "pen", "stock": 2}), gone(1)]))
        assert shop.rows() == [(2, "pen", 2)]

    @pytest.mark.parametrize("count", [1, 7, 8, 9, 255, 256, 257, 1001])
    def test_a_batch_of_any_length_is_written_whole(self, shop: Shop, count: int) -> None:
        shop.execute("INSERT INTO items VALUES (3, 'old', 0)")
        sink = shop.sink()
        ops = [put(id, {"name": f"n{id}", "stock": id}) for id in range(count)]
        ops += [put(id, {"stock": id}) for id in range(5000, 5000 + count)]  # of other columns
        assert sink.write_many(ops) == {}
        expected = [(id, f"n{id}", id) for id in range(count)]
        expected += [(3, "old", 0)] if count <= 3 else []
        expected += [(id, None, id) for id in range(5000, 5000 + count)]
        assert shop.rows() == expected
        again = [put(id, {"name": f"m{id}", "stock": -id}, epoch=2) for id in range(count)]
        assert sink.write_many(again) == {}
        assert shop.rows()[:count] == [(id, f"m{id}", -id) for id in range(count)]

    def test_an_operation_without_a_row_fails_alone(self, shop: Shop) -> None:
        broken = RuntimeError("no row")

        def to_row(id: int, value: Any) -> dict[str, Any]:
            if value == "broken":
                raise broken
            return {"name": value, **({"colour": "red"} if value == "odd" else {})}

        failed = shop.sink(to_row=to_row).write_many(
            [put(1, "pen"), put(2, "broken"), put(3, "odd"), put(4, "ink"), put(None, "none")]
        )
        assert [row[:2] for row in shop.rows()] == [(1, "pen"), (4, "ink")]
        assert failed.keys() == {2, 3, None}
        assert failed[2] is broken
        assert "colour" in str(failed[3])

    def test_the_columns_that_are_named_are_required_and_all_that_is_written(
        self, shop: Shop
    ) -> None:
        sink = shop.sink(columns=["name"])
        sink.write_many([put(1, {"name": "pen", "stock": 3, "admin": True})])
        assert sink.write_many(at(2, [put(2, {"stock": 3})])).keys() == {2}
        assert shop.rows() == [(1, "pen", None)]

    def test_a_row_of_another_key_than_its_operation_is_not_written(self, shop: Shop) -> None:
        failed = shop.sink().write_many([put(1, {"id": 2, "name": "pen", "stock": 1})])
        assert "'id'" in str(failed[1])
        assert shop.rows() == []

    def test_a_row_may_be_nothing_but_its_key(self, shop: Shop) -> None:
        sink = shop.sink()
        sink.write_many([put(1, {})])
        sink.write_many(at(2, [put(1, {"id": 1})]))
        assert shop.rows() == [(1, None, None)]

    def test_another_unique_column_may_be_the_key(self, shop: Shop) -> None:
        sink = shop.sink(key="name")
        sink.write_many([put("pen", {"id": 1, "stock": 3})])
        sink.write_many(at(2, [put("pen", {"id": 1, "stock": 4}), gone("ink")]))
        assert shop.rows() == [(1, "pen", 4)]
        sink.write_many(at(3, [gone("pen")]))
        assert shop.rows() == []

    @pytest.mark.parametrize(
        "ops",
        [
            [put(1, {}, epoch=1), put(2, {}, epoch=2)],
            [put(1, {}, lane="a"), put(2, {}, lane="b")],
            [put(1, {}, epoch=0)],
            [put(1, {}, lane="")],
        ],
        ids=["epochs", "lanes", "no-epoch", "no-lane"],
    )
    def test_what_can_not_be_fenced_is_not_written(self, shop: Shop, ops: list[Op]) -> None:
        with pytest.raises(ConfigurationError):
            shop.sink().write_many(ops)
        assert shop.rows() == []

    def test_threads_write_their_lanes_at_once(self, shop: Shop) -> None:
        sink = shop.sink()

        def work(number: int) -> None:
            for epoch in range(1, 11):
                value = {"name": f"n{number}", "stock": epoch}
                sink.write_many([put(number, value, epoch=epoch, lane=f"shop/{number}")])

        for thread in [Aside(lambda n=n: work(n)) for n in range(6)]:
            thread.result()
        assert shop.rows() == [(n, f"n{n}", 10) for n in range(6)]

    def test_sinks_that_begin_at_once_make_one_fence(self, shop: Shop) -> None:
        for turn in range(5):
            shop.execute("DROP TABLE IF EXISTS cachekit_fence")
            barrier = threading.Barrier(4)

            def begin(number: int, barrier: threading.Barrier = barrier) -> Any:
                sink = shop.sink()
                barrier.wait(10)
                return sink.write_many([put(number, {"stock": 1}, lane=f"shop/{number}")])

            for thread in [Aside(lambda n=n: begin(n)) for n in range(4)]:
                thread.result()
            assert len(shop.epochs()) == 4, turn

    def test_a_missing_fence_is_made_only_if_asked(self, shop: Shop) -> None:
        sink = shop.sink(create_fence=False)
        with pytest.raises(Exception, match="cachekit_fence"):
            sink.write_many([put(1, {"name": "pen", "stock": 1})])
        assert shop.rows() == []
        shop.execute(sink.ddl)
        sink.write_many([put(1, {"name": "pen", "stock": 1})])
        assert shop.epochs() == {LANE: 1}
