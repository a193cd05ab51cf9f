-- untouched: messages that a worker touched once, and then no more.
-- Keys: what was touched.
-- Arguments: how many to answer at most.
-- Answers: their members, the longest untouched first.

local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
