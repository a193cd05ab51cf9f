-- untouched: messages that a worker touched once, and then no more.
-- Keys: what was touched.
-- Arguments: seconds without a touch after which a worker is dead; how many to answer at most.
-- Answers: their members, the longest untouched first.

local time = redis.call('TIME')
local oldest = string.format('%.6f', time[1] + time[2] / 1000000 - ARGV[1])
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', oldest, 'LIMIT', 0, ARGV[2])
