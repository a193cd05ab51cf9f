-- census: count the claims of a shard.
-- Keys: a shard (see record.lua).
-- Arguments: the offset of the clock.
-- Answers: the clock and whether the shard is new; then the live and the orphaned claims.

answer(
  redis.call('ZCOUNT', EXPIRY, '(' .. whole(now), '+inf'),
  redis.call('ZCOUNT', EXPIRY, '-inf', whole(now)))
return answers
