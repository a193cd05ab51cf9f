-- How a record is kept. What comes before it in a script is shard.lua.
--
-- Keys of a shard, all in one slot by the tag in braces (BASE is e.g. claims:{queue}):
--   BASE          string  high-water: the highest token of the shard
--   BASE.c        hash    claimed records by task id
--   BASE.e        zset    the same task ids by the end of their lease, in milliseconds
--   BASE:TASK-ID  string  a free record, or a long finished one; Redis itself forgets it
--   BASE.f:L:N    hash    finished records by task id, in bucket N of 2^L, each sealed: four
--                         bytes of the second in which it is forgotten and two of its digest
--   BASE.f        string  the levels L in use, each with when its last record is forgotten
--
-- A key of its own costs Redis some 150 bytes, and a field of a small hash two. Buckets are kept
-- small: when one is full of records that are not to be forgotten yet, what ends from then on goes to
-- more of them, on the next level. A record stays where it was put, so that all levels in use are
-- asked; the old ones end with their records. Only a script knows the levels, so that buckets are not
-- among its keys. In a cluster that matters while a slot moves: a script that would look for a bucket
-- is refused then (TRYAGAIN), for its key BASE:TASK-ID is not there.
--
-- A record is a row of MessagePack values:
--   all       code, token, runs, drift, nesting, retries, deaths, root
--   claimed   grant, then what only the client reads
--   free      lag, keep, lease, grant, then what only the client reads
--   finished  lag, keep
-- code is 0 (claimed) or the outcome. runs is twice the deliveries, plus 1 once started. Times are
-- milliseconds: drift (claimed), lag (settled) and lease (its end) count from token / 1000, keep
-- (when it is forgotten) counts from settled. root is empty where it equals the task id.
-- What a client sends of a grant is a claimed record from nesting on.

local FIRST_LEVEL, LEVEL_STEP = 3, 2

local function task_of(key)
  return sub(key, #BASE + 2)
end

local function whole(number)
  return string.format('%.0f', number)
end

-- Say `text` and the numbers of the current task; `form` packs its length and them.
local function tell(form, text, ...)
  told[current - 2] = pack(form, #text, ...)
  texts[#texts + 1] = text
end

-- Before a script goes by the high-water.
local function check_high_water()
  if not is_whole(high_water, 0) then corrupt('the highest token is no number') end
end

local function raise_high_water(token)
  if token > high_water then
    high_water = token
    call('SET', BASE, whole(token))
  end
end

-- The record in `packed`; its `packed` and `born` are what it was read from.
local function parse(packed)
  local at, code, token, runs, drift, nesting, retries, deaths, root = head_of(packed)
  local record = {
    packed = packed, code = code, token = token, nesting = nesting, retries = retries,
    deaths = deaths, started = runs % 2 == 1, deliveries = floor(runs / 2), drift = drift,
    root = root, expires_at = 0, free = code == NACKED or code == EXPIRED,
  }
  local born = floor(token / 1000)
  local done
  if code ~= 0 then
    local more, lag, keep, lease
    done, more, lag, keep = pcall(cmsgpack.unpack_limit, packed, 2, at)
    if not done or not is_whole(lag, -MOST) or not is_whole(keep, 1) then corrupt(more) end
    at, record.forget_at = more, born + lag + keep
    if not record.free and at >= 0 then corrupt('bytes too many') end
    if record.free then
      done, more, lease = pcall(cmsgpack.unpack_limit, packed, 1, at)
      if not done or not is_whole(lease, -MOST) then corrupt(more) end
      at, record.expires_at = more, born + lease
    end
  end
  if code == 0 or record.free then
    local more, grant
    done, more, grant = pcall(cmsgpack.unpack_limit, packed, 1, at)
    if not done or type(grant) ~= 'string' or more < 0 then corrupt(more) end
    record.grant, record.rest = grant, sub(packed, more + 1)
  end
  return record
end

local function keep_levels()
  local words, last = {}, now
  for place, level in ipairs(levels) do
    words[place] = level[1] .. ':' .. whole(level[2])
    last = math.max(last, level[2])
  end
  call('SET', LEVELS, table.concat(words, ' '), 'PX', whole(last - now + 1))
end

local function find_finished(task)
  for _, level in ipairs(levels_in_use()) do
    local bucket = bucket_of(level[1], task)
    local kept = call('HGET', bucket, task)
    if kept then
      local record = parse(sub(kept, SEAL + 1))
      if record.code == 0 or record.free then corrupt('it is not finished') end
      if kept ~= sealed(record.packed, record.forget_at) then corrupt('its seal is broken') end
      record.bucket = bucket
      if record.forget_at > now then return record end
      call('HDEL', bucket, task)
    end
  end
  return nil
end

-- The record of a task, or nil. One that is over is forgotten here where Redis has not done it.
local function find(key, task)
  local packed = call('HGET', CLAIMED, task)
  if packed then
    local record = parse(packed)
    -- Without an end (the index was evicted) it counts as over.
    record.expires_at = tonumber(call('ZSCORE', EXPIRY, task) or 0)
    if not is_whole(record.expires_at, 0) then corrupt('the end of its lease is no time') end
    return record
  end
  packed = call('GET', key)
  if packed then
    local record = parse(packed)
    if record.forget_at > now then return record end
    call('DEL', key)
  end
  return find_finished(task)
end

local function is_live(record)
  return record.code == 0 and now < record.expires_at
end

local function head(record, code)
  return cmsgpack.pack(
    code, record.token, record.deliveries * 2 + (record.started and 1 or 0), record.drift,
    record.nesting, record.retries, record.deaths, record.root)
end

-- Keep a claimed record in the place of `before`, if there was one.
local function keep_claimed(key, task, record, before)
  call('HSET', CLAIMED, task, head(record, 0) .. cmsgpack.pack(record.grant) .. record.rest)
  call('ZADD', EXPIRY, whole(record.expires_at), task)
  if before and before.bucket then
    call('HDEL', before.bucket, task)
  elseif before and before.code ~= 0 then
    call('DEL', key)
  end
end

-- Take out of a full bucket what is to be forgotten. Whether that was little: then the next level
-- is in use from now on.
local function make_room(bucket, level)
  local found, left = call('HGETALL', bucket), 0
  for place = 1, #found, 2 do
    local kept = found[place + 1]
    if #kept > SEAL and struct.unpack('>I4', kept) * 1000 <= now then
      call('HDEL', bucket, found[place])
    else
      left = left + 1
    end
  end
  if left <= FULL / 2 or level[1] >= LAST_LEVEL then return false end
  table.insert(levels, 1, {level[1] + LEVEL_STEP, level[2]})
  return true
end

local function keep_finished(task, packed, keep)
  local level = levels_in_use()[1]
  if not level then
    level = {FIRST_LEVEL, 0}
    levels[1] = level
  end
  local bucket, forget_at = bucket_of(level[1], task), now + keep
  call('HSET', bucket, task, sealed(packed, forget_at))
  -- A little later than need be, so that it is not set anew for each record.
  local late = forget_at + math.ceil(keep / 8)
  if call('PTTL', bucket) < keep then call('PEXPIRE', bucket, whole(late - now)) end
  local changed = level[2] < forget_at
  if changed then level[2] = late end
  if call('HLEN', bucket) % FULL == 0 then changed = make_room(bucket, level) or changed end
  if changed then keep_levels() end
end

local function drop(key, task)
  call('HDEL', CLAIMED, task)
  call('ZREM', EXPIRY, task)
  call('DEL', key)
end

-- Keep a record that ended as `code` for `keep` milliseconds, at least 1.
local function keep_settled(key, task, record, code, keep)
  local born = floor(record.token / 1000)
  local packed = head(record, code) .. cmsgpack.pack(now - born, keep)
  local free = code == NACKED or code == EXPIRED
  if free then
    packed = packed .. cmsgpack.pack(record.expires_at - born, record.grant) .. record.rest
  end
  if free or #task > SHORT or #packed + SEAL > SHORT then
    -- To be told of one of another type.
    call('GET', key)
    call('SET', key, packed, 'PX', whole(keep))
  else
    keep_finished(task, packed, keep)
    if record.free then call('DEL', key) end
  end
  call('HDEL', CLAIMED, task)
  call('ZREM', EXPIRY, task)
end

-- Undo a cleanup: the owner was late, not dead, so the delivery is not counted.
local function revive(record)
  if record.code == EXPIRED and record.started then
    record.deliveries = record.deliveries - 1
  end
end

-- The record of a grant that the store forgot, from what its owner sent of it.
local function recall(token, sent)
  local created_at, place = struct.unpack('>i8', sent)
  local head = cmsgpack.pack(0, token, 0, created_at - floor(token / 1000))
  local record = parse(head .. sub(sent, place))
  record.packed = ''
  return record
end
