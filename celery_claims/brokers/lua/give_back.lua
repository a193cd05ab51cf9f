-- give_back: put one message back into its queues, unless a worker has it.
-- Keys: the index of unacknowledged messages; their hash; what was touched; the lists of its
--   queues.
-- Arguments: the delivery tag; the message as it was read; the message as it is put back; seconds
--   after which a worker that never touched it is dead; its member of what was touched.
-- Answers: 1 if it was put back, 0 if it is not unacknowledged, -1 if a worker has it.

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local stored = redis.call('HGET', KEYS[2], ARGV[1])
local taken = redis.call('ZSCORE', KEYS[1], ARGV[1])
local touched = redis.call('ZSCORE', KEYS[3], ARGV[5])

if stored and touched and tonumber(touched) > now then return -1 end
-- It came to another worker, which has not touched it yet; the second since it was read.
if stored and ((taken and tonumber(taken) > now - ARGV[4]) or stored ~= ARGV[2]) then
  redis.call('ZADD', KEYS[3], 'XX', string.format('%.6f', now + ARGV[4]), ARGV[5])
  return -1
end
redis.call('ZREM', KEYS[3], ARGV[5])
if not stored then return 0 end

for number = 4, #KEYS do
  -- The end that is consumed next, where kombu puts messages back too.
  redis.call('RPUSH', KEYS[number], ARGV[3])
end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
