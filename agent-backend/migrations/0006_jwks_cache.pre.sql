-- The keys that tokens were last checked with, for a boot while the issuer cannot be reached. Public keys, so
-- nothing here is secret; what matters is that nobody but the server writes it.
CREATE TABLE myhealth.jwks_cache (
    url text PRIMARY KEY,
    document bytea NOT NULL CHECK (octet_length(document) <= 262144),
    fetched_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- No policy and no grant: the functions below are the only way to it.
ALTER TABLE myhealth.jwks_cache ENABLE ROW LEVEL SECURITY;

-- Remembers a document that was just fetched. Unchanged, it is written once a day, for its age.
CREATE FUNCTION myhealth.put_jwks(p_url text, p_document bytea) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    INSERT INTO jwks_cache AS c (url, document) VALUES (p_url, p_document)
    ON CONFLICT (url) DO UPDATE SET document = excluded.document, fetched_at = clock_timestamp()
        WHERE c.document <> excluded.document OR c.fetched_at < clock_timestamp() - interval '1 day'
    $$;

-- The document of this address, if it was fetched no longer ago than that.
CREATE FUNCTION myhealth.read_jwks(p_url text, p_max_age interval) RETURNS bytea
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$ SELECT document FROM jwks_cache WHERE url = p_url AND fetched_at > clock_timestamp() - p_max_age $$;

REVOKE EXECUTE ON FUNCTION myhealth.put_jwks, myhealth.read_jwks FROM PUBLIC;
GRANT EXECUTE ON FUNCTION myhealth.put_jwks, myhealth.read_jwks TO agent_backend;
