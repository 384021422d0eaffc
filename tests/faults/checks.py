"""The checker: whether what the source holds is what the writers were told it would.

It knows nothing of logs or versions but what the source itself recorded: each batch appends to
the table of deliveries in its own transaction.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from history import Call

OWNERSHIP = 32  # bits of an epoch below which deliveries of one owner are counted


class Delivery(NamedTuple):
    """One operation of a committed batch, in the order in which the source committed them."""

    lane: str
    epoch: int
    key: str
    version: int
    value: str | None  # None: a delete


@dataclass
class Verdict:
    """Counts, and sentences about what must not be; the run is right if there are none."""

    acknowledged: int = 0
    unacknowledged: int = 0
    keys: int = 0
    lost: int = 0
    delivered: int = 0
    replayed: int = 0
    owners: int = 0
    most_replayed: int = 0  # by one owner
    raised: int = 0  # calls that failed, and so promised nothing
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"acknowledged={self.acknowledged} unacknowledged={self.unacknowledged} "
            f"keys={self.keys} lost={self.lost} delivered={self.delivered} "
            f"replayed={self.replayed} (at most {self.most_replayed} per take-over, of "
            f"{self.owners}) violations={len(self.violations)}"
        )


def judge(
    calls: Sequence[Call],
    rows: Mapping[str, str],
    deliveries: Sequence[Delivery],
    *,
    batch: int,
    kills: int | None = None,
) -> Verdict:
    """``kills`` (and pauses): bounds the replays as a whole, besides the bound per take-over."""
    verdict = Verdict(
        acknowledged=sum(1 for call in calls if call.end is not None),
        unacknowledged=sum(1 for call in calls if call.end is None),
    )
    by_key: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        for key in call.keys:
            by_key[key].append(call)
    verdict.keys = len(by_key)
    for key, of_key in by_key.items():
        wrong = _wrong_state(key, of_key, rows.get(key))
        if wrong:
            verdict.lost += 1
            verdict.violations.append(wrong)
    for key in rows.keys() - by_key.keys():
        verdict.violations.append(f"{key}: a row that nobody wrote")
    _judge_deliveries(verdict, by_key, deliveries)
    _judge_replays(verdict, deliveries, batch, kills)
    return verdict


def _wrong_state(key: str, calls: Sequence[Call], found: str | None) -> str | None:
    """Why the source's state of a key is not that of a call which may have been the last one."""
    candidates = [
        call
        for call in calls
        if (call.kind == "delete" if found is None else call.kind == "put" and call.value == found)
    ]
    settled = [call for call in calls if call.end is not None]
    if not candidates:
        if found is None and not settled:
            return None  # nothing was promised, and nothing came
        return f"{key}: the source has {found!r}; acknowledged were {_few(settled)}"
    latest = max(call.last for call in candidates)
    later = [call for call in settled if call.begin > latest]
    if later:
        return f"{key}: the source has {found!r}, from before {_few(later)}"
    return None


def lost_calls(calls: Sequence[Call], rows: Mapping[str, str]) -> list[Call]:
    """Acknowledged puts of keys that no other call ever touched, and that are not there."""
    touched = Counter(key for call in calls for key in call.keys)
    return [
        call
        for call in calls
        if call.kind == "put"
        and call.end is not None
        and any(touched[key] == 1 and key not in rows for key in call.keys)
    ]


def _judge_deliveries(
    verdict: Verdict, by_key: Mapping[str, Sequence[Call]], deliveries: Sequence[Delivery]
) -> None:
    newest: dict[tuple[str, str], int] = {}
    contents: dict[tuple[str, str, int], str | None] = {}
    epochs: dict[str, int] = {}
    for d in deliveries:
        verdict.delivered += 1
        if d.epoch < epochs.get(d.lane, 0):
            verdict.violations.append(f"{d.key}: a batch of epoch {d.epoch} after a later one")
        epochs[d.lane] = d.epoch
        one = (d.lane, d.key, d.version)
        if one in contents:
            verdict.replayed += 1
            if contents[one] != d.value:
                verdict.violations.append(f"{d.key}: version {d.version} is of two values")
            continue
        contents[one] = d.value
        if d.version < newest.get(one[:2], 0):
            verdict.violations.append(f"{d.key}: version {d.version} came first after a newer one")
        newest[one[:2]] = max(d.version, newest.get(one[:2], 0))
    _judge_versions(verdict, by_key, contents)


def _judge_versions(
    verdict: Verdict,
    by_key: Mapping[str, Sequence[Call]],
    contents: Mapping[tuple[str, str, int], str | None],
) -> None:
    """The log's order is that of the calls, wherever one had ended before another began."""
    versions: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for (_, key, version), value in contents.items():
        if value is not None:
            versions[key].append((version, value))
    for key, found in versions.items():
        calls = {call.value: call for call in by_key.get(key, ()) if call.kind == "put"}
        newest = 0.0
        for version, value in sorted(found):
            call = calls.get(value)
            if call is None:
                verdict.violations.append(f"{key}: {value!r} was delivered, and never asked for")
                continue
            if call.last < newest:
                verdict.violations.append(
                    f"{key}: {value!r} has version {version}, but ended before an earlier began"
                )
            newest = max(newest, call.begin)


def _judge_replays(
    verdict: Verdict, deliveries: Sequence[Delivery], batch: int, kills: int | None
) -> None:
    """An owner may deliver again what its predecessor had under way: one batch of its lane."""
    seen: set[tuple[str, str, int]] = set()
    replays: Counter[tuple[str, int]] = Counter()
    for d in deliveries:
        owner = (d.lane, d.epoch >> OWNERSHIP)
        replays[owner] += (d.lane, d.key, d.version) in seen
        seen.add((d.lane, d.key, d.version))
    verdict.owners = len(replays)
    verdict.most_replayed = max(replays.values(), default=0)
    for (lane, epoch), count in replays.items():
        if count > batch:
            verdict.violations.append(f"{lane}: owner {epoch} delivered {count} operations again")
    lanes = len({lane for lane, _ in replays})
    if kills is not None and verdict.replayed > kills * batch * lanes:
        verdict.violations.append(f"{verdict.replayed} replays after {kills} kills")


def _few(calls: Sequence[Call]) -> str:
    ordered = sorted(calls, key=lambda call: call.begin)
    told = [f"{call.kind} {call.value}" for call in ordered[-3:]]
    return ", ".join(told) + (f" and {len(calls) - 3} before" if len(calls) > 3 else "")
