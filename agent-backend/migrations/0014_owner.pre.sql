-- From Postgres 16 on, whoever makes a role without being a superuser may hand it on and may not be it: the grant that
-- comes of itself has ADMIN without SET, and 0001 took it for a membership. So an owner whose URL serves the server,
-- too (Supabase's `postgres`), could not take the role.
DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 160000 THEN
        IF NOT pg_has_role(current_user, 'agent_backend', 'SET') THEN
            EXECUTE format('GRANT agent_backend TO %I', current_user);
        END IF;
    END IF;
END
$$;
