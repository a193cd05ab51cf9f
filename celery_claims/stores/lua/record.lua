-- What every script begins with: the clock, and how a record is kept.
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
--   all       code, token, nesting, retries, deaths, runs, drift, root
--   claimed   grant, then what only the client reads
--   free      lag, keep, lease, grant, then what only the client reads
--   finished  lag, keep
-- code is 0 (claimed) or the outcome. runs is twice the deliveries, plus 1 once started. Times are
-- milliseconds: drift (claimed), lag (settled) and lease (its end) count from token / 1000, keep
-- (when it is forgotten) counts from settled. root is empty where it equals the task id.
--
-- Scripts that take tasks get KEYS BASE, BASE.c, BASE.e and one BASE:TASK-ID each; ARGV[1] is the
-- offset of the clock in milliseconds, which only tests set. Their answers begin with the clock in
-- milliseconds and with 1 where the shard had no high-water, else 0. What they say of the tasks
-- follows in one string, for a client reads a string much faster than a row of numbers: of each task
-- 64-bit numbers, the length of a text among them, and then all the texts.
-- Of the writes of a step, one that may be refused for want of memory comes first.

local NACKED, EXPIRED, REJECTED = 1, 2, 3
local BASE, CLAIMED, EXPIRY = KEYS[1], KEYS[2], KEYS[3]
local LEVELS = BASE .. '.f'
local FIRST = 4
-- Redis keeps a hash small up to 128 fields of 64 bytes, if it is not told otherwise.
local FULL, SHORT, SEAL = 120, 64, 6
local FIRST_LEVEL, LEVEL_STEP, LAST_LEVEL = 3, 2, 25

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2] + ARGV[1] * 1000
local now = math.floor(now_us / 1000)
local stored_high_water = redis.call('GET', BASE)
local high_water = tonumber(stored_high_water or 0) or -1
local answers = {now, stored_high_water and 0 or 1}

local function answer(...)
  for place = 1, select('#', ...) do
    answers[#answers + 1] = (select(place, ...))
  end
end

local told, texts = {}, {}
-- Say `text` and the numbers of a task; `form` packs its length and them.
local function tell(form, text, ...)
  told[#told + 1] = struct.pack(form, #text, ...)
  texts[#texts + 1] = text
end

local function all_told()
  answers[3] = table.concat(told) .. table.concat(texts)
  return answers
end

local function task_of(key)
  return string.sub(key, #BASE + 2)
end

local function whole(number)
  return string.format('%.0f', number)
end

local function corrupt(why)
  error('CORRUPT record: ' .. tostring(why))
end

-- Numbers may be of any kind, where somebody else wrote them: not a number, no whole one, infinite.
local MOST = 9007199254740990
local function is_whole(number, least)
  return type(number) == 'number' and number >= least and number <= MOST and number % 1 == 0
end

-- Before a script goes by the high-water.
local function check_high_water()
  if not is_whole(high_water, 0) then corrupt('the highest token is no number') end
end

-- The record in `packed`; its `packed` and `born` are what it was read from.
local function parse(packed)
  local done, at, code, token, nesting, retries, deaths, runs, drift, root =
    pcall(cmsgpack.unpack_limit, packed, 8, 0)
  if not done then corrupt(at) end
  if type(root) ~= 'string' or not is_whole(token, 1) or not is_whole(runs, 0)
    or not is_whole(nesting, 0) or not is_whole(retries, 0) or not is_whole(deaths, 0)
    or not is_whole(drift, -MOST) or not is_whole(code, 0) then
    corrupt('fields of another type')
  end
  local record = {
    packed = packed, code = code, token = token, nesting = nesting, retries = retries,
    deaths = deaths, started = runs % 2 == 1, deliveries = math.floor(runs / 2), drift = drift,
    root = root, expires_at = 0, free = code == NACKED or code == EXPIRED,
  }
  local born = math.floor(token / 1000)
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
    record.grant, record.rest = grant, string.sub(packed, more + 1)
  end
  return record
end

-- The levels in use, the finest first: {number, when its last record is forgotten}.
local levels
local function levels_in_use()
  if not levels then
    levels = {}
    for number, over in string.gmatch(redis.call('GET', LEVELS) or '', '(%d+):(%d+)') do
      number, over = tonumber(number), tonumber(over)
      if number <= LAST_LEVEL and over > now then levels[#levels + 1] = {number, over} end
    end
    table.sort(levels, function(one, other) return one[1] > other[1] end)
  end
  return levels
end

local function keep_levels()
  local words, last = {}, now
  for place, level in ipairs(levels) do
    words[place] = level[1] .. ':' .. whole(level[2])
    last = math.max(last, level[2])
  end
  redis.call('SET', LEVELS, table.concat(words, ' '), 'PX', whole(last - now + 1))
end

local function bucket_of(level, task)
  -- The ids of some are alike at their ends.
  local spread = tonumber(string.sub(redis.sha1hex(task), 1, 7), 16)
  return LEVELS .. ':' .. level .. ':' .. spread % 2 ^ level
end

-- The second is found without reading the record; the digest tells whether this is what was kept,
-- for a finished record that is not believed lets its task run again.
local function sealed(packed, forget_at)
  local digest = tonumber(string.sub(redis.sha1hex(packed), 1, 4), 16)
  return struct.pack('>I4I2', math.ceil(forget_at / 1000), digest) .. packed
end

local function find_finished(task)
  for _, level in ipairs(levels_in_use()) do
    local bucket = bucket_of(level[1], task)
    local kept = redis.call('HGET', bucket, task)
    if kept then
      local record = parse(string.sub(kept, SEAL + 1))
      if record.code == 0 or record.free then corrupt('it is not finished') end
      if kept ~= sealed(record.packed, record.forget_at) then corrupt('its seal is broken') end
      record.bucket = bucket
      if record.forget_at > now then return record end
      redis.call('HDEL', bucket, task)
    end
  end
  return nil
end

-- The record of a task, or nil. One that is over is forgotten here where Redis has not done it.
local function find(key, task)
  local packed = redis.call('HGET', CLAIMED, task)
  if packed then
    local record = parse(packed)
    -- Without an end (the index was evicted) it counts as over.
    record.expires_at = tonumber(redis.call('ZSCORE', EXPIRY, task) or 0)
    if not is_whole(record.expires_at, 0) then corrupt('the end of its lease is no time') end
    return record
  end
  packed = redis.call('GET', key)
  if packed then
    local record = parse(packed)
    if record.forget_at > now then return record end
    redis.call('DEL', key)
  end
  return find_finished(task)
end

local function is_live(record)
  return record.code == 0 and now < record.expires_at
end

local function head(record, code)
  return cmsgpack.pack(
    code, record.token, record.nesting, record.retries, record.deaths,
    record.deliveries * 2 + (record.started and 1 or 0), record.drift, record.root)
end

local function raise_high_water(token)
  if token > high_water then
    high_water = token
    redis.call('SET', BASE, whole(token))
  end
end

-- Keep a claimed record in the place of `before`, if there was one.
local function keep_claimed(key, task, record, before)
  redis.call('HSET', CLAIMED, task, head(record, 0) .. cmsgpack.pack(record.grant) .. record.rest)
  redis.call('ZADD', EXPIRY, whole(record.expires_at), task)
  if before and before.bucket then
    redis.call('HDEL', before.bucket, task)
  elseif before and before.code ~= 0 then
    redis.call('DEL', key)
  end
end

-- Take out of a full bucket what is to be forgotten. Whether that was little: then the next level
-- is in use from now on.
local function make_room(bucket, level)
  local found, left = redis.call('HGETALL', bucket), 0
  for place = 1, #found, 2 do
    local kept = found[place + 1]
    if #kept > SEAL and struct.unpack('>I4', kept) * 1000 <= now then
      redis.call('HDEL', bucket, found[place])
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
  redis.call('HSET', bucket, task, sealed(packed, forget_at))
  -- A little later than need be, so that it is not set anew for each record.
  local late = forget_at + math.ceil(keep / 8)
  if redis.call('PTTL', bucket) < keep then redis.call('PEXPIRE', bucket, whole(late - now)) end
  local changed = level[2] < forget_at
  if changed then level[2] = late end
  if redis.call('HLEN', bucket) % FULL == 0 then changed = make_room(bucket, level) or changed end
  if changed then keep_levels() end
end

local function drop(key, task)
  redis.call('HDEL', CLAIMED, task)
  redis.call('ZREM', EXPIRY, task)
  redis.call('DEL', key)
end

-- Keep a record that ended as `code` for `keep` milliseconds, at least 1.
local function keep_settled(key, task, record, code, keep)
  local born = math.floor(record.token / 1000)
  local packed = head(record, code) .. cmsgpack.pack(now - born, keep)
  local free = code == NACKED or code == EXPIRED
  if free then
    packed = packed .. cmsgpack.pack(record.expires_at - born, record.grant) .. record.rest
  end
  if free or #task > SHORT or #packed + SEAL > SHORT then
    redis.call('SET', key, packed, 'PX', whole(keep))
  else
    keep_finished(task, packed, keep)
    if record.free then redis.call('DEL', key) end
  end
  redis.call('HDEL', CLAIMED, task)
  redis.call('ZREM', EXPIRY, task)
end

-- Undo a cleanup: the owner was late, not dead, so the delivery is not counted.
local function revive(record)
  if record.code == EXPIRED and record.started then
    record.deliveries = record.deliveries - 1
  end
end

-- The record of a grant that the store forgot, from the five arguments after its numbers.
local function recall(token, place)
  local nesting, retries, deaths, created_at = struct.unpack('>i8i8i8i8', ARGV[place + 3])
  return {
    code = 0, token = token, nesting = nesting, retries = retries, deaths = deaths,
    started = false, deliveries = 0, drift = created_at - math.floor(token / 1000),
    root = ARGV[place], grant = ARGV[place + 1], rest = ARGV[place + 2], expires_at = 0,
    free = false, packed = '',
  }
end
