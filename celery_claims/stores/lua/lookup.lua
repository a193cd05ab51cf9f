-- lookup: read records.
-- Keys: a shard and its tasks (see record.lua).
-- Arguments: the offset of the clock.
-- Answers: the clock and whether the shard is new; then of each task two values: its record ('' for
--   none) and the end of its lease (0 unless it is claimed).

for number = FIRST, #KEYS do
  local record = find(KEYS[number], task_of(KEYS[number]))
  if not record then
    answer('', 0)
  else
    answer(record.packed, record.code == 0 and record.expires_at or 0)
  end
end
return answers
