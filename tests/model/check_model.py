"""Model-check larger casts than the tests do: ``python tests/model/check_model.py --actors 3``.

All casts of two take half a minute on one core, of three about a quarter of an hour or
more. Ends with 1 if a model is wrong or has more states than ``--most``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import combinations_with_replacement

from explorer import Model, TooManyStates, explore
from far_actors import CAST
from far_model import Far
from far_rules import AGE
from near_model import Near
from near_rules import C0, C1, I0, I1, W0, W1

NEED_TAGS = {"discoverer", "dropper", "renewer", "intender", "tag intender", "looker"}
NEED_SPACES = {"clearer", "looker"}


def models(actors: int, tier: str) -> Iterator[tuple[str, str, Model]]:
    if tier in ("far", "all"):
        kinds = {
            "key": {"flush": True},
            "tag": {"tags": True, "flush": True},
            "restart": AGE,
            "restart of the tags' node": {**AGE, "nodes": True},
        }
        for name, options in kinds.items():
            for cast in combinations_with_replacement(CAST, actors):
                needs = set(cast)
                if needs & NEED_TAGS and "tags" not in options:
                    continue
                if needs & NEED_SPACES and "spaces" not in options:
                    continue
                yield f"far, {name}", " ".join(cast), Far(*cast, **options)  # type: ignore[arg-type]  # by name
    if tier in ("near", "all"):
        more = {"all joined": {}, "cut bus": {"bus": 0, "cuts": 1}, "strict": {"strict": True}}
        for name, options in more.items():
            for cast in combinations_with_replacement((C0, C1, I0, I1, W0, W1), actors):
                for by_tag in (False, True):
                    if by_tag and {W0, W1} & set(cast):
                        continue  # a save and a drop promise each other nothing by one entry
                    who = " ".join(f"{kind}@{process}" for kind, process in cast)
                    model = Near(*cast, by_tag=by_tag, **options)  # type: ignore[arg-type]  # by name
                    yield f"near, {name}", who + " by tag" * by_tag, model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--tier", choices=("far", "near", "all"), default="all")
    parser.add_argument("--most", type=int, default=3_000_000, help="states of one model")
    given = parser.parse_args()
    sums: dict[str, list[float]] = {}
    wrong = skipped = 0
    for kind, cast, model in models(given.actors, given.tier):
        began = time.perf_counter()
        if kind not in sums:
            print(f"{kind}: ...", flush=True)
        row = sums.setdefault(kind, [0, 0, 0.0])
        try:
            report = explore(model, most=given.most)
        except TooManyStates as error:
            print(f"{kind}: {cast}: not finished: {error}", flush=True)
            skipped += 1
            continue
        row[0], row[1] = row[0] + 1, row[1] + report.states
        row[2] += time.perf_counter() - began
        if report.wrong:
            wrong += 1
            print(f"{kind}: {cast}\n{report}", flush=True)
    for kind, (count, states, seconds) in sums.items():
        print(f"{kind}: {count:.0f} casts, {states:.0f} states, {seconds:.1f} s")
    print(f"wrong: {wrong}, not finished: {skipped}")
    return 1 if wrong or skipped else 0


if __name__ == "__main__":
    raise SystemExit(main())
