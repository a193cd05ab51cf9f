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
-- Finished records outnumber claims by far, and are what the file is made of. So NULL is what goes
-- without saying: a root_id that is the task id, a claimed_at that is the token's; and of a finished
-- record all that only a claim needs. task_id and root_id are packed, and outcome is a code, 0 for a
-- claim (packing.py).
-- id: where the record is looked for, a hash of queue and task id; which of the few rows there is
-- meant say queue and task_id. So there is no index of them, which would be as large as the rows; and
-- ids of any kind are spread, so that what a claim no longer needs leaves room for the next ones.
CREATE TABLE claims (
    id         INTEGER PRIMARY KEY,
    token      INTEGER NOT NULL,
    outcome    INTEGER NOT NULL,
    nesting    INTEGER NOT NULL,
    retries    INTEGER NOT NULL,
    deaths     INTEGER NOT NULL,
    deliveries INTEGER NOT NULL,
    started    INTEGER NOT NULL,
    claimed_at INTEGER,
    expires_at INTEGER,
    settled_at INTEGER,
    forget_at  INTEGER,
    priority   INTEGER,
    queue      BLOB    NOT NULL,
    task_id    BLOB    NOT NULL,
    root_id    BLOB,
    owner      BLOB,
    grant_id   BLOB,
    task       BLOB,
    tag        BLOB,
    from_queue BLOB
);
-- Scans of claims must not read what is finished.
CREATE INDEX claimed_by_expiry ON claims (expires_at) WHERE outcome = 0;
CREATE INDEX settled_by_end ON claims (forget_at) WHERE outcome <> 0;
CREATE TABLE turns (
    duty BLOB    PRIMARY KEY,
    last INTEGER NOT NULL
) WITHOUT ROWID;
-- No token at or below it is given out to a task without a record, and no grant below it comes back.
-- Written only when a record goes, so that a claim has one page less to write.
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
SELECT * FROM claims WHERE id BETWEEN ? AND ?

-- name: keep
INSERT INTO claims (
    id, token, outcome, nesting, retries, deaths, deliveries, started, claimed_at, expires_at,
    settled_at, forget_at, priority, queue, task_id, root_id, owner, grant_id, task, tag, from_queue
) VALUES (
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
)

-- name: change
-- With the parameters of ``keep``; a queue and a task_id never change.
UPDATE claims SET
    token = ?2,
    outcome = ?3,
    nesting = ?4,
    retries = ?5,
    deaths = ?6,
    deliveries = ?7,
    started = ?8,
    claimed_at = ?9,
    expires_at = ?10,
    settled_at = ?11,
    forget_at = ?12,
    priority = ?13,
    root_id = ?16,
    owner = ?17,
    grant_id = ?18,
    task = ?19,
    tag = ?20,
    from_queue = ?21
WHERE id = ?1

-- name: prolong
-- The usual renewal, apart from ``change`` because it touches fewer indexes.
UPDATE claims SET expires_at = :expires_at, started = :started WHERE id = :id

-- name: get_floor_of_due
-- A grant that was settled must not come back, one that expired (2) may. A token that nobody was
-- granted stays where it is: there would be no higher one left for anybody.
SELECT max(token + (outcome <> 2)) AS token FROM (
    SELECT token, outcome FROM claims
    WHERE outcome <> 0 AND forget_at <= :now
        AND typeof(token) = 'integer' AND token BETWEEN 1 AND 9007199254740990
    ORDER BY forget_at, id LIMIT :most
)

-- name: forget_due
DELETE FROM claims WHERE id IN (
    SELECT id FROM claims
    WHERE outcome <> 0 AND forget_at <= :now
        AND typeof(token) = 'integer' AND token BETWEEN 1 AND 9007199254740990
    ORDER BY forget_at, id LIMIT :most
)

-- name: scan_live
-- In the order of expiry, which a renewal only moves on: none that stays is left out.
SELECT * FROM claims
WHERE outcome = 0 AND expires_at > :now AND (expires_at, id) > (:after_expiry, :after_id)
ORDER BY expires_at, id LIMIT :most

-- name: scan_orphaned
SELECT * FROM claims
WHERE outcome = 0 AND expires_at <= :now AND (expires_at, id) > (:after_expiry, :after_id)
ORDER BY expires_at, id LIMIT :most

-- name: scan_all
SELECT * FROM claims WHERE id > :after_id ORDER BY id LIMIT :most

-- name: census
SELECT outcome, expires_at > :now AS ahead, count(*) AS number FROM claims GROUP BY 1, 2

-- name: census_of_queue
SELECT outcome, expires_at > :now AS ahead, count(*) AS number FROM claims
WHERE queue = :queue GROUP BY 1, 2

-- name: get_turn
SELECT last FROM turns WHERE duty = :duty

-- name: take_turn
INSERT INTO turns (duty, last) VALUES (:duty, :now)
ON CONFLICT (duty) DO UPDATE SET last = excluded.last
