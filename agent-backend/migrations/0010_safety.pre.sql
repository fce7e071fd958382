-- Goals, and what of a profile protects: what is saved is checked by `guardrails.py` under the lock below.

ALTER TABLE myhealth.profiles
    ADD COLUMN eating_disorder boolean NOT NULL DEFAULT false,
    ADD COLUMN height_cm double precision;

-- One goal of a kind; setting it again replaces it. The id is the client's, or made of the tool call's.
CREATE TABLE myhealth.goals (
    user_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN (
        'steps_per_day', 'active_energy_per_day', 'exercise_minutes_per_day', 'sleep_hours_per_night',
        'workouts_per_week', 'weight', 'calories_per_day')),
    id uuid NOT NULL,
    target double precision NOT NULL CHECK (target > 0 AND target < 100000),
    target_date date,
    title text CHECK (length(title) <= 80),
    set_by text NOT NULL CHECK (set_by IN ('user', 'coach')),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, kind),
    UNIQUE (user_id, id)
);
ALTER TABLE myhealth.goals ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON myhealth.goals TO agent_backend
    USING (user_id = (SELECT myhealth.current_user_id()))
    WITH CHECK (user_id = (SELECT myhealth.current_user_id()));
GRANT SELECT, INSERT, UPDATE, DELETE ON myhealth.goals TO agent_backend;

-- As before, with the new columns at its end: the previous release asks for its columns by name.
DROP FUNCTION myhealth.profile(uuid);
CREATE FUNCTION myhealth.profile(p_user uuid)
    RETURNS TABLE (o_time_zone text, o_locale text, o_birth_year smallint, o_eating_disorder boolean,
                   o_height_cm double precision)
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM myhealth.act_as(p_user);
    RETURN QUERY SELECT p.time_zone, p.locale, p.birth_year, p.eating_disorder, p.height_cm
        FROM myhealth.profiles p WHERE p.user_id = p_user;
END
$$;

-- Whoever saves a goal or a profile holds this to the end of the transaction, so that a goal checked against
-- the old profile is never saved beside the new one.
CREATE FUNCTION myhealth.goals_lock(p_user uuid) RETURNS void
    LANGUAGE sql
    AS $$ SELECT pg_advisory_xact_lock(hashtextextended('goals ' || p_user, 0)) $$;

-- What a goal is checked against, as it stands now; acts as the user to the end of the transaction.
CREATE FUNCTION myhealth.goal_facts(p_user uuid, p_lock boolean)
    RETURNS TABLE (o_time_zone text, o_birth_year smallint, o_eating_disorder boolean, o_height_cm double precision,
                   o_body_mass_kg double precision, o_weighed_at timestamptz)
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM myhealth.act_as(p_user);
    IF p_lock THEN
        PERFORM myhealth.goals_lock(p_user);
    END IF;
    RETURN QUERY
        SELECT p.time_zone, p.birth_year, p.eating_disorder, p.height_cm, w.value, w.start_at
        FROM (VALUES (1)) AS one (row)
        LEFT JOIN myhealth.profiles p ON p.user_id = p_user
        LEFT JOIN LATERAL (
            SELECT q.value, q.start_at FROM myhealth.health_quantities q
            WHERE q.user_id = p_user
                AND q.metric_id = (SELECT m.id FROM myhealth.health_metrics m WHERE m.name = 'body_mass')
            ORDER BY q.start_at DESC, q.id LIMIT 1
        ) w ON true;
END
$$;

-- Saves a checked goal under the lock. status: saved | conflict (this id is a goal of another kind).
CREATE FUNCTION myhealth.save_goal(
    p_user uuid, p_id uuid, p_kind text, p_target double precision, p_target_date date, p_title text,
    p_set_by text, OUT status text)
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM myhealth.act_as(p_user);
    PERFORM myhealth.goals_lock(p_user);
    IF EXISTS (SELECT FROM myhealth.goals g WHERE g.user_id = p_user AND g.id = p_id AND g.kind <> p_kind) THEN
        status := 'conflict';
        RETURN;
    END IF;
    INSERT INTO myhealth.goals AS g (user_id, kind, id, target, target_date, title, set_by)
        VALUES (p_user, p_kind, p_id, p_target, p_target_date, p_title, p_set_by)
        ON CONFLICT (user_id, kind) DO UPDATE
        SET id = excluded.id, target = excluded.target, target_date = excluded.target_date,
            title = excluded.title, set_by = excluded.set_by, updated_at = now(),
            created_at = CASE WHEN g.id = excluded.id THEN g.created_at ELSE now() END;
    status := 'saved';
END
$$;

REVOKE EXECUTE ON FUNCTION myhealth.profile, myhealth.goals_lock, myhealth.goal_facts, myhealth.save_goal
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION myhealth.profile, myhealth.goals_lock, myhealth.goal_facts, myhealth.save_goal
    TO agent_backend;
