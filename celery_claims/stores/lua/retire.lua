-- retire: forget shards in which nothing is claimed and nothing was written for long.
-- Keys: as register.lua.
-- Arguments: the offset of the clock; after how many milliseconds a shard is looked at; how many of
--   them to answer; then of each shard that was looked at its name, its time as it was answered, and
--   1 if nothing is claimed in it.
-- Answers: names and times of shards to be looked at.
-- Who writes in a shard notes it before: a shard that was noted meanwhile is not forgotten. One that is
-- not empty is looked at again as late as if it had been noted, so that it does not hide others.

local time = redis.call('TIME')
local now = math.floor((time[1] * 1000000 + time[2] + ARGV[1] * 1000) / 1000)
for place = 4, #ARGV, 3 do
  local name, noted, empty = ARGV[place], ARGV[place + 1], ARGV[place + 2]
  if redis.call('ZSCORE', KEYS[1], name) == noted then
    if empty == '1' then
      redis.call('ZREM', KEYS[1], name)
    else
      redis.call('ZADD', KEYS[1], string.format('%.0f', now), name)
    end
  end
end
local before = string.format('%.0f', now - ARGV[2])
return redis.call(
  'ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. before, 'WITHSCORES', 'LIMIT', 0, ARGV[3])
