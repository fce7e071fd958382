-- name: read
SELECT o_time_zone AS time_zone, o_locale AS locale, o_birth_year AS birth_year FROM myhealth.profile($1)

-- name: write
INSERT INTO myhealth.profiles (user_id, time_zone, locale, birth_year) VALUES ($1, $2, $3, $4)
ON CONFLICT (user_id) DO UPDATE
    SET time_zone = excluded.time_zone, locale = excluded.locale, birth_year = excluded.birth_year,
        updated_at = now()

-- name: knows_time_zone
SELECT now() AT TIME ZONE $1
