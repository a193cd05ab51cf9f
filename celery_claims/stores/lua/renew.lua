-- renew: lengthen leases, note starts, bring back what the store forgot. Of what renew_usual.lua does
--   not do.
-- Keys: a shard and its tasks (see shard.lua).
-- Arguments: the offset of the clock; how many arguments a task has, 1 or 2; then of each task four
--   64-bit numbers: token, lease, 1 to extend, 1 if started; with 2 the same as in settle.lua.
-- Answers: of each task two numbers and a text:
--   RENEWED  end of lease, ''
--   ENDED    0, the record
--   LOST     0, the record that is there instead, '' for none
--   UNKNOWN  0, '': as in settle.lua

local RENEWED, ENDED, LOST, UNKNOWN = 0, 1, 2, 3

local function answer(text, code, number)
  tell('>i8i8i8', text, code, number)
end

local function renew(key, task, record, lease, extend, started)
  local wanted = now + lease
  if extend then wanted = math.max(now, record.expires_at) + lease end
  local expires_at = math.max(record.expires_at, wanted)
  raise_high_water(record.token)
  if record.code == 0 and record.packed ~= '' and (record.started or not started) then
    call('ZADD', EXPIRY, whole(expires_at), task)
  else
    revive(record)
    record.expires_at, record.started = expires_at, record.started or started
    keep_claimed(key, task, record, record)
  end
  answer('', RENEWED, expires_at)
end

check_high_water()
return function(key, task, sent, token, lease, extend, started)
  local record = find(key, task)
  if not record and high_water <= token and sent then record = recall(token, sent) end
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
