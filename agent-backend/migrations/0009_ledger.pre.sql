-- The money ledger: what model calls may cost, and what they came to. All money is in millionths of a US dollar.
-- The laws are told in docs/design/budgets.md. In short:
--   * before a model call its worst case is reserved, in one function call; the step's own settle closes it;
--   * of every scope (a user's day and month, an agent's day with a user, the global day and month) what is
--     spent and what is reserved together never exceed the cap, unless a call came to more than was reserved;
--   * a call whose end nobody has told is charged its whole reservation, as `estimated`: by the next reserve of
--     its session or by the sweep. The session's epoch tells which calls these are;
--   * the global caps are drawn in allotments, one row per machine and day: machines do not queue for one row;
--   * locks are taken in this order: session, call, the user's rows ('' first), allotments, the global lock.

CREATE TABLE myhealth.model_calls (
    id uuid PRIMARY KEY,                           -- made by the server before it reserves
    user_id uuid NOT NULL,
    session_id uuid NOT NULL,
    turn_id uuid NOT NULL,
    agent text NOT NULL,
    epoch bigint NOT NULL,                         -- of the session: a call of a dead epoch is an orphan
    machine uuid NOT NULL,                         -- the incarnation whose allotment it is drawn from
    day date NOT NULL,                             -- UTC, of the reservation: every charge counts on it
    state text NOT NULL DEFAULT 'reserved' CHECK (state IN ('reserved', 'settled', 'estimated', 'released')),
    reserved bigint NOT NULL CHECK (reserved >= 0),
    charged bigint NOT NULL DEFAULT 0 CHECK (charged >= 0),
    prompt_tokens bigint NOT NULL DEFAULT 0,       -- cached ones included
    output_tokens bigint NOT NULL DEFAULT 0,
    request_id text,                               -- the provider's name for the call, to compare bills by
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at timestamptz
);
CREATE INDEX model_calls_open ON myhealth.model_calls (session_id) WHERE state = 'reserved';
CREATE INDEX model_calls_by_user ON myhealth.model_calls (user_id, day);

-- What a user has spent this day and this month; agent '' is the sum over all agents. `estimated` is a part of
-- `spent`. A row is rolled on at the first reserve of a new day.
CREATE TABLE myhealth.spending (
    user_id uuid NOT NULL,
    agent text NOT NULL,
    day date NOT NULL,
    day_spent bigint NOT NULL DEFAULT 0,
    day_estimated bigint NOT NULL DEFAULT 0,
    day_reserved bigint NOT NULL DEFAULT 0,
    month date NOT NULL,                           -- its first day
    month_spent bigint NOT NULL DEFAULT 0,
    month_estimated bigint NOT NULL DEFAULT 0,
    month_reserved bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, agent)
) WITH (fillfactor = 50);                          -- two updates per model call: leave room for HOT

-- A machine's share of the global caps: it may spend `granted` without asking anybody.
CREATE TABLE myhealth.allotments (
    machine uuid NOT NULL,                         -- an incarnation
    day date NOT NULL,
    granted bigint NOT NULL DEFAULT 0,
    spent bigint NOT NULL DEFAULT 0,
    reserved bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (machine, day)
) WITH (fillfactor = 20);

-- What machines have drawn of a day (its own date) or a month (scope 'month', its first day). `spent` is what
-- came from allotments that are closed; the open ones hold the rest.
CREATE TABLE myhealth.global_spending (
    scope text NOT NULL CHECK (scope IN ('day', 'month')),
    starts date NOT NULL,
    drawn bigint NOT NULL DEFAULT 0,
    spent bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (scope, starts)
);

-- The prompt of the session's last settled call: what the next one's is estimated by.
ALTER TABLE myhealth.sessions ADD COLUMN prompt_bytes integer, ADD COLUMN prompt_tokens integer;

ALTER TABLE myhealth.model_calls ENABLE ROW LEVEL SECURITY;
ALTER TABLE myhealth.spending ENABLE ROW LEVEL SECURITY;
ALTER TABLE myhealth.allotments ENABLE ROW LEVEL SECURITY;       -- no policy: through functions alone
ALTER TABLE myhealth.global_spending ENABLE ROW LEVEL SECURITY;  -- likewise
CREATE POLICY own ON myhealth.model_calls FOR SELECT TO agent_backend USING (user_id = (SELECT myhealth.current_user_id()));
CREATE POLICY own ON myhealth.spending FOR SELECT TO agent_backend USING (user_id = (SELECT myhealth.current_user_id()));
GRANT SELECT ON myhealth.model_calls, myhealth.spending TO agent_backend;

CREATE FUNCTION myhealth.utc_day(p_at timestamptz) RETURNS date
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT (p_at AT TIME ZONE 'UTC')::date $$;

CREATE FUNCTION myhealth.month_of(p_day date) RETURNS date
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT p_day - (extract(day FROM p_day)::integer - 1) $$;

-- When a scope's cap is fresh again: a name that ends in `month` on the first of the next, else at midnight. UTC.
CREATE FUNCTION myhealth.resets_at(p_scope text, p_day date) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT (CASE WHEN p_scope LIKE '%month' THEN myhealth.month_of(p_day) + interval '1 month'
                 ELSE p_day + interval '1 day' END) AT TIME ZONE 'UTC'
    $$;

-- --- global caps ----------------------------------------------------------------------------------------

-- One at a time changes what is drawn. It waits for nobody while it holds this: allotments in use are skipped.
CREATE FUNCTION myhealth.lock_global() RETURNS void
    LANGUAGE sql
    AS $$ SELECT pg_advisory_xact_lock(7310422) $$;

-- Gives back what allotments hold and do not use, but for p_except's. A machine that lives draws again; one that
-- is gone, or whose day is over, loses the row once nothing of it is reserved. The caller holds lock_global.
CREATE FUNCTION myhealth.return_idle(p_except uuid, p_day date, p_only_gone boolean) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_row record;
BEGIN
    FOR v_row IN
        SELECT a.*, a.granted - a.spent - a.reserved AS idle, g.gone FROM allotments a,
            LATERAL (SELECT a.day < p_day OR NOT EXISTS (
                SELECT FROM machines m WHERE m.incarnation = a.machine AND m.alive_until > clock_timestamp()
            ) AS gone) g
            WHERE a.machine <> p_except AND (g.gone OR NOT p_only_gone)
            ORDER BY a.machine, a.day FOR UPDATE OF a SKIP LOCKED
    LOOP
        UPDATE global_spending g SET drawn = g.drawn - v_row.idle
            WHERE (g.scope = 'day' AND g.starts = v_row.day)
               OR (g.scope = 'month' AND g.starts = month_of(v_row.day));
        IF v_row.gone AND v_row.reserved = 0 THEN
            UPDATE global_spending g SET spent = g.spent + v_row.spent
                WHERE (g.scope = 'day' AND g.starts = v_row.day)
                   OR (g.scope = 'month' AND g.starts = month_of(v_row.day));
            DELETE FROM allotments a WHERE a.machine = v_row.machine AND a.day = v_row.day;
        ELSE
            UPDATE allotments a SET granted = a.granted - v_row.idle
                WHERE a.machine = v_row.machine AND a.day = v_row.day;
        END IF;
    END LOOP;
END
$$;

-- Takes p_least to p_most of the machine's allotment, which draws on the global caps when it has not enough:
-- a sixteenth of what is left, at most a hundredth of the day's cap, so that little is held idle as the cap
-- comes near. granted is 0 when there is less than p_least; then scope says which cap it was.
CREATE FUNCTION myhealth.take_from_allotment(
    p_machine uuid, p_day date, p_least bigint, p_most bigint, p_cap_day bigint, p_cap_month bigint,
    OUT granted bigint, OUT scope text)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_room bigint;
    v_free_day bigint;
    v_free_month bigint;
    v_free bigint;
    v_draw bigint := 0;
BEGIN
    SELECT a.granted - a.spent - a.reserved INTO v_room FROM allotments a
        WHERE a.machine = p_machine AND a.day = p_day FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        INSERT INTO allotments (machine, day) VALUES (p_machine, p_day) ON CONFLICT DO NOTHING;
        SELECT a.granted - a.spent - a.reserved INTO v_room FROM allotments a
            WHERE a.machine = p_machine AND a.day = p_day FOR NO KEY UPDATE;
    END IF;
    IF v_room < p_most THEN
        PERFORM lock_global();
        INSERT INTO global_spending (scope, starts) VALUES ('day', p_day), ('month', month_of(p_day))
            ON CONFLICT DO NOTHING;
        FOR v_try IN 1..2 LOOP
            SELECT p_cap_day - g.drawn INTO v_free_day FROM global_spending g
                WHERE g.scope = 'day' AND g.starts = p_day;
            SELECT p_cap_month - g.drawn INTO v_free_month FROM global_spending g
                WHERE g.scope = 'month' AND g.starts = month_of(p_day);
            v_free := greatest(least(v_free_day, v_free_month), 0);
            EXIT WHEN v_room + v_free >= p_most OR v_try = 2;
            PERFORM return_idle(p_machine, p_day, false);
        END LOOP;
        v_draw := least(v_free, greatest(p_most - v_room, least(v_free / 16, p_cap_day / 100)));
    END IF;
    granted := least(p_most, v_room + v_draw);
    IF granted < p_least THEN
        granted := 0;
        scope := CASE WHEN v_free_month < v_free_day THEN 'global_month' ELSE 'global_day' END;
        RETURN;
    END IF;
    IF v_draw > 0 THEN
        UPDATE global_spending g SET drawn = g.drawn + v_draw
            WHERE (g.scope = 'day' AND g.starts = p_day) OR (g.scope = 'month' AND g.starts = month_of(p_day));
    END IF;
    UPDATE allotments a
        SET granted = a.granted + v_draw, reserved = a.reserved + take_from_allotment.granted
        WHERE a.machine = p_machine AND a.day = p_day;
END
$$;

-- --- reserving and closing --------------------------------------------------------------------------------

-- Closes a call: what was reserved is free again, what it came to is spent. Closing a closed call does nothing.
-- p_charge NULL: the whole reservation.
CREATE FUNCTION myhealth.close_call(
    p_call uuid, p_state text, p_charge bigint, p_prompt_tokens bigint, p_output_tokens bigint, p_request text)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_call model_calls;
    v_estimated bigint;
BEGIN
    UPDATE model_calls c
        SET state = p_state, charged = CASE WHEN p_state = 'released' THEN 0 ELSE coalesce(p_charge, c.reserved) END,
            prompt_tokens = p_prompt_tokens, output_tokens = p_output_tokens, request_id = p_request,
            closed_at = clock_timestamp()
        WHERE c.id = p_call AND c.state = 'reserved'
        RETURNING c.* INTO v_call;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    v_estimated := CASE WHEN p_state = 'estimated' THEN v_call.charged ELSE 0 END;
    -- '' first: who holds it may touch the agent's row in any order.
    FOR v_agent IN 1..2 LOOP
        UPDATE spending s
            SET day_spent = s.day_spent + CASE WHEN s.day = v_call.day THEN v_call.charged ELSE 0 END,
                day_estimated = s.day_estimated + CASE WHEN s.day = v_call.day THEN v_estimated ELSE 0 END,
                day_reserved = s.day_reserved - CASE WHEN s.day = v_call.day THEN v_call.reserved ELSE 0 END,
                month_spent = s.month_spent
                    + CASE WHEN s.month = month_of(v_call.day) THEN v_call.charged ELSE 0 END,
                month_estimated = s.month_estimated
                    + CASE WHEN s.month = month_of(v_call.day) THEN v_estimated ELSE 0 END,
                month_reserved = s.month_reserved
                    - CASE WHEN s.month = month_of(v_call.day) THEN v_call.reserved ELSE 0 END
            WHERE s.user_id = v_call.user_id AND s.agent = CASE v_agent WHEN 1 THEN '' ELSE v_call.agent END;
    END LOOP;
    UPDATE allotments a SET spent = a.spent + v_call.charged, reserved = a.reserved - v_call.reserved
        WHERE a.machine = v_call.machine AND a.day = v_call.day;
END
$$;

-- The small ones below run inside functions that set path and rights, which costs too much to be done again.
-- A user's row, locked and rolled on to p_day (in memory: the caller writes it, or nothing).
CREATE FUNCTION myhealth.lock_spending(p_user uuid, p_agent text, p_day date) RETURNS myhealth.spending
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_row myhealth.spending;
BEGIN
    SELECT * INTO v_row FROM myhealth.spending s WHERE s.user_id = p_user AND s.agent = p_agent FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        INSERT INTO myhealth.spending (user_id, agent, day, month) VALUES (p_user, p_agent, p_day, myhealth.month_of(p_day))
            ON CONFLICT DO NOTHING;
        SELECT * INTO v_row FROM myhealth.spending s WHERE s.user_id = p_user AND s.agent = p_agent FOR NO KEY UPDATE;
    END IF;
    RETURN myhealth.rolled(v_row, p_day);
END
$$;

-- The row as it is on p_day: a day or a month that is over counts no more.
CREATE FUNCTION myhealth.rolled(p_row myhealth.spending, p_day date) RETURNS myhealth.spending
    LANGUAGE plpgsql IMMUTABLE
    AS $$
BEGIN
    IF p_row.day < p_day THEN
        p_row.day := p_day;
        p_row.day_spent := 0;
        p_row.day_estimated := 0;
        p_row.day_reserved := 0;
    END IF;
    IF p_row.month < myhealth.month_of(p_day) THEN
        p_row.month := myhealth.month_of(p_day);
        p_row.month_spent := 0;
        p_row.month_estimated := 0;
        p_row.month_reserved := 0;
    END IF;
    RETURN p_row;
END
$$;

CREATE FUNCTION myhealth.write_reservation(p_row myhealth.spending, p_amount bigint) RETURNS void
    LANGUAGE sql
    AS $$
    UPDATE myhealth.spending s
        SET day = p_row.day, day_spent = p_row.day_spent, day_estimated = p_row.day_estimated,
            day_reserved = p_row.day_reserved + p_amount, month = p_row.month, month_spent = p_row.month_spent,
            month_estimated = p_row.month_estimated, month_reserved = p_row.month_reserved + p_amount
        WHERE s.user_id = p_row.user_id AND s.agent = p_row.agent
    $$;

-- What the tightest cap of a user leaves. p_limits: user_day, user_month, global_day, global_month in micro-dollars;
-- agents: by name what a user may spend with it in a `day` (or nothing), and what over_budget needs to know.
CREATE FUNCTION myhealth.tightest(
    p_user_row myhealth.spending, p_agent_row myhealth.spending, p_limits json, OUT scope text, OUT free bigint)
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT c.scope, c.free FROM (VALUES
        ('user_day', (p_limits ->> 'user_day')::bigint - p_user_row.day_spent - p_user_row.day_reserved),
        ('user_month', (p_limits ->> 'user_month')::bigint - p_user_row.month_spent - p_user_row.month_reserved),
        ('agent_day', (p_limits -> 'agents' -> p_agent_row.agent ->> 'day')::bigint - p_agent_row.day_spent - p_agent_row.day_reserved)
    ) AS c (scope, free) WHERE c.free IS NOT NULL ORDER BY c.free LIMIT 1
    $$;

-- Reserves a model call's worst case. The prompt has at most one token per byte and p_overhead more; of a
-- conversation that only grew since its last settled call, only the new bytes are taken so. p_max_tokens shrinks
-- to what is left, not below p_least_tokens. Prices: micro-dollars per token.
-- status: ok | lost (not this owner's session) | user_day | user_month | agent_day | global_day | global_month
-- (that cap leaves too little; resets_at). Sent again under the same id it answers the same and reserves nothing.
-- p_instead_of: a call of this owner that failed and may have been billed; it is charged as estimated.
-- p_now is for tests; NULL is the database's time.
CREATE FUNCTION myhealth.reserve(
    p_call uuid, p_session uuid, p_me uuid, p_epoch bigint, p_turn uuid,
    p_bytes integer, p_overhead integer, p_max_tokens integer, p_least_tokens integer,
    p_input_price numeric, p_output_price numeric, p_limits json,
    p_instead_of uuid DEFAULT NULL, p_now timestamptz DEFAULT NULL,
    OUT status text, OUT granted bigint, OUT max_tokens integer, OUT resets_at timestamptz)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_session sessions;
    v_day date := utc_day(coalesce(p_now, clock_timestamp()));
    v_user spending;
    v_agent spending;
    v_ended uuid[];
    v_prompt bigint;
    v_least bigint;
    v_most bigint;
    v_tightest record;
    v_taken record;
    v_over boolean;
BEGIN
    -- Fenced like a group commit: who takes the session waits for this, and then sees the reservation.
    SELECT * INTO v_session FROM sessions s
        WHERE s.id = p_session AND s.owner = p_me AND s.epoch = p_epoch FOR KEY SHARE;
    IF NOT FOUND THEN
        status := 'lost';
        RETURN;
    END IF;
    v_prompt := p_bytes + p_overhead;
    IF p_bytes >= v_session.prompt_bytes THEN
        v_prompt := least(v_prompt, v_session.prompt_tokens + p_bytes - v_session.prompt_bytes + p_overhead);
    END IF;
    v_prompt := ceil(v_prompt * p_input_price);
    v_least := v_prompt + ceil(least(p_least_tokens, p_max_tokens) * p_output_price);
    v_most := v_prompt + ceil(p_max_tokens * p_output_price);
    SELECT array_agg(e.id) INTO v_ended FROM (
        SELECT c.id FROM model_calls c
            WHERE c.session_id = p_session AND c.state = 'reserved' AND (c.epoch < p_epoch OR c.id = p_instead_of)
            ORDER BY c.id FOR UPDATE) e;
    IF v_ended IS NOT NULL THEN
        PERFORM lock_spending(v_session.user_id, '', v_day);
        PERFORM FROM allotments a
            WHERE (a.machine = p_me AND a.day = v_day)
               OR (a.machine, a.day) IN (SELECT c.machine, c.day FROM model_calls c WHERE c.id = ANY (v_ended))
            ORDER BY a.machine, a.day FOR NO KEY UPDATE;
        PERFORM close_call(e.id, 'estimated', NULL, 0, 0, NULL) FROM unnest(v_ended) AS e (id);
    END IF;
    SELECT c.reserved, c.state <> 'reserved' INTO granted, v_over FROM model_calls c WHERE c.id = p_call;
    IF v_over THEN
        status := 'lost';
        RETURN;
    ELSIF NOT FOUND THEN
        v_user := lock_spending(v_session.user_id, '', v_day);
        v_agent := lock_spending(v_session.user_id, v_session.agent, v_day);
        v_day := v_user.day;   -- never back: a failed-over database may be a little behind
        SELECT * INTO v_tightest FROM tightest(v_user, v_agent, p_limits);
        IF v_tightest.free < v_least THEN
            status := v_tightest.scope;
            resets_at := resets_at(status, v_day);
            RETURN;
        END IF;
        SELECT * INTO v_taken FROM take_from_allotment(
            p_me, v_day, v_least, least(v_most, v_tightest.free),
            (p_limits ->> 'global_day')::bigint, (p_limits ->> 'global_month')::bigint);
        IF v_taken.granted = 0 THEN
            status := v_taken.scope;
            resets_at := resets_at(status, v_day);
            RETURN;
        END IF;
        granted := v_taken.granted;
        PERFORM write_reservation(v_user, granted);
        PERFORM write_reservation(v_agent, granted);
        INSERT INTO model_calls (id, user_id, session_id, turn_id, agent, epoch, machine, day, reserved)
            VALUES (p_call, v_session.user_id, p_session, p_turn, v_session.agent, p_epoch, p_me, v_day, granted);
    END IF;
    status := 'ok';
    max_tokens := least(p_max_tokens, floor((granted - v_prompt) / p_output_price));
END
$$;

-- Charges one call whose session has moved on, was given back or is gone, without closing it: a user's, or
-- anybody's (NULL). One per transaction, because its locks are another user's each time; those of one user may share
-- one, and come in their locks' order. Returns its id; NULL: there is none.
CREATE FUNCTION myhealth.charge_orphan_of(p_user uuid) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_call uuid;
BEGIN
    SELECT c.id INTO v_call FROM model_calls c LEFT JOIN sessions s ON s.id = c.session_id
        WHERE c.state = 'reserved' AND (p_user IS NULL OR c.user_id = p_user)
          -- Without an owner nobody can settle in this epoch any more, and the next owner's is greater.
          AND (s.id IS NULL OR s.owner IS NULL OR s.epoch > c.epoch)
        ORDER BY CASE WHEN p_user IS NULL THEN c.created_at END, c.machine, c.day LIMIT 1
        FOR UPDATE OF c SKIP LOCKED;
    PERFORM close_call(v_call, 'estimated', NULL, 0, 0, NULL);
    RETURN v_call;
END
$$;

-- For the sweep.
CREATE FUNCTION myhealth.charge_orphan() RETURNS uuid
    LANGUAGE sql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$ SELECT charge_orphan_of(NULL) $$;

-- What came of the global caps, and what allotments nobody uses any more give back.
CREATE FUNCTION myhealth.tend_global(p_now timestamptz DEFAULT NULL)
    RETURNS TABLE (day_spent bigint, day_reserved bigint, month_spent bigint, month_reserved bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_day date := utc_day(coalesce(p_now, clock_timestamp()));
BEGIN
    PERFORM lock_global();
    PERFORM return_idle('00000000-0000-0000-0000-000000000000', v_day, true);
    RETURN QUERY SELECT * FROM global_used(v_day);
END
$$;

CREATE FUNCTION myhealth.global_used(p_day date)
    RETURNS TABLE (day_spent bigint, day_reserved bigint, month_spent bigint, month_reserved bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    SELECT (coalesce((SELECT g.spent FROM global_spending g WHERE g.scope = 'day' AND g.starts = p_day), 0)
               + coalesce(sum(a.spent) FILTER (WHERE a.day = p_day), 0))::bigint,
           coalesce(sum(a.reserved) FILTER (WHERE a.day = p_day), 0)::bigint,
           (coalesce((SELECT g.spent FROM global_spending g WHERE g.scope = 'month' AND g.starts = month_of(p_day)), 0)
               + coalesce(sum(a.spent), 0))::bigint,
           coalesce(sum(a.reserved), 0)::bigint
    FROM allotments a WHERE month_of(a.day) = month_of(p_day)
    $$;

-- Retention: the oldest closed calls go; budgets and GET /v1/me/usage look at the counters and at this month. Returns
-- how many.
CREATE FUNCTION myhealth.expire_calls(p_before timestamptz, p_limit integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_count integer;
BEGIN
    DELETE FROM model_calls WHERE id IN (
        SELECT c.id FROM model_calls c
        WHERE c.state <> 'reserved' AND c.day < month_of(utc_day(clock_timestamp())) AND c.closed_at < p_before
        LIMIT p_limit FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END
$$;

-- --- a new message, and settling -----------------------------------------------------------------------------

-- Which cap a new message would meet at once: what is spent leaves less of it than the shortest call needs, with
-- the prompt the session had last (NULL: the agent's own) and the prices in p_limits. NULL: none, or no limits are
-- given. What is reserved does not count here, most of it comes back: what counts is reserve.
CREATE FUNCTION myhealth.over_budget(p_user uuid, p_agent text, p_limits json, p_prompt_tokens integer DEFAULT NULL)
    RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
DECLARE
    v_day date := utc_day(clock_timestamp());
    v_user spending;
    v_agent spending;
    v_tightest record;
    v_global record;
    v_known json := p_limits -> 'agents' -> p_agent;
    v_least bigint;
BEGIN
    IF p_limits IS NULL THEN
        RETURN NULL;
    END IF;
    v_least := coalesce(ceil(coalesce(p_prompt_tokens, (v_known ->> 'prompt')::integer)
                             * (v_known ->> 'input')::numeric)::bigint + (v_known ->> 'least')::bigint, 1);
    SELECT * INTO v_user FROM spending s WHERE s.user_id = p_user AND s.agent = '';
    SELECT * INTO v_agent FROM spending s WHERE s.user_id = p_user AND s.agent = p_agent;
    IF v_user.user_id IS NOT NULL THEN
        v_user := rolled(v_user, v_day);
        v_agent := rolled(v_agent, v_day);
        v_user.day_reserved := 0;
        v_user.month_reserved := 0;
        v_agent.day_reserved := 0;
        SELECT * INTO v_tightest FROM tightest(v_user, v_agent, p_limits);
        IF v_tightest.free < v_least THEN
            RETURN v_tightest.scope;
        END IF;
    END IF;
    SELECT * INTO v_global FROM global_used(v_day);
    RETURN CASE
        WHEN (p_limits ->> 'global_month')::bigint - v_global.month_spent < v_least
            THEN 'global_month'
        WHEN (p_limits ->> 'global_day')::bigint - v_global.day_spent < v_least
            THEN 'global_day' END;
END
$$;

-- As before, and a step's model call is closed in its own transaction: p_call with its state (settled | estimated |
-- released) and what it came to (NULL: all that was reserved).
DROP FUNCTION myhealth.settle;
CREATE FUNCTION myhealth.settle(
    p_session uuid, p_me uuid, p_epoch bigint, p_turn uuid,
    p_message_ids text[], p_roles text[], p_contents text[],
    p_first integer, p_last integer, p_events bytea,
    p_final_state text, p_error_code text,
    p_model_calls integer, p_input_tokens bigint, p_output_tokens bigint,
    p_cache_read bigint, p_cache_write bigint, p_cost bigint,
    p_call uuid DEFAULT NULL, p_call_state text DEFAULT NULL, p_charge bigint DEFAULT NULL,
    p_prompt_bytes integer DEFAULT NULL, p_request text DEFAULT NULL,
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
                owner = v_session.owner, updated_at = clock_timestamp(),
                prompt_bytes = CASE WHEN p_call_state = 'settled' THEN p_prompt_bytes ELSE s.prompt_bytes END,
                prompt_tokens = CASE WHEN p_call_state = 'settled' THEN p_input_tokens + p_cache_read + p_cache_write
                                     ELSE s.prompt_tokens END
            WHERE s.id = p_session;
        IF p_call IS NOT NULL THEN
            -- Last: the machine's allotment is locked from here to the commit.
            PERFORM close_call(p_call, p_call_state, p_charge, p_input_tokens + p_cache_read + p_cache_write,
                               p_output_tokens, p_request);
        END IF;
    END IF;
END
$$;

-- --- reading: SECURITY INVOKER, under row level security -----------------------------------------------------

-- A user's account: agent '' first, which is the sum of all. Money by the counters that reserve checks; calls,
-- turns and tokens by the calls themselves.
CREATE FUNCTION myhealth.read_usage(p_user uuid, p_now timestamptz DEFAULT NULL)
    RETURNS TABLE (agent text, day date, day_spent bigint, day_estimated bigint, day_reserved bigint,
                   month_spent bigint, month_estimated bigint, month_reserved bigint,
                   day_calls bigint, day_turns bigint, day_prompt_tokens bigint, day_output_tokens bigint,
                   month_calls bigint, month_turns bigint, month_prompt_tokens bigint, month_output_tokens bigint)
    LANGUAGE plpgsql STABLE SET search_path = myhealth, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    v_day date := utc_day(coalesce(p_now, clock_timestamp()));
BEGIN
    PERFORM act_as(p_user);
    RETURN QUERY
    SELECT s.agent, v_day, r.day_spent, r.day_estimated, r.day_reserved,
           r.month_spent, r.month_estimated, r.month_reserved, c.*
    FROM spending s, LATERAL rolled(s, v_day) r, LATERAL (
        SELECT count(*) FILTER (WHERE m.day = v_day),
               count(DISTINCT m.turn_id) FILTER (WHERE m.day = v_day),
               coalesce(sum(m.prompt_tokens) FILTER (WHERE m.day = v_day), 0)::bigint,
               coalesce(sum(m.output_tokens) FILTER (WHERE m.day = v_day), 0)::bigint,
               count(*), count(DISTINCT m.turn_id),
               coalesce(sum(m.prompt_tokens), 0)::bigint, coalesce(sum(m.output_tokens), 0)::bigint
        FROM model_calls m
        WHERE m.user_id = p_user AND m.day >= month_of(v_day) AND m.state <> 'released'
          AND (s.agent = '' OR m.agent = s.agent)
    ) c
    WHERE s.user_id = p_user AND (s.agent = '' OR s.month = month_of(v_day))
    ORDER BY s.agent;
END
$$;

-- The server reaches the ledger through these functions alone.
REVOKE EXECUTE ON FUNCTION
    myhealth.utc_day, myhealth.month_of, myhealth.resets_at, myhealth.lock_global, myhealth.return_idle,
    myhealth.take_from_allotment, myhealth.close_call, myhealth.lock_spending, myhealth.rolled,
    myhealth.write_reservation, myhealth.tightest, myhealth.reserve, myhealth.charge_orphan_of, myhealth.charge_orphan,
    myhealth.expire_calls, myhealth.tend_global, myhealth.global_used, myhealth.over_budget, myhealth.settle,
    myhealth.read_usage
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    myhealth.reserve, myhealth.charge_orphan, myhealth.expire_calls, myhealth.tend_global, myhealth.settle,
    myhealth.read_usage, myhealth.utc_day, myhealth.month_of, myhealth.rolled
    TO agent_backend;
