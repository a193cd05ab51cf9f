-- expire: clean claims up that are still as expired as a scan showed them.
-- Keys: a shard and its tasks (see shard.lua).
-- Arguments: the offset of the clock; for how long the counters are kept; then of each task two
--   64-bit numbers: token, end of lease.
-- Answers: of each task 1 if it was cleaned up, else 0, and no text.
-- Without the functions of record.lua and in few calls, for claims wait meanwhile. All is read before
-- anything is written: what cannot be read leaves the others whole.

local keep = tonumber(ARGV[2])

-- The free record that a claimed one becomes, or nil if it is not the one that was shown.
local function freed(claimed, wanted, expires_at)
  local at, code, token, runs, drift, nesting, retries, deaths, root = head_of(claimed)
  if code ~= 0 or token ~= wanted then return nil end
  local done, more, grant = pcall(cmsgpack.unpack_limit, claimed, 1, at)
  if not done or type(grant) ~= 'string' or more < 0 then corrupt(more) end
  -- One that was started counts as a delivery.
  if runs % 2 == 1 then runs = runs + 2 end
  local born = floor(token / 1000)
  local head = cmsgpack.pack(
    EXPIRED, token, runs, drift, nesting, retries, deaths, root,
    now - born, keep, expires_at - born)
  return head .. sub(claimed, at + 1)
end

local tasks, records, seen = {}, {}, {}
for number = FIRST, #KEYS do
  tasks[number - FIRST + 1] = sub(KEYS[number], #BASE + 2)
end
local claimed = #tasks > 0 and call('HMGET', CLAIMED, unpack(tasks))
for place, task in ipairs(tasks) do
  local token, expires_at = struct.unpack('>i8i8', ARGV[2 + place])
  if claimed[place] and not seen[task] and expires_at <= now then
    local ends = tonumber(call('ZSCORE', EXPIRY, task) or 0)
    if not is_whole(ends, 0) then corrupt('the end of its lease is no time') end
    records[place] = ends == expires_at and freed(claimed[place], token, expires_at)
    seen[task] = records[place]
  end
end

local gone, in_its_way = {}, {}
for place, task in ipairs(tasks) do
  if not records[place] then
    told[place + 1] = pack('>i8i8', 0, 0)
  else
    told[place + 1] = pack('>i8i8', 0, 1)
    local key = KEYS[FIRST + place - 1]
    if keep == 0 or call('SET', key, records[place], 'PX', ARGV[2], 'NX') then
      gone[#gone + 1] = task
    else
      in_its_way[#in_its_way + 1] = place
    end
  end
end
if #gone > 0 then
  call('HDEL', CLAIMED, unpack(gone))
  call('ZREM', EXPIRY, unpack(gone))
end
for _, place in ipairs(in_its_way) do
  local key = KEYS[FIRST + place - 1]
  -- Fails where it is of another type: that is somebody else's.
  call('GET', key)
  call('SET', key, records[place], 'PX', ARGV[2])
  call('HDEL', CLAIMED, tasks[place])
  call('ZREM', EXPIRY, tasks[place])
end
return table.concat(told)
