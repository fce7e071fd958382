-- Accepting a turn, with its gates: consents (0008), budgets (0009) and here how many unfinished turns a user may have
-- over all sessions, the one limit that must hold across machines.

CREATE INDEX turns_open_of_user ON myhealth.turns (user_id)
    WHERE state IN ('queued', 'running', 'waiting_device', 'waiting_approval');

CREATE FUNCTION myhealth.turns_open(p_user uuid) RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    SELECT count(*)::integer FROM turns t
        WHERE t.user_id = p_user AND t.state IN ('queued', 'running', 'waiting_device', 'waiting_approval')
    $$;

-- May this user have another unfinished turn? Two that ask at once, for two sessions, ask one after the other: the
-- lock lasts until the turn is committed, and its holder waits for no other lock of anybody. NULL is no limit.
CREATE FUNCTION myhealth.may_have_turn(p_user uuid, p_most integer) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
BEGIN
    IF p_most IS NULL THEN
        RETURN true;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('turns of ' || p_user, 0));
    RETURN turns_open(p_user) < p_most;
END
$$;

-- As in 0005_device_tools, with the gates that a new turn has to pass, each only if the server says what it is held
-- to (the previous release does not): consents, unfinished turns, budgets. status may also be consent_required (what is
-- missing stands in `missing`), too_many_turns, or the name of the budget that is used up. A turn that was accepted
-- before is found again whatever the gates say: nothing new is done for it.
DROP FUNCTION myhealth.accept_turn;
CREATE FUNCTION myhealth.accept_turn(
    p_user uuid, p_session uuid, p_turn uuid, p_hash bytea, p_message_id text, p_content json, p_on_busy text,
    p_run_started bytea, p_me uuid, p_live boolean, p_dead uuid[], p_max_queue integer,
    p_consents json DEFAULT NULL, p_limits json DEFAULT NULL,
    p_max_user_turns integer DEFAULT NULL,
    OUT status text, OUT state text, OUT owner uuid, OUT started boolean,
    OUT cursor_epoch bigint, OUT cursor_n integer, OUT claim myhealth.claim, OUT missing text[])
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
    missing := missing_consents_held(p_user, p_consents);
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
    ELSIF cardinality(missing) > 0 THEN
        status := 'consent_required';
    ELSE
        SELECT count(*) INTO v_busy FROM turns t
            WHERE t.session_id = p_session
              AND t.state IN ('queued', 'running', 'waiting_device', 'waiting_approval');
        -- The agent's own way stands in its frozen version.
        v_on_busy := coalesce(p_on_busy, (SELECT a.frozen ->> 'on_busy' FROM agent_versions a
                                          WHERE a.hash = v_session.agent_version), 'enqueue');
        status := CASE WHEN v_busy > 0 AND v_on_busy = 'reject' THEN 'busy'
                       WHEN v_busy >= p_max_queue THEN 'queue_full'
                       WHEN NOT may_have_turn(p_user, p_max_user_turns) THEN 'too_many_turns' ELSE 'created' END;
        IF status = 'created' THEN
            status := coalesce(over_budget(p_user, v_session.agent, p_limits, v_session.prompt_tokens), status);
        END IF;
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

REVOKE EXECUTE ON FUNCTION myhealth.turns_open, myhealth.may_have_turn, myhealth.accept_turn FROM PUBLIC;
GRANT EXECUTE ON FUNCTION myhealth.accept_turn TO agent_backend;
