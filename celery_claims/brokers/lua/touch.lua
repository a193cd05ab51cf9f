-- touch: the worker with these messages lives.
-- Keys: the index of unacknowledged messages; their hash; what was touched.
-- Arguments: seconds without a touch after which this worker is dead; how many messages follow; of
--   each its tag and its member of what was touched; then the same of messages that are in the
--   worker's hands no more.
-- Answers: nothing. The score in the index becomes the server's time in seconds, also where a worker
--   wrote the time of a clock that is ahead: who judges the score goes by the server's. The score of
--   what was touched is the time until which it is: each worker's own, for leases may differ.

local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
local until_then = string.format('%.6f', time[1] + time[2] / 1000000 + ARGV[1])
local mine = 1 + 2 * tonumber(ARGV[2])

for place = 3, #ARGV, 2 do
  local tag, member = ARGV[place], ARGV[place + 1]
  if redis.call('HEXISTS', KEYS[2], tag) == 0 then
    -- Acknowledged, or back in its queue: nobody has to look after it.
    redis.call('ZREM', KEYS[3], member)
  elseif place <= mine then
    redis.call('ZADD', KEYS[1], 'XX', now, tag)
    redis.call('ZADD', KEYS[3], until_then, member)
  end
end
