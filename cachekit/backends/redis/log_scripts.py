"""Where a write-back queue lies in Redis, and its atomic steps as server-side scripts.

Names (``ns`` and ``queue`` percent-encoded, ``p`` the partition, so that a script finds all it
needs in one cluster slot). Nothing but ``own`` ever has a ttl:

==========================  ==============================================================
``{ns:wb}:queues``          a set: the queues of the namespace
``{ns:wb:queue}:about``     a hash: ``parts`` and ``identity``, recorded by whoever came first
``{ns:wb:queue:p}:log``     a stream: the operations that wait. Fields ``k`` key, ``o`` head,
                            ``d`` data; never trimmed
``{ns:wb:queue:p}:index``   a sorted set, all scores 0: two members for each of them
``{ns:wb:queue:p}:ages``    a sorted set: of those that were dead letters before, and so are older
                            than their place tells, the place by its time of acceptance
``{ns:wb:queue:p}:state``   a hash: ``epoch``, ``newest`` (place of the newest operation ever),
                            ``size`` (bytes that wait), ``of`` (``parts`` and ``identity`` as in
                            ``about``, which may be lost alone), ``run``, ``memory``, ``past``
``{ns:wb:queue:p}:fences``  a sorted set: writers of which an attempt to append failed without an
                            answer, by the number up to which their attempts are refused
``{ns:wb:queue:p}:own``     the owner, for as long as its lease
``{ns:wb:queue:p}:dead``    a hash: ``m`` mark, ``h`` head, ``d`` data, ``e`` error of each letter
                            (``m`` and its place, ...), ``o`` where it is outdated
``{ns:wb:queue:p}:graves``  a sorted set like ``index``: two members for each letter, the second
                            one until it is outdated
==========================  ==============================================================

A *place* is a stream id in 18 digits, 13 of the milliseconds and 5 of the sequence, so that
places compare as text. A *mark* is ``k``, the length of the key in 8 hexadecimal digits, and the
key: no mark is the beginning of another. The members of an index are ``i`` and the place; the
mark, the place and the size. Sizes are in bytes of key and data. A *head* is ``1`` (the version of
this format), ``p`` or ``x`` (put, delete), and the time of acceptance in Unix seconds.

The version of an operation is milliseconds << 20 | sequence << 6 | partition: no two operations of
a queue have the same, and it fits a signed number of 64 bits. The scripts see to it that places
grow and a sequence stays below 2**14 also where the server's clock was set back.

A *memory* is what one run of a server (``run``) holds of a partition since it was first met: it has
a random name, and ``past`` keeps the last 16, oldest first, each with the newest place that was
there when it began. An operation seen in an older memory is still there, or was settled, if every
memory that began since began at its place or later.

Redis refuses, when its memory is full, a script whose first write may need more of it. What must
work all the same, so that a full queue can be emptied, deletes something first.
"""

from __future__ import annotations

from urllib.parse import quote, unquote
from zlib import crc32

from ...errors import ConfigurationError
from .scripts import Script

MOST_PARTS = 64
LONGEST_NAME = 200  # bytes, percent-encoded
PLACE_DIGITS = 18
_SEQUENCES = 1 << 14


class Names:
    """The keys of one queue, and how keys and versions are written in it."""

    __slots__ = ("_heads", "about", "encoded", "queues")

    def __init__(self, encoded_namespace: str, queue: str) -> None:
        self.encoded = quote(queue, safe="-._~", errors="surrogatepass")
        if not 0 < len(self.encoded) <= LONGEST_NAME:
            raise ConfigurationError(
                f"the name of a queue takes 1 to {LONGEST_NAME} bytes percent-encoded"
            )
        head = f"{encoded_namespace}:wb"
        self.queues = f"{{{head}}}:queues".encode()
        self.about = f"{{{head}:{self.encoded}}}:about".encode()
        self._heads = [f"{{{head}:{self.encoded}:{p}}}".encode() for p in range(MOST_PARTS)]

    def of(self, part: int, *names: bytes) -> tuple[bytes, ...]:
        head = self._heads[part]
        return tuple([head + b":" + name for name in names])


def queue_of(member: bytes) -> str:
    return unquote(member.decode(), errors="surrogatepass")


def part_of(key: bytes, parts: int) -> int:
    return crc32(key) % parts if parts > 1 else 0


def mark_of(key: bytes) -> bytes:
    return b"k%08x%b" % (len(key), key)


def place_of(version: int, part: int) -> bytes:
    """The place of a version, or the last one before it in this partition."""
    count = (version - part) >> 6
    if count < 0:
        return b"0" * PLACE_DIGITS
    return b"%013d%05d" % divmod(min(count, 10**13 * _SEQUENCES - 1), _SEQUENCES)


def version_of(place: bytes, part: int) -> int:
    return int(place[:13]) << 20 | int(place[13:]) << 6 | part


def id_after(version: int, part: int) -> bytes:
    """The first stream id behind a version."""
    place = place_of(version, part)
    return b"%d-%d" % (int(place[:13]), int(place[13:]) + 1)


def version_of_id(id: bytes, part: int) -> int:
    milliseconds, _, sequence = id.partition(b"-")
    return int(milliseconds) << 20 | int(sequence) << 6 | part


PLACES = r"""
local function place(ms, seq)
  return string.rep('0', 13 - #ms) .. ms .. string.rep('0', 5 - #seq) .. seq
end
local function id(at) return string.sub(at, 1, 13) .. '-' .. string.sub(at, 14, 18) end
local function after(at)
  local ms, seq = tonumber(string.sub(at, 1, 13)), tonumber(string.sub(at, 14, 18)) + 1
  if seq > 16383 then ms, seq = ms + 1, 0 end
  return place(string.format('%.0f', ms), string.format('%.0f', seq))
end
"""

# KEYS log, index, state first. The id is the server's own, but where its clock went back.
ADD = r"""
local held = redis.call('HMGET', KEYS[3], 'size', 'newest')
local size, newest = tonumber(held[1] or 0), held[2] or ''
local function add(mark, head, data)
  local key = string.sub(mark, 10)
  local given = redis.call('XADD', KEYS[1], '*', 'k', key, 'o', head, 'd', data)
  local ms, seq = string.match(given, '(%d+)-(%d+)')
  local beyond = tonumber(seq) > 16383
  local at = beyond and place(string.format('%.0f', tonumber(ms) + 1), '0') or place(ms, seq)
  if beyond or at <= newest then
    redis.call('XDEL', KEYS[1], given)
    if at <= newest then at = after(newest) end
    redis.call('XADD', KEYS[1], id(at), 'k', key, 'o', head, 'd', data)
  end
  local bytes = #key + #data
  redis.call('ZADD', KEYS[2], 0, 'i' .. at, 0, mark .. at .. string.format('%.0f', bytes))
  size, newest = size + bytes, at
  return at
end
local function keep()
  redis.call('HSET', KEYS[3], 'size', string.format('%.0f', size), 'newest', newest)
end
"""

# log, index, state, fences; most operations, most bytes, a place to stay behind, ``of``,
# ``memory``, writer, number of this attempt, number up to which the writer's attempts are dead,
# (mark, head, data)... -> the newest place before, the places of those that had room; -1 where the
# partition is not the one that the writer knows; -2 for an attempt that is dead
APPEND = Script(
    PLACES,
    ADD,
    r"""
local known = redis.call('HMGET', KEYS[3], 'of', 'memory')
if known[1] ~= ARGV[4] or known[2] ~= ARGV[5] then return -1 end
local fence, dead = tonumber(redis.call('ZSCORE', KEYS[4], ARGV[6]) or 0), tonumber(ARGV[8])
if tonumber(ARGV[7]) <= fence then return -2 end
if dead > fence then
  redis.call('ZADD', KEYS[4], ARGV[8], ARGV[6])
  redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -1001)
end
local most, room = tonumber(ARGV[1]), tonumber(ARGV[2])
local count = redis.call('ZLEXCOUNT', KEYS[2], '[i', '(j')
local taken = {newest}
if ARGV[3] > newest then newest = ARGV[3] end
for i = 9, #ARGV, 3 do
  local bytes = #ARGV[i] - 9 + #ARGV[i + 2]
  if count + #taken > most or size + bytes > room then break end
  taken[#taken + 1] = add(ARGV[i], ARGV[i + 1], ARGV[i + 2])
end
if #taken > 1 then keep() end
return taken
""",
)

# state; ``of``, run, a name for what is there if it is new, a place to stay behind, the newest
# place before the caller's first append in this run or '', whether to write in any case ('1')
# -> newest and ``of`` as they were, run, memory and past as they are now
MEET = Script(
    r"""
local held = redis.call('HMGET', KEYS[1], 'newest', 'of', 'run', 'memory', 'past')
local newest, memory, past = held[1] or '', held[4], held[5] or ''
local base = ARGV[5] ~= '' and ARGV[5] or newest
local same = memory and held[2] == ARGV[1] and held[3] == ARGV[2]
if same then
  local head, last = string.match(past, '^(.*:)(%d+)$')
  if ARGV[5] ~= '' and last and base < last then past = head .. base end
else
  memory, past = ARGV[3], past .. ' ' .. ARGV[3] .. ':' .. string.rep('0', 18 - #base) .. base
  local _, count = string.gsub(past, ':', '')
  if count > 16 then past = string.match(past, '^ [^ ]+(.*)$') end
end
if not same or past ~= held[5] or ARGV[4] > newest or ARGV[6] == '1' then
  redis.call('HDEL', KEYS[1], '')
  redis.call('HSET', KEYS[1], 'of', ARGV[1], 'run', ARGV[2], 'memory', memory, 'past', past)
  if ARGV[4] > newest then redis.call('HSET', KEYS[1], 'newest', ARGV[4]) end
end
return {held[1], held[2], ARGV[2], memory, past}
"""
)

# log, index; mark... -> for each nil, or its newest operation: place, head, data
LOOK = Script(
    PLACES,
    r"""
local found = {}
for i, mark in ipairs(ARGV) do
  found[i] = false
  local member = redis.call('ZREVRANGEBYLEX', KEYS[2], '[' .. mark .. '\255', '[' .. mark,
    'LIMIT', 0, 1)[1]
  if member then
    local at = string.sub(member, #mark + 1, #mark + 18)
    local entry = redis.call('XRANGE', KEYS[1], id(at), id(at))[1]
    if entry then found[i] = {at, entry[2][4], entry[2][6]} end
  end
end
return found
""",
)

# own, state; owner, lease ms, beyond -> nil, or epoch, the one before
CLAIM = Script(
    r"""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return false end
local function above(a, b) return #a > #b or (#a == #b and a > b) end
local before = redis.call('HGET', KEYS[2], 'epoch') or '0'
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if above(ARGV[3], before) then redis.call('HSET', KEYS[2], 'epoch', ARGV[3]) end
redis.call('HINCRBY', KEYS[2], 'epoch', 1)
return {redis.call('HGET', KEYS[2], 'epoch'), before}
"""
)

# own, state; owner, lease ms, epoch -> 1 or 0
RENEW = Script(
    r"""
if redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[3] then return 0 end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
)

# own, state; owner, epoch -> 1 or 0
RELEASE = Script(
    r"""
if redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[2] then return 0 end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
)

# log, index, state, dead, graves, ages; epoch, most operations to remove,
# ("d", mark, place) or ("l", mark, place, head, data, error, outdated)...
# -> -1 for another epoch, else how many arguments are done. A letter whose operation is gone was
# parked before, and may have been revived since.
SETTLE = Script(
    PLACES,
    r"""
local log, index, state, dead, graves, ages = unpack(KEYS)
if redis.call('HGET', state, 'epoch') ~= ARGV[1] then return -1 end
redis.call('HDEL', state, '')
local left, i, bytes = tonumber(ARGV[2]), 3, 0
local aged = redis.call('EXISTS', ages) == 1
local buried = redis.call('EXISTS', graves) == 1
local ids, members, places, touched = {}, {}, {}, {}
local function flush()
  if #ids == 0 then return end
  redis.call('XDEL', log, unpack(ids))
  redis.call('ZREM', index, unpack(members))
  if aged then redis.call('ZREM', ages, unpack(places)) end
  ids, members, places, touched = {}, {}, {}, {}
end
local function waiting(first, last, most, mark)
  if touched[mark] then flush() end
  return redis.call('ZRANGEBYLEX', index, '[' .. first, '[' .. last .. '\255', 'LIMIT', 0, most)
end
local function bury(mark, at)
  redis.call('HSET', dead, 'm' .. at, mark, 'h' .. at, ARGV[i + 3], 'd' .. at, ARGV[i + 4],
    'e' .. at, ARGV[i + 5])
  if ARGV[i + 6] == '1' then redis.call('HSET', dead, 'o' .. at, '1') end
  redis.call('ZADD', graves, 0, 'i' .. at)
  if redis.call('HEXISTS', dead, 'o' .. at) == 0 then redis.call('ZADD', graves, 0, mark .. at) end
  buried = true
end
local function remove(mark, at)
  local length = #mark
  while left > 0 do
    local most = math.min(left, 500)
    local gone = waiting(mark, mark .. at, most, mark)
    for _, member in ipairs(gone) do
      local there = string.sub(member, length + 1, length + 18)
      bytes = bytes + tonumber(string.sub(member, length + 19))
      ids[#ids + 1], places[#places + 1] = id(there), there
      members[#members + 1] = member
      members[#members + 1] = 'i' .. there
      touched[mark] = true
    end
    left = left - #gone
    if #ids >= 500 then flush() end
    if #gone < most then return true end
  end
  return false
end
local function outdate(mark, at)
  for _, member in ipairs(redis.call('ZRANGEBYLEX', graves, '[' .. mark, '(' .. mark .. at)) do
    redis.call('ZREM', graves, member)
    redis.call('HSET', dead, 'o' .. string.sub(member, #mark + 1), '1')
  end
end
while i <= #ARGV and left > 0 do
  local mark, at, letter = ARGV[i + 1], ARGV[i + 2], ARGV[i] == 'l'
  if buried then outdate(mark, at) end
  if letter and #waiting(mark .. at, mark .. at, 1, mark) > 0 then bury(mark, at) end
  if not remove(mark, at) then break end
  i = i + (letter and 7 or 3)
end
flush()
if bytes > 0 then redis.call('HINCRBY', state, 'size', string.format('%.0f', -bytes)) end
return i - 3
""",
)

# log, index, state, dead, graves, ages
# -> operations, bytes, time of the oldest, letters, and as of MEET
STANDING = Script(
    r"""
local size = tonumber(redis.call('HGET', KEYS[3], 'size') or 0)
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local oldest = first and string.sub(first[2][4], 3) or false
local aged = redis.call('ZRANGE', KEYS[6], 0, 0, 'WITHSCORES')[2]
if oldest and aged and tonumber(aged) < tonumber(oldest) then oldest = aged end
return {redis.call('ZLEXCOUNT', KEYS[2], '[i', '(j'), size, oldest,
  redis.call('ZLEXCOUNT', KEYS[5], '[i', '(j'),
  redis.call('HMGET', KEYS[3], 'newest', 'of', 'run', 'memory', 'past')}
"""
)
