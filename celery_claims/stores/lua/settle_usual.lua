-- settle, the usual case: a claim ends as finished, and its bucket has room.

local SETTLED = 0

local function finish(task, wanted, keep, code, counted)
  local level = levels_in_use()[1]
  if code < REJECTED or keep == 0 or not level or #task > SHORT then return false end
  local claimed = call('HGET', CLAIMED, task)
  if not claimed then return false end
  local _, state, token, runs, drift, nesting, retries, deaths, root = head_of(claimed)
  if state ~= 0 or token ~= wanted or token > high_water then return false end
  local packed = cmsgpack.pack(
    code, token, runs + 2 * counted, drift, nesting, retries, deaths, root,
    now - floor(token / 1000), keep)
  local bucket, forget_at = bucket_of(level[1], task), now + keep
  local size = call('HLEN', bucket)
  if #packed + SEAL > SHORT or forget_at > level[2] or size == 0 or (size + 1) % FULL == 0
    or call('PTTL', bucket) < keep then
    return false
  end
  call('HSET', bucket, task, sealed(packed, forget_at))
  call('HDEL', CLAIMED, task)
  call('ZREM', EXPIRY, task)
  return true
end

local width = tonumber(ARGV[2])
local settle
for number = FIRST, #KEYS do
  local key, place = KEYS[number], 3 + width * (number - FIRST)
  local task = sub(key, #BASE + 2)
  local token, keep, code, counted = struct.unpack('>i8i8i8i8', ARGV[place])
  if finish(task, token, keep, code, counted) then
    told[number - 2] = pack('>i8i8i8', 0, SETTLED, 0)
  else
    settle = settle or unusual()
    current = number
    settle(key, task, width > 1 and ARGV[place + 1], token, keep, code, counted)
  end
end
return table.concat(told) .. table.concat(texts)
