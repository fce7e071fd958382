-- Privacy: a user's data leaves (export), goes (erasure) and does not stay longer than it must (retention).
-- The laws are told in docs/design/privacy.md. In short:
--   * a table with a column `user_id` holds what belongs to that user. Erasure, export and the fence below are made
--     from the catalogue, so a table that comes later is part of all three; its migration calls
--     fence_erased_users();
--   * an erasure begins with its tombstone, under a lock that every insert of that user shares: what was inserted
--     before is seen by the deletes that follow, what comes after is refused;
--   * rows of a session go under the session's lock, with the session. Whoever owned it finds it gone, as if
--     somebody else had taken it.

-- --- erasures: tombstones and receipts ----------------------------------------------------------------

-- One row. With it a hash of a user id says nothing to who cannot read this table.
CREATE TABLE myhealth.erasure_key (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    key bytea NOT NULL CHECK (octet_length(key) = 32)
);
INSERT INTO myhealth.erasure_key (key) VALUES (uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));

CREATE TABLE myhealth.erasures (
    receipt uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_key bytea UNIQUE,                         -- the tombstone; NULL when it has expired
    pending_user uuid,                             -- whose; NULL as soon as everything is done
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    erased_at timestamptz,                         -- when the last row was gone
    account text NOT NULL CHECK (account IN ('pending', 'deleted', 'absent', 'not_configured')),
    completed_at timestamptz,
    counts jsonb NOT NULL DEFAULT '{}',            -- rows deleted, by table
    attempts integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((pending_user IS NULL) = (completed_at IS NOT NULL))
);
CREATE INDEX erasures_pending ON myhealth.erasures (next_at) WHERE pending_user IS NOT NULL;
-- No policy and no grant: the functions below are the only way to them.
ALTER TABLE myhealth.erasure_key ENABLE ROW LEVEL SECURITY;
ALTER TABLE myhealth.erasures ENABLE ROW LEVEL SECURITY;

-- The tombstone of a user: a keyed hash. Key and id have fixed lengths, so a plain prefix is a sound MAC.
CREATE FUNCTION myhealth.erasure_key_of(p_user uuid) RETURNS bytea
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$ SELECT sha256(k.key || uuid_send(p_user)) FROM erasure_key k $$;

CREATE FUNCTION myhealth.erasure_lock_of(p_user uuid) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    AS $$ SELECT hashtextextended('erasure ' || p_user, 0) $$;

-- --- the catalogue ------------------------------------------------------------------------------------

-- Tables that hold a user's rows, those that refer to others first. `of_session`: its rows belong to a session and
-- go with it (and are written under its lock).
CREATE FUNCTION myhealth.user_tables() RETURNS TABLE (name text, of_session boolean)
    LANGUAGE sql STABLE SET search_path = myhealth, pg_temp
    AS $$
    WITH RECURSIVE refers AS (
        SELECT conrelid AS child, confrelid AS parent, confdeltype FROM pg_constraint
        WHERE contype = 'f' AND connamespace = 'myhealth'::regnamespace AND conrelid <> confrelid
    ), depths AS (
        SELECT oid AS relid, 0 AS depth FROM pg_class
        WHERE relnamespace = 'myhealth'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
        UNION
        SELECT r.child, d.depth + 1 FROM depths d JOIN refers r ON r.parent = d.relid WHERE d.depth < 20
    ), owned AS (
        SELECT r.child FROM refers r WHERE r.parent = 'sessions'::regclass AND r.confdeltype = 'c'
        UNION
        SELECT r.child FROM owned o JOIN refers r ON r.parent = o.child AND r.confdeltype = 'c'
    )
    SELECT c.relname::text, c.relname = 'segments' OR c.oid IN (SELECT child FROM owned)
    FROM depths d JOIN pg_class c ON c.oid = d.relid
    WHERE EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'user_id'
                  AND NOT a.attisdropped)
    GROUP BY c.oid, c.relname ORDER BY max(d.depth) DESC, c.relname
    $$;

-- --- the fence ----------------------------------------------------------------------------------------

-- Refuses rows of users who are being erased or were. The shared lock makes an erasure that begins now wait for
-- this transaction's end, so that its deletes see these rows.
CREATE FUNCTION myhealth.refuse_erased() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_user uuid;
BEGIN
    FOR v_user IN SELECT DISTINCT a.user_id FROM added a ORDER BY 1
    LOOP
        PERFORM pg_advisory_xact_lock_shared(erasure_lock_of(v_user));
        IF EXISTS (SELECT FROM erasures e WHERE e.user_key = erasure_key_of(v_user)) THEN
            RAISE EXCEPTION 'this account was erased' USING ERRCODE = 'MH410';
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- Puts the fence on every table of users' rows that lacks it; a migration that adds one calls this at its end.
-- Rows of a session need none: they are written under the session's lock, and it is gone first. Nor does the ledger:
-- a reservation holds the session's lock as well, and it is on the way of every model call.
CREATE FUNCTION myhealth.fence_erased_users() RETURNS void
    LANGUAGE plpgsql SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_name text;
BEGIN
    FOR v_name IN
        SELECT u.name FROM user_tables() u
        WHERE NOT u.of_session AND u.name NOT IN ('model_calls', 'spending') AND NOT EXISTS (
            SELECT FROM pg_trigger t WHERE t.tgrelid = u.name::regclass AND t.tgname = 'refuse_erased')
    LOOP
        EXECUTE format('CREATE TRIGGER refuse_erased AFTER INSERT ON %I REFERENCING NEW TABLE AS added
                        FOR EACH STATEMENT EXECUTE FUNCTION refuse_erased()', v_name);
    END LOOP;
END
$$;
SELECT myhealth.fence_erased_users();

-- --- versions that a client has made ------------------------------------------------------------------

-- What refers to a version, for the collection below and for the foreign key's own check.
CREATE INDEX sessions_by_version ON myhealth.sessions (agent_version);

-- Deletes versions that carry a client's tools and that no session refers to: their texts are users' texts. The given
-- ones are locked before they are looked at: of two that delete a version's last two sessions, the later one must see
-- that both are gone. NULL: all that are an hour old (an older release registers a version before its session).
CREATE FUNCTION myhealth.collect_versions(p_hashes bytea[], p_limit integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_hash bytea;
    v_rows integer;
    v_count integer := 0;
BEGIN
    IF p_hashes IS NULL THEN
        p_hashes := ARRAY(
            SELECT v.hash FROM agent_versions v
            WHERE v.frozen ->> 'device_tools' IS NOT NULL AND v.created_at < now() - interval '1 hour'
              AND NOT EXISTS (SELECT FROM sessions s WHERE s.agent_version = v.hash)
            LIMIT p_limit);
    END IF;
    FOR v_hash IN
        SELECT v.hash FROM agent_versions v
        WHERE v.hash = ANY (p_hashes) AND v.frozen ->> 'device_tools' IS NOT NULL
        ORDER BY v.hash FOR UPDATE
    LOOP
        -- A new statement, so it sees what was committed while the lock was waited for. A new session's foreign key
        -- needs that lock as well.
        DELETE FROM agent_versions v
            WHERE v.hash = v_hash AND NOT EXISTS (SELECT FROM sessions s WHERE s.agent_version = v.hash);
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        v_count := v_count + v_rows;
    END LOOP;
    RETURN v_count;
END
$$;

-- As before, and with p_frozen the version is written here, with the session that is the first to need it: a PUT
-- that is refused leaves nothing behind.
DROP FUNCTION myhealth.put_session(uuid, uuid, text, bytea, text, bytea);
CREATE FUNCTION myhealth.put_session(
    p_user uuid, p_id uuid, p_agent text, p_version bytea, p_title text, p_hash bytea, p_frozen json DEFAULT NULL)
    RETURNS TABLE (status text, agent text, title text, created_at timestamptz, settled_epoch bigint, settled_n integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    v_inserted uuid;
    v_new_version boolean := false;
BEGIN
    IF p_frozen IS NOT NULL AND NOT EXISTS (SELECT FROM sessions s WHERE s.id = p_id) THEN
        LOOP
            INSERT INTO agent_versions (hash, name, frozen) VALUES (p_version, p_agent, p_frozen)
                ON CONFLICT DO NOTHING;
            v_new_version := FOUND;
            PERFORM FROM agent_versions v WHERE v.hash = p_version FOR KEY SHARE;
            EXIT WHEN FOUND;   -- else it was collected between the two
        END LOOP;
    END IF;
    INSERT INTO sessions (id, user_id, agent, agent_version, title, body_hash)
        SELECT p_id, p_user, p_agent, p_version, p_title, p_hash
        WHERE p_frozen IS NULL OR EXISTS (SELECT FROM agent_versions v WHERE v.hash = p_version)
        ON CONFLICT (id) DO NOTHING RETURNING id INTO v_inserted;
    IF v_new_version AND v_inserted IS NULL THEN
        DELETE FROM agent_versions v WHERE v.hash = p_version;
    END IF;
    RETURN QUERY
        SELECT CASE WHEN v_inserted IS NOT NULL THEN 'created'
                    WHEN s.body_hash = p_hash THEN 'same' ELSE 'conflict' END,
               s.agent, s.title, s.created_at, s.settled_epoch, s.settled_n
        FROM sessions s WHERE s.id = p_id AND s.user_id = p_user;
END
$$;

-- As before, and a session that is gone is nobody's: its owner lets go of it.
CREATE OR REPLACE FUNCTION myhealth.taken_sessions(p_me uuid, p_sessions uuid[], p_epochs bigint[])
    RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    SELECT held.id FROM unnest(p_sessions, p_epochs) AS held (id, epoch) LEFT JOIN sessions s ON s.id = held.id
    WHERE s.id IS NULL OR (s.epoch > held.epoch AND s.owner IS DISTINCT FROM p_me)
    $$;

-- --- deleting -----------------------------------------------------------------------------------------

CREATE FUNCTION myhealth.add_counts(p_one jsonb, p_other jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT coalesce(jsonb_object_agg(c.key, c.total), '{}') FROM (
        SELECT e.key, sum(e.value::bigint) AS total
        FROM (SELECT * FROM jsonb_each_text(p_one) UNION ALL SELECT * FROM jsonb_each_text(p_other)) e
        GROUP BY e.key HAVING sum(e.value::bigint) > 0) c
    $$;

-- Deletes sessions with everything that belongs to them, and the versions that only they referred to. The caller
-- holds their locks (FOR UPDATE), so nobody writes to them. Returns the rows deleted, by table.
CREATE FUNCTION myhealth.delete_sessions(p_sessions uuid[]) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_name text;
    v_rows bigint;
    v_counts jsonb := '{}';
    v_versions bytea[] := ARRAY(SELECT DISTINCT s.agent_version FROM sessions s WHERE s.id = ANY (p_sessions));
BEGIN
    FOR v_name IN SELECT u.name FROM user_tables() u WHERE u.of_session
    LOOP
        EXECUTE format('DELETE FROM %I WHERE session_id = ANY ($1)', v_name) USING p_sessions;
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        v_counts := add_counts(v_counts, jsonb_build_object(v_name, v_rows));
    END LOOP;
    DELETE FROM sessions s WHERE s.id = ANY (p_sessions);
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    v_counts := add_counts(v_counts, jsonb_build_object('sessions', v_rows));
    RETURN add_counts(v_counts, jsonb_build_object('agent_versions', collect_versions(v_versions, NULL)));
END
$$;

-- --- erasing ------------------------------------------------------------------------------------------

-- Begins an erasure, or finds the one that was begun: the tombstone is there when this returns. p_account: the
-- user's account with the token issuer is to be deleted too.
CREATE FUNCTION myhealth.begin_erasure(p_user uuid, p_account boolean) RETURNS SETOF myhealth.erasures
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(erasure_lock_of(p_user));
    INSERT INTO erasures (user_key, pending_user, account, next_at)
        VALUES (erasure_key_of(p_user), p_user, CASE WHEN p_account THEN 'pending' ELSE 'not_configured' END,
                clock_timestamp() + interval '10 seconds')
        ON CONFLICT (user_key) DO NOTHING;
    RETURN QUERY SELECT * FROM erasures e WHERE e.user_key = erasure_key_of(p_user);
END
$$;

-- One batch of an erasure, whole or not at all: sessions first (so their runs end), then every other table.
-- o_sessions: those that are gone with this batch. o_done: no row is left.
CREATE FUNCTION myhealth.erase_step(
    p_receipt uuid, p_sessions integer, p_rows integer, OUT o_sessions uuid[], OUT o_done boolean)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_user uuid;
    v_name text;
    v_rows bigint;
    v_counts jsonb := '{}';
BEGIN
    o_sessions := '{}';
    -- Who works on the same erasure comes after us, and finds what we have left.
    SELECT e.pending_user INTO v_user FROM erasures e
        WHERE e.receipt = p_receipt AND e.erased_at IS NULL FOR UPDATE;
    o_done := v_user IS NULL;
    IF o_done THEN
        RETURN;
    END IF;
    o_sessions := ARRAY(SELECT s.id FROM sessions s WHERE s.user_id = v_user ORDER BY s.id LIMIT p_sessions
                        FOR UPDATE);
    IF cardinality(o_sessions) > 0 THEN
        v_counts := delete_sessions(o_sessions);
    ELSE
        -- What the user's last calls may have cost counts in the budgets of all before the calls go. Their sessions
        -- are gone, so they are orphans. Only theirs: the locks of many users' in one transaction would be taken in
        -- another order than their own calls take them.
        LOOP
            EXIT WHEN charge_orphan_of(v_user) IS NULL;
        END LOOP;
        PERFORM health_lock(v_user, true);
        o_done := true;
        FOR v_name IN SELECT u.name FROM user_tables() u
        LOOP
            EXECUTE format('DELETE FROM %1$I WHERE ctid = ANY (ARRAY(
                            SELECT ctid FROM %1$I WHERE user_id = $1 LIMIT $2))', v_name) USING v_user, p_rows;
            GET DIAGNOSTICS v_rows = ROW_COUNT;
            v_counts := add_counts(v_counts, jsonb_build_object(v_name, v_rows));
            IF v_rows >= p_rows THEN
                o_done := false;
                EXIT;
            END IF;
            -- A row that is updated while the batch waits for it moves to another ctid and is missed; by its user it
            -- is found.
            EXECUTE format('DELETE FROM %I WHERE user_id = $1', v_name) USING v_user;
            GET DIAGNOSTICS v_rows = ROW_COUNT;
            v_counts := add_counts(v_counts, jsonb_build_object(v_name, v_rows));
        END LOOP;
    END IF;
    UPDATE erasures e
        SET counts = add_counts(e.counts, v_counts),
            next_at = clock_timestamp() + interval '10 seconds',
            erased_at = CASE WHEN o_done THEN clock_timestamp() END
        WHERE e.receipt = p_receipt;
    IF o_done THEN
        PERFORM finish_erasure(p_receipt);
    END IF;
END
$$;

-- Forgets whose erasure it was, once everything is done.
CREATE FUNCTION myhealth.finish_erasure(p_receipt uuid) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    UPDATE erasures SET pending_user = NULL, completed_at = clock_timestamp()
    WHERE receipt = p_receipt AND completed_at IS NULL AND erased_at IS NOT NULL AND account <> 'pending'
    $$;

-- Notes what became of the account (deleted | absent).
CREATE FUNCTION myhealth.account_erased(p_receipt uuid, p_account text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
BEGIN
    UPDATE erasures SET account = p_account WHERE receipt = p_receipt AND account = 'pending';
    PERFORM finish_erasure(p_receipt);
END
$$;

CREATE FUNCTION myhealth.read_erasure(p_receipt uuid) RETURNS SETOF myhealth.erasures
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$ SELECT * FROM erasures WHERE receipt = p_receipt $$;

-- Whether rows are still to be deleted, or an account is to be asked for now. A machine does not sleep over that;
-- but an issuer that stays away must not keep it awake for ever.
CREATE FUNCTION myhealth.erasures_due() RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    SELECT EXISTS (SELECT FROM erasures WHERE pending_user IS NOT NULL
                   AND (erased_at IS NULL OR next_at <= clock_timestamp()))
    $$;

-- Erasures that nobody goes on with, for the caller to go on with; tried again after growing waits, up to an hour.
CREATE FUNCTION myhealth.take_erasures(p_limit integer) RETURNS SETOF myhealth.erasures
    LANGUAGE sql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    UPDATE erasures e
        SET attempts = e.attempts + 1,
            next_at = clock_timestamp() + least(interval '5 seconds' * (2 ^ least(e.attempts, 12)),
                                                interval '1 hour')
        WHERE e.receipt IN (
            SELECT d.receipt FROM erasures d
            WHERE d.pending_user IS NOT NULL AND d.next_at <= clock_timestamp()
            ORDER BY d.next_at LIMIT p_limit FOR UPDATE SKIP LOCKED)
        RETURNING e.*
    $$;

-- After a restore from a backup: takes up again the erasures of users whose rows have come back. Returns how many.
CREATE FUNCTION myhealth.reopen_erasures(p_account boolean) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_name text;
    v_rows integer;
    v_count integer := 0;
BEGIN
    FOR v_name IN SELECT u.name FROM user_tables() u WHERE NOT u.of_session
    LOOP
        -- One look per user, not one per row: every such table has an index that begins with user_id.
        EXECUTE format(
            'WITH RECURSIVE users AS (
                (SELECT user_id FROM %1$I ORDER BY user_id LIMIT 1)
                UNION ALL
                SELECT (SELECT t.user_id FROM %1$I t WHERE t.user_id > u.user_id ORDER BY t.user_id LIMIT 1)
                FROM users u WHERE u.user_id IS NOT NULL)
            UPDATE erasures e
                SET pending_user = u.user_id, completed_at = NULL, erased_at = NULL, next_at = clock_timestamp(),
                    account = CASE WHEN $1 THEN ''pending'' ELSE e.account END
                FROM users u
                WHERE u.user_id IS NOT NULL AND e.user_key = erasure_key_of(u.user_id)
                  AND e.pending_user IS NULL', v_name) USING p_account;
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        v_count := v_count + v_rows;
    END LOOP;
    RETURN v_count;
END
$$;

-- --- retention ----------------------------------------------------------------------------------------

-- Deletes sessions without activity since p_before, whole; one with an unfinished turn is left alone.
CREATE FUNCTION myhealth.expire_sessions(p_before timestamptz, p_limit integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_sessions uuid[];
BEGIN
    v_sessions := ARRAY(
        SELECT s.id FROM sessions s
        WHERE s.owner IS NULL AND s.updated_at < p_before
          AND NOT EXISTS (SELECT FROM turns t WHERE t.session_id = s.id
                          AND t.state IN ('queued', 'running', 'waiting_device', 'waiting_approval'))
        ORDER BY s.id LIMIT p_limit FOR UPDATE SKIP LOCKED);
    PERFORM delete_sessions(v_sessions);
    RETURN cardinality(v_sessions);
END
$$;

-- Deletes one user's samples from before p_before, at most p_limit of each kind; the user is the first one after
-- p_after (NULL: the first of all). o_user: who it was, NULL after the last. o_more: call again with the same p_after.
CREATE FUNCTION myhealth.expire_samples(
    p_after uuid, p_before timestamptz, p_limit integer, OUT o_user uuid, OUT o_deleted bigint, OUT o_more boolean)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_least constant uuid := coalesce(p_after, '00000000-0000-0000-0000-000000000000');
    v_metric smallint;
    v_name text;
    v_rows bigint;
BEGIN
    o_deleted := 0;
    o_more := false;
    SELECT f.user_id INTO o_user FROM (
        (SELECT user_id FROM health_quantities WHERE user_id > v_least ORDER BY user_id LIMIT 1)
        UNION ALL (SELECT user_id FROM health_sleep WHERE user_id > v_least ORDER BY user_id LIMIT 1)
        UNION ALL (SELECT user_id FROM health_workouts WHERE user_id > v_least ORDER BY user_id LIMIT 1)
        UNION ALL (SELECT user_id FROM health_activity_summaries WHERE user_id > v_least ORDER BY user_id LIMIT 1)
    ) f ORDER BY f.user_id LIMIT 1;
    IF o_user IS NULL THEN
        RETURN;
    END IF;
    PERFORM health_lock(o_user, true);
    FOR v_metric IN SELECT id FROM health_metrics ORDER BY id
    LOOP
        DELETE FROM health_quantities WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM health_quantities
            WHERE user_id = o_user AND metric_id = v_metric AND start_at < p_before LIMIT p_limit));
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        o_deleted := o_deleted + v_rows;
        o_more := o_more OR v_rows >= p_limit;
    END LOOP;
    FOREACH v_name IN ARRAY ARRAY['health_sleep', 'health_workouts']
    LOOP
        EXECUTE format('DELETE FROM %1$I WHERE ctid = ANY (ARRAY(
                        SELECT ctid FROM %1$I WHERE user_id = $1 AND start_at < $2 LIMIT $3))', v_name)
            USING o_user, p_before, p_limit;
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        o_deleted := o_deleted + v_rows;
        o_more := o_more OR v_rows >= p_limit;
    END LOOP;
    DELETE FROM health_activity_summaries
        WHERE user_id = o_user AND date < (p_before AT TIME ZONE 'UTC')::date;
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    o_deleted := o_deleted + v_rows;
    IF o_deleted > 0 THEN
        -- No zone is more than 14 hours from UTC: one day more covers whichever it was computed in.
        DELETE FROM health_days WHERE user_id = o_user AND day <= (p_before AT TIME ZONE 'UTC')::date + 1;
        DELETE FROM health_sources c WHERE c.user_id = o_user AND NOT o_more
            AND NOT EXISTS (SELECT FROM health_quantities q WHERE q.user_id = o_user AND q.source_id = c.id)
            AND NOT EXISTS (SELECT FROM health_sleep q WHERE q.user_id = o_user AND q.source_id = c.id)
            AND NOT EXISTS (SELECT FROM health_workouts q WHERE q.user_id = o_user AND q.source_id = c.id);
    END IF;
END
$$;

-- Drops expired tombstones, then receipts that nobody can ask for any more. Returns how many changed.
CREATE FUNCTION myhealth.expire_erasures(p_tombstones timestamptz, p_receipts timestamptz) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_gone integer;
    v_count integer;
BEGIN
    DELETE FROM erasures WHERE completed_at < p_receipts AND completed_at < p_tombstones;
    GET DIAGNOSTICS v_gone = ROW_COUNT;
    UPDATE erasures SET user_key = NULL WHERE completed_at < p_tombstones AND user_key IS NOT NULL;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_gone + v_count;
END
$$;

-- As before, and what devices and users answered goes too: its result stands in the messages.
CREATE OR REPLACE FUNCTION myhealth.compact_logs(p_before timestamptz, p_limit integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_session sessions;
    v_count integer := 0;
BEGIN
    FOR v_session IN
        SELECT s.* FROM sessions s
        WHERE s.owner IS NULL AND s.updated_at < p_before
          AND (s.floor_epoch, s.floor_n) < (s.settled_epoch, s.settled_n)
          AND NOT EXISTS (SELECT FROM turns t WHERE t.session_id = s.id
                          AND t.state IN ('queued', 'running', 'waiting_device', 'waiting_approval'))
        LIMIT p_limit FOR UPDATE SKIP LOCKED
    LOOP
        DELETE FROM segments g
            WHERE g.session_id = v_session.id
              AND (g.epoch, g.last) <= (v_session.settled_epoch, v_session.settled_n);
        -- Without the hash a result that is sent again is refused, as any other would be.
        UPDATE tool_calls c SET input = '{}', content = NULL, answered_hash = NULL
            WHERE c.session_id = v_session.id AND c.state IN ('answered', 'expired');
        UPDATE sessions s SET floor_epoch = v_session.settled_epoch, floor_n = v_session.settled_n
            WHERE s.id = v_session.id;
        v_count := v_count + 1;
    END LOOP;
    RETURN v_count;
END
$$;
-- Those that shrank before this release.
UPDATE myhealth.tool_calls c SET input = '{}', content = NULL, answered_hash = NULL
    FROM myhealth.sessions s
    WHERE s.id = c.session_id AND c.state IN ('answered', 'expired')
      AND (s.floor_epoch, s.floor_n) = (s.settled_epoch, s.settled_n);

-- --- export -------------------------------------------------------------------------------------------

-- One export of a user at a time reads, wherever it is asked for. False: another one does.
CREATE FUNCTION myhealth.begin_export(p_user uuid) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM myhealth.act_as(p_user);
    RETURN pg_try_advisory_xact_lock(hashtextextended('export ' || p_user, 0));
END
$$;

-- The server reaches these through these functions alone.
REVOKE EXECUTE ON FUNCTION
    myhealth.erasure_key_of, myhealth.erasure_lock_of, myhealth.user_tables, myhealth.refuse_erased,
    myhealth.fence_erased_users, myhealth.collect_versions, myhealth.put_session, myhealth.add_counts,
    myhealth.delete_sessions, myhealth.begin_erasure, myhealth.erase_step, myhealth.finish_erasure,
    myhealth.account_erased, myhealth.read_erasure, myhealth.erasures_due, myhealth.take_erasures,
    myhealth.reopen_erasures, myhealth.expire_sessions, myhealth.expire_samples, myhealth.expire_erasures,
    myhealth.begin_export
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    myhealth.user_tables, myhealth.collect_versions, myhealth.put_session, myhealth.begin_erasure,
    myhealth.erase_step, myhealth.account_erased, myhealth.read_erasure, myhealth.erasures_due,
    myhealth.take_erasures, myhealth.expire_sessions, myhealth.expire_samples, myhealth.expire_erasures,
    myhealth.begin_export
    TO agent_backend;
