-- The statements of the SQLite store. Texts are UTF-8 in BLOBs: they may hold NUL and lone
-- surrogates. Times are milliseconds of the host's clock.
-- restart_high_water and remove are for the user, where something cannot be read.

-- name: begin_read
BEGIN

-- name: begin_write
BEGIN IMMEDIATE

-- name: commit
COMMIT

-- name: rollback
ROLLBACK

-- name: get_application
PRAGMA application_id

-- name: get_version
PRAGMA user_version

-- name: count_tables
SELECT count(*) FROM sqlite_master

-- name: use_wal
PRAGMA journal_mode = wal

-- name: get_journal
PRAGMA journal_mode

-- name: get_synchronous
PRAGMA synchronous

-- name: synchronous_full
PRAGMA synchronous = full

-- name: synchronous_normal
PRAGMA synchronous = normal

-- name: schema
-- id: stays the same for as long as the record does, so that a scan can go on from it.
CREATE TABLE claims (
    id         INTEGER PRIMARY KEY,
    queue      BLOB    NOT NULL,
    task_id    BLOB    NOT NULL,
    owner      BLOB    NOT NULL,
    grant_id   BLOB    NOT NULL,
    token      INTEGER NOT NULL,
    root_id    BLOB    NOT NULL,
    nesting    INTEGER NOT NULL,
    retries    INTEGER NOT NULL,
    deaths     INTEGER NOT NULL,
    claimed_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    started    INTEGER NOT NULL,
    deliveries INTEGER NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('claimed', 'free', 'finished')),
    outcome    TEXT,
    settled_at INTEGER NOT NULL,
    forget_at  INTEGER NOT NULL,
    task       BLOB    NOT NULL,
    tag        BLOB    NOT NULL,
    from_queue BLOB    NOT NULL,
    priority   INTEGER,
    UNIQUE (queue, task_id)
);
-- Finished records outnumber claims by far: scans of claims must not read them.
CREATE INDEX claimed_by_key ON claims (queue, task_id) WHERE state = 'claimed';
CREATE INDEX claimed_by_expiry ON claims (expires_at) WHERE state = 'claimed';
CREATE INDEX claimed_by_queue ON claims (queue, expires_at) WHERE state = 'claimed';
CREATE INDEX settled_by_end ON claims (forget_at) WHERE state <> 'claimed';
CREATE TABLE turns (
    duty BLOB    PRIMARY KEY,
    last INTEGER NOT NULL
) WITHOUT ROWID;
-- The highest token that was ever given out: it outlives the records.
CREATE TABLE high_water (
    only  INTEGER PRIMARY KEY CHECK (only = 1),
    token INTEGER NOT NULL
);
INSERT INTO high_water (only, token) VALUES (1, 0);
PRAGMA application_id = 1129074003;
PRAGMA user_version = 1;

-- name: get_high_water
SELECT token FROM high_water WHERE only = 1

-- name: raise_high_water
UPDATE high_water SET token = :token WHERE only = 1 AND token < :token

-- name: restart_high_water
INSERT OR REPLACE INTO high_water (only, token) VALUES (1, 0)

-- name: remove
DELETE FROM claims WHERE id = :id

-- name: find
SELECT * FROM claims WHERE queue = :queue AND task_id = :task_id

-- name: keep
INSERT INTO claims (
    queue, task_id, owner, grant_id, token, root_id, nesting, retries, deaths, claimed_at,
    expires_at, started, deliveries, state, outcome, settled_at, forget_at, task, tag,
    from_queue, priority
) VALUES (
    :queue, :task_id, :owner, :grant_id, :token, :root_id, :nesting, :retries, :deaths, :claimed_at,
    :expires_at, :started, :deliveries, :state, :outcome, :settled_at, :forget_at, :task, :tag,
    :from_queue, :priority
) ON CONFLICT (queue, task_id) DO UPDATE SET
    owner = excluded.owner,
    grant_id = excluded.grant_id,
    token = excluded.token,
    root_id = excluded.root_id,
    nesting = excluded.nesting,
    retries = excluded.retries,
    deaths = excluded.deaths,
    claimed_at = excluded.claimed_at,
    expires_at = excluded.expires_at,
    started = excluded.started,
    deliveries = excluded.deliveries,
    state = excluded.state,
    outcome = excluded.outcome,
    settled_at = excluded.settled_at,
    forget_at = excluded.forget_at,
    task = excluded.task,
    tag = excluded.tag,
    from_queue = excluded.from_queue,
    priority = excluded.priority

-- name: prolong
-- The usual renewal, apart from ``keep`` because it touches fewer indexes.
UPDATE claims SET expires_at = :expires_at, started = :started
WHERE queue = :queue AND task_id = :task_id

-- name: drop
DELETE FROM claims WHERE queue = :queue AND task_id = :task_id

-- name: forget
DELETE FROM claims WHERE id IN (
    SELECT id FROM claims
    WHERE state <> 'claimed' AND forget_at <= :now
    ORDER BY forget_at LIMIT :most
)

-- name: scan_live
SELECT * FROM claims
WHERE state = 'claimed' AND expires_at > :now AND (queue, task_id) > (:after_queue, :after_task)
ORDER BY queue, task_id LIMIT :most

-- name: scan_live_of_queue
SELECT * FROM claims
WHERE state = 'claimed' AND expires_at > :now AND queue = :queue AND task_id > :after_task
ORDER BY task_id LIMIT :most

-- name: scan_orphaned
SELECT * FROM claims
WHERE state = 'claimed' AND expires_at <= :now AND (expires_at, id) > (:after_expiry, :after_id)
ORDER BY expires_at, id LIMIT :most

-- name: scan_orphaned_of_queue
SELECT * FROM claims
WHERE state = 'claimed' AND expires_at <= :now AND queue = :queue
    AND (expires_at, id) > (:after_expiry, :after_id)
ORDER BY expires_at, id LIMIT :most

-- name: scan_all
SELECT * FROM claims
WHERE (queue, task_id) > (:after_queue, :after_task)
ORDER BY queue, task_id LIMIT :most

-- name: scan_all_of_queue
SELECT * FROM claims
WHERE queue = :queue AND task_id > :after_task
ORDER BY task_id LIMIT :most

-- name: census
SELECT state, expires_at > :now AS ahead, count(*) AS number FROM claims GROUP BY 1, 2

-- name: census_of_queue
SELECT state, expires_at > :now AS ahead, count(*) AS number FROM claims
WHERE queue = :queue GROUP BY 1, 2

-- name: get_turn
SELECT last FROM turns WHERE duty = :duty

-- name: take_turn
INSERT INTO turns (duty, last) VALUES (:duty, :now)
ON CONFLICT (duty) DO UPDATE SET last = excluded.last
