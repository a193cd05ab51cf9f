-- elect: take the turn at a duty.
-- Keys: when its last turn was taken, in milliseconds; Redis forgets it when the next one is due.
-- Arguments: the offset of the clock; the interval in milliseconds.
-- Answers: 1 if the turn is the caller's, else 0.

local time = redis.call('TIME')
local now = math.floor((time[1] * 1000000 + time[2] + ARGV[1] * 1000) / 1000)
local interval = tonumber(ARGV[2])
-- A turn that cannot be read is taken: it may be taken once too often.
local last = tonumber(redis.call('GET', KEYS[1]) or -1) or -1
-- A turn in the future was taken before the clock stepped back.
if last < 0 or now < last or now >= last + interval then
  redis.call('SET', KEYS[1], string.format('%.0f', now), 'PX', ARGV[2])
  return 1
end
return 0
