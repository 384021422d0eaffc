"""One worker process of the tests: opens the application and writes batches until it is killed. It
reports its counts, and can be made to wait inside its first batch."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fault_app import App
from fault_sources import Doom, content
from history import tell

from cachekit.core.ops import Op

LIFE = 120.0


class Trap(Doom):
    """The first time that a point is reached: says so with a file ``entered``, and goes on when
    there is a file ``go``."""

    def __init__(self, folder: Path, point: str) -> None:
        super().__init__()
        self._trap = point
        self._entered, self._go = folder / "entered", folder / "go"

    def reach(self, point: str) -> None:
        if point == self._trap and not self._entered.exists():
            self._entered.touch()
            while not self._go.exists():
                time.sleep(0.005)


class UnfencedSink:
    """Writes what it is given, however old it is."""

    fences = False

    def __init__(self, source: Any, doom: Doom) -> None:
        self._source = source
        self._doom = doom

    def write_many(self, ops: Sequence[Op]) -> None:
        self._doom.reach("called")
        self._source.write([(op.id, content(op)) for op in ops])


def main() -> None:
    given: dict[str, Any] = json.loads(sys.argv[1])
    folder = Path(given["folder"])
    trap = given.get("trap")
    doom = Trap(folder, trap) if trap else Doom(given.get("point", ""), given.get("count", 1))
    app = App(given, doom)
    if not given.get("fenced", True):
        app = App(given, doom, UnfencedSink(app.source, doom))
    app.strategy.work(app.cache.parts.runtime.threads)
    end = time.monotonic() + LIFE
    while time.monotonic() < end:
        tell(folder / f"{given['name']}.json", **app.cache.parts.meter.counts)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
