-- renew, the usual case: a claim of this token is to live on, and its start is known or not told of.

local RENEWED = 0

-- The new end of a lease, or nil.
local function lengthen(task, wanted, lease, extend, started)
  local packed, ends = call('HGET', CLAIMED, task), call('ZSCORE', EXPIRY, task)
  if not packed or not ends or extend == 1 then return nil end
  local _, code, token, runs = head_of(packed)
  ends = tonumber(ends)
  if code ~= 0 or token ~= wanted or started > runs % 2 or not is_whole(ends, 0)
    or token > high_water then
    return nil
  end
  ends = math.max(ends, now + lease)
  call('ZADD', EXPIRY, string.format('%.0f', ends), task)
  return ends
end

local width = tonumber(ARGV[2])
local renew
for number = FIRST, #KEYS do
  local key, place = KEYS[number], 3 + width * (number - FIRST)
  local task = sub(key, #BASE + 2)
  local token, lease, extend, started = struct.unpack('>i8i8i8i8', ARGV[place])
  local ends = lengthen(task, token, lease, extend, started)
  if ends then
    told[number - 2] = pack('>i8i8i8', 0, RENEWED, ends)
  else
    renew = renew or unusual()
    current = number
    renew(key, task, width > 1 and ARGV[place + 1], token, lease, extend, started)
  end
end
return table.concat(told) .. table.concat(texts)
