-- census: count the claims of a shard.
-- Keys: a shard (see shard.lua).
-- Arguments: the offset of the clock.
-- Answers: the clock, the live and the orphaned claims.

return {
  now,
  call('ZCOUNT', EXPIRY, '(' .. string.format('%.0f', now), '+inf'),
  call('ZCOUNT', EXPIRY, '-inf', string.format('%.0f', now)),
}
