-- claim: may these deliveries run? Of what claim_usual.lua does not do.
-- Keys: a shard and its tasks (see shard.lua).
-- Arguments: the offset of the clock; then of each task two 64-bit numbers, lease and most
--   deliveries, and behind them the grant (see record.lua).
-- Answers: of each task four numbers and a text:
--   SUCCESS    token, end of lease, deliveries, the record if the grant is an old one
--   ORPHANED   the same, and cleanup had noticed that the last lease ran out
--   TOOK_OVER  token, end of lease, deliveries, the record that was taken over
--   EXHAUSTED  token, end of lease, deliveries, the record if the grant is an old one
--   ALREADY    0, end of lease, 0, the record
--   FINISHED   0, 0, 0, the record
--   SUPERSEDED nesting, retries, 0, ''

local SUCCESS, ORPHANED, TOOK_OVER, EXHAUSTED, ALREADY, FINISHED, SUPERSEDED = 0, 1, 2, 3, 4, 5, 6
local EXHAUSTED_LEASE = 30000

local function answer(text, code, number, expires_at, deliveries)
  tell('>i8i8i8i8i8', text, code, number, expires_at, deliveries)
end

local function grant(key, task, record, wanted, deliveries, code, old)
  local exhausted = deliveries >= wanted.most
  local token = math.max(high_water + 1, now_us, record and record.token + 1 or 0)
  local expires_at = now + (exhausted and EXHAUSTED_LEASE or wanted.lease)
  wanted.token, wanted.deliveries, wanted.started = token, deliveries, false
  wanted.drift, wanted.expires_at = now - floor(token / 1000), expires_at
  raise_high_water(token)
  keep_claimed(key, task, wanted, record)
  if exhausted then code, old = EXHAUSTED, '' end
  answer(old, code, token, expires_at, deliveries)
end

local function decide(key, task, asked)
  local record = find(key, task)
  local lease, most, place = struct.unpack('>i8i8', asked)
  local wanted = parse(cmsgpack.pack(0, 1, 0, 0) .. sub(asked, place))
  wanted.lease, wanted.most = lease, most
  if not record then
    return grant(key, task, nil, wanted, 0, SUCCESS, '')
  end
  if record.code == 0 and record.grant == wanted.grant then
    local expires_at = math.max(record.expires_at, now + wanted.lease)
    call('ZADD', EXPIRY, whole(expires_at), task)
    local code = record.deliveries >= wanted.most and EXHAUSTED or SUCCESS
    return answer(record.packed, code, record.token, expires_at, record.deliveries)
  end
  local same_run = record.root == wanted.root
  if same_run and (record.nesting > wanted.nesting
      or record.nesting == wanted.nesting and record.retries > wanted.retries) then
    return answer('', SUPERSEDED, record.nesting, record.retries, 0)
  end
  if is_live(record) then
    return answer(record.packed, ALREADY, 0, record.expires_at, 0)
  end
  local same_attempt = same_run and record.nesting == wanted.nesting
    and record.retries == wanted.retries
  if record.code ~= 0 and not record.free then
    local replayed = record.code == REJECTED and wanted.deaths > record.deaths
    if same_attempt and not replayed then
      return answer(record.packed, FINISHED, 0, 0, 0)
    end
    return grant(key, task, record, wanted, 0, SUCCESS, '')
  end
  local deliveries = same_attempt and record.deliveries or 0
  if record.code == 0 then
    if same_attempt and record.started then deliveries = deliveries + 1 end
    return grant(key, task, record, wanted, deliveries, TOOK_OVER, record.packed)
  end
  return grant(
    key, task, record, wanted, deliveries, record.code == EXPIRED and ORPHANED or SUCCESS, '')
end

check_high_water()
return decide
