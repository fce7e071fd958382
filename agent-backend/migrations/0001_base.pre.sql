-- The ground: the server's role, the claims, the marker of which deployment this database belongs to.

-- Roles belong to the cluster, so another database's migration may have made it, even at this moment.
DO $$
BEGIN
    CREATE ROLE agent_backend NOLOGIN NOBYPASSRLS;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END
$$;

-- The login role of DATABASE_URL works as agent_backend (`SET ROLE`), so it has to be a member.
DO $$
BEGIN
    IF NOT pg_has_role(current_user, 'agent_backend', 'MEMBER') THEN
        EXECUTE format('GRANT agent_backend TO %I', current_user);
    END IF;
END
$$;

GRANT USAGE ON SCHEMA myhealth TO agent_backend;
GRANT SELECT ON myhealth.migrations TO agent_backend;

-- One row: staging must never run production's turns.
CREATE TABLE myhealth.deployment (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    environment text NOT NULL,
    app text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT ON myhealth.deployment TO agent_backend;

-- The user of this transaction, from the claims Supabase's own policies read; NULL without claims.
CREATE FUNCTION myhealth.current_user_id() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$;

-- Sets the claims of this transaction; the first thing every function that reads as a user does.
CREATE FUNCTION myhealth.act_as(p_user uuid) RETURNS void
    LANGUAGE sql
    AS $$ SELECT set_config('request.jwt.claims', '{"sub":"' || p_user || '"}', true) $$;

-- New functions are executable by everybody, and a schema's default privileges cannot change that: each
-- migration that makes functions revokes this by name.
REVOKE EXECUTE ON FUNCTION myhealth.current_user_id(), myhealth.act_as(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION myhealth.current_user_id(), myhealth.act_as(uuid) TO agent_backend;
