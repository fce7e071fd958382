-- Consents: who has agreed to what, in which words, and since when; and that nothing runs without.
-- The laws are told in docs/design/consent.md. In short:
--   * the rows are a history: a row is added, and later marked as withdrawn, once; nothing else ever changes;
--   * which purposes and versions something needs is the server's to say (`p_consents`, a JSON object: purpose ->
--     the versions that count); a server that says nothing, because it is older, is not held up;
--   * accepting work takes the user's lock in shared mode and withdrawing takes it alone. So a turn is either
--     accepted before a withdrawal, which then stops it, or refused after it;
--   * the user's lock comes before any session's.

CREATE TABLE myhealth.consents (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id uuid NOT NULL,
    purpose text NOT NULL CHECK (purpose ~ '^[a-z][a-z0-9_]{0,62}$'),
    version text NOT NULL CHECK (length(version) BETWEEN 1 AND 64),
    text_hash bytea NOT NULL CHECK (octet_length(text_hash) = 32),  -- SHA-256 of the text that was shown
    locale text NOT NULL CHECK (length(locale) BETWEEN 1 AND 35),
    client text CHECK (length(client) <= 200),                      -- the User-Agent it was given with
    given_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    withdrawn_at timestamptz
);
CREATE INDEX consents_in_force ON myhealth.consents (user_id, purpose, version) WHERE withdrawn_at IS NULL;
CREATE INDEX consents_by_user ON myhealth.consents (user_id, purpose, id);

-- Proof is worth nothing if it can be rewritten, by whatever fault.
CREATE FUNCTION myhealth.check_consent_history() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF OLD.withdrawn_at IS NOT NULL OR NEW.withdrawn_at IS NULL
       OR to_jsonb(NEW) - 'withdrawn_at' <> to_jsonb(OLD) - 'withdrawn_at' THEN
        RAISE EXCEPTION 'consent % can be withdrawn once, and not be changed', OLD.id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER consents_history BEFORE UPDATE ON myhealth.consents
    FOR EACH ROW EXECUTE FUNCTION myhealth.check_consent_history();

ALTER TABLE myhealth.consents ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON myhealth.consents FOR SELECT TO agent_backend
    USING (user_id = (SELECT myhealth.current_user_id()));
GRANT SELECT ON myhealth.consents TO agent_backend;

-- --- giving, reading, asking ----------------------------------------------------------------------------

-- The key of a user's lock: held shared while work is accepted, alone while consents change.
CREATE FUNCTION myhealth.consent_lock_key(p_user uuid) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT hashtextextended('myhealth.consents ' || p_user::text, 0) $$;

-- Notes a consent. The one that is in force already, given again, adds nothing.
CREATE FUNCTION myhealth.give_consent(
    p_user uuid, p_purpose text, p_version text, p_hash bytea, p_locale text, p_client text)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_last consents;
BEGIN
    PERFORM pg_advisory_xact_lock(consent_lock_key(p_user));
    SELECT * INTO v_last FROM consents c
        WHERE c.user_id = p_user AND c.purpose = p_purpose ORDER BY c.id DESC LIMIT 1;
    IF v_last.withdrawn_at IS NULL AND v_last.version = p_version AND v_last.text_hash = p_hash
       AND v_last.locale = p_locale THEN
        RETURN;
    END IF;
    INSERT INTO consents (user_id, purpose, version, text_hash, locale, client)
        VALUES (p_user, p_purpose, p_version, p_hash, p_locale, p_client);
END
$$;

-- The user's last word on each purpose; under row level security.
CREATE FUNCTION myhealth.read_consents(p_user uuid)
    RETURNS TABLE (purpose text, version text, text_hash bytea, locale text, given_at timestamptz,
                   withdrawn_at timestamptz)
    LANGUAGE plpgsql STABLE
    AS $$
#variable_conflict use_column
BEGIN
    PERFORM myhealth.act_as(p_user);
    RETURN QUERY
    SELECT DISTINCT ON (c.purpose) c.purpose, c.version, c.text_hash, c.locale, c.given_at, c.withdrawn_at
    FROM myhealth.consents c WHERE c.user_id = p_user ORDER BY c.purpose, c.id DESC;
END
$$;

-- The purposes among p_required (purpose -> versions that count) that the user has not consented to. Others may
-- call this inside a function of their own, to save a round trip.
CREATE FUNCTION myhealth.missing_consents(p_user uuid, p_required json) RETURNS text[]
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    SELECT coalesce(array_agg(r.key ORDER BY r.key), '{}') FROM json_each(p_required) r
    WHERE NOT EXISTS (
        SELECT FROM consents c
        WHERE c.user_id = p_user AND c.purpose = r.key AND c.withdrawn_at IS NULL
          AND c.version IN (SELECT json_array_elements_text(r.value)))
    $$;

-- The same, for the moment work is accepted: nobody withdraws until the caller's transaction is over.
CREATE FUNCTION myhealth.missing_consents_held(p_user uuid, p_required json) RETURNS text[]
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
BEGIN
    IF p_required IS NULL THEN
        RETURN '{}';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(consent_lock_key(p_user));
    RETURN missing_consents(p_user, p_required);
END
$$;

-- --- withdrawing ------------------------------------------------------------------------------------------

-- Takes a consent back. With p_ends_turns every unfinished turn of the user is asked to stop in the same
-- transaction, and parked ones are due with that; returns their sessions. Also when nothing was in force: then
-- somebody asks again whose first answer was lost.
CREATE FUNCTION myhealth.withdraw_consent(p_user uuid, p_purpose text, p_ends_turns boolean) RETURNS uuid[]
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_session uuid;
    v_sessions uuid[] := '{}';
BEGIN
    PERFORM pg_advisory_xact_lock(consent_lock_key(p_user));
    UPDATE consents c SET withdrawn_at = clock_timestamp()
        WHERE c.user_id = p_user AND c.purpose = p_purpose AND c.withdrawn_at IS NULL;
    IF p_ends_turns THEN
        FOR v_session IN
            SELECT s.id FROM sessions s
            WHERE s.user_id = p_user AND EXISTS (
                SELECT FROM turns t WHERE t.session_id = s.id
                AND t.state IN ('queued', 'running', 'waiting_device', 'waiting_approval'))
            ORDER BY s.id FOR NO KEY UPDATE OF s
        LOOP
            UPDATE turns t SET cancel_requested = true
                WHERE t.session_id = v_session
                  AND t.state IN ('queued', 'running', 'waiting_device', 'waiting_approval');
            PERFORM resolve_calls(v_session, 'declined', 'The user has withdrawn their consent.');
            v_sessions := v_sessions || v_session;
        END LOOP;
    END IF;
    RETURN v_sessions;
END
$$;

-- Does a living machine still run a turn of this user that was asked to stop?
CREATE FUNCTION myhealth.stopping_turns(p_user uuid) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    SELECT EXISTS (
        SELECT FROM sessions s JOIN turns t ON t.session_id = s.id JOIN machines m ON m.incarnation = s.owner
        WHERE s.user_id = p_user AND t.state = 'running' AND t.cancel_requested
          AND m.alive_until >= clock_timestamp())
    $$;

-- --- answering a call: what 0005_device_tools has, with a look at the consents ---------------------------------

DROP FUNCTION myhealth.put_tool_result(uuid, uuid, text, text, text, bytea, text, uuid, boolean, uuid[]);

-- As before; status may also be consent_required: an answer is data about the user's health, and wakes a turn.
CREATE FUNCTION myhealth.put_tool_result(
    p_user uuid, p_session uuid, p_call text, p_status text, p_content text, p_hash bytea, p_device text,
    p_me uuid, p_live boolean, p_dead uuid[], p_consents json DEFAULT NULL,
    OUT status text, OUT woken boolean, OUT claim myhealth.claim, OUT missing text[])
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_session sessions;
    v_call tool_calls;
    v_taken record;
BEGIN
    woken := false;
    missing := missing_consents_held(p_user, p_consents);
    SELECT * INTO v_session FROM sessions s WHERE s.id = p_session AND s.user_id = p_user FOR NO KEY UPDATE;
    IF FOUND THEN
        SELECT * INTO v_call FROM tool_calls c WHERE c.session_id = p_session AND c.id = p_call;
    END IF;
    status := CASE
        WHEN v_call.id IS NULL THEN 'not_found'
        WHEN v_call.answered_hash = p_hash THEN 'same'
        WHEN cardinality(missing) > 0 THEN 'consent_required'
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

-- The server reaches these through these functions alone.
REVOKE EXECUTE ON FUNCTION
    myhealth.check_consent_history, myhealth.consent_lock_key, myhealth.give_consent, myhealth.read_consents,
    myhealth.missing_consents, myhealth.missing_consents_held, myhealth.withdraw_consent, myhealth.stopping_turns,
    myhealth.put_tool_result
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    myhealth.give_consent, myhealth.read_consents, myhealth.missing_consents, myhealth.withdraw_consent,
    myhealth.stopping_turns, myhealth.put_tool_result
    TO agent_backend;
