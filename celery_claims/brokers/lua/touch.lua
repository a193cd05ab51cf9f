-- touch: the worker with these messages lives.
-- Keys: the index of unacknowledged messages; their hash; what was touched.
-- Arguments: how many messages follow; of each its tag and its member of what was touched; then
--   the same of messages that are in the worker's hands no more.
-- Answers: nothing. The score of a message becomes the server's time in seconds, also where a
--   worker wrote the time of a clock that is ahead: who judges the score goes by the server's.

local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
local mine = 2 * tonumber(ARGV[1])

for place = 2, #ARGV, 2 do
  local tag, member = ARGV[place], ARGV[place + 1]
  if redis.call('HEXISTS', KEYS[2], tag) == 0 then
    -- Acknowledged, or back in its queue: nobody has to look after it.
    redis.call('ZREM', KEYS[3], member)
  elseif place <= mine then
    redis.call('ZADD', KEYS[1], 'XX', now, tag)
    redis.call('ZADD', KEYS[3], now, member)
  end
end
