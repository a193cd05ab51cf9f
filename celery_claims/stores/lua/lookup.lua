-- lookup: read records.
-- Keys: a shard and its tasks (see shard.lua).
-- Arguments: the offset of the clock.
-- Answers: of each task the end of its lease (0 unless it is claimed) and its record, '' for none.

for number = FIRST, #KEYS do
  current = number
  local record = find(KEYS[number], task_of(KEYS[number]))
  if not record then
    tell('>i8i8', '', 0)
  else
    tell('>i8i8', record.packed, record.code == 0 and record.expires_at or 0)
  end
end
return table.concat(told) .. table.concat(texts)
