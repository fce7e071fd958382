-- Health data: profiles, samples as they were uploaded, and daily figures computed from them when read.

CREATE TABLE myhealth.profiles (
    user_id uuid PRIMARY KEY,
    time_zone text NOT NULL,
    locale text NOT NULL,
    birth_year smallint,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- What can be measured; `db/metrics.py` holds the same list and a test compares the two.
CREATE TABLE myhealth.health_metrics (
    id smallint PRIMARY KEY,
    name text NOT NULL UNIQUE,
    unit text NOT NULL,
    cumulative boolean NOT NULL
);
INSERT INTO myhealth.health_metrics (id, name, unit, cumulative) VALUES
    (1, 'steps', 'count', true),
    (2, 'active_energy', 'kcal', true),
    (3, 'basal_energy', 'kcal', true),
    (4, 'distance_walking_running', 'm', true),
    (5, 'flights_climbed', 'count', true),
    (6, 'exercise_time', 'min', true),
    (7, 'heart_rate', 'bpm', false),
    (8, 'resting_heart_rate', 'bpm', false),
    (9, 'hrv_sdnn', 'ms', false),
    (10, 'body_mass', 'kg', false),
    (11, 'vo2_max', 'ml/kg/min', false),
    (12, 'respiratory_rate', 'bpm', false),
    (13, 'oxygen_saturation', '%', false),
    (14, 'body_temperature', 'degC', false);

CREATE TABLE myhealth.health_sources (
    user_id uuid NOT NULL,
    id integer GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL,
    device text NOT NULL CHECK (device IN ('watch', 'phone', 'other')),
    PRIMARY KEY (user_id, id),
    UNIQUE (user_id, name, device)
);

-- Ids are the client's and scoped to user and kind: another user's id is just another row. Without foreign
-- keys to health_sources and health_metrics an import runs a third faster; health_store() is the only writer.
CREATE TABLE myhealth.health_quantities (
    user_id uuid NOT NULL,
    id uuid NOT NULL,
    start_at timestamptz NOT NULL,
    end_at timestamptz NOT NULL,
    value double precision NOT NULL,
    source_id integer NOT NULL,
    metric_id smallint NOT NULL,
    PRIMARY KEY (user_id, id),
    CHECK (end_at >= start_at AND end_at - start_at <= interval '7 days')
);
CREATE INDEX health_quantities_by_time ON myhealth.health_quantities (user_id, metric_id, start_at);

CREATE TABLE myhealth.health_sleep (
    user_id uuid NOT NULL,
    id uuid NOT NULL,
    start_at timestamptz NOT NULL,
    end_at timestamptz NOT NULL,
    source_id integer NOT NULL,
    stage text NOT NULL CHECK (stage IN ('in_bed', 'awake', 'core', 'deep', 'rem', 'asleep')),
    PRIMARY KEY (user_id, id),
    CHECK (end_at >= start_at AND end_at - start_at <= interval '7 days')
);
CREATE INDEX health_sleep_by_time ON myhealth.health_sleep (user_id, start_at);

CREATE TABLE myhealth.health_workouts (
    user_id uuid NOT NULL,
    id uuid NOT NULL,
    start_at timestamptz NOT NULL,
    end_at timestamptz NOT NULL,
    duration_s double precision NOT NULL,
    energy_kcal double precision,
    distance_m double precision,
    source_id integer NOT NULL,
    activity text NOT NULL,
    note text,
    PRIMARY KEY (user_id, id),
    CHECK (end_at >= start_at AND end_at - start_at <= interval '7 days')
);
CREATE INDEX health_workouts_by_time ON myhealth.health_workouts (user_id, start_at);

-- A day's rings as the phone knew them at `uploaded_at`; the newest upload of a date is the one to believe.
CREATE TABLE myhealth.health_activity_summaries (
    user_id uuid NOT NULL,
    id uuid NOT NULL,
    date date NOT NULL,
    active_energy_kcal double precision,
    exercise_minutes double precision,
    stand_hours double precision,
    active_energy_goal_kcal double precision,
    uploaded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, id)
);
CREATE INDEX health_activity_summaries_by_date ON myhealth.health_activity_summaries (user_id, date);

-- A cache. A row says what its day came to when it was computed, in the time zone it names; `samples` = 0
-- says that there was nothing. An upload deletes the rows of the days it touches, a reader computes what is
-- missing. The lock in health_store() and health_daily() keeps a slow reader from caching the past.
CREATE TABLE myhealth.health_days (
    user_id uuid NOT NULL,
    metric_id smallint NOT NULL,
    day date NOT NULL,
    time_zone text NOT NULL,
    total double precision,
    minimum double precision,
    average double precision,
    maximum double precision,
    latest double precision,
    samples integer NOT NULL,
    sources integer[] NOT NULL,
    PRIMARY KEY (user_id, metric_id, day)
);

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['profiles', 'health_sources', 'health_quantities', 'health_sleep',
                             'health_workouts', 'health_activity_summaries', 'health_days'] LOOP
        EXECUTE format('ALTER TABLE myhealth.%I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY own_rows ON myhealth.%I TO agent_backend
            USING (user_id = (SELECT myhealth.current_user_id()))
            WITH CHECK (user_id = (SELECT myhealth.current_user_id()))', t);
    END LOOP;
END
$$;
ALTER TABLE myhealth.health_metrics ENABLE ROW LEVEL SECURITY;
CREATE POLICY everybody_reads ON myhealth.health_metrics FOR SELECT TO agent_backend USING (true);

GRANT SELECT, INSERT, UPDATE ON myhealth.profiles, myhealth.health_quantities, myhealth.health_sleep,
    myhealth.health_workouts, myhealth.health_activity_summaries TO agent_backend;
GRANT SELECT, INSERT ON myhealth.health_sources TO agent_backend;
GRANT SELECT, INSERT, UPDATE, DELETE ON myhealth.health_days TO agent_backend;
GRANT SELECT ON myhealth.health_metrics TO agent_backend;

-- A user's profile, in one round trip; no row before the first PUT.
CREATE FUNCTION myhealth.profile(p_user uuid)
    RETURNS TABLE (o_time_zone text, o_locale text, o_birth_year smallint)
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM myhealth.act_as(p_user);
    RETURN QUERY SELECT p.time_zone, p.locale, p.birth_year FROM myhealth.profiles p WHERE p.user_id = p_user;
END
$$;


-- --- writing ------------------------------------------------------------------------------------------

-- Uploads of one user come one after the other; readers that fill the cache share the lock.
CREATE FUNCTION myhealth.health_lock(p_user uuid, p_exclusive boolean) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_key constant bigint := hashtextextended('health ' || p_user, 0);
BEGIN
    IF p_exclusive THEN
        PERFORM pg_advisory_xact_lock(v_key);
    ELSE
        PERFORM pg_advisory_xact_lock_shared(v_key);
    END IF;
END
$$;

-- The ids of [{"name", "device"}, ...], in order; unknown ones are made.
CREATE FUNCTION myhealth.health_source_ids(p_user uuid, p_sources json) RETURNS integer[]
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO myhealth.health_sources (user_id, name, device)
        SELECT p_user, w.name, w.device FROM json_to_recordset(p_sources) AS w (name text, device text)
        WHERE NOT EXISTS (
            SELECT FROM myhealth.health_sources s
            WHERE s.user_id = p_user AND s.name = w.name AND s.device = w.device);
    RETURN (
        SELECT array_agg(s.id ORDER BY e.n)
        FROM json_array_elements(p_sources) WITH ORDINALITY AS e (source, n)
        JOIN myhealth.health_sources s
            ON s.user_id = p_user AND s.name = e.source ->> 'name' AND s.device = e.source ->> 'device');
END
$$;

-- Each of the four below takes rows whose ids are distinct, stores what is new or different, and counts.
-- The planner has no figures for a table in its first import and would scan it for every batch: the
-- settings leave it nothing but one look-up per id.
CREATE FUNCTION myhealth.health_store_quantities(
    p_user uuid, p_rows json, p_sources integer[],
    OUT o_stored bigint, OUT o_unchanged bigint, OUT o_replaced bigint
)
    LANGUAGE plpgsql
    SET plan_cache_mode = force_custom_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off
    AS $$
BEGIN
    WITH compared AS MATERIALIZED (
        SELECT n.id, n.m AS metric_id, p_sources[n.s + 1] AS source_id, n.a AS start_at, n.b AS end_at,
            n.v AS value, o.id IS NOT NULL AS known,
            o.metric_id AS old_metric_id, o.start_at AS old_start_at, o.end_at AS old_end_at,
            (o.metric_id, o.source_id, o.start_at, o.end_at, o.value)
                IS DISTINCT FROM (n.m, p_sources[n.s + 1], n.a, n.b, n.v) AS differs
        FROM json_to_recordset(p_rows)
            AS n (id uuid, m smallint, s integer, a timestamptz, b timestamptz, v double precision)
        LEFT JOIN myhealth.health_quantities o ON o.user_id = p_user AND o.id = n.id
    ), written AS (
        INSERT INTO myhealth.health_quantities (user_id, id, start_at, end_at, value, source_id, metric_id)
        SELECT p_user, id, start_at, end_at, value, source_id, metric_id FROM compared WHERE differs
        ON CONFLICT (user_id, id) DO UPDATE
        SET start_at = excluded.start_at, end_at = excluded.end_at, value = excluded.value,
            source_id = excluded.source_id, metric_id = excluded.metric_id
    ), touched AS (
        -- No zone is more than 14 hours from UTC, so a day on either side covers whichever one was cached.
        SELECT metric_id, (start_at AT TIME ZONE 'UTC')::date - 1 AS first,
            (end_at AT TIME ZONE 'UTC')::date + 1 AS last
        FROM compared WHERE differs
        UNION
        SELECT old_metric_id, (old_start_at AT TIME ZONE 'UTC')::date - 1,
            (old_end_at AT TIME ZONE 'UTC')::date + 1
        FROM compared WHERE known AND differs
    ), dropped AS (
        DELETE FROM myhealth.health_days d USING touched t
        WHERE d.user_id = p_user AND d.metric_id = t.metric_id AND d.day BETWEEN t.first AND t.last
    )
    SELECT count(*) FILTER (WHERE NOT known), count(*) FILTER (WHERE NOT differs),
        count(*) FILTER (WHERE known AND differs)
    INTO o_stored, o_unchanged, o_replaced FROM compared;
END
$$;

CREATE FUNCTION myhealth.health_store_sleep(
    p_user uuid, p_rows json, p_sources integer[],
    OUT o_stored bigint, OUT o_unchanged bigint, OUT o_replaced bigint
)
    LANGUAGE plpgsql
    SET plan_cache_mode = force_custom_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off
    AS $$
BEGIN
    WITH compared AS MATERIALIZED (
        SELECT n.id, n.a AS start_at, n.b AS end_at, p_sources[n.s + 1] AS source_id, n.stage,
            o.id IS NOT NULL AS known,
            (o.start_at, o.end_at, o.source_id, o.stage)
                IS DISTINCT FROM (n.a, n.b, p_sources[n.s + 1], n.stage) AS differs
        FROM json_to_recordset(p_rows) AS n (id uuid, s integer, a timestamptz, b timestamptz, stage text)
        LEFT JOIN myhealth.health_sleep o ON o.user_id = p_user AND o.id = n.id
    ), written AS (
        INSERT INTO myhealth.health_sleep (user_id, id, start_at, end_at, source_id, stage)
        SELECT p_user, id, start_at, end_at, source_id, stage FROM compared WHERE differs
        ON CONFLICT (user_id, id) DO UPDATE
        SET start_at = excluded.start_at, end_at = excluded.end_at, source_id = excluded.source_id,
            stage = excluded.stage
    )
    SELECT count(*) FILTER (WHERE NOT known), count(*) FILTER (WHERE NOT differs),
        count(*) FILTER (WHERE known AND differs)
    INTO o_stored, o_unchanged, o_replaced FROM compared;
END
$$;

CREATE FUNCTION myhealth.health_store_workouts(
    p_user uuid, p_rows json, p_sources integer[],
    OUT o_stored bigint, OUT o_unchanged bigint, OUT o_replaced bigint
)
    LANGUAGE plpgsql
    SET plan_cache_mode = force_custom_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off
    AS $$
BEGIN
    WITH compared AS MATERIALIZED (
        SELECT n.id, n.a AS start_at, n.b AS end_at, n.duration_s, n.energy_kcal, n.distance_m,
            p_sources[n.s + 1] AS source_id, n.activity, n.note, o.id IS NOT NULL AS known,
            (o.start_at, o.end_at, o.duration_s, o.energy_kcal, o.distance_m, o.source_id, o.activity, o.note)
                IS DISTINCT FROM (n.a, n.b, n.duration_s, n.energy_kcal, n.distance_m, p_sources[n.s + 1],
                                  n.activity, n.note) AS differs
        FROM json_to_recordset(p_rows)
            AS n (id uuid, s integer, a timestamptz, b timestamptz, duration_s double precision,
                  energy_kcal double precision, distance_m double precision, activity text, note text)
        LEFT JOIN myhealth.health_workouts o ON o.user_id = p_user AND o.id = n.id
    ), written AS (
        INSERT INTO myhealth.health_workouts
            (user_id, id, start_at, end_at, duration_s, energy_kcal, distance_m, source_id, activity, note)
        SELECT p_user, id, start_at, end_at, duration_s, energy_kcal, distance_m, source_id, activity, note
        FROM compared WHERE differs
        ON CONFLICT (user_id, id) DO UPDATE
        SET start_at = excluded.start_at, end_at = excluded.end_at, duration_s = excluded.duration_s,
            energy_kcal = excluded.energy_kcal, distance_m = excluded.distance_m,
            source_id = excluded.source_id, activity = excluded.activity, note = excluded.note
    )
    SELECT count(*) FILTER (WHERE NOT known), count(*) FILTER (WHERE NOT differs),
        count(*) FILTER (WHERE known AND differs)
    INTO o_stored, o_unchanged, o_replaced FROM compared;
END
$$;

CREATE FUNCTION myhealth.health_store_summaries(
    p_user uuid, p_rows json, OUT o_stored bigint, OUT o_unchanged bigint, OUT o_replaced bigint
)
    LANGUAGE plpgsql
    SET plan_cache_mode = force_custom_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off
    AS $$
BEGIN
    WITH compared AS MATERIALIZED (
        SELECT n.*, o.id IS NOT NULL AS known,
            (o.date, o.active_energy_kcal, o.exercise_minutes, o.stand_hours, o.active_energy_goal_kcal)
                IS DISTINCT FROM (n.date, n.active_energy_kcal, n.exercise_minutes, n.stand_hours,
                                  n.active_energy_goal_kcal) AS differs
        FROM json_to_recordset(p_rows)
            AS n (id uuid, date date, active_energy_kcal double precision, exercise_minutes double precision,
                  stand_hours double precision, active_energy_goal_kcal double precision)
        LEFT JOIN myhealth.health_activity_summaries o ON o.user_id = p_user AND o.id = n.id
    ), written AS (
        INSERT INTO myhealth.health_activity_summaries
            (user_id, id, date, active_energy_kcal, exercise_minutes, stand_hours, active_energy_goal_kcal)
        SELECT p_user, id, date, active_energy_kcal, exercise_minutes, stand_hours, active_energy_goal_kcal
        FROM compared WHERE differs
        ON CONFLICT (user_id, id) DO UPDATE
        SET date = excluded.date, active_energy_kcal = excluded.active_energy_kcal,
            exercise_minutes = excluded.exercise_minutes, stand_hours = excluded.stand_hours,
            active_energy_goal_kcal = excluded.active_energy_goal_kcal, uploaded_at = now()
    )
    SELECT count(*) FILTER (WHERE NOT known), count(*) FILTER (WHERE NOT differs),
        count(*) FILTER (WHERE known AND differs)
    INTO o_stored, o_unchanged, o_replaced FROM compared;
END
$$;

-- One batch, whole or not at all. p_batch: {"sources": [{name, device}], "quantities": [], "sleep": [],
-- "workouts": [], "summaries": []}; in the rows `s` counts from 0 into sources, `a`, `b` are start and end.
CREATE FUNCTION myhealth.health_store(
    p_user uuid, p_batch json, OUT o_stored bigint, OUT o_unchanged bigint, OUT o_replaced bigint
)
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_sources integer[];
BEGIN
    PERFORM myhealth.act_as(p_user);
    PERFORM myhealth.health_lock(p_user, true);
    v_sources := myhealth.health_source_ids(p_user, p_batch -> 'sources');
    SELECT sum(f.o_stored), sum(f.o_unchanged), sum(f.o_replaced)
    INTO o_stored, o_unchanged, o_replaced
    FROM (
        SELECT * FROM myhealth.health_store_quantities(p_user, p_batch -> 'quantities', v_sources)
        UNION ALL SELECT * FROM myhealth.health_store_sleep(p_user, p_batch -> 'sleep', v_sources)
        UNION ALL SELECT * FROM myhealth.health_store_workouts(p_user, p_batch -> 'workouts', v_sources)
        UNION ALL SELECT * FROM myhealth.health_store_summaries(p_user, p_batch -> 'summaries')
    ) f;
END
$$;


-- --- reading ------------------------------------------------------------------------------------------

-- The first instant of a local day. Where a clock goes back over midnight, midnight comes twice: the first.
CREATE FUNCTION myhealth.day_start(p_day date, p_zone text) RETURNS timestamptz
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    SELECT CASE WHEN (m.midnight - interval '1 hour') AT TIME ZONE p_zone = p_day::timestamp
        THEN m.midnight - interval '1 hour' ELSE m.midnight END
    FROM (SELECT p_day::timestamp AT TIME ZONE p_zone AS midnight) m
$$;

-- Which device to believe where two measured at once: a watch is worn, a phone lies on the table.
CREATE FUNCTION myhealth.device_rank(p_device text) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT CASE p_device WHEN 'watch' THEN 1 WHEN 'phone' THEN 2 ELSE 3 END $$;

-- The best source at each instant: device_rank, then name. Kept in one place: daily figures, sleep and
-- workouts must agree. `place` counts from 1.
CREATE VIEW myhealth.health_source_places WITH (security_invoker = true) AS
    SELECT user_id, id, name, device,
        row_number() OVER (PARTITION BY user_id
                           ORDER BY myhealth.device_rank(device), name COLLATE "C", id) AS place
    FROM myhealth.health_sources;
GRANT SELECT ON myhealth.health_source_places TO agent_backend;

-- Daily totals of a cumulative metric for the days whose starts (epoch seconds) are p_bounds[1..n-1].
-- At each instant exactly one sample counts, spread evenly over its time: of the best source that has one,
-- the one that began first. A sample without duration counts whole unless a better source covers its instant.
CREATE FUNCTION myhealth.health_totals(p_user uuid, p_metric smallint, p_bounds double precision[])
    RETURNS TABLE (o_index integer, o_total double precision, o_samples bigint, o_sources integer[])
    LANGUAGE plpgsql
    SET plan_cache_mode = force_custom_plan SET enable_nestloop = off SET work_mem = '32MB'
    AS $$
#variable_conflict use_column
DECLARE
    v_from constant timestamptz := to_timestamp(p_bounds[1]);
    v_until constant timestamptz := to_timestamp(p_bounds[cardinality(p_bounds)]);
BEGIN
    RETURN QUERY
    WITH ordered AS (
        SELECT q.source_id, q.a, q.b, q.value,
            max(q.b) OVER w AS reached, lag(q.a) OVER w AS previous_a, lag(q.b) OVER w AS previous_b
        FROM (
            SELECT source_id, id, value, date_part('epoch', start_at) AS a, date_part('epoch', end_at) AS b
            FROM myhealth.health_quantities
            WHERE user_id = p_user AND metric_id = p_metric AND end_at >= v_from
                AND start_at >= v_from - interval '7 days' AND start_at < v_until
        ) q
        WINDOW w AS (PARTITION BY q.source_id ORDER BY q.a, q.b DESC, q.value DESC, q.id
                     ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
    ), flat AS (
        -- Within a source no two overlap any more.
        SELECT source_id, greatest(a, reached) AS a, b, value / nullif(b - a, 0) AS density,
            CASE WHEN a = b THEN value END AS point
        FROM ordered
        WHERE CASE WHEN a < b THEN reached IS NULL OR reached < b
            ELSE (reached IS NULL OR reached <= a)
                AND (previous_a, previous_b) IS DISTINCT FROM (a, b) END
    ), pieces AS MATERIALIZED (
        SELECT d.source_id, d.i, greatest(d.a, p_bounds[d.i]) AS a, least(d.b, p_bounds[d.i + 1]) AS b,
            d.density, d.point
        FROM (
            SELECT *, generate_series(width_bucket(a, p_bounds), width_bucket(b, p_bounds)) AS i FROM flat
        ) d
        WHERE d.i BETWEEN 1 AND cardinality(p_bounds) - 1
            AND (least(d.b, p_bounds[d.i + 1]) > greatest(d.a, p_bounds[d.i]) OR d.point IS NOT NULL)
    ), alone AS MATERIALIZED (
        -- What each source would have come to without the others.
        SELECT g.*, s.place, min(s.place) OVER (PARTITION BY g.i) AS best
        FROM (
            SELECT i, source_id, count(*) AS n, sum(coalesce(point, density * (b - a))) AS total
            FROM pieces GROUP BY i, source_id
        ) g
        JOIN myhealth.health_source_places s ON s.user_id = p_user AND s.id = g.source_id
    ), rivals AS MATERIALIZED (
        -- Every source that is not its day's best, with itself and those that are better.
        SELECT c.i, c.source_id, o.source_id AS rival_id, o.place < c.place AS better
        FROM alone c JOIN alone o ON o.i = c.i AND o.place <= c.place
        WHERE c.place > c.best
    ), marks AS (
        -- Where a source measures and where a better one covers it, as +1 and -1; `turn` orders one instant:
        -- intervals end and begin, better points open, own points stand, better points close.
        SELECT r.i, r.source_id, CASE WHEN e.opens THEN p.a ELSE p.b END AS at,
            CASE WHEN p.point IS NULL THEN 0 WHEN NOT r.better THEN 2 WHEN e.opens THEN 1 ELSE 3 END AS turn,
            CASE WHEN r.better THEN e.step ELSE 0 END AS better,
            CASE WHEN NOT r.better AND p.point IS NULL THEN e.step ELSE 0 END AS own,
            CASE WHEN NOT r.better THEN e.step * p.density END AS density,
            CASE WHEN NOT r.better AND e.opens THEN p.point END AS point
        FROM pieces p
        JOIN rivals r ON r.i = p.i AND r.rival_id = p.source_id
        CROSS JOIN (VALUES (true, 1), (false, -1)) AS e (opens, step)
    ), swept AS (
        SELECT i, source_id, at, point, lead(at) OVER w - at AS lasts,
            sum(better) OVER w AS better, sum(own) OVER w AS own, sum(density) OVER w AS density
        FROM marks WINDOW w AS (PARTITION BY i, source_id ORDER BY at, turn ROWS UNBOUNDED PRECEDING)
    ), shares AS (
        SELECT i, source_id, total FROM alone WHERE place = best
        UNION ALL
        SELECT i, source_id,
            sum(coalesce(point, CASE WHEN own > 0 AND lasts > 0 THEN density * lasts END))
        FROM swept WHERE better = 0 GROUP BY i, source_id
    )
    SELECT a.i, sum(s.total), sum(a.n)::bigint,
        coalesce(array_agg(a.source_id ORDER BY a.place) FILTER (WHERE s.total IS NOT NULL), '{}')
    FROM alone a LEFT JOIN shares s ON s.i = a.i AND s.source_id = a.source_id
    GROUP BY a.i;
END
$$;

-- The same for a discrete metric: each sample belongs to the day it began in; all sources count alike. The
-- average is one of ten-minute averages: a watch measures far more often in a workout than at rest.
CREATE FUNCTION myhealth.health_spreads(p_user uuid, p_metric smallint, p_bounds double precision[])
    RETURNS TABLE (o_index integer, o_minimum double precision, o_average double precision,
                   o_maximum double precision, o_latest double precision,
                   o_samples bigint, o_sources integer[])
    LANGUAGE plpgsql
    SET plan_cache_mode = force_custom_plan SET enable_nestloop = off SET work_mem = '32MB'
    AS $$
BEGIN
    RETURN QUERY
    WITH placed AS (
        SELECT width_bucket(q.a, p_bounds) AS i, q.a, q.source_id, q.value
        FROM (
            SELECT date_part('epoch', start_at) AS a, source_id, value
            FROM myhealth.health_quantities
            WHERE user_id = p_user AND metric_id = p_metric
                AND start_at >= to_timestamp(p_bounds[1])
                AND start_at < to_timestamp(p_bounds[cardinality(p_bounds)])
        ) q
    ), slots AS MATERIALIZED (
        -- The greatest (time, value) pair carries the latest value without sorting the day.
        SELECT p.i, floor((p.a - p_bounds[p.i]) / 600) AS slot, p.source_id, min(p.value) AS least,
            sum(p.value) AS total, max(p.value) AS greatest, max(ARRAY[p.a, p.value]) AS latest, count(*) AS n
        FROM placed p GROUP BY 1, 2, 3
    ), shared AS (
        SELECT s.i, min(s.least) AS least, sum(s.total) / sum(s.n)::double precision AS average,
            max(s.greatest) AS greatest, max(s.latest) AS latest, sum(s.n) AS n
        FROM slots s GROUP BY s.i, s.slot
    )
    SELECT d.i, min(d.least), avg(d.average), max(d.greatest), (max(d.latest))[2], sum(d.n)::bigint, (
        SELECT array_agg(h.id ORDER BY h.place) FROM myhealth.health_source_places h
        WHERE h.user_id = p_user AND h.id IN (SELECT s.source_id FROM slots s WHERE s.i = d.i))
    FROM shared d GROUP BY d.i;
END
$$;

-- Compute p_first..p_last of a metric and keep it, days without samples too.
CREATE FUNCTION myhealth.health_fill(
    p_user uuid, p_metric smallint, p_cumulative boolean, p_first date, p_last date, p_zone text
) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_bounds constant double precision[] := (
        SELECT array_agg(date_part('epoch', myhealth.day_start(p_first + n, p_zone)) ORDER BY n)
        FROM generate_series(0, p_last - p_first + 1) n);
BEGIN
    INSERT INTO myhealth.health_days
        (user_id, metric_id, day, time_zone, total, minimum, average, maximum, latest, samples, sources)
    SELECT p_user, p_metric, p_first + n, p_zone, f.total, f.minimum, f.average, f.maximum, f.latest,
        coalesce(f.samples, 0), coalesce(f.sources, '{}')
    FROM generate_series(0, p_last - p_first) n
    LEFT JOIN (
        SELECT o_index - 1 AS i, o_total AS total, NULL::double precision AS minimum,
            NULL::double precision AS average, NULL::double precision AS maximum,
            NULL::double precision AS latest, o_samples AS samples, o_sources AS sources
        FROM myhealth.health_totals(p_user, p_metric, v_bounds) WHERE p_cumulative
        UNION ALL
        SELECT o_index - 1, NULL, o_minimum, o_average, o_maximum, o_latest, o_samples, o_sources
        FROM myhealth.health_spreads(p_user, p_metric, v_bounds) WHERE NOT p_cumulative
    ) f ON f.i = n
    ON CONFLICT (user_id, metric_id, day) DO UPDATE
        SET time_zone = excluded.time_zone, total = excluded.total, minimum = excluded.minimum,
            average = excluded.average, maximum = excluded.maximum, latest = excluded.latest,
            samples = excluded.samples, sources = excluded.sources;
END
$$;

-- The days of a metric that have data, as days of p_zone; computes what is missing.
-- Under the shared lock: every statement after it sees the uploads that ended before, and none ends until the
-- commit. So nothing outdated is kept, and no day falls between looking and reading.
CREATE FUNCTION myhealth.health_daily(p_user uuid, p_metric text, p_start date, p_end date, p_zone text)
    RETURNS TABLE (o_day date, o_total double precision, o_minimum double precision,
                   o_average double precision, o_maximum double precision, o_latest double precision,
                   o_samples integer, o_sources text[])
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_metric myhealth.health_metrics;
    v_gap record;
BEGIN
    PERFORM myhealth.act_as(p_user);
    PERFORM myhealth.health_lock(p_user, false);
    SELECT * INTO STRICT v_metric FROM myhealth.health_metrics m WHERE m.name = p_metric;
    FOR v_gap IN
        SELECT min(g.day) AS first, max(g.day) AS last
        FROM (
            SELECT w.day, w.day - row_number() OVER (ORDER BY w.day)::integer AS run
            FROM (SELECT p_start + n AS day FROM generate_series(0, p_end - p_start) n) w
            WHERE NOT EXISTS (
                SELECT FROM myhealth.health_days d
                WHERE d.user_id = p_user AND d.metric_id = v_metric.id AND d.day = w.day
                    AND d.time_zone = p_zone)
        ) g
        GROUP BY g.run ORDER BY 1
    LOOP
        PERFORM myhealth.health_fill(
            p_user, v_metric.id, v_metric.cumulative, v_gap.first, v_gap.last, p_zone);
    END LOOP;
    RETURN QUERY
        SELECT d.day, d.total, d.minimum, d.average, d.maximum, d.latest, d.samples,
            ARRAY(SELECT s.name FROM unnest(d.sources) WITH ORDINALITY AS u (id, n)
                  JOIN myhealth.health_sources s ON s.user_id = p_user AND s.id = u.id ORDER BY u.n)
        FROM myhealth.health_days d
        WHERE d.user_id = p_user AND d.metric_id = v_metric.id AND d.time_zone = p_zone
            AND d.day BETWEEN p_start AND p_end AND d.samples > 0
        ORDER BY d.day;
END
$$;

-- Nights: a night runs from noon to noon and is named by the day it ends in. Each (source, stage) is a layer;
-- layers rank by source, then from the most telling stage to the least; each loses what a better one covers.
CREATE FUNCTION myhealth.health_nights(p_user uuid, p_start date, p_end date, p_zone text)
    RETURNS TABLE (o_night date, o_stage text, o_minutes double precision,
                   o_from timestamptz, o_until timestamptz, o_sources text[])
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM myhealth.act_as(p_user);
    RETURN QUERY
    WITH stretches AS (
        -- Twelve hours on, noon is midnight.
        SELECT z.*, generate_series(
            0, (z.end_at AT TIME ZONE p_zone + interval '12 hours')::date - z.evening) + z.evening AS night
        FROM (
            SELECT start_at, end_at, stage, source_id,
                (start_at AT TIME ZONE p_zone + interval '12 hours')::date AS evening
            FROM myhealth.health_sleep
            WHERE user_id = p_user
                AND start_at >= (p_start - 1 + time '12:00') AT TIME ZONE p_zone - interval '7 days'
                AND start_at < (p_end + time '12:00') AT TIME ZONE p_zone
        ) z
    ), layers AS (
        SELECT z.night, z.stage, s.place, s.name,
            range_agg(tstzrange(z.start_at, z.end_at)
                * tstzrange((z.night - 1 + time '12:00') AT TIME ZONE p_zone,
                            (z.night + time '12:00') AT TIME ZONE p_zone)) AS cover,
            -- "In bed" says where, the other stages say how: two statements that may both hold.
            CASE WHEN z.stage = 'in_bed' THEN 'bed' ELSE 'sleep' END AS sheet
        FROM stretches z
        JOIN myhealth.health_source_places s ON s.user_id = p_user AND s.id = z.source_id
        WHERE z.night BETWEEN p_start AND p_end
        GROUP BY z.night, z.stage, s.place, s.name
    ), won AS (
        SELECT l.night, l.stage, l.name, l.cover - coalesce(range_agg(l.cover) OVER (
            PARTITION BY l.night, l.sheet
            ORDER BY l.place, array_position('{deep,rem,core,awake,asleep,in_bed}'::text[], l.stage)
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), '{}') AS cover
        FROM layers l
    )
    SELECT w.night, w.stage, sum(date_part('epoch', upper(r) - lower(r))) / 60,
        min(lower(r)), max(upper(r)), array_agg(DISTINCT w.name)
    FROM won w CROSS JOIN LATERAL unnest(w.cover) r
    GROUP BY w.night, w.stage ORDER BY w.night, w.stage;
END
$$;

DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = 'myhealth'::regnamespace
            AND (p.proname LIKE 'health\_%' OR p.proname IN ('day_start', 'device_rank', 'profile')) LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO agent_backend', f);
    END LOOP;
END
$$;
