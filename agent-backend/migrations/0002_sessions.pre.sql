-- Sessions, turns, messages and the event log; leases with epochs; accepting turns. Settling, group commit
-- and reading follow in 0004_event_log. One function call per operation.
-- The laws are told in docs/design/durability.md. In short:
--   * a session is written by its owner alone, and every write names owner and epoch;
--   * group commit takes FOR KEY SHARE, settling takes FOR NO KEY UPDATE, claiming and releasing take
--     FOR UPDATE: so a claim waits for every write of the epoch it ends, and no write of a dead epoch
--     can commit after the new owner has read;
--   * no foreign key points from segments to sessions: its check would lock the row once more.

-- Liveness only. A restarted machine replaces its row, so its older incarnation is gone at once.
CREATE TABLE myhealth.machines (
    id text PRIMARY KEY,
    incarnation uuid NOT NULL UNIQUE,
    alive_until timestamptz NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now()
);

-- What an agent was when a session began: prompt and tools, addressed by content.
CREATE TABLE myhealth.agent_versions (
    hash bytea PRIMARY KEY,
    name text NOT NULL,
    frozen json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE myhealth.sessions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    agent text NOT NULL,
    agent_version bytea NOT NULL REFERENCES myhealth.agent_versions,
    title text,
    body_hash bytea NOT NULL,
    owner uuid,                                    -- an incarnation of a machine
    epoch bigint NOT NULL DEFAULT 0,
    settled_epoch bigint NOT NULL DEFAULT 0,       -- position of the last settled event
    settled_n integer NOT NULL DEFAULT 0,
    floor_epoch bigint NOT NULL DEFAULT 0,         -- events up to here were compacted away
    floor_n integer NOT NULL DEFAULT 0,
    last_message integer NOT NULL DEFAULT 0,
    last_turn integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);                          -- every settle updates the row: leave room for HOT
CREATE INDEX sessions_by_user ON myhealth.sessions (user_id, created_at DESC, id);
CREATE INDEX sessions_owned ON myhealth.sessions (owner) WHERE owner IS NOT NULL;

CREATE TABLE myhealth.turns (
    session_id uuid NOT NULL REFERENCES myhealth.sessions ON DELETE CASCADE,
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    seq integer NOT NULL,
    state text NOT NULL CHECK (state IN ('queued', 'running', 'waiting_device', 'waiting_approval',
                                         'completed', 'failed', 'cancelled')),
    on_busy text NOT NULL CHECK (on_busy IN ('enqueue', 'reject', 'interrupt')),
    body_hash bytea NOT NULL,
    message_id text NOT NULL,
    content json NOT NULL,
    cancel_requested boolean NOT NULL DEFAULT false,
    attempts integer NOT NULL DEFAULT 0,           -- how often an owner began or took over this turn
    start_epoch bigint,                            -- position just before RUN_STARTED
    start_n integer,
    error_code text,
    model_calls integer NOT NULL DEFAULT 0,
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    cache_read_input_tokens bigint NOT NULL DEFAULT 0,
    cache_write_input_tokens bigint NOT NULL DEFAULT 0,
    cost_usd_micros bigint NOT NULL DEFAULT 0,
    deadline timestamptz,                          -- when a waiting call expires
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    PRIMARY KEY (session_id, id),
    UNIQUE (session_id, seq)
) WITH (fillfactor = 70);
-- A session runs one turn at a time, whatever the code believes.
CREATE UNIQUE INDEX turns_one_active ON myhealth.turns (session_id)
    WHERE state IN ('running', 'waiting_device', 'waiting_approval');
CREATE INDEX turns_unfinished ON myhealth.turns (session_id, seq)
    WHERE state IN ('queued', 'running', 'waiting_device', 'waiting_approval');

CREATE TABLE myhealth.messages (
    session_id uuid NOT NULL REFERENCES myhealth.sessions ON DELETE CASCADE,
    n integer NOT NULL,
    id text NOT NULL,
    turn_id uuid NOT NULL,
    user_id uuid NOT NULL,
    role text NOT NULL CHECK (role IN ('user', 'assistant', 'tool', 'system')),
    content json NOT NULL,                         -- the provider's content blocks, verbatim
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (session_id, n)
);

-- The event log: a segment holds events first..last of one epoch, joined by newlines. A marker
-- (`through` set, no events) says: an owner ended uncleanly; settled are the messages up to `through`,
-- and the events up to (settled_epoch, settled_n).
CREATE TABLE myhealth.segments (
    session_id uuid NOT NULL,
    epoch bigint NOT NULL,
    first integer NOT NULL,
    last integer NOT NULL,
    user_id uuid NOT NULL,
    events bytea NOT NULL,
    through integer,
    settled_epoch bigint,
    settled_n integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (session_id, epoch, last),
    CHECK (first BETWEEN 1 AND last)
);

-- Legal transitions of a turn; agent_backend/sessions.py holds the same table, and a test compares them.
CREATE FUNCTION myhealth.turn_may_go(p_from text, p_to text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT CASE p_from
        WHEN 'queued' THEN p_to IN ('running', 'cancelled', 'failed')
        WHEN 'running' THEN p_to IN ('waiting_device', 'waiting_approval', 'completed', 'failed', 'cancelled')
        WHEN 'waiting_device' THEN p_to IN ('queued', 'cancelled', 'failed')
        WHEN 'waiting_approval' THEN p_to IN ('queued', 'cancelled', 'failed')
        ELSE false
    END
    $$;

CREATE FUNCTION myhealth.check_turn_transition() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NOT myhealth.turn_may_go(OLD.state, NEW.state) THEN
        RAISE EXCEPTION 'turn % may not go from % to %', OLD.id, OLD.state, NEW.state
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER turns_transition BEFORE UPDATE OF state ON myhealth.turns
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state)
    EXECUTE FUNCTION myhealth.check_turn_transition();

ALTER TABLE myhealth.sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE myhealth.turns ENABLE ROW LEVEL SECURITY;
ALTER TABLE myhealth.messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE myhealth.segments ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON myhealth.sessions FOR SELECT TO agent_backend USING (user_id = (SELECT myhealth.current_user_id()));
CREATE POLICY own ON myhealth.turns FOR SELECT TO agent_backend USING (user_id = (SELECT myhealth.current_user_id()));
CREATE POLICY own ON myhealth.messages FOR SELECT TO agent_backend USING (user_id = (SELECT myhealth.current_user_id()));
CREATE POLICY own ON myhealth.segments FOR SELECT TO agent_backend USING (user_id = (SELECT myhealth.current_user_id()));
GRANT SELECT ON myhealth.sessions, myhealth.turns, myhealth.messages, myhealth.segments, myhealth.agent_versions
    TO agent_backend;

-- --- liveness -------------------------------------------------------------------------------------

CREATE FUNCTION myhealth.register_machine(p_id text, p_incarnation uuid, p_lease interval) RETURNS timestamptz
    LANGUAGE sql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    INSERT INTO machines (id, incarnation, alive_until)
    VALUES (p_id, p_incarnation, clock_timestamp() + p_lease)
    ON CONFLICT (id) DO UPDATE
        SET incarnation = excluded.incarnation, alive_until = excluded.alive_until, started_at = now()
    RETURNING alive_until
    $$;

-- One heartbeat: prolongs the lease and returns every machine's, so that others can be watched.
-- Under p_id another incarnation comes back when this one was superseded, and none when it was removed.
CREATE FUNCTION myhealth.beat(p_id text, p_incarnation uuid, p_lease interval)
    RETURNS TABLE (id text, incarnation uuid, alive_until timestamptz, database_time timestamptz)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
BEGIN
    UPDATE machines m SET alive_until = clock_timestamp() + p_lease
        WHERE m.id = p_id AND m.incarnation = p_incarnation;
    RETURN QUERY SELECT m.id, m.incarnation, m.alive_until, clock_timestamp() FROM machines m;
END
$$;

-- A clean goodbye, or the burial of a machine that was watched to be dead.
CREATE FUNCTION myhealth.remove_machine(p_incarnation uuid, p_only_if_expired boolean) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    DELETE FROM machines
        WHERE incarnation = p_incarnation AND (NOT p_only_if_expired OR alive_until < clock_timestamp())
    $$;

-- May p_me take a session owned by p_owner? p_dead: incarnations p_me has watched standing still for a
-- lease time; their expiry is checked again here, under the session's lock.
CREATE FUNCTION myhealth.may_claim(p_owner uuid, p_me uuid, p_live boolean, p_dead uuid[]) RETURNS boolean
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
BEGIN
    RETURN EXISTS (SELECT FROM machines WHERE incarnation = p_me) AND (
        p_owner IS NULL
        OR (p_owner = p_me AND NOT p_live)
        OR NOT EXISTS (SELECT FROM machines WHERE incarnation = p_owner)
        OR (p_owner = ANY (p_dead)
            AND EXISTS (SELECT FROM machines WHERE incarnation = p_owner AND alive_until < clock_timestamp()))
    );
END
$$;

-- --- claiming -------------------------------------------------------------------------------------

-- What an owner needs to go on with a session.
CREATE TYPE myhealth.claim AS (
    session_id uuid,
    user_id uuid,
    agent text,
    agent_version bytea,
    epoch bigint,
    next_n integer,
    last_message integer,
    turn_id uuid,
    turn_state text,
    message_id text,
    content text,
    cancel_requested boolean,
    attempts integer
);

-- The oldest unfinished turn of an owned session, as a claim.
CREATE FUNCTION myhealth.claim_of(p_session myhealth.sessions, p_next_n integer) RETURNS myhealth.claim
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    c claim;
BEGIN
    c.session_id := p_session.id;
    c.user_id := p_session.user_id;
    c.agent := p_session.agent;
    c.agent_version := p_session.agent_version;
    c.epoch := p_session.epoch;
    c.next_n := p_next_n;
    c.last_message := p_session.last_message;
    SELECT t.id, t.state, t.message_id, t.content::text, t.cancel_requested, t.attempts
        INTO c.turn_id, c.turn_state, c.message_id, c.content, c.cancel_requested, c.attempts
        FROM turns t
        WHERE t.session_id = p_session.id AND t.state IN ('queued', 'running', 'waiting_device', 'waiting_approval')
        ORDER BY t.seq LIMIT 1;
    RETURN c;
END
$$;

-- Takes the session for p_me: a new epoch, and after an unclean end a marker. The caller holds FOR UPDATE.
-- A marker spans 1024 positions, so that each event it is read as (closings, snapshot) has its own cursor.
CREATE FUNCTION myhealth.take(INOUT p_session myhealth.sessions, p_me uuid, OUT next_n integer)
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
    END IF;
END
$$;

-- Sessions with work to do whose owner is gone, and their epochs. p_live: sessions p_me runs already.
CREATE FUNCTION myhealth.claimable_sessions(p_me uuid, p_dead uuid[], p_live uuid[], p_limit integer)
    RETURNS TABLE (session_id uuid, epoch bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    SELECT DISTINCT s.id, s.epoch FROM turns t JOIN sessions s ON s.id = t.session_id
    WHERE t.state IN ('queued', 'running')
      AND NOT s.id = ANY (p_live)
      AND may_claim(s.owner, p_me, false, p_dead)
    LIMIT p_limit
    $$;

-- The sweep: takes those of them that are still in the epoch they were seen in. Without the epoch it would
-- take what a request has accepted meanwhile from its own machine, in mid-turn.
CREATE FUNCTION myhealth.claim_sessions(p_me uuid, p_dead uuid[], p_sessions uuid[], p_epochs bigint[])
    RETURNS SETOF myhealth.claim
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_seen record;
    v_session sessions;
    v_taken record;
BEGIN
    FOR v_seen IN SELECT * FROM unnest(p_sessions, p_epochs) AS seen (id, epoch)
    LOOP
        SELECT * INTO v_session FROM sessions s
            WHERE s.id = v_seen.id AND s.epoch = v_seen.epoch FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND OR NOT may_claim(v_session.owner, p_me, false, p_dead);
        SELECT * INTO v_taken FROM take(v_session, p_me);
        RETURN NEXT claim_of(v_taken.p_session, v_taken.next_n);
    END LOOP;
END
$$;

-- Which of these sessions has somebody else taken since p_me did? One that writes nothing, because the model
-- is silent, does not notice by itself.
CREATE FUNCTION myhealth.taken_sessions(p_me uuid, p_sessions uuid[], p_epochs bigint[]) RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    SELECT s.id FROM unnest(p_sessions, p_epochs) AS held (id, epoch) JOIN sessions s ON s.id = held.id
    WHERE s.epoch > held.epoch AND s.owner IS DISTINCT FROM p_me
    $$;

-- Gives the session back. With p_force also in mid-turn (drain); otherwise, when work is queued, the
-- session is kept and the next turn returned, so that no wake-up is lost. NULL: given back, or not ours.
CREATE FUNCTION myhealth.release_session(p_session uuid, p_me uuid, p_epoch bigint, p_next_n integer, p_force boolean)
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
    v_claim := claim_of(v_session, p_next_n);
    IF NOT p_force AND v_claim.turn_state IN ('queued', 'running') THEN
        RETURN v_claim;
    END IF;
    UPDATE sessions SET owner = NULL WHERE id = p_session;
    RETURN NULL;
END
$$;

-- --- accepting -------------------------------------------------------------------------------------

-- Registers what an agent is now; sessions keep the version they began with.
CREATE FUNCTION myhealth.put_agent_version(p_hash bytea, p_name text, p_frozen json) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$ INSERT INTO agent_versions (hash, name, frozen) VALUES (p_hash, p_name, p_frozen) ON CONFLICT DO NOTHING $$;

-- Insert or select, never an update: status created | same | conflict | not_found (somebody else's id).
CREATE FUNCTION myhealth.put_session(p_user uuid, p_id uuid, p_agent text, p_version bytea, p_title text, p_hash bytea)
    RETURNS TABLE (status text, agent text, title text, created_at timestamptz, settled_epoch bigint, settled_n integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    v_inserted uuid;
BEGIN
    INSERT INTO sessions (id, user_id, agent, agent_version, title, body_hash)
        VALUES (p_id, p_user, p_agent, p_version, p_title, p_hash)
        ON CONFLICT (id) DO NOTHING RETURNING id INTO v_inserted;
    RETURN QUERY
        SELECT CASE WHEN v_inserted IS NOT NULL THEN 'created'
                    WHEN s.body_hash = p_hash THEN 'same' ELSE 'conflict' END,
               s.agent, s.title, s.created_at, s.settled_epoch, s.settled_n
        FROM sessions s WHERE s.id = p_id AND s.user_id = p_user;
END
$$;

-- Locks a session of this user for a command. When its owner is gone it is taken in the same call
-- (claimed = true), so that an accepted command never waits for a sweep.
CREATE FUNCTION myhealth.lock_for_command(
    p_user uuid, p_session uuid, p_me uuid, p_live boolean, p_dead uuid[],
    OUT session myhealth.sessions, OUT claimed boolean, OUT next_n integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_taken record;
BEGIN
    claimed := false;
    SELECT * INTO session FROM sessions s WHERE s.id = p_session AND s.user_id = p_user FOR NO KEY UPDATE;
    IF NOT FOUND OR NOT may_claim(session.owner, p_me, p_live, p_dead) THEN
        RETURN;
    END IF;
    -- The stronger lock waits for the group commits of the epoch that ends here.
    SELECT * INTO session FROM sessions s WHERE s.id = p_session FOR UPDATE;
    SELECT * INTO v_taken FROM take(session, p_me);
    session := v_taken.p_session;
    next_n := v_taken.next_n;
    claimed := true;
END
$$;

-- Moves the oldest queued turn to running: its user message, its RUN_STARTED, its start position.
-- The caller holds the session's lock. Returns the turn's new message count.
CREATE FUNCTION myhealth.begin_turn(p_session myhealth.sessions, p_turn uuid, p_n integer, p_run_started bytea)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
BEGIN
    UPDATE turns SET state = 'running', started_at = clock_timestamp(), attempts = attempts + 1,
                     start_epoch = p_session.epoch, start_n = p_n - 1
        WHERE session_id = p_session.id AND id = p_turn;
    INSERT INTO messages (session_id, n, id, turn_id, user_id, role, content)
        SELECT session_id, p_session.last_message + 1, message_id, id, user_id, 'user', content
        FROM turns WHERE session_id = p_session.id AND id = p_turn;
    INSERT INTO segments (session_id, epoch, first, last, user_id, events)
        VALUES (p_session.id, p_session.epoch, p_n, p_n, p_session.user_id, p_run_started);
    UPDATE sessions SET last_message = p_session.last_message + 1, updated_at = clock_timestamp(),
                        settled_epoch = p_session.epoch, settled_n = p_n
        WHERE id = p_session.id;
END
$$;

-- Accepts a turn. status: created | same | conflict | not_found | busy | queue_full.
-- claim is set when the session was taken by this call; started says whether the turn runs already.
CREATE FUNCTION myhealth.accept_turn(
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
        claim := claim_of(v_session, v_next);
    END IF;
END
$$;

-- Begins a queued turn of a session one owns. begun = false: the lease is lost. cancel: the turn was asked to
-- stop, perhaps after the claim that named it was read.
CREATE FUNCTION myhealth.start_turn(
    p_session uuid, p_me uuid, p_epoch bigint, p_turn uuid, p_n integer, p_run_started bytea,
    OUT begun boolean, OUT cancel boolean)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_session sessions;
BEGIN
    SELECT * INTO v_session FROM sessions s WHERE s.id = p_session FOR NO KEY UPDATE;
    begun := EXISTS (SELECT FROM segments WHERE session_id = p_session AND epoch = p_epoch AND last = p_n);
    IF NOT begun THEN   -- else sent again after an unknown outcome
        IF v_session.owner IS DISTINCT FROM p_me OR v_session.epoch <> p_epoch THEN
            RETURN;
        END IF;
        PERFORM begin_turn(v_session, p_turn, p_n, p_run_started);
        begun := true;
    END IF;
    SELECT t.cancel_requested INTO cancel FROM turns t WHERE t.session_id = p_session AND t.id = p_turn;
END
$$;

-- Asks for a turn's end. status: not_found | requested | finished (too late, or already).
CREATE FUNCTION myhealth.cancel_turn(
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
    END IF;
    IF v_lock.claimed THEN
        claim := claim_of(v_session, v_next);
    END IF;
END
$$;

-- Running turns of these sessions that somebody asked to stop, perhaps on another machine.
CREATE FUNCTION myhealth.requested_cancels(p_sessions uuid[]) RETURNS TABLE (session_id uuid, turn_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    SELECT t.session_id, t.id FROM turns t
    WHERE t.session_id = ANY (p_sessions) AND t.state = 'running' AND t.cancel_requested
    $$;

-- The server reaches these tables through these functions alone.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA myhealth FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    myhealth.register_machine,
    myhealth.beat,
    myhealth.remove_machine,
    myhealth.claimable_sessions,
    myhealth.claim_sessions,
    myhealth.taken_sessions,
    myhealth.release_session,
    myhealth.put_agent_version,
    myhealth.put_session,
    myhealth.accept_turn,
    myhealth.start_turn,
    myhealth.cancel_turn,
    myhealth.requested_cancels
    TO agent_backend;
