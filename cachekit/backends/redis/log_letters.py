"""Dead letters of a write-back queue in Redis, where ``log_scripts`` tells, and how operations and
letters are written there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ...core.deadline import Deadline
from ...core.ops import OpKind
from ...protocols import Letter, Record, World
from .log_scripts import ADD, MOST_PARTS, PLACES, mark_of, part_of, place_of, version_of
from .log_speaker import MOST_AT_ONCE, LogSpeaker, Step
from .scripts import Script
from .verb import Verb

_HEADS = {OpKind.PUT: b"1p", OpKind.DELETE: b"1x"}
_KINDS = {head: kind for kind, head in _HEADS.items()}

# dead, graves; place to begin behind, most -> (place, mark, head, data, error, "1" or nil)...
LETTERS = Script(
    r"""
local found = {}
for n, member in ipairs(redis.call('ZRANGEBYLEX', KEYS[2], '(i' .. ARGV[1], '(j',
  'LIMIT', 0, ARGV[2])) do
  local at = string.sub(member, 2)
  local fields = redis.call('HMGET', KEYS[1], 'm' .. at, 'h' .. at, 'd' .. at, 'e' .. at, 'o' .. at)
  found[n] = {at, fields[1], fields[2], fields[3], fields[4], fields[5]}
end
return found
"""
)

_FORGET = r"""
local function forget(at, mark)
  redis.call('HDEL', KEYS[4], 'm' .. at, 'h' .. at, 'd' .. at, 'e' .. at, 'o' .. at)
  redis.call('ZREM', KEYS[5], 'i' .. at, mark .. at)
end
"""

# log, index, state, dead, graves, ages; force ("1"/"0"), a place to stay behind, place...
# -> (its place, the new one)... of those that were revived
REVIVE = Script(
    PLACES,
    ADD,
    _FORGET,
    r"""
if ARGV[2] > newest then newest = ARGV[2] end
local revived = {}
for i = 3, #ARGV do
  local at = ARGV[i]
  local found = redis.call('HMGET', KEYS[4], 'm' .. at, 'h' .. at, 'd' .. at, 'o' .. at)
  local mark = found[1]
  if mark and (ARGV[1] == '1' or (not found[4]
    and #redis.call('ZRANGEBYLEX', KEYS[2], '[' .. mark, '[' .. mark .. '\255',
      'LIMIT', 0, 1) == 0)) then
    local new = add(mark, found[2], found[3])
    redis.call('ZADD', KEYS[6], string.sub(found[2], 3), new)
    revived[#revived + 1] = {at, new}
    forget(at, mark)
  end
end
if #revived > 0 then keep() end
return revived
""",
)

# log, index, state, dead, graves, ages; place... -> those that were there
DROP = Script(
    _FORGET,
    r"""
local dropped = {}
for _, at in ipairs(ARGV) do
  local mark = redis.call('HGET', KEYS[4], 'm' .. at)
  if mark then
    forget(at, mark)
    dropped[#dropped + 1] = at
  end
end
return dropped
""",
)

# dead, graves; mark... -> how many letters of these keys are outdated from now on
OUTDATE = Script(
    r"""
local count = 0
for _, mark in ipairs(ARGV) do
  local last = '[' .. mark .. '\255'
  for _, member in ipairs(redis.call('ZRANGEBYLEX', KEYS[2], '[' .. mark, last)) do
    redis.call('ZREM', KEYS[2], member)
    redis.call('HSET', KEYS[1], 'o' .. string.sub(member, #mark + 1), '1')
    count = count + 1
  end
end
return count
"""
)


class LogLetters(LogSpeaker):
    """The verbs on dead letters."""

    async def letters(
        self, world: World, after: int, limit: int, deadline: Deadline
    ) -> list[Letter]:
        with Verb("letters", deadline) as verb:
            route = self._route(world)
            if limit < 1 or not await self._learn(route, verb.until):
                return []
            steps: list[Step] = []
            for part in range(self.parts):
                names = self._names.of(part, b"dead", b"graves")
                steps.append((LETTERS, names, (place_of(after, part), limit)))
            found = []
            for part, told in enumerate(await self._eval(route, steps, verb.until)):
                found += [_letter(fields, part) for fields in told]
            return sorted(found, key=lambda letter: letter.record.version)[:limit]

    async def revive(
        self, world: World, versions: Sequence[int], force: bool, deadline: Deadline
    ) -> list[int]:
        with Verb("revive", deadline) as verb:
            if versions and await self._learn(self._route(world), verb.until):
                parts = {version % MOST_PARTS for version in versions if version > 0}
                there = parts.intersection(range(self.parts))
                if there:  # looked at each time: this is rare
                    await self._meet(world, dict.fromkeys(there, b""), verb.until)
            forced = b"1" if force else b"0"
            found = await self._pick(world, REVIVE, versions, verb.until, forced)
            for part, (_, place) in found:
                self._memory.saw(part, self._memory.name(part), place)
            return _in_order(versions, {version_of(old, part) for part, (old, _) in found})

    async def drop(self, world: World, versions: Sequence[int], deadline: Deadline) -> list[int]:
        with Verb("drop", deadline) as verb:
            found = await self._pick(world, DROP, versions, verb.until)
            return _in_order(versions, {version_of(place, part) for part, place in found})

    async def outdate(self, world: World, keys: Sequence[str], deadline: Deadline) -> None:
        with Verb("outdate", deadline, keys) as verb:
            route = self._route(world)
            if not keys or not await self._learn(route, verb.until):
                return
            marks: dict[int, list[bytes]] = {}
            for key in map(raw_of, keys):
                marks.setdefault(part_of(key, self.parts), []).append(mark_of(key))
            steps: list[Step] = []
            for part, asked in marks.items():
                names = self._names.of(part, b"dead", b"graves")
                for at in range(0, len(asked), MOST_AT_ONCE):
                    steps.append((OUTDATE, names, asked[at : at + MOST_AT_ONCE]))
            await self._eval(route, steps, verb.until)


def raw_of(key: str) -> bytes:
    return key.encode(errors="surrogatepass")


def text_of(key: bytes) -> str:
    return key.decode(errors="surrogatepass")


def head_of(record: Record, now: float = 0.0) -> bytes:
    return _HEADS[record.kind] + repr(record.at or now).encode()


def record_of(key: str, head: bytes, data: bytes, version: int) -> Record:
    return Record(key, _KINDS[head[:2]], data, version, float(head[2:]))


def letter_args(letter: Letter, part: int) -> tuple[Any, ...]:
    record = letter.record
    error = json.dumps([letter.error, letter.attempts, letter.parked]).encode()
    mark, place = mark_of(raw_of(record.key)), place_of(record.version, part)
    outdated = b"1" if letter.outdated else b"0"
    return (b"l", mark, place, head_of(record), record.data, error, outdated)


def _letter(fields: Sequence[Any], part: int) -> Letter:
    place, mark, head, data, told, outdated = fields
    error, attempts, parked = json.loads(told)
    record = record_of(text_of(mark[9:]), head, data, version_of(place, part))
    return Letter(record, error, attempts, parked, outdated is not None)


def _in_order(versions: Sequence[int], found: set[int]) -> list[int]:
    return [version for version in dict.fromkeys(versions) if version in found]
