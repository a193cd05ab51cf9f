-- The statements of the PostgreSQL store, as psycopg takes them. A name after an @ gets the schema
-- and the prefix of the URL; the functions are made by migrations/. "remove" is for the user,
-- where a record cannot be read.

-- name: claim
SELECT * FROM @claim_v1(
    %(keys)b::uuid[], %(queues)b::bytea[], %(task_ids)b::bytea[], %(owners)b::bytea[],
    %(grant_ids)b::bytea[], %(root_ids)b::bytea[], %(leases)b::bigint[], %(nestings)b::bigint[],
    %(retries)b::bigint[], %(deaths)b::bigint[], %(caps)b::bigint[], %(tasks)b::bytea[],
    %(tags)b::bytea[], %(from_queues)b::bytea[], %(priorities)b::bigint[],
    %(exhausted_lease)b::bigint, %(wait)b::integer, %(shift)b::bigint
)

-- name: renew
SELECT * FROM @renew_v1(
    %(keys)b::uuid[], %(queues)b::bytea[], %(task_ids)b::bytea[], %(tokens)b::bigint[],
    %(leases)b::bigint[], %(extends)b::boolean[], %(starts)b::boolean[],
    %(owners)b::bytea[], %(grant_ids)b::bytea[], %(root_ids)b::bytea[], %(nestings)b::bigint[],
    %(retries)b::bigint[], %(deaths)b::bigint[], %(claimed)b::bigint[], %(tasks)b::bytea[],
    %(tags)b::bytea[], %(from_queues)b::bytea[], %(priorities)b::bigint[],
    %(wait)b::integer, %(shift)b::bigint
)

-- name: settle
SELECT * FROM @settle_v1(
    %(keys)b::uuid[], %(queues)b::bytea[], %(task_ids)b::bytea[], %(tokens)b::bigint[],
    %(outcomes)b::bigint[], %(keeps)b::bigint[], %(counts)b::boolean[],
    %(owners)b::bytea[], %(grant_ids)b::bytea[], %(root_ids)b::bytea[], %(nestings)b::bigint[],
    %(retries)b::bigint[], %(deaths)b::bigint[], %(claimed)b::bigint[], %(tasks)b::bytea[],
    %(tags)b::bytea[], %(from_queues)b::bytea[], %(priorities)b::bigint[],
    %(wait)b::integer, %(shift)b::bigint
)

-- name: expire
SELECT * FROM @expire_v1(
    %(keys)b::uuid[], %(queues)b::bytea[], %(task_ids)b::bytea[], %(tokens)b::bigint[],
    %(expected)b::bigint[], %(keep)b::bigint, %(most)b::integer, %(wait)b::integer,
    %(shift)b::bigint
)

-- name: elect
SELECT @elect_v1(%(duty)b::bytea, %(interval)b::bigint, %(wait)b::integer, %(shift)b::bigint)

-- name: lookup
SELECT asked.place, c.*
FROM unnest(%(keys)b::uuid[], %(queues)b::bytea[], %(task_ids)b::bytea[])
    WITH ORDINALITY AS asked (key, queue, task_id, place)
CROSS JOIN LATERAL (
    SELECT * FROM @claims c
    WHERE @key_v1(c.queue, c.task_id) = asked.key
        AND c.queue = asked.queue AND c.task_id = asked.task_id
    LIMIT 1
) AS c

-- name: remove
DELETE FROM @claims WHERE @key_v1(queue, task_id) = %(key)b::uuid

-- name: scan_live
-- In the order of expiry, which a renewal only moves on: none that stays is left out. Of one queue
-- a page reads a bounded part of the index, and shows what of it is wanted and its last row.
WITH t AS MATERIALIZED (SELECT @clock_v1(%(shift)b::bigint) / 1000 AS now),
part AS MATERIALIZED (
    SELECT c.*, row_number() OVER (ORDER BY expires_at, key) AS number FROM t, LATERAL (
        SELECT *, @key_v1(queue, task_id) AS key FROM (
            SELECT * FROM @claims
            WHERE outcome = 0 AND expires_at > t.now AND expires_at >= %(after)b::bigint
                AND (expires_at, @key_v1(queue, task_id)) > (%(after)b::bigint, %(after_key)b::uuid)
            ORDER BY expires_at FETCH FIRST (%(part)b::integer) ROWS WITH TIES
        ) AS first
        ORDER BY expires_at, key LIMIT %(part)b::integer
    ) AS c
)
SELECT t.now, shown.* FROM t LEFT JOIN part AS shown ON (
    %(queue)b::bytea IS NULL OR shown.queue = %(queue)b::bytea
    OR shown.number = (SELECT max(number) FROM part)
)
ORDER BY shown.number

-- name: scan_orphaned
-- As scan_live.
WITH t AS MATERIALIZED (SELECT @clock_v1(%(shift)b::bigint) / 1000 AS now),
part AS MATERIALIZED (
    SELECT c.*, row_number() OVER (ORDER BY expires_at, key) AS number FROM t, LATERAL (
        SELECT *, @key_v1(queue, task_id) AS key FROM (
            SELECT * FROM @claims
            WHERE outcome = 0 AND expires_at <= t.now AND expires_at >= %(after)b::bigint
                AND (expires_at, @key_v1(queue, task_id)) > (%(after)b::bigint, %(after_key)b::uuid)
            ORDER BY expires_at FETCH FIRST (%(part)b::integer) ROWS WITH TIES
        ) AS first
        ORDER BY expires_at, key LIMIT %(part)b::integer
    ) AS c
)
SELECT t.now, shown.* FROM t LEFT JOIN part AS shown ON (
    %(queue)b::bytea IS NULL OR shown.queue = %(queue)b::bytea
    OR shown.number = (SELECT max(number) FROM part)
)
ORDER BY shown.number

-- name: scan_all
-- By key, that is queue by queue.
WITH t AS MATERIALIZED (SELECT @clock_v1(%(shift)b::bigint) / 1000 AS now),
part AS MATERIALIZED (
    SELECT c.*, row_number() OVER (ORDER BY key) AS number FROM t, LATERAL (
        SELECT *, @key_v1(queue, task_id) AS key FROM @claims
        WHERE @key_v1(queue, task_id) > %(after_key)b::uuid
            AND @key_v1(queue, task_id) <= %(last_key)b::uuid
        ORDER BY key LIMIT %(part)b::integer
    ) AS c
)
SELECT t.now, shown.* FROM t LEFT JOIN part AS shown ON (
    %(queue)b::bytea IS NULL OR shown.queue = %(queue)b::bytea
    OR shown.number = (SELECT max(number) FROM part)
)
ORDER BY shown.number

-- name: census
WITH t AS MATERIALIZED (SELECT @clock_v1(%(shift)b::bigint) / 1000 AS now)
SELECT t.now, counted.outcome, counted.ahead, counted.number
FROM t LEFT JOIN LATERAL (
    SELECT outcome, expires_at > t.now AS ahead, count(*) AS number FROM @claims
    WHERE %(queue)b::bytea IS NULL OR queue = %(queue)b::bytea
    GROUP BY 1, 2
) AS counted ON true

-- name: get_version
SELECT number FROM @version WHERE single

-- name: serialize_migrations
-- One starter at a time; the lock ends with the transaction, also behind a pooler.
SELECT pg_advisory_xact_lock(hashtextextended(%(name)b::text, 0))

-- name: has_schema
SELECT to_regnamespace(%(name)b::text) IS NOT NULL

-- name: make_schema
CREATE SCHEMA IF NOT EXISTS @@@

-- name: set_version
UPDATE @version SET number = %(number)b::integer WHERE single

-- name: limit_wait
SELECT set_config('lock_timeout', %(wait)b::text, true)

-- name: get_safety
SELECT
    pg_is_in_recovery() AS standby,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('fsync') AS fsync,
    (
        SELECT count(*) FROM pg_catalog.pg_class
        WHERE relpersistence <> 'p'
            AND oid IN ('@claims'::regclass, '@forgotten'::regclass, '@turns'::regclass)
    ) AS unlogged
