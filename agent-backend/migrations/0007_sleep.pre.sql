-- Sleeping: may this machine go, or is there work that nobody else does?

-- Unfinished turns that are free, this machine's, or of an owner that is not alive: those wait for somebody.
-- A living machine's are its own business, and parked ones are the phone's until they expire.
CREATE FUNCTION myhealth.work_left(p_me uuid) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    SELECT EXISTS (
        SELECT FROM turns t JOIN sessions s ON s.id = t.session_id
        WHERE (t.state = 'running'
               OR (t.state = 'queued' AND NOT EXISTS (
                    SELECT FROM turns w WHERE w.session_id = t.session_id
                    AND w.state IN ('waiting_device', 'waiting_approval')))
               OR (t.state IN ('waiting_device', 'waiting_approval') AND t.deadline <= clock_timestamp()))
          AND NOT EXISTS (SELECT FROM machines m WHERE m.incarnation = s.owner AND m.incarnation <> p_me
                          AND m.alive_until >= clock_timestamp()))
    $$;

REVOKE EXECUTE ON FUNCTION myhealth.work_left FROM PUBLIC;
GRANT EXECUTE ON FUNCTION myhealth.work_left TO agent_backend;

-- As before, but a turn that is handed over in mid-turn by a server that leaves on purpose has brought nobody
-- down: its attempt does not count. Deploys back to back would otherwise use up a long turn's attempts.
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
