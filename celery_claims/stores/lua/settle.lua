-- settle: record ends, finished or given back.
-- Keys: a shard and its tasks (see record.lua).
-- Arguments: the offset of the clock; how many arguments a task has, 1 or 5; then of each task four
--   64-bit numbers: token, for how long it is kept, code of the outcome, 1 to count a delivery;
--   with 5 the same as in renew.lua.
-- Answers: the clock and whether the shard is new; then of each task two numbers and a text:
--   SETTLED  0, ''
--   ENDED    0, the record
--   LOST     0, the record that is there instead, '' for none
--   UNKNOWN  0, '': as in renew.lua

local SETTLED, ENDED, LOST, UNKNOWN = 0, 1, 2, 3
local width = tonumber(ARGV[2])

local function answer(text, code, number)
  tell('>i8i8i8', text, code, number)
end

local function settle(key, task, record, keep, code, counted)
  revive(record)
  record.deliveries = record.deliveries + counted
  if keep > 0 then
    raise_high_water(record.token)
    keep_settled(key, task, record, code, keep)
  else
    -- One above: what was settled and forgotten must not come back.
    raise_high_water(record.token + 1)
    drop(key, task)
  end
  answer('', SETTLED, 0)
end

check_high_water()
for number = FIRST, #KEYS do
  local key, place = KEYS[number], 3 + width * (number - FIRST)
  local task = task_of(key)
  local token, keep, code, counted = struct.unpack('>i8i8i8i8', ARGV[place])
  local record = find(key, task)
  if not record and high_water <= token and width > 1 then
    record = recall(token, place + 1)
  end
  if not record then
    answer('', high_water <= token and UNKNOWN or LOST, 0)
  elseif record.token ~= token then
    answer(record.packed, LOST, 0)
  elseif record.code ~= 0 and not record.free then
    if code == NACKED then answer(record.packed, ENDED, 0) else answer('', SETTLED, 0) end
  elseif record.code == NACKED then
    answer('', code == NACKED and SETTLED or LOST, 0)
  else
    settle(key, task, record, keep, code, counted)
  end
end
return all_told()
