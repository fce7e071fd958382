-- name: store
SELECT o_stored, o_unchanged, o_replaced FROM myhealth.health_store($1, $2::json)

-- name: daily
SELECT * FROM myhealth.health_daily($1, $2, $3, $4, $5)

-- name: nights
SELECT * FROM myhealth.health_nights($1, $2, $3, $4)

-- name: workouts
SELECT w.id, w.activity, w.start_at AS start, w.end_at AS "end", w.duration_s, w.energy_kcal, w.distance_m,
    s.name AS source, s.device, w.note,
    EXISTS (
        SELECT FROM myhealth.health_workouts o
        JOIN myhealth.health_source_places p USING (user_id)
        WHERE p.id = o.source_id AND o.user_id = w.user_id AND o.activity = w.activity AND p.place < s.place
            AND o.start_at > w.start_at - interval '7 days' AND o.start_at < w.end_at
            AND least(o.end_at, w.end_at) - greatest(o.start_at, w.start_at) > (w.end_at - w.start_at) / 2
    ) AS duplicate
FROM myhealth.health_workouts w
JOIN myhealth.health_source_places s ON s.user_id = w.user_id AND s.id = w.source_id
WHERE w.start_at >= myhealth.day_start($1::date, $3) AND w.start_at < myhealth.day_start($2::date + 1, $3)
ORDER BY w.start_at, w.id

-- name: rings
SELECT DISTINCT ON (date) date, active_energy_kcal, exercise_minutes, stand_hours, active_energy_goal_kcal
FROM myhealth.health_activity_summaries
WHERE date BETWEEN $1 AND $2
ORDER BY date, uploaded_at DESC, id
