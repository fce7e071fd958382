-- name: read
SELECT o_time_zone AS time_zone, o_locale AS locale, o_birth_year AS birth_year,
    o_eating_disorder AS eating_disorder, o_height_cm AS height_cm
FROM myhealth.profile($1)

-- name: lock_goals
SELECT myhealth.goals_lock($1)

-- name: write
INSERT INTO myhealth.profiles AS p (user_id, time_zone, locale, birth_year, eating_disorder, height_cm)
VALUES ($1, $2, $3, $4, coalesce($5, false), $7)
ON CONFLICT (user_id) DO UPDATE
    SET time_zone = excluded.time_zone, locale = excluded.locale, birth_year = excluded.birth_year,
        eating_disorder = coalesce($5, p.eating_disorder),
        height_cm = CASE WHEN $6 THEN excluded.height_cm ELSE p.height_cm END,
        updated_at = now()
RETURNING time_zone, locale, birth_year, eating_disorder, height_cm

-- name: knows_time_zone
SELECT now() AT TIME ZONE $1
