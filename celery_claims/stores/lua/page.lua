-- page: some claimed records of a shard, by the end of their lease.
-- Keys: a shard (see shard.lua).
-- Arguments: the offset of the clock; live, orphaned or all; after which end of lease, '' for the
--   first page; which records of that same end come: after, from here on, or none; at most how many.
--   "after" is followed by the task id, "from" and "none" are the words themselves:
--   ARGV[4] is the word, ARGV[5] the task id, ARGV[6] the number.
-- Answers: the clock; then of each record three values: task id, record, end of lease; last the number
--   of records that the index showed.
-- The index may name what is no longer claimed after an eviction: that is taken out of it here.

local view, after, word, task, most = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local low, high = '-inf', string.format('%.0f', MOST)
if after ~= '' then low = word == 'none' and '(' .. after or after end
if view == 'orphaned' then
  high = string.format('%.0f', now)
elseif view == 'live' and (after == '' or tonumber(after) <= now) then
  low, word = '(' .. string.format('%.0f', now), 'from'
end

-- Byte by byte, as the index has them: Lua's own < asks the server's locale.
local function comes_before(one, other)
  for place = 1, math.min(#one, #other) do
    local a, b = string.byte(one, place), string.byte(other, place)
    if a ~= b then return a < b end
  end
  return #one < #other
end

-- How many of the records of the end `after` come before the one after `task`.
local function skipped()
  if tonumber(call('ZSCORE', EXPIRY, task) or -1) == tonumber(after) then
    return call('ZRANK', EXPIRY, task) + 1 - call('ZCOUNT', EXPIRY, '-inf', '(' .. after)
  end
  local skip = 0
  while true do
    local tied = call('ZRANGEBYSCORE', EXPIRY, after, after, 'LIMIT', skip, 100)
    for _, other in ipairs(tied) do
      if not comes_before(other, task) then return skip end
      skip = skip + 1
    end
    if #tied < 100 then return skip end
  end
end

local answers = {now}
local function answer(...)
  for place = 1, select('#', ...) do
    answers[#answers + 1] = (select(place, ...))
  end
end

local found = call(
  'ZRANGEBYSCORE', EXPIRY, low, high, 'WITHSCORES',
  'LIMIT', word == 'after' and skipped() or 0, most)
local tasks = {}
for place = 1, #found, 2 do
  tasks[#tasks + 1] = found[place]
end
local records = #tasks > 0 and call('HMGET', CLAIMED, unpack(tasks))
for place = 1, #found, 2 do
  local packed = records[(place + 1) / 2]
  if packed then
    -- As a whole number, whatever it is: a scan goes on from it.
    answer(found[place], packed, math.max(0, math.ceil(tonumber(found[place + 1]))))
  else
    call('ZREM', EXPIRY, found[place])
  end
end
answer(#found / 2)
return answers
