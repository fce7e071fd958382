-- The event log: settling, group commit, reading, compaction. Tables, leases and locks: 0002_sessions.

-- --- settling ---------------------------------------------------------------------------------------

-- Settles a step in one go: its messages, the events not yet persisted, and for the last step the end of
-- the turn and the release of the session. Sent again under the same position it changes nothing and
-- answers the same. status: settled | lost. next: the turn to go on with, if the session was kept.
CREATE FUNCTION myhealth.settle(
    p_session uuid, p_me uuid, p_epoch bigint, p_turn uuid,
    p_message_ids text[], p_roles text[], p_contents text[],
    p_first integer, p_last integer, p_events bytea,
    p_final_state text, p_error_code text,
    p_model_calls integer, p_input_tokens bigint, p_output_tokens bigint,
    p_cache_read bigint, p_cache_write bigint, p_cost bigint,
    OUT status text, OUT again boolean, OUT cancel boolean, OUT next myhealth.claim)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_session sessions;
BEGIN
    cancel := false;
    IF p_final_state IS NULL THEN
        SELECT * INTO v_session FROM sessions s WHERE s.id = p_session FOR NO KEY UPDATE;
    ELSE
        SELECT * INTO v_session FROM sessions s WHERE s.id = p_session FOR UPDATE;
    END IF;
    again := EXISTS (SELECT FROM segments WHERE session_id = p_session AND epoch = p_epoch AND last = p_last);
    IF NOT again AND (v_session.owner IS DISTINCT FROM p_me OR v_session.epoch IS DISTINCT FROM p_epoch) THEN
        status := 'lost';
        RETURN;
    END IF;
    status := 'settled';
    IF NOT again THEN
        INSERT INTO messages (session_id, n, id, turn_id, user_id, role, content)
            SELECT p_session, v_session.last_message + m.i, m.id, p_turn, v_session.user_id, m.role, m.content::json
            FROM unnest(p_message_ids, p_roles, p_contents) WITH ORDINALITY AS m (id, role, content, i);
        INSERT INTO segments (session_id, epoch, first, last, user_id, events)
            VALUES (p_session, p_epoch, p_first, p_last, v_session.user_id, p_events);
        UPDATE turns t
            SET state = coalesce(p_final_state, t.state), error_code = p_error_code,
                finished_at = CASE WHEN p_final_state IS NULL THEN NULL ELSE clock_timestamp() END,
                model_calls = t.model_calls + p_model_calls,
                input_tokens = t.input_tokens + p_input_tokens, output_tokens = t.output_tokens + p_output_tokens,
                cache_read_input_tokens = t.cache_read_input_tokens + p_cache_read,
                cache_write_input_tokens = t.cache_write_input_tokens + p_cache_write,
                cost_usd_micros = t.cost_usd_micros + p_cost
            WHERE t.session_id = p_session AND t.id = p_turn
            RETURNING t.cancel_requested INTO cancel;
        v_session.last_message := v_session.last_message + cardinality(p_message_ids);
    END IF;
    IF p_final_state IS NOT NULL AND v_session.owner = p_me AND v_session.epoch = p_epoch THEN
        next := claim_of(v_session, p_last + 1);
        IF next.turn_state IS DISTINCT FROM 'queued' THEN
            next := NULL;
            v_session.owner := NULL;
        END IF;
    END IF;
    IF NOT again THEN
        UPDATE sessions s
            SET last_message = v_session.last_message, settled_epoch = p_epoch, settled_n = p_last,
                owner = v_session.owner, updated_at = clock_timestamp()
            WHERE s.id = p_session;
    END IF;
END
$$;

-- Group commit: one row per session, for those whose lease is held; returns the sessions it kept.
-- Locks in id order, and only FOR KEY SHARE: settles of other sessions are not held up.
CREATE FUNCTION myhealth.append_segments(
    p_me uuid, p_sessions uuid[], p_epochs bigint[], p_firsts integer[], p_lasts integer[], p_events bytea[])
    RETURNS SETOF uuid
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
BEGIN
    RETURN QUERY
    WITH held AS MATERIALIZED (
        SELECT s.id, s.epoch, s.user_id FROM sessions s
        WHERE s.id = ANY (p_sessions) AND s.owner = p_me ORDER BY s.id FOR KEY SHARE
    ), kept AS MATERIALIZED (
        SELECT w.*, h.user_id
        FROM unnest(p_sessions, p_epochs, p_firsts, p_lasts, p_events) AS w (id, epoch, first, last, events)
        JOIN held h ON h.id = w.id AND h.epoch = w.epoch
    ), written AS (
        INSERT INTO segments (session_id, epoch, first, last, user_id, events)
            SELECT k.id, k.epoch, k.first, k.last, k.user_id, k.events FROM kept k
            ON CONFLICT DO NOTHING
    )
    SELECT k.id FROM kept k;
END
$$;

-- --- reading: SECURITY INVOKER, under row level security ---------------------------------------------

-- The log after a position, with what a reader must know to join the live stream. No row: not this user's.
CREATE FUNCTION myhealth.read_log(p_user uuid, p_session uuid, p_epoch bigint, p_n integer, p_limit integer)
    RETURNS TABLE (owner uuid, epoch bigint, settled_epoch bigint, settled_n integer, floor_epoch bigint,
                   floor_n integer, cursor_epoch_last integer, epochs bigint[], firsts integer[], lasts integer[],
                   events bytea[], throughs integer[], marker_epochs bigint[], marker_ns integer[])
    LANGUAGE plpgsql STABLE
    AS $$
#variable_conflict use_column
BEGIN
    PERFORM myhealth.act_as(p_user);
    RETURN QUERY
    SELECT s.owner, s.epoch, s.settled_epoch, s.settled_n, s.floor_epoch, s.floor_n,
           (SELECT max(x.last) FROM myhealth.segments x WHERE x.session_id = p_session AND x.epoch = p_epoch),
           l.epochs, l.firsts, l.lasts, l.events, l.throughs, l.marker_epochs, l.marker_ns
    FROM myhealth.sessions s,
         LATERAL (
            SELECT array_agg(g.epoch) AS epochs, array_agg(g.first) AS firsts, array_agg(g.last) AS lasts,
                   array_agg(g.events) AS events, array_agg(g.through) AS throughs,
                   array_agg(g.settled_epoch) AS marker_epochs, array_agg(g.settled_n) AS marker_ns
            FROM (SELECT x.* FROM myhealth.segments x
                  WHERE x.session_id = p_session AND (x.epoch, x.last) > (p_epoch, p_n)
                  ORDER BY x.epoch, x.last LIMIT p_limit) g
         ) l
    WHERE s.id = p_session;
END
$$;

-- Messages after_n < n <= through (NULL: all settled), with the position they are settled at and the turn
-- that is active there (or was the last): one statement, so that snapshot and cursor belong together.
CREATE FUNCTION myhealth.read_messages(p_user uuid, p_session uuid, p_after integer, p_through integer, p_limit integer)
    RETURNS TABLE (settled_epoch bigint, settled_n integer, last_message integer, turn_id uuid, turn_state text,
                   ns integer[], ids text[], turn_ids uuid[], roles text[], contents text[])
    LANGUAGE plpgsql STABLE
    AS $$
#variable_conflict use_column
BEGIN
    PERFORM myhealth.act_as(p_user);
    RETURN QUERY
    SELECT s.settled_epoch, s.settled_n, s.last_message, t.id, t.state, l.ns, l.ids, l.turn_ids, l.roles, l.contents
    FROM myhealth.sessions s
    LEFT JOIN LATERAL (
        SELECT x.id, x.state FROM myhealth.turns x
        WHERE x.session_id = p_session AND x.start_epoch IS NOT NULL ORDER BY x.seq DESC LIMIT 1
    ) t ON true
    CROSS JOIN LATERAL (
        SELECT array_agg(g.n) AS ns, array_agg(g.id) AS ids, array_agg(g.turn_id) AS turn_ids,
               array_agg(g.role) AS roles, array_agg(g.content::text) AS contents
        FROM (SELECT x.* FROM myhealth.messages x
              WHERE x.session_id = p_session AND x.n > p_after AND x.n <= coalesce(p_through, s.last_message)
              ORDER BY x.n LIMIT p_limit) g
    ) l
    WHERE s.id = p_session;
END
$$;

CREATE FUNCTION myhealth.read_turn(p_user uuid, p_session uuid, p_turn uuid)
    RETURNS TABLE (state text, error_code text, cancel_requested boolean, created_at timestamptz,
                   started_at timestamptz, finished_at timestamptz, cursor_epoch bigint, cursor_n integer,
                   model_calls integer, input_tokens bigint, output_tokens bigint,
                   cache_read_input_tokens bigint, cache_write_input_tokens bigint, cost_usd_micros bigint)
    LANGUAGE plpgsql STABLE
    AS $$
#variable_conflict use_column
BEGIN
    PERFORM myhealth.act_as(p_user);
    RETURN QUERY
    SELECT t.state, t.error_code, t.cancel_requested, t.created_at, t.started_at, t.finished_at,
           coalesce(t.start_epoch, s.settled_epoch), coalesce(t.start_n, s.settled_n),
           t.model_calls, t.input_tokens, t.output_tokens, t.cache_read_input_tokens,
           t.cache_write_input_tokens, t.cost_usd_micros
    FROM myhealth.turns t JOIN myhealth.sessions s ON s.id = t.session_id
    WHERE t.session_id = p_session AND t.id = p_turn;
END
$$;

CREATE FUNCTION myhealth.read_sessions(p_user uuid, p_before timestamptz, p_before_id uuid, p_limit integer, p_id uuid)
    RETURNS TABLE (id uuid, agent text, title text, created_at timestamptz, updated_at timestamptz,
                   settled_epoch bigint, settled_n integer)
    LANGUAGE plpgsql STABLE
    AS $$
#variable_conflict use_column
BEGIN
    PERFORM myhealth.act_as(p_user);
    RETURN QUERY
    SELECT s.id, s.agent, s.title, s.created_at, s.updated_at, s.settled_epoch, s.settled_n
    FROM myhealth.sessions s
    WHERE s.user_id = p_user
      AND (p_id IS NULL OR s.id = p_id)
      AND (p_before IS NULL OR (s.created_at, s.id) < (p_before, p_before_id))
    ORDER BY s.created_at DESC, s.id DESC LIMIT p_limit;
END
$$;

-- --- compaction ---------------------------------------------------------------------------------------

-- Drops the events of turns that ended before p_before (their messages stay) and raises the log's floor.
-- A session with an active turn is left alone. Returns how many sessions shrank.
CREATE FUNCTION myhealth.compact_logs(p_before timestamptz, p_limit integer) RETURNS integer
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
        UPDATE sessions s SET floor_epoch = v_session.settled_epoch, floor_n = v_session.settled_n
            WHERE s.id = v_session.id;
        v_count := v_count + 1;
    END LOOP;
    RETURN v_count;
END
$$;

-- The server reaches the log through these functions alone.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA myhealth FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    myhealth.settle,
    myhealth.append_segments,
    myhealth.read_log,
    myhealth.read_messages,
    myhealth.read_turn,
    myhealth.read_sessions,
    myhealth.compact_logs
    TO agent_backend;
