-- renew: lengthen leases, note starts, bring back what the store forgot.
-- Keys: a shard and its tasks (see record.lua).
-- Arguments: the offset of the clock; how many arguments a task has, 1 or 5; then of each task four
--   64-bit numbers: token, lease, 1 to extend, 1 if started; with 5 also its root, its grant, what
--   only the client reads, and four numbers: nesting, retries, deaths, when it was claimed.
-- Answers: the clock and whether the shard is new; then of each task two numbers and a text:
--   RENEWED  end of lease, ''
--   ENDED    0, the record
--   LOST     0, the record that is there instead, '' for none
--   UNKNOWN  0, '': nothing is known and nothing was done; ask again with 5 arguments

local RENEWED, ENDED, LOST, UNKNOWN = 0, 1, 2, 3
local width = tonumber(ARGV[2])

local function answer(text, code, number)
  tell('>i8i8i8', text, code, number)
end

local function renew(key, task, record, lease, extend, started)
  local wanted = now + lease
  if extend then wanted = math.max(now, record.expires_at) + lease end
  local expires_at = math.max(record.expires_at, wanted)
  raise_high_water(record.token)
  if record.code == 0 and record.packed ~= '' and (record.started or not started) then
    redis.call('ZADD', EXPIRY, whole(expires_at), task)
  else
    revive(record)
    record.expires_at, record.started = expires_at, record.started or started
    keep_claimed(key, task, record, record)
  end
  answer('', RENEWED, expires_at)
end

check_high_water()
for number = FIRST, #KEYS do
  local key, place = KEYS[number], 3 + width * (number - FIRST)
  local task = task_of(key)
  local token, lease, extend, started = struct.unpack('>i8i8i8i8', ARGV[place])
  local record = find(key, task)
  if not record and high_water <= token and width > 1 then
    record = recall(token, place + 1)
  end
  if not record then
    answer('', high_water <= token and UNKNOWN or LOST, 0)
  elseif record.token ~= token then
    answer(record.packed, LOST, 0)
  elseif record.code ~= 0 and not record.free then
    answer(record.packed, ENDED, 0)
  elseif record.code == NACKED then
    answer('', LOST, 0)
  else
    renew(key, task, record, lease, extend == 1, started == 1)
  end
end
return all_told()
