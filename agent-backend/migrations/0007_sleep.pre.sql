-- Sleeping: may this machine go, or is there work that nobody else does?

-- Unfinished turns that are free, this machine's, or of an owner that is not alive: those wait for somebody.
-- A living machine's are its own business, and parked ones are the phone's until they expire.
CREATE FUNCTION myhealth.work_left(p_me uuid) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = myhealth, pg_temp
    AS $$
    SELECT EXISTS (
        SELECT FROM turns t JOIN sessions s ON s.id = t.session_id
        WHERE (t.state = 'running'
               OR (t.state = 'queued' AND NOT EXISTS (
                    SELECT FROM turns w WHERE w.session_id = t.session_id
                    AND w.state IN ('waiting_device', 'waiting_approval')))
               OR (t.state IN ('waiting_device', 'waiting_approval') AND t.deadline <= clock_timestamp()))
          AND NOT EXISTS (SELECT FROM machines m WHERE m.incarnation = s.owner AND m.incarnation <> p_me
                          AND m.alive_until >= clock_timestamp()))
    $$;

REVOKE EXECUTE ON FUNCTION myhealth.work_left FROM PUBLIC;
GRANT EXECUTE ON FUNCTION myhealth.work_left TO agent_backend;
