-- register: note that something is about to be written in shards.
-- Keys: a sorted set of shards by when that was last noted, in milliseconds.
-- Arguments: the offset of the clock; the shards.
-- Answers: nothing.

local time = redis.call('TIME')
local now = string.format('%.0f', math.floor((time[1] * 1000000 + time[2] + ARGV[1] * 1000) / 1000))
for place = 2, #ARGV do
  redis.call('ZADD', KEYS[1], now, ARGV[place])
end
