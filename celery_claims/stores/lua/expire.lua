-- expire: clean claims up that are still as expired as a scan showed them.
-- Keys: a shard and its tasks (see shard.lua).
-- Arguments: the offset of the clock; for how long the counters are kept; then of each task two
--   64-bit numbers: token, end of lease.
-- Answers: of each task 1 if it was cleaned up, else 0, and no text.

local keep = tonumber(ARGV[2])

for number = FIRST, #KEYS do
  local key = KEYS[number]
  current = number
  local task = task_of(key)
  local token, expires_at = struct.unpack('>i8i8', ARGV[3 + number - FIRST])
  local record = find(key, task)
  if not record or record.code ~= 0 or is_live(record)
    or record.token ~= token or record.expires_at ~= expires_at then
    tell('>i8i8', '', 0)
  else
    if record.started then record.deliveries = record.deliveries + 1 end
    if keep > 0 then
      keep_settled(key, task, record, EXPIRED, keep)
    else
      drop(key, task)
    end
    tell('>i8i8', '', 1)
  end
end
return table.concat(told)
