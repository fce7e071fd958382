-- name: read
SELECT id, kind, target, target_date, title, set_by, created_at, updated_at
FROM myhealth.goals ORDER BY kind

-- name: facts
SELECT o_time_zone, o_birth_year, o_eating_disorder, o_height_cm, o_body_mass_kg, o_weighed_at
FROM myhealth.goal_facts($1, $2)

-- name: save
SELECT myhealth.save_goal($1, $2, $3, $4, $5, $6, $7)

-- name: remove_id
DELETE FROM myhealth.goals WHERE user_id = $1 AND id = $2

-- name: remove_kinds
DELETE FROM myhealth.goals WHERE user_id = $1 AND kind = ANY ($2)

-- name: act_as
SELECT myhealth.act_as($1)
