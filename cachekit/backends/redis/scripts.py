"""The atomic steps on one slot as server-side scripts: one key each, bytes in, bytes out.

Every script first reads the head of the slot (never the value: its cost does not grow with the
entry) and names its kind ``k``: T, E, R, B, or empty for nothing and for what is not ours. The
format is in ``layout``. Needs Redis 6 (KEEPTTL). Refusals to read other than WRONGTYPE are
handed on, so that no step writes over what it was not allowed to see.

VOID, SEIZE and END do the same under the name of a tag, where a block stands in place of the
nonce. Steps that publish take the channel and the note first, and answer 2 more where the user
may not publish: the change stands all the same.
"""

from __future__ import annotations

from hashlib import sha1

_HEAD = r"""
local key = KEYS[1]
local h = redis.pcall('GETRANGE', key, 0, 48)
if type(h) == 'table' then
  if not string.find(h.err or '', 'WRONGTYPE', 1, true) then return h end
  h = ''
end
local k = ''
if string.sub(h, 2, 2) == '\1' then
  k = string.sub(h, 1, 1)
  if not ((k == 'E' and #h >= 18) or (k == 'T' and #h == 18)
    or (k == 'R' and #h >= 48) or (k == 'B' and #h >= 19)) then k = '' end
end
local function store(value, px)
  if px == '0' then redis.call('SET', key, value) else redis.call('SET', key, value, 'PX', px) end
end
"""

# The slot's own ttl is the server's clock: TIME is in no category a least-privilege user has.
# A lease is written as the ttl that will be left when it ends. An entry without expiry gets one
# of a hundred years while it is being refreshed (entries end at fifty, see layout).
_LEASE = r"""
local FOR_EVER, CENTURY = 2400000000000, 3162240000000
local function running()
  return redis.call('PTTL', key) > tonumber(string.sub(h, 35, 48))
end
local function lease_end(lease)
  local left = redis.call('PTTL', key)
  if left < 0 then
    left = CENTURY
    redis.call('PEXPIRE', key, CENTURY)
  end
  return string.format('%014.0f', left - lease)
end
"""

# After the change, so that who hears of it and looks sees it done.
_TELL = r"""
local function tell()
  local heard = redis.pcall('PUBLISH', ARGV[1], ARGV[2])
  if type(heard) == 'table' and heard.err then return 2 end
  return 0
end
"""

# Tells where the block ran out: others may have stored, and copied, something since.
_END = r"""
local function leave(me)
  if k ~= 'B' then
    redis.call('DEL', key)
    return tell()
  end
  local v = redis.call('GET', key)
  local others, mine = {}, false
  for i = 4, #v, 16 do
    local id = string.sub(v, i, i + 15)
    if id == me then mine = true else others[#others + 1] = id end
  end
  if #others == 0 then redis.call('DEL', key)
  elseif mine then
    redis.call('SET', key, string.sub(v, 1, 3) .. table.concat(others), 'KEEPTTL')
  else redis.call('SETRANGE', key, 2, '1') end
  return 0
end
"""


class Script:
    """One script and the digest the server knows it by."""

    __slots__ = ("digest", "source")

    def __init__(self, *parts: str) -> None:
        self.source = "".join(parts).strip().encode()
        self.digest = sha1(self.source, usedforsecurity=False).hexdigest().encode()


# token, lease ms, stamp to replace (or empty), keep ("1"/"0") -> 1, or the value that stands
ACQUIRE = Script(
    _HEAD,
    _LEASE,
    r"""
local token, lease, over, keep = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local grant = k == ''
if (k == 'E' or k == 'R') and over ~= '' and string.sub(h, 3, 18) == over then
  if keep == '0' then grant = true
  elseif k == 'E' then
    local v = redis.call('GET', key)
    local head = 'R\1' .. over .. token .. lease_end(lease)
    redis.call('SET', key, head .. string.sub(v, 19), 'KEEPTTL')
    return 1
  elseif not running() then
    redis.call('SETRANGE', key, 18, token .. lease_end(lease))
    return 1
  end
end
if not grant then
  local v = redis.call('GET', key)
  if k == 'R' and not running() then
    v = string.sub(v, 1, 18) .. string.rep('\0', 16) .. string.sub(v, 35)
  end
  return v
end
store('T\1' .. token, lease)
return 1
""",
)

# token, lease ms -> 1 or 0
RENEW = Script(
    _HEAD,
    _LEASE,
    r"""
if k == 'T' and string.sub(h, 3, 18) == ARGV[1] then
  redis.call('PEXPIRE', key, ARGV[2])
  return 1
elseif k == 'R' and string.sub(h, 19, 34) == ARGV[1] and running() then
  redis.call('SETRANGE', key, 34, lease_end(ARGV[2]))
  return 1
end
return 0
""",
)

# token, ttl ms, value -> 1 or 0
FILL = Script(
    _HEAD,
    _LEASE,
    r"""
if (k == 'T' and string.sub(h, 3, 18) == ARGV[1])
  or (k == 'R' and string.sub(h, 19, 34) == ARGV[1] and running()) then
  store(ARGV[3], ARGV[2])
  return 1
end
return 0
""",
)

# token -> 1
RELEASE = Script(
    _HEAD,
    _LEASE,
    r"""
if k == 'T' and string.sub(h, 3, 18) == ARGV[1] then
  redis.call('DEL', key)
elseif k == 'R' and string.sub(h, 19, 34) == ARGV[1] then
  redis.call('SETRANGE', key, 18, string.rep('\0', 16) .. string.rep('9', 14))
  if tonumber(string.sub(h, 35, 48)) > FOR_EVER then redis.call('PERSIST', key) end
end
return 1
""",
)

# channel, note, ttl ms, value -> 1 or 0, and 2 more
PUT = Script(
    _HEAD,
    _TELL,
    r"""
if k == 'B' then
  redis.call('SETRANGE', key, 2, '1')
  return tell()
end
store(ARGV[4], ARGV[3])
return 1 + tell()
""",
)

# channel, note -> 1, and 2 more
VOID = Script(
    _HEAD,
    _TELL,
    r"""
if k == 'B' then redis.call('SETRANGE', key, 2, '1') else redis.call('DEL', key) end
return 1 + tell()
""",
)

# channel, note, writer, lease ms -> 1, and 2 more
SEIZE = Script(
    _HEAD,
    _TELL,
    r"""
local me, lease = ARGV[3], tonumber(ARGV[4])
if k ~= 'B' then
  store('B\1' .. '0' .. me, ARGV[4])
  return 1 + tell()
end
local v = redis.call('GET', key)
local left = redis.call('PTTL', key)
for i = 4, #v, 16 do
  if string.sub(v, i, i + 15) == me then
    if left >= 0 and left < lease then redis.call('PEXPIRE', key, lease) end
    return 1 + tell()
  end
end
local value = 'B\1' .. '1' .. string.sub(v, 4) .. me
if left < 0 then redis.call('SET', key, value, 'KEEPTTL')
else redis.call('SET', key, value, 'PX', math.max(left, lease)) end
return 1 + tell()
""",
)

# channel, note, writer, ttl ms, value -> 1 or 0, and 2 more
COMMIT = Script(
    _HEAD,
    _TELL,
    _END,
    r"""
if h == 'B\1' .. '0' .. ARGV[3] then
  store(ARGV[5], ARGV[4])
  return 1
end
return leave(ARGV[3])
""",
)

# channel, note, writer -> 1, and 2 more
END = Script(
    _HEAD,
    _TELL,
    _END,
    r"""
return 1 + leave(ARGV[3])
""",
)

# fresh nonce, ttl ms, whether every run counts ("1"/"0") -> the nonce that stands, or the block
NONCE = Script(
    r"""
local v = redis.pcall('GET', KEYS[1])
if type(v) == 'table' and not string.find(v.err or '', 'WRONGTYPE', 1, true) then return v end
if type(v) == 'string' and #v >= 19 and string.sub(v, 1, 2) == 'B\1' then return v end
local info, run = redis.pcall('INFO', 'server'), nil
if type(info) == 'string' then
  run = string.match(info, 'run_id:(' .. string.rep('%x', 16) .. ')')
end
if type(v) == 'string' and #v == 32
  and (not run or ARGV[3] == '1' or string.sub(v, 1, 16) == run) then
  return string.sub(v, 17)
end
local made = (run or string.rep('\0', 16)) .. ARGV[1]
if ARGV[2] == '0' then redis.call('SET', KEYS[1], made)
else redis.call('SET', KEYS[1], made, 'PX', ARGV[2]) end
return ARGV[1]
"""
)

ALL = (ACQUIRE, RENEW, FILL, RELEASE, PUT, VOID, SEIZE, COMMIT, END, NONCE)
