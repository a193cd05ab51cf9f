-- Schema 1 of the PostgreSQL store. A name after an @ gets the schema and the prefix of the URL.
-- Texts are UTF-8 in bytea: they may hold NUL and lone surrogates. Times are milliseconds of the
-- server's clock. Each verb is one function: its locks never wait for a client, and one call of
-- it is one transaction. Functions keep the version in their name, so that an older client goes
-- on beside a newer schema.

CREATE TABLE @version (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    number integer NOT NULL
);
INSERT INTO @version (number) VALUES (1);

-- Finished records outnumber claims by far, and are what the table is made of. So NULL is what goes
-- without saying: a root_id that is the task id, a claimed_at that is the token's, a count of 0,
-- not started; and of a finished record all that only a claim needs. task_id and root_id are
-- packed, and outcome is a code, 0 for a claim (packing.py). A settled record was settled keep
-- before forget_at, in milliseconds; a numeric takes the bytes that it needs.
CREATE TABLE @claims (
    token      bigint   NOT NULL,
    expires_at bigint,
    forget_at  bigint,
    claimed_at bigint,
    nesting    bigint,
    retries    bigint,
    deaths     bigint,
    deliveries bigint,
    priority   bigint,
    outcome    smallint NOT NULL,
    started    boolean,
    keep       numeric,
    queue      bytea    NOT NULL,
    task_id    bytea    NOT NULL,
    root_id    bytea,
    owner      bytea,
    grant_id   bytea,
    task       bytea,
    tag        bytea,
    from_queue bytea
) WITH (
    -- Every claim leaves a dead row or two within its short life.
    autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_threshold = 500,
    autovacuum_analyze_scale_factor = 0.05
);
-- It has no primary key, and a publication of all tables must not make its updates fail.
ALTER TABLE @claims REPLICA IDENTITY FULL;

-- 16 bytes for texts of any length: the first four from the queue, so that its records lie
-- together in the index, the rest from both. Every reader compares the texts as well.
CREATE FUNCTION @key_v1(queue bytea, task_id bytea) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT encode(
        substring(sha256(queue) FOR 4) || substring(sha256(sha256(queue) || task_id) FOR 12), 'hex'
    )::uuid
$$;

-- The key is in the index alone: a row is as much shorter.
CREATE UNIQUE INDEX @@claims_by_key ON @claims (@key_v1(queue, task_id));
-- Scans of claims must not read what is finished. Few leases end in the same millisecond.
CREATE INDEX @@claims_by_expiry ON @claims (expires_at) WHERE outcome = 0;
-- By the second, which many records have in common: the index then has it once for all of them.
CREATE INDEX @@claims_by_end ON @claims ((forget_at / 1000)) WHERE outcome <> 0;

-- What outlives the records: no token at or below the high-water of its shard is given out, and
-- no grant below it comes back. Written only when a record goes, so that no claim waits for it.
CREATE TABLE @forgotten (
    shard      integer NOT NULL,
    high_water bigint  NOT NULL,
    PRIMARY KEY (shard)
) WITH (fillfactor = 20, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);

CREATE TABLE @turns (
    key  uuid   NOT NULL,
    last bigint NOT NULL,
    duty bytea  NOT NULL,
    PRIMARY KEY (key)
) WITH (fillfactor = 50);

CREATE FUNCTION @shard_v1(key uuid) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT get_byte(uuid_send(key), 15)
$$;

-- A task_id or root_id for people: a first byte says that the others are a UUID, or hexadecimal.
CREATE FUNCTION @text_v1(packed bytea) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE encode(substring(packed FOR 1), 'hex')
        WHEN 'ff' THEN encode(substring(packed FROM 2), 'hex')::uuid::text
        WHEN 'fe' THEN encode(substring(packed FROM 2), 'hex')
        ELSE convert_from(packed, 'UTF8')
    END
$$;

-- Microseconds since the epoch.
CREATE FUNCTION @clock_v1(shift_us bigint) RETURNS bigint
LANGUAGE sql VOLATILE STRICT AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + shift_us
$$;

-- A snapshot that is older than the locks would let two owners in: refuse to work on one.
CREATE FUNCTION @enter_v1(wait_ms integer) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'not in a READ COMMITTED transaction' USING ERRCODE = 'CLM01';
    END IF;
    PERFORM set_config('lock_timeout', wait_ms::text, true);
END
$$;

-- Somebody else's hand in the table: such a record is refused, not taken for what it seems to be.
-- True: it has not what goes with its outcome, or more. A part of the statement that reads it.
-- Outcomes above 2 are of finished records; 11 is the last one that is known here.
CREATE FUNCTION @is_damaged_v1(found @claims) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT num_nulls(found.forget_at, found.keep)
            <> CASE found.outcome WHEN 0 THEN 2 ELSE 0 END
        OR num_nulls(
            found.expires_at, found.owner, found.grant_id, found.task, found.tag, found.from_queue
        ) <> CASE WHEN found.outcome > 2 THEN 6 ELSE 0 END
        OR found.outcome NOT BETWEEN 0 AND 11
        OR found.keep NOT BETWEEN 0 AND found.forget_at OR found.keep <> trunc(found.keep)
$$;

CREATE FUNCTION @refuse_v1() RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RAISE EXCEPTION 'its parts do not go together' USING ERRCODE = '22000';
END
$$;

-- A row under a key that was found taken: is it another's?
CREATE FUNCTION @check_key_v1(wanted uuid, named_queue bytea, named_task bytea) RETURNS void
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
BEGIN
    IF EXISTS (
        SELECT FROM @claims c
        WHERE @key_v1(c.queue, c.task_id) = wanted
            AND (c.queue <> named_queue OR c.task_id <> named_task)
    ) THEN
        RAISE EXCEPTION 'its key has another queue or task id' USING ERRCODE = '22000';
    END IF;
END
$$;

-- protocol.decide_claim. A record is read without a lock, and written only if it is still the
-- version that was read; else it is judged anew. Denials so write nothing and wait for nobody.
CREATE FUNCTION @claim_v1(
    keys uuid[], queues bytea[], task_ids bytea[], owners bytea[], grant_ids bytea[],
    root_ids bytea[],
    leases bigint[], nestings bigint[], all_retries bigint[], all_deaths bigint[], caps bigint[],
    tasks bytea[], tags bytea[], from_queues bytea[], priorities bigint[],
    exhausted_lease bigint, wait_ms integer, shift_us bigint
) RETURNS TABLE (
    place bigint, answer text, now bigint, holder bytea,
    token bigint, nesting bigint, retries bigint, claimed_at bigint, expires_at bigint,
    deliveries bigint, orphaned boolean, outcome smallint, settled_at bigint,
    -- Of a grant that is repeated: as it was asked for the first time; of one that took over: from
    -- the task on, the message of the last holder.
    owner bytea, root_id bytea, deaths bigint, task bytea, tag bytea, from_queue bytea,
    priority bigint
) LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    a_claim      CONSTANT smallint := 0;
    expired      CONSTANT smallint := 2;
    rejected     CONSTANT smallint := 3;
    ask          record;
    seen         record;
    now_us       bigint;
    same_run     boolean;
    same_attempt boolean;
    floor        bigint;
BEGIN
    PERFORM @enter_v1(wait_ms);
    FOR ask IN
        SELECT asked.*
        FROM unnest(
            keys, queues, task_ids, owners, grant_ids, root_ids, leases, nestings, all_retries,
            all_deaths, caps, tasks, tags, from_queues, priorities
        ) WITH ORDINALITY AS asked (
            key, queue, task_id, owner, grant_id, root_id, lease, nesting, retries,
            deaths, cap, task, tag, from_queue, priority, place
        )
        -- One order for all callers, so that none waits in a ring; duplicates in their own.
        ORDER BY asked.key, asked.place
    LOOP
        place := ask.place;
        answer := NULL;
        FOR attempt IN 1..100 LOOP
            SELECT c.token, c.outcome, coalesce(c.started, false) AS started, c.owner, c.grant_id,
                c.expires_at, c.forget_at, c.keep, c.root_id,
                coalesce(c.nesting, 0) AS nesting, coalesce(c.retries, 0) AS retries,
                coalesce(c.deaths, 0) AS deaths, coalesce(c.deliveries, 0) AS deliveries,
                coalesce(c.claimed_at, c.token / 1000) AS claimed_at,
                c.task, c.tag, c.from_queue, c.priority, @is_damaged_v1(c) AS damaged,
                c.ctid AS place, c.xmin AS version
            INTO seen FROM @claims c
            WHERE @key_v1(c.queue, c.task_id) = ask.key
                AND c.queue = ask.queue AND c.task_id = ask.task_id;
            IF seen.damaged THEN
                PERFORM @refuse_v1();
            END IF;
            now_us := @clock_v1(shift_us);
            now := now_us / 1000;
            token := seen.token;
            nesting := seen.nesting;
            retries := seen.retries;
            claimed_at := seen.claimed_at;
            expires_at := seen.expires_at;
            deliveries := seen.deliveries;
            outcome := seen.outcome;
            settled_at := NULL;
            orphaned := false;
            holder := NULL;
            owner := NULL;
            same_run := seen.token IS NOT NULL
                AND coalesce(seen.root_id, ask.task_id) = coalesce(ask.root_id, ask.task_id);
            same_attempt := same_run
                AND seen.nesting = ask.nesting AND seen.retries = ask.retries;

            IF seen.outcome = a_claim AND seen.grant_id = ask.grant_id THEN
                expires_at := greatest(seen.expires_at, now + ask.lease);
                UPDATE @claims c SET expires_at = @@claim_v1.expires_at
                WHERE c.ctid = seen.place AND c.xmin = seen.version;
                CONTINUE WHEN NOT FOUND;
                answer := CASE WHEN seen.deliveries >= ask.cap THEN 'exhausted' ELSE 'success' END;
                owner := seen.owner;
                root_id := seen.root_id;
                deaths := seen.deaths;
                task := seen.task;
                tag := seen.tag;
                from_queue := seen.from_queue;
                priority := seen.priority;
                EXIT;
            ELSIF same_run AND (seen.nesting, seen.retries) > (ask.nesting, ask.retries) THEN
                answer := 'superseded';
                EXIT;
            ELSIF seen.outcome = a_claim AND now < seen.expires_at THEN
                answer := 'already claimed';
                holder := seen.owner;
                EXIT;
            ELSIF seen.outcome > expired AND same_attempt
                AND NOT (seen.outcome = rejected AND ask.deaths > seen.deaths) THEN
                answer := 'finished';
                settled_at := seen.forget_at - seen.keep;
                EXIT;
            END IF;

            -- It is granted.
            deliveries := 0;
            IF seen.outcome <= expired THEN
                IF same_attempt THEN
                    deliveries := seen.deliveries;
                END IF;
                IF seen.outcome > a_claim THEN
                    orphaned := seen.outcome = expired;
                ELSE
                    deliveries := deliveries + (same_attempt AND seen.started)::integer;
                    holder := seen.owner;
                    task := seen.task;
                    tag := seen.tag;
                    from_queue := seen.from_queue;
                    priority := seen.priority;
                END IF;
            END IF;
            token := greatest(seen.token + 1, now_us);
            nesting := ask.nesting;
            retries := ask.retries;
            claimed_at := now;
            expires_at := now + ask.lease;
            IF deliveries >= ask.cap THEN
                answer := 'exhausted';
                expires_at := now + exhausted_lease;
            ELSIF holder IS NOT NULL THEN
                answer := 'took over';
            ELSE
                answer := 'success';
            END IF;
            IF seen.token IS NOT NULL THEN
                UPDATE @claims c SET
                    token = @@claim_v1.token, expires_at = @@claim_v1.expires_at, forget_at = NULL,
                    claimed_at = nullif(now, @@claim_v1.token / 1000),
                    nesting = nullif(ask.nesting, 0), retries = nullif(ask.retries, 0),
                    deaths = nullif(ask.deaths, 0),
                    deliveries = nullif(@@claim_v1.deliveries, 0), priority = ask.priority,
                    outcome = a_claim, started = NULL, keep = NULL, root_id = ask.root_id,
                    owner = ask.owner, grant_id = ask.grant_id, task = ask.task, tag = ask.tag,
                    from_queue = ask.from_queue
                WHERE c.ctid = seen.place AND c.xmin = seen.version;
                EXIT WHEN FOUND;
            ELSE
                INSERT INTO @claims (
                    token, expires_at, claimed_at, nesting, retries, deaths, priority, outcome,
                    queue, task_id, root_id, owner, grant_id, task, tag, from_queue
                ) VALUES (
                    @@claim_v1.token, @@claim_v1.expires_at,
                    nullif(now, @@claim_v1.token / 1000), nullif(ask.nesting, 0),
                    nullif(ask.retries, 0), nullif(ask.deaths, 0), ask.priority, a_claim,
                    ask.queue, ask.task_id, ask.root_id, ask.owner, ask.grant_id, ask.task, ask.tag,
                    ask.from_queue
                ) ON CONFLICT DO NOTHING;
                IF FOUND THEN
                    -- Read once nobody else can have the key: it may have come and gone meanwhile.
                    floor := @high_water_v1(ask.key);
                    IF floor >= token THEN
                        token := floor + 1;
                        UPDATE @claims c SET
                            token = @@claim_v1.token,
                            claimed_at = nullif(now, @@claim_v1.token / 1000)
                        WHERE @key_v1(c.queue, c.task_id) = ask.key;
                    END IF;
                    EXIT;
                END IF;
                PERFORM @check_key_v1(ask.key, ask.queue, ask.task_id);
            END IF;
            answer := NULL;
        END LOOP;
        IF answer IS NULL THEN
            RAISE EXCEPTION 'the record changed too often' USING ERRCODE = 'CLM02';
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

-- Raise the high-water of shards. Last in a transaction, and in one order for all callers.
CREATE FUNCTION @forget_v1(keys uuid[], floors bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    INSERT INTO @forgotten AS f (shard, high_water)
    SELECT gone.shard, gone.floor
    FROM (
        SELECT @shard_v1(each.key) AS shard, max(each.floor) AS floor
        FROM unnest(keys, floors) AS each (key, floor) GROUP BY 1
    ) AS gone
    WHERE NOT EXISTS (
        SELECT FROM @forgotten has WHERE has.shard = gone.shard AND has.high_water >= gone.floor
    )
    ORDER BY gone.shard
    ON CONFLICT (shard) DO UPDATE SET high_water = excluded.high_water
    WHERE f.high_water < excluded.high_water;
END
$$;

-- Bring the record of a grant back that the store forgot, unless something was granted since.
-- True: there is a record now, ours or another; read it.
CREATE FUNCTION @restore_v1(key uuid, lost @claims) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
BEGIN
    INSERT INTO @claims SELECT lost.* ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        PERFORM @check_key_v1(key, lost.queue, lost.task_id);
        RETURN true;
    END IF;
    -- Read once nobody else can have the key: it may have come and gone meanwhile.
    IF @high_water_v1(key) > lost.token THEN
        DELETE FROM @claims c WHERE @key_v1(c.queue, c.task_id) = key;
        RETURN false;
    END IF;
    RETURN true;
END
$$;

CREATE FUNCTION @high_water_v1(wanted uuid) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    found_token bigint;
BEGIN
    SELECT f.high_water INTO found_token FROM @forgotten f WHERE f.shard = @shard_v1(wanted);
    RETURN coalesce(found_token, 0);
END
$$;

-- protocol.decide_renew. Without owners nothing is brought back: the answer is then "forgotten",
-- and the caller asks again with all that its tokens say, which it need not send otherwise.
CREATE FUNCTION @renew_v1(
    keys uuid[], queues bytea[], task_ids bytea[], tokens bigint[], leases bigint[],
    extends boolean[], starts boolean[],
    owners bytea[], grant_ids bytea[], root_ids bytea[], nestings bigint[], all_retries bigint[],
    all_deaths bigint[], claimed bigint[], tasks bytea[], tags bytea[], from_queues bytea[],
    priorities bigint[], wait_ms integer, shift_us bigint
) RETURNS TABLE (
    place bigint, answer text, now bigint, expires_at bigint, outcome smallint, owner bytea
) LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    a_claim CONSTANT smallint := 0;
    nacked  CONSTANT smallint := 1;
    expired CONSTANT smallint := 2;
    ask     record;
    seen    record;
    now_ms  bigint;
    until   bigint;
    revived boolean;
BEGIN
    PERFORM @enter_v1(wait_ms);
    FOR ask IN
        SELECT asked.*
        FROM unnest(
            keys, queues, task_ids, tokens, leases, extends, starts, owners, grant_ids, root_ids,
            nestings, all_retries, all_deaths, claimed, tasks, tags, from_queues, priorities
        ) WITH ORDINALITY AS asked (
            key, queue, task_id, token, lease, extend, start, owner, grant_id, root_id,
            nesting, retries, deaths, claimed_at, task, tag, from_queue, priority, place
        )
        ORDER BY asked.key, asked.place
    LOOP
        place := ask.place;
        answer := NULL;
        FOR attempt IN 1..100 LOOP
            SELECT c.token, c.outcome, c.owner, c.expires_at, @is_damaged_v1(c) AS damaged,
                c.ctid AS place, c.xmin AS version
            INTO seen FROM @claims c
            WHERE @key_v1(c.queue, c.task_id) = ask.key
                AND c.queue = ask.queue AND c.task_id = ask.task_id;
            IF seen.damaged THEN
                PERFORM @refuse_v1();
            END IF;
            now_ms := @clock_v1(shift_us) / 1000;
            expires_at := NULL;
            outcome := NULL;
            owner := seen.owner;
            IF seen.token IS NULL THEN
                IF @high_water_v1(ask.key) > ask.token THEN
                    answer := 'lost';
                ELSIF ask.owner IS NULL THEN
                    answer := 'forgotten';
                ELSIF @restore_v1(ask.key, ROW(
                    ask.token, 0, NULL, nullif(ask.claimed_at, ask.token / 1000),
                    nullif(ask.nesting, 0), nullif(ask.retries, 0), nullif(ask.deaths, 0), NULL,
                    ask.priority, a_claim, NULL, NULL, ask.queue, ask.task_id, ask.root_id,
                    ask.owner, ask.grant_id, ask.task, ask.tag, ask.from_queue
                )::@claims) THEN
                    CONTINUE;
                ELSE
                    answer := 'lost';
                END IF;
            ELSIF seen.token <> ask.token THEN
                answer := 'lost';
                -- To whom a finished record belonged is not kept.
                outcome := CASE WHEN seen.outcome > expired THEN seen.outcome END;
            ELSIF seen.outcome > expired THEN
                answer := 'ended';
                outcome := seen.outcome;
            ELSIF seen.outcome = nacked THEN
                answer := 'lost';
                owner := NULL;
            ELSE
                until := now_ms + ask.lease;
                IF ask.extend THEN
                    until := greatest(now_ms, seen.expires_at) + ask.lease;
                END IF;
                until := greatest(until, seen.expires_at);
                -- A cleanup is undone: its owner was late, not dead, so that is not counted.
                revived := seen.outcome = expired;
                UPDATE @claims c SET
                    expires_at = until, started = c.started OR nullif(ask.start, false),
                    deliveries = nullif(
                        coalesce(c.deliveries, 0) - (revived AND c.started IS TRUE)::int, 0
                    ),
                    outcome = a_claim, forget_at = NULL, keep = NULL
                WHERE c.ctid = seen.place AND c.xmin = seen.version;
                CONTINUE WHEN NOT FOUND;
                answer := 'renewed';
                expires_at := until;
            END IF;
            EXIT;
        END LOOP;
        IF answer IS NULL THEN
            RAISE EXCEPTION 'the record changed too often' USING ERRCODE = 'CLM02';
        END IF;
        now := now_ms;
        RETURN NEXT;
    END LOOP;
END
$$;

-- protocol.decide_settle; "forgotten" as in renew.
CREATE FUNCTION @settle_v1(
    keys uuid[], queues bytea[], task_ids bytea[], tokens bigint[],
    outcomes bigint[], keeps bigint[], counts boolean[],
    owners bytea[], grant_ids bytea[], root_ids bytea[], nestings bigint[], all_retries bigint[],
    all_deaths bigint[], claimed bigint[], tasks bytea[], tags bytea[], from_queues bytea[],
    priorities bigint[], wait_ms integer, shift_us bigint
) RETURNS TABLE (place bigint, answer text, now bigint, outcome smallint, owner bytea)
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    a_claim   CONSTANT smallint := 0;
    nacked    CONSTANT smallint := 1;
    expired   CONSTANT smallint := 2;
    ask       record;
    seen      record;
    now_ms    bigint;
    gives     boolean;
    revived   boolean;
    gone      uuid[] := '{}';
    floors    bigint[] := '{}';
    last_key  uuid;
    last_gone bigint := 0;
BEGIN
    PERFORM @enter_v1(wait_ms);
    FOR ask IN
        SELECT asked.*
        FROM unnest(
            keys, queues, task_ids, tokens, outcomes, keeps, counts, owners, grant_ids, root_ids,
            nestings, all_retries, all_deaths, claimed, tasks, tags, from_queues, priorities
        ) WITH ORDINALITY AS asked (
            key, queue, task_id, token, outcome, keep, counted, owner, grant_id, root_id,
            nesting, retries, deaths, claimed_at, task, tag, from_queue, priority, place
        )
        ORDER BY asked.key, asked.place
    LOOP
        -- What this call made the store forget is not in its high-water yet.
        IF last_key IS DISTINCT FROM ask.key THEN
            last_key := ask.key;
            last_gone := 0;
        END IF;
        place := ask.place;
        gives := ask.outcome = nacked;
        answer := NULL;
        FOR attempt IN 1..100 LOOP
            SELECT c.token, c.outcome, c.owner, @is_damaged_v1(c) AS damaged,
                c.ctid AS place, c.xmin AS version
            INTO seen FROM @claims c
            WHERE @key_v1(c.queue, c.task_id) = ask.key
                AND c.queue = ask.queue AND c.task_id = ask.task_id;
            IF seen.damaged THEN
                PERFORM @refuse_v1();
            END IF;
            now_ms := @clock_v1(shift_us) / 1000;
            outcome := NULL;
            owner := seen.owner;
            IF seen.token IS NULL THEN
                IF greatest(last_gone, @high_water_v1(ask.key)) > ask.token THEN
                    answer := 'lost';
                ELSIF ask.owner IS NULL THEN
                    answer := 'forgotten';
                ELSIF @restore_v1(ask.key, ROW(
                    ask.token, 0, NULL, nullif(ask.claimed_at, ask.token / 1000),
                    nullif(ask.nesting, 0), nullif(ask.retries, 0), nullif(ask.deaths, 0), NULL,
                    ask.priority, a_claim, NULL, NULL, ask.queue, ask.task_id, ask.root_id,
                    ask.owner, ask.grant_id, ask.task, ask.tag, ask.from_queue
                )::@claims) THEN
                    CONTINUE;
                ELSE
                    answer := 'lost';
                END IF;
            ELSIF seen.token <> ask.token THEN
                answer := 'lost';
                -- To whom a finished record belonged is not kept.
                outcome := CASE WHEN seen.outcome > expired THEN seen.outcome END;
            ELSIF seen.outcome > expired THEN
                answer := CASE WHEN gives THEN 'ended' ELSE 'settled' END;
                outcome := seen.outcome;
            ELSIF seen.outcome = nacked THEN
                answer := CASE WHEN gives THEN 'settled' ELSE 'lost' END;
                owner := NULL;
            ELSIF ask.keep = 0 THEN
                DELETE FROM @claims c WHERE c.ctid = seen.place AND c.xmin = seen.version;
                CONTINUE WHEN NOT FOUND;
                answer := 'settled';
                last_gone := ask.token + 1;
                gone := gone || ask.key;
                floors := floors || last_gone;
            ELSE
                revived := seen.outcome = expired;
                UPDATE @claims c SET
                    expires_at = CASE WHEN gives THEN c.expires_at END,
                    forget_at = now_ms + ask.keep,
                    deliveries = nullif(
                        coalesce(c.deliveries, 0) - (revived AND c.started IS TRUE)::int
                            + ask.counted::int,
                        0
                    ),
                    priority = CASE WHEN gives THEN c.priority END,
                    outcome = ask.outcome, keep = ask.keep,
                    owner = CASE WHEN gives THEN c.owner END,
                    grant_id = CASE WHEN gives THEN c.grant_id END,
                    task = CASE WHEN gives THEN c.task END,
                    tag = CASE WHEN gives THEN c.tag END,
                    from_queue = CASE WHEN gives THEN c.from_queue END
                WHERE c.ctid = seen.place AND c.xmin = seen.version;
                CONTINUE WHEN NOT FOUND;
                answer := 'settled';
            END IF;
            EXIT;
        END LOOP;
        IF answer IS NULL THEN
            RAISE EXCEPTION 'the record changed too often' USING ERRCODE = 'CLM02';
        END IF;
        now := now_ms;
        RETURN NEXT;
    END LOOP;
    IF cardinality(gone) > 0 THEN
        PERFORM @forget_v1(gone, floors);
    END IF;
END
$$;

-- protocol.decide_expire, then forget what was kept long enough.
CREATE FUNCTION @expire_v1(
    keys uuid[], queues bytea[], task_ids bytea[], tokens bigint[], expected bigint[], keep bigint,
    most integer, wait_ms integer, shift_us bigint
) RETURNS TABLE (place bigint, cleaned boolean)
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    a_claim CONSTANT smallint := 0;
    expired CONSTANT smallint := 2;
    ask     record;
    now_ms  bigint;
    gone    uuid[] := '{}';
    floors  bigint[] := '{}';
    past    record;
BEGIN
    PERFORM @enter_v1(wait_ms);
    FOR ask IN
        SELECT asked.*
        FROM unnest(keys, queues, task_ids, tokens, expected)
            WITH ORDINALITY AS asked (key, queue, task_id, token, expires_at, place)
        ORDER BY asked.key, asked.place
    LOOP
        now_ms := @clock_v1(shift_us) / 1000;
        -- The condition is looked at again on what a concurrent writer left.
        IF keep > 0 THEN
            UPDATE @claims c SET
                deliveries = nullif(coalesce(c.deliveries, 0) + (c.started IS TRUE)::int, 0),
                outcome = expired, forget_at = now_ms + @@expire_v1.keep,
                keep = @@expire_v1.keep
            WHERE @key_v1(c.queue, c.task_id) = ask.key
                AND c.queue = ask.queue AND c.task_id = ask.task_id
                AND c.outcome = a_claim AND c.token = ask.token
                AND c.expires_at = ask.expires_at AND c.expires_at <= now_ms;
        ELSE
            DELETE FROM @claims c
            WHERE @key_v1(c.queue, c.task_id) = ask.key
                AND c.queue = ask.queue AND c.task_id = ask.task_id
                AND c.outcome = a_claim AND c.token = ask.token
                AND c.expires_at = ask.expires_at AND c.expires_at <= now_ms;
        END IF;
        cleaned := FOUND;
        IF cleaned AND keep = 0 THEN
            gone := gone || ask.key;
            floors := floors || ask.token;
        END IF;
        place := ask.place;
        RETURN NEXT;
    END LOOP;

    now_ms := @clock_v1(shift_us) / 1000;
    WITH due AS (
        SELECT c.ctid AS place FROM @claims c
        WHERE c.outcome <> 0 AND c.forget_at / 1000 <= now_ms / 1000 AND c.forget_at <= now_ms
            -- A token that nobody was granted stays where it is: the shard's high-water would
            -- follow it, and there would be no token left for anybody.
            AND c.token BETWEEN 1 AND 9007199254740990
        ORDER BY c.forget_at / 1000 LIMIT most
        -- Nobody is waited for: what is locked is about to change, or forgotten by another.
        FOR UPDATE SKIP LOCKED
    ), dropped AS (
        DELETE FROM @claims c USING due WHERE c.ctid = due.place
        RETURNING @key_v1(c.queue, c.task_id) AS key, c.token + (c.outcome <> expired)::int AS floor
    )
    SELECT array_agg(dropped.key) AS keys, array_agg(dropped.floor) AS floors INTO past
    FROM dropped;
    IF past.keys IS NOT NULL THEN
        gone := gone || past.keys;
        floors := floors || past.floors;
    END IF;
    IF cardinality(gone) > 0 THEN
        PERFORM @forget_v1(gone, floors);
    END IF;
END
$$;

-- protocol.turn_is_due
CREATE FUNCTION @elect_v1(
    wanted bytea, interval_ms bigint, wait_ms integer, shift_us bigint
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
DECLARE
    duty_key uuid := @key_v1(wanted, '');
    turn     bigint;
    now_ms   bigint;
BEGIN
    PERFORM @enter_v1(wait_ms);
    FOR attempt IN 1..100 LOOP
        SELECT t.last INTO turn FROM @turns t WHERE t.key = duty_key;
        now_ms := @clock_v1(shift_us) / 1000;
        IF turn IS NULL THEN
            INSERT INTO @turns (key, last, duty) VALUES (duty_key, now_ms, wanted)
            ON CONFLICT (key) DO NOTHING;
        ELSIF now_ms < turn OR now_ms >= turn + interval_ms THEN
            UPDATE @turns t SET last = now_ms WHERE t.key = duty_key AND t.last = turn;
        ELSE
            RETURN false;
        END IF;
        IF FOUND THEN
            RETURN true;
        END IF;
    END LOOP;
    RAISE EXCEPTION 'the turn changed too often' USING ERRCODE = 'CLM02';
END
$$;
