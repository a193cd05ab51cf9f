-- settle: record ends, finished or given back. Of what settle_usual.lua does not do.
-- Keys: a shard and its tasks (see shard.lua).
-- Arguments: the offset of the clock; how many arguments a task has, 1 or 2; then of each task four
--   64-bit numbers: token, for how long it is kept, code of the outcome, 1 to count a delivery;
--   with 2 also when it was claimed and behind that the grant (see record.lua).
-- Answers: of each task two numbers and a text:
--   SETTLED  0, ''
--   ENDED    0, the record
--   LOST     0, the record that is there instead, '' for none
--   UNKNOWN  0, '': nothing is known and nothing was done; ask again with 2 arguments

local SETTLED, ENDED, LOST, UNKNOWN = 0, 1, 2, 3

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
return function(key, task, sent, token, keep, code, counted)
  local record = find(key, task)
  if not record and high_water <= token and sent then record = recall(token, sent) end
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
