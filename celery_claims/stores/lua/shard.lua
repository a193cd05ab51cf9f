-- What every script of a shard begins with: its keys, the clock, and what its usual case needs.
--
-- How records are kept is told in record.lua. Redis runs a script from its first line in each call,
-- and to make the functions of record.lua takes longer than to claim a task. So what is done again and
-- again (claim, renew, settle) has its usual case in a file of its own, *_usual.lua, which does
-- without them; `unusual` makes them for the first task that is not such a case. See load_script.
--
-- Scripts that take tasks get KEYS BASE, BASE.c, BASE.e and one BASE:TASK-ID each; ARGV[1] is the
-- offset of the clock in milliseconds, which only tests set. They answer one string, for a client
-- reads a string much faster than a row of numbers: 64-bit numbers and then all the texts. The
-- numbers are the clock in milliseconds, 1 where the shard had no high-water, else 0, and then of
-- each task the length of its text and those that the script names.
-- Of the writes of a step, one that may be refused for want of memory comes first.

local call, pack, sub, floor = redis.call, struct.pack, string.sub, math.floor
local NACKED, EXPIRED, REJECTED = 1, 2, 3
local BASE, CLAIMED, EXPIRY = KEYS[1], KEYS[2], KEYS[3]
local LEVELS = BASE .. '.f'
local FIRST = 4
-- Redis keeps a hash small up to 128 fields of 64 bytes, if it is not told otherwise.
local FULL, SHORT, SEAL = 120, 64, 6
local LAST_LEVEL = 25
local MOST = 9007199254740990

local time = call('TIME')
local now_us = time[1] * 1000000 + time[2] + ARGV[1] * 1000
local now = floor(now_us / 1000)
-- In one call, for a call costs as much as most of what is done with its answer.
local stored = call('MGET', BASE, LEVELS, unpack(KEYS, FIRST))
-- MGET passes over keys of another type, and GET fails on them.
local stored_high_water = stored[1] or call('GET', BASE)
local stored_levels = stored[2] or call('GET', LEVELS)
local high_water = tonumber(stored_high_water or 0) or -1
-- What is answered: the part of KEYS[number] is told[number - 2], and first is the clock.
local told, texts = {pack('>i8i8', now, stored_high_water and 0 or 1)}, {}
-- Which of KEYS is told of.
local current

-- The levels in use, the finest first: {number, when its last record is forgotten}.
local levels
local function levels_in_use()
  if not levels then
    levels = {}
    for number, over in string.gmatch(stored_levels or '', '(%d+):(%d+)') do
      number, over = tonumber(number), tonumber(over)
      if number <= LAST_LEVEL and over > now then levels[#levels + 1] = {number, over} end
    end
    if #levels > 1 then table.sort(levels, function(one, other) return one[1] > other[1] end) end
  end
  return levels
end

-- Where a finished record of a task is, if it is on this level.
local function bucket_of(level, task)
  -- The ids of some are alike at their ends.
  local spread = tonumber(sub(redis.sha1hex(task), 1, 7), 16)
  return LEVELS .. ':' .. level .. ':' .. spread % 2 ^ level
end
