-- What the usual cases of renew and settle share with record.lua.

local function corrupt(why)
  error('CORRUPT record: ' .. tostring(why))
end

-- Numbers may be of any kind, where somebody else wrote them: not a number, no whole one, infinite.
local function is_whole(number, least)
  return type(number) == 'number' and number >= least and number <= MOST and number % 1 == 0
end

-- What all records begin with, and where in `packed` it ends.
local function head_of(packed)
  local done, at, code, token, runs, drift, nesting, retries, deaths, root =
    pcall(cmsgpack.unpack_limit, packed, 8, 0)
  if not done then corrupt(at) end
  if type(root) ~= 'string' or not is_whole(token, 1) or not is_whole(runs, 0)
    or not is_whole(nesting, 0) or not is_whole(retries, 0) or not is_whole(deaths, 0)
    or not is_whole(drift, -MOST) or not is_whole(code, 0) then
    corrupt('fields of another type')
  end
  return at, code, token, runs, drift, nesting, retries, deaths, root
end

-- The second is found without reading the record; the digest tells whether this is what was kept,
-- for a finished record that is not believed lets its task run again.
local function sealed(packed, forget_at)
  local digest = tonumber(sub(redis.sha1hex(packed), 1, 4), 16)
  return pack('>I4I2', math.ceil(forget_at / 1000), digest) .. packed
end
