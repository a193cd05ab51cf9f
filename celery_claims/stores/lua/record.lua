-- What every script begins with: the clock, and how a record is kept.
--
-- Keys of a shard, all in one slot by the tag in braces (BASE is e.g. claims:{queue}):
--   BASE          string  high-water: the highest token of the shard
--   BASE.c        hash    claimed records by task id
--   BASE.e        zset    the same task ids by the end of their lease, in milliseconds
--   BASE:TASK-ID  string  a free or finished record; Redis itself forgets it
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
local FIRST = 4

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
  return nil
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
  if before and before.code ~= 0 then redis.call('DEL', key) end
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
  if code == NACKED or code == EXPIRED then
    packed = packed .. cmsgpack.pack(record.expires_at - born, record.grant) .. record.rest
  end
  redis.call('SET', key, packed, 'PX', whole(keep))
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
