-- claim, the usual case: nothing is known of a task, so that it is granted.
-- All such tasks of a call come first. Of several deliveries of one task the first comes first all
-- the same: where nothing is known, it is the one that is granted, and the others are as unusual as all
-- deliveries of a task of which something is known.

local SUCCESS = 0

-- Whether something is known of a task that is not claimed.
local function is_kept(number, task)
  if stored[number - 1] then return true end
  for _, level in ipairs(levels_in_use()) do
    if call('HEXISTS', bucket_of(level[1], task), task) == 1 then return true end
  end
  return false
end

local tasks, new = {}, {}
-- Nothing is granted by a high-water that is none: `unusual` says so.
local is_number = high_water >= 0 and high_water <= MOST and high_water % 1 == 0
for number = FIRST, #KEYS do
  tasks[number] = sub(KEYS[number], #BASE + 2)
  new[number] = is_number and not is_kept(number, tasks[number])
end

local ends = {}
for number = FIRST, #KEYS do
  local task, asked = tasks[number], ARGV[number - 2]
  if new[number] then
    local lease, _, place = struct.unpack('>i8i8', asked)
    local token, expires_at = math.max(high_water + 1, now_us), now + lease
    local head = cmsgpack.pack(0, token, 0, now - floor(token / 1000))
    -- Refused if it is claimed.
    if call('HSETNX', CLAIMED, task, head .. sub(asked, place)) == 1 then
      high_water = token
      ends[#ends + 1], ends[#ends + 2] = string.format('%.0f', expires_at), task
      told[number - 2] = pack('>i8i8i8i8i8', 0, SUCCESS, token, expires_at, 0)
    end
  end
end
if #ends > 0 then
  call('SET', BASE, string.format('%.0f', high_water))
  call('ZADD', EXPIRY, unpack(ends))
end

local decide
for number = FIRST, #KEYS do
  if not told[number - 2] then
    decide = decide or unusual()
    current = number
    decide(KEYS[number], tasks[number], ARGV[number - 2])
  end
end
return table.concat(told) .. table.concat(texts)
