-- Device tools and approvals: calls that somebody outside answers. Such a call parks its turn: the session is
-- given back, and the machine may sleep. The laws are told in docs/design/durability.md. In short:
--   * a parked turn holds no lease, and its session is given back in the very call that parks it;
--   * a call is answered once, under the session's lock, by whoever comes first: an answer, a new message, a
--     cancel, or its expiry, which happens only when somebody takes the session (so an answer that arrives
--     before that wins, however late it is);
--   * a parked turn is due when its deadline is over; the last answer brings the deadline forward to now. Who
--     takes a session that is due puts the turn back to running in the same call.

CREATE TABLE myhealth.tool_calls (
    session_id uuid NOT NULL,
    id text NOT NULL,                              -- the tool_use id
    turn_id uuid NOT NULL,
    user_id uuid NOT NULL,
    name text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('device', 'approval')),
    effects boolean NOT NULL DEFAULT false,        -- to be claimed by one device before it acts
    input json NOT NULL,
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'claimed', 'answered', 'expired')),
    device text,                                   -- who claimed it
    status text CHECK (status IN ('ok', 'empty_or_denied', 'locked', 'unavailable', 'declined', 'timeout')),
    content text,
    answered_hash bytea,                           -- NULL when no client has answered it
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    parked_epoch bigint NOT NULL,                  -- the position its turn was parked at
    parked_n integer NOT NULL,
    answered_at timestamptz,
    PRIMARY KEY (session_id, id),
    FOREIGN KEY (session_id, turn_id) REFERENCES myhealth.turns ON DELETE CASCADE,
    CHECK ((state IN ('answered', 'expired')) = (status IS NOT NULL)),
    CHECK (state <> 'claimed' OR device IS NOT NULL)
);
CREATE INDEX tool_calls_by_turn ON myhealth.tool_calls (session_id, turn_id);
-- What the sweep looks for beside work that is queued or running.
CREATE INDEX turns_parked ON myhealth.turns (deadline) WHERE state IN ('waiting_device', 'waiting_approval');

ALTER TABLE myhealth.tool_calls ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON myhealth.tool_calls FOR SELECT TO agent_backend
    USING (user_id = (SELECT myhealth.current_user_id()));
GRANT SELECT ON myhealth.tool_calls TO agent_backend;

-- --- parking ------------------------------------------------------------------------------------------

-- Parks the running turn: the events not yet persisted, the calls, the release, in one go. Sent again under
-- the same position it changes nothing and answers the same. status: parked | cancel (nothing was written: the
-- turn was asked to stop, which would otherwise wait for an answer or the deadline) | lost.
CREATE FUNCTION myhealth.park_turn(
    p_session uuid, p_me uuid, p_epoch bigint, p_turn uuid, p_first integer, p_last integer, p_events bytea,
    p_state text, p_timeout interval,
    p_ids text[], p_names text[], p_kinds text[], p_effects boolean[], p_inputs text[], OUT status text)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_session sessions;
    v_expires timestamptz := clock_timestamp() + p_timeout;
BEGIN
    SELECT * INTO v_session FROM sessions s WHERE s.id = p_session FOR UPDATE;
    status := 'parked';
    IF EXISTS (SELECT FROM segments WHERE session_id = p_session AND epoch = p_epoch AND last = p_last) THEN
        RETURN;
    END IF;
    IF v_session.owner IS DISTINCT FROM p_me OR v_session.epoch IS DISTINCT FROM p_epoch THEN
        status := 'lost';
        RETURN;
    END IF;
    IF (SELECT t.cancel_requested FROM turns t WHERE t.session_id = p_session AND t.id = p_turn) THEN
        status := 'cancel';
        RETURN;
    END IF;
    INSERT INTO segments (session_id, epoch, first, last, user_id, events)
        VALUES (p_session, p_epoch, p_first, p_last, v_session.user_id, p_events);
    INSERT INTO tool_calls (session_id, id, turn_id, user_id, name, kind, effects, input, expires_at,
                            parked_epoch, parked_n)
        SELECT p_session, c.id, p_turn, v_session.user_id, c.name, c.kind, c.effects, c.input::json, v_expires,
               p_epoch, p_last
        FROM unnest(p_ids, p_names, p_kinds, p_effects, p_inputs) AS c (id, name, kind, effects, input);
    -- Attempts count how often a turn brought down its owner; one that came this far did not.
    UPDATE turns t SET state = p_state, deadline = v_expires, attempts = 1
        WHERE t.session_id = p_session AND t.id = p_turn;
    UPDATE sessions s SET owner = NULL, settled_epoch = p_epoch, settled_n = p_last, updated_at = clock_timestamp()
        WHERE s.id = p_session;
END
$$;

-- Puts a parked turn that is due back to running; calls still open expire with that. The caller holds the
-- session's lock and takes the session, or has just taken it.
CREATE FUNCTION myhealth.unpark(p_session uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_turn uuid;
BEGIN
    UPDATE turns t SET state = 'queued'
        WHERE t.session_id = p_session AND t.state IN ('waiting_device', 'waiting_approval')
          AND t.deadline <= clock_timestamp()
        RETURNING t.id INTO v_turn;
    IF v_turn IS NOT NULL THEN
        UPDATE tool_calls c SET state = 'expired', status = 'timeout', answered_at = clock_timestamp()
            WHERE c.session_id = p_session AND c.turn_id = v_turn AND c.state IN ('pending', 'claimed');
        UPDATE turns t SET state = 'running', deadline = NULL, attempts = t.attempts + 1
            WHERE t.session_id = p_session AND t.id = v_turn;
    END IF;
END
$$;

-- Answers what is still open of a parked turn, because nobody waits for it any more; the turn is due with that.
-- The caller holds the session's lock.
CREATE FUNCTION myhealth.resolve_calls(p_session uuid, p_status text, p_content text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_turn uuid;
BEGIN
    UPDATE turns t SET deadline = clock_timestamp()
        WHERE t.session_id = p_session AND t.state IN ('waiting_device', 'waiting_approval')
        RETURNING t.id INTO v_turn;
    UPDATE tool_calls c
        SET state = 'answered', status = p_status, content = p_content, answered_at = clock_timestamp()
        WHERE c.session_id = p_session AND c.turn_id = v_turn AND c.state IN ('pending', 'claimed');
END
$$;

-- --- answers from outside -----------------------------------------------------------------------------

-- A device says that it will act on a call. status: claimed | not_found | not_claimable (an approval) |
-- conflict (another device's, or over).
CREATE FUNCTION myhealth.claim_tool_call(p_user uuid, p_session uuid, p_call text, p_device text, OUT status text)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_call tool_calls;
BEGIN
    PERFORM FROM sessions s WHERE s.id = p_session AND s.user_id = p_user FOR NO KEY UPDATE;
    IF FOUND THEN
        SELECT * INTO v_call FROM tool_calls c WHERE c.session_id = p_session AND c.id = p_call;
    END IF;
    IF v_call.id IS NULL THEN
        status := 'not_found';
    ELSIF v_call.kind <> 'device' THEN
        status := 'not_claimable';
    ELSIF v_call.state = 'claimed' AND v_call.device = p_device THEN
        status := 'claimed';
    ELSIF v_call.state = 'pending' THEN
        UPDATE tool_calls c SET state = 'claimed', device = p_device
            WHERE c.session_id = p_session AND c.id = p_call;
        status := 'claimed';
    ELSE
        status := 'conflict';
    END IF;
END
$$;

-- Takes an answer; the first one wins. The last one of a turn wakes it: the session is claimed in the same call
-- unless its owner lives. status: answered | same | conflict | expired | not_claimed (by the device that
-- answers) | not_found. woken: the turn goes on; claim is set when it was taken by this call.
CREATE FUNCTION myhealth.put_tool_result(
    p_user uuid, p_session uuid, p_call text, p_status text, p_content text, p_hash bytea, p_device text,
    p_me uuid, p_live boolean, p_dead uuid[], OUT status text, OUT woken boolean, OUT claim myhealth.claim)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_session sessions;
    v_call tool_calls;
    v_taken record;
BEGIN
    woken := false;
    SELECT * INTO v_session FROM sessions s WHERE s.id = p_session AND s.user_id = p_user FOR NO KEY UPDATE;
    IF FOUND THEN
        SELECT * INTO v_call FROM tool_calls c WHERE c.session_id = p_session AND c.id = p_call;
    END IF;
    status := CASE
        WHEN v_call.id IS NULL THEN 'not_found'
        WHEN v_call.answered_hash = p_hash THEN 'same'
        WHEN v_call.state = 'expired' THEN 'expired'
        WHEN v_call.state = 'answered' THEN 'conflict'
        WHEN (v_call.effects OR v_call.device IS NOT NULL) AND (v_call.device = p_device) IS NOT TRUE
            THEN 'not_claimed'
        ELSE 'answered' END;
    IF status <> 'answered' THEN
        RETURN;
    END IF;
    UPDATE tool_calls c
        SET state = 'answered', status = p_status, content = p_content, answered_hash = p_hash,
            answered_at = clock_timestamp()
        WHERE c.session_id = p_session AND c.id = p_call;
    IF EXISTS (SELECT FROM tool_calls c WHERE c.session_id = p_session AND c.turn_id = v_call.turn_id
               AND c.state IN ('pending', 'claimed')) THEN
        RETURN;
    END IF;
    woken := true;
    UPDATE turns t SET deadline = clock_timestamp() WHERE t.session_id = p_session AND t.id = v_call.turn_id;
    IF may_claim(v_session.owner, p_me, p_live, p_dead) THEN
        SELECT * INTO v_session FROM sessions s WHERE s.id = p_session FOR UPDATE;
        SELECT * INTO v_taken FROM take(v_session, p_me);
        claim := claim_of(v_taken.p_session, v_taken.next_n);
    END IF;
END
$$;

-- The calls of one turn, or those of the given ids, or (both NULL) those that wait for an answer now; under row
-- level security.
CREATE FUNCTION myhealth.read_tool_calls(p_user uuid, p_session uuid, p_turn uuid, p_ids text[])
    RETURNS TABLE (id text, turn_id uuid, name text, kind text, effects boolean, input text, state text,
                   device text, status text, content text, created_at timestamptz, expires_at timestamptz,
                   parked_epoch bigint, parked_n integer)
    LANGUAGE plpgsql STABLE
    AS $$
#variable_conflict use_column
BEGIN
    PERFORM myhealth.act_as(p_user);
    RETURN QUERY
    SELECT c.id, c.turn_id, c.name, c.kind, c.effects, c.input::text, c.state, c.device, c.status, c.content,
           c.created_at, c.expires_at, c.parked_epoch, c.parked_n
    FROM myhealth.tool_calls c
    WHERE c.session_id = p_session
      AND CASE WHEN p_turn IS NOT NULL THEN c.turn_id = p_turn
               WHEN p_ids IS NOT NULL THEN c.id = ANY (p_ids)
               ELSE c.state IN ('pending', 'claimed') END
    ORDER BY c.created_at, c.id;
END
$$;

-- --- ownership: what 0002_sessions has, for sessions that may be parked -----------------------------------

-- As before, and a parked turn that is due goes on: it ended cleanly, so there is no marker for it.
CREATE OR REPLACE FUNCTION myhealth.take(INOUT p_session myhealth.sessions, p_me uuid, OUT next_n integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_running uuid;
BEGIN
    UPDATE sessions s
        SET owner = p_me,
            epoch = greatest(s.epoch + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
        WHERE s.id = p_session.id
        RETURNING s.* INTO p_session;
    next_n := 1;
    UPDATE turns t SET attempts = t.attempts + 1
        WHERE t.session_id = p_session.id AND t.state = 'running'
        RETURNING t.id INTO v_running;
    IF v_running IS NOT NULL THEN
        INSERT INTO segments (session_id, epoch, first, last, user_id, events, through, settled_epoch, settled_n)
            VALUES (p_session.id, p_session.epoch, 1, 1024, p_session.user_id, '', p_session.last_message,
                    p_session.settled_epoch, p_session.settled_n);
        UPDATE sessions s SET settled_epoch = s.epoch, settled_n = 1024
            WHERE s.id = p_session.id RETURNING s.* INTO p_session;
        next_n := 1025;
    ELSE
        PERFORM unpark(p_session.id);
    END IF;
END
$$;

-- Gives a session that was just taken back if its turn stays parked. The caller's claim is void with that.
CREATE FUNCTION myhealth.keep_parked(INOUT p_claim myhealth.claim)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
BEGIN
    IF p_claim.turn_state IN ('waiting_device', 'waiting_approval') THEN
        UPDATE sessions SET owner = NULL WHERE id = p_claim.session_id;
        p_claim := NULL;
    END IF;
END
$$;

-- What is queued behind a parked turn waits with it; a parked turn that is due is work like any other.
CREATE OR REPLACE FUNCTION myhealth.claimable_sessions(p_me uuid, p_dead uuid[], p_live uuid[], p_limit integer)
    RETURNS TABLE (session_id uuid, epoch bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    SELECT DISTINCT s.id, s.epoch FROM turns t JOIN sessions s ON s.id = t.session_id
    WHERE (t.state = 'running'
           OR (t.state = 'queued' AND NOT EXISTS (
                SELECT FROM turns w WHERE w.session_id = t.session_id
                AND w.state IN ('waiting_device', 'waiting_approval')))
           OR (t.state IN ('waiting_device', 'waiting_approval') AND t.deadline <= clock_timestamp()))
      AND NOT s.id = ANY (p_live)
      AND may_claim(s.owner, p_me, false, p_dead)
    LIMIT p_limit
    $$;

CREATE OR REPLACE FUNCTION myhealth.claim_sessions(p_me uuid, p_dead uuid[], p_sessions uuid[], p_epochs bigint[])
    RETURNS SETOF myhealth.claim
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_seen record;
    v_session sessions;
    v_taken record;
    v_claim claim;
BEGIN
    FOR v_seen IN SELECT * FROM unnest(p_sessions, p_epochs) AS seen (id, epoch)
    LOOP
        SELECT * INTO v_session FROM sessions s
            WHERE s.id = v_seen.id AND s.epoch = v_seen.epoch FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND OR NOT may_claim(v_session.owner, p_me, false, p_dead);
        SELECT * INTO v_taken FROM take(v_session, p_me);
        v_claim := keep_parked(claim_of(v_taken.p_session, v_taken.next_n));
        CONTINUE WHEN v_claim.session_id IS NULL;
        RETURN NEXT v_claim;
    END LOOP;
END
$$;

-- As before, and a new message answers what its session waits for: who writes on has moved on.
CREATE OR REPLACE FUNCTION myhealth.accept_turn(
    p_user uuid, p_session uuid, p_turn uuid, p_hash bytea, p_message_id text, p_content json, p_on_busy text,
    p_run_started bytea, p_me uuid, p_live boolean, p_dead uuid[], p_max_queue integer,
    OUT status text, OUT state text, OUT owner uuid, OUT started boolean,
    OUT cursor_epoch bigint, OUT cursor_n integer, OUT claim myhealth.claim)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_lock record;
    v_session sessions;
    v_next integer;
    v_turn turns;
    v_busy integer;
    v_on_busy text;
BEGIN
    started := false;
    SELECT * INTO v_lock FROM lock_for_command(p_user, p_session, p_me, p_live, p_dead);
    v_session := v_lock.session;
    v_next := v_lock.next_n;
    IF v_session.id IS NULL THEN
        status := 'not_found';
        RETURN;
    END IF;
    owner := v_session.owner;
    cursor_epoch := v_session.settled_epoch;
    cursor_n := v_session.settled_n;
    SELECT * INTO v_turn FROM turns t WHERE t.session_id = p_session AND t.id = p_turn;
    IF FOUND THEN
        status := CASE WHEN v_turn.body_hash = p_hash THEN 'same' ELSE 'conflict' END;
        state := v_turn.state;
        cursor_epoch := coalesce(v_turn.start_epoch, cursor_epoch);
        cursor_n := coalesce(v_turn.start_n, cursor_n);
    ELSE
        SELECT count(*) INTO v_busy FROM turns t
            WHERE t.session_id = p_session
              AND t.state IN ('queued', 'running', 'waiting_device', 'waiting_approval');
        -- The agent's own way stands in its frozen version.
        v_on_busy := coalesce(p_on_busy, (SELECT a.frozen ->> 'on_busy' FROM agent_versions a
                                          WHERE a.hash = v_session.agent_version), 'enqueue');
        status := CASE WHEN v_busy > 0 AND v_on_busy = 'reject' THEN 'busy'
                       WHEN v_busy >= p_max_queue THEN 'queue_full' ELSE 'created' END;
    END IF;
    IF status = 'created' THEN
        IF v_on_busy = 'interrupt' THEN
            UPDATE turns t SET cancel_requested = true
                WHERE t.session_id = p_session
                  AND t.state IN ('queued', 'running', 'waiting_device', 'waiting_approval');
        END IF;
        PERFORM resolve_calls(p_session, 'unavailable', 'The user sent a new message instead.');
        IF v_lock.claimed THEN
            PERFORM unpark(p_session);
        END IF;
        INSERT INTO turns (session_id, id, user_id, seq, state, on_busy, body_hash, message_id, content)
            VALUES (p_session, p_turn, p_user, v_session.last_turn + 1, 'queued', v_on_busy, p_hash, p_message_id,
                    p_content);
        UPDATE sessions SET last_turn = last_turn + 1, updated_at = clock_timestamp() WHERE id = p_session;
        state := 'queued';
        IF v_lock.claimed AND v_busy = 0 THEN
            PERFORM begin_turn(v_session, p_turn, v_next, p_run_started);
            SELECT * INTO v_session FROM sessions s WHERE s.id = p_session;
            cursor_epoch := v_session.epoch;
            cursor_n := v_next - 1;
            v_next := v_next + 1;
            state := 'running';
            started := true;
        END IF;
    END IF;
    IF v_lock.claimed THEN
        claim := keep_parked(claim_of(v_session, v_next));
    END IF;
END
$$;

-- As before, and a parked turn is woken to end: its open calls are answered.
CREATE OR REPLACE FUNCTION myhealth.cancel_turn(
    p_user uuid, p_session uuid, p_turn uuid, p_me uuid, p_live boolean, p_dead uuid[],
    OUT status text, OUT state text, OUT owner uuid, OUT claim myhealth.claim)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_lock record;
    v_session sessions;
    v_next integer;
BEGIN
    SELECT * INTO v_lock FROM lock_for_command(p_user, p_session, p_me, p_live, p_dead);
    v_session := v_lock.session;
    v_next := v_lock.next_n;
    owner := v_session.owner;
    SELECT t.state INTO state FROM turns t WHERE t.session_id = v_session.id AND t.id = p_turn;
    IF state IS NULL THEN
        status := 'not_found';
    ELSIF state IN ('completed', 'failed', 'cancelled') THEN
        status := 'finished';
    ELSE
        status := 'requested';
        UPDATE turns t SET cancel_requested = true WHERE t.session_id = p_session AND t.id = p_turn;
        IF state IN ('waiting_device', 'waiting_approval') THEN
            PERFORM resolve_calls(p_session, 'declined', 'The user cancelled this call before it finished.');
            IF v_lock.claimed THEN
                PERFORM unpark(p_session);
            END IF;
        END IF;
    END IF;
    IF v_lock.claimed THEN
        claim := keep_parked(claim_of(v_session, v_next));
    END IF;
END
$$;

-- As before; a turn that became due while somebody held its session for a moment is work like any other. A turn
-- that is handed over in mid-turn by a server that leaves on purpose has brought nobody down: its attempt does not
-- count. Deploys back to back would otherwise use up a long turn's attempts.
CREATE OR REPLACE FUNCTION myhealth.release_session(
    p_session uuid, p_me uuid, p_epoch bigint, p_next_n integer, p_force boolean)
    RETURNS myhealth.claim
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_session sessions;
    v_claim claim;
BEGIN
    SELECT * INTO v_session FROM sessions s WHERE s.id = p_session FOR UPDATE;
    IF NOT FOUND OR v_session.owner IS DISTINCT FROM p_me OR v_session.epoch <> p_epoch THEN
        RETURN NULL;
    END IF;
    IF NOT p_force THEN
        PERFORM unpark(p_session);
    END IF;
    v_claim := claim_of(v_session, p_next_n);
    IF NOT p_force AND v_claim.turn_state IN ('queued', 'running') THEN
        RETURN v_claim;
    END IF;
    UPDATE sessions SET owner = NULL WHERE id = p_session;
    IF p_force THEN
        UPDATE turns t SET attempts = greatest(t.attempts - 1, 1)
            WHERE t.session_id = p_session AND t.state = 'running';
    END IF;
    RETURN NULL;
END
$$;

-- The server reaches these through these functions alone.
REVOKE EXECUTE ON FUNCTION
    myhealth.park_turn, myhealth.unpark, myhealth.resolve_calls, myhealth.claim_tool_call,
    myhealth.put_tool_result, myhealth.read_tool_calls, myhealth.keep_parked
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    myhealth.park_turn, myhealth.claim_tool_call, myhealth.put_tool_result, myhealth.read_tool_calls
    TO agent_backend;
