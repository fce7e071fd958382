"""Break each durability law on purpose, one at a time, and see the test that guards it fail.

Works on a copy of the checkout; the checkout itself is not touched. Prints a table and exits 1 when a broken
law went unnoticed. Usage: python scripts/break_laws.py [WORD ...] (only laws whose name contains a word).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BACKEND = "agent-backend/"
SQL = BACKEND + "migrations/0002_sessions.pre.sql"
LOG = BACKEND + "migrations/0004_event_log.pre.sql"
PARKING = BACKEND + "migrations/0005_device_tools.pre.sql"
CONSENT = BACKEND + "migrations/0008_consents.pre.sql"
LEDGER = BACKEND + "migrations/0009_ledger.pre.sql"
PRIVACY = BACKEND + "migrations/0011_privacy.pre.sql"
ACCEPTING = BACKEND + "migrations/0013_accepting.pre.sql"
TURNS = BACKEND + "src/agent_backend/turns/"
STREAM = BACKEND + "src/agent_backend/web/stream.py"
LEASES = BACKEND + "tests/db/test_leases.py::"
LAWS = BACKEND + "tests/turns/test_laws.py::"
CALLS = BACKEND + "tests/db/test_tool_calls.py::"
PARKED = BACKEND + "tests/turns/test_parking.py::"
GIVEN = BACKEND + "tests/db/test_consents.py::"
LOOK = BACKEND + "tests/turns/test_consent.py::"
WATCH = BACKEND + "tests/turns/test_recovery.py::"
ISOLATION = BACKEND + "tests/db/test_isolation.py::"
GRANTS = BACKEND + "tests/db/test_grants.py::"

_FUNCTION = re.compile(r"^CREATE (?:OR REPLACE )?FUNCTION myhealth\.(\w+)", re.MULTILINE)


class Break(NamedTuple):
    """A law, how to break it (file, text, replacement), and the test that must notice."""

    law: str
    file: str
    text: str
    replacement: str
    test: str
    also: tuple[str, str, str] | None = None
    """A second place to break, where the law is kept twice: file, text, replacement."""


BREAKS = [
    Break(
        "group commit holds its sessions",
        LOG,
        "ORDER BY s.id FOR KEY SHARE",
        "ORDER BY s.id",
        LEASES + "test_a_claim_waits_for_an_open_group_commit_of_the_old_epoch",
    ),
    Break(
        "a claim waits for writes of the epoch it ends",
        SQL,
        "    SELECT * INTO session FROM sessions s WHERE s.id = p_session FOR UPDATE;\n    SELECT * INTO v_taken",
        "    SELECT * INTO v_taken",
        LEASES + "test_a_claim_waits_for_an_open_group_commit_of_the_old_epoch",
    ),
    Break(
        "settles do not hold up group commits",
        LEDGER,
        "WHERE s.id = p_session FOR NO KEY UPDATE;\n    ELSE",
        "WHERE s.id = p_session FOR UPDATE;\n    ELSE",
        LEASES + "test_a_group_commit_does_not_wait_for_a_settle_of_its_session",
    ),
    Break(
        "a dead epoch settles nothing",
        LEDGER,
        "IF NOT again AND (v_session.owner IS DISTINCT FROM p_me OR v_session.epoch IS DISTINCT FROM p_epoch) THEN",
        "IF false THEN",
        LEASES + "test_a_dead_epoch_settles_nothing",
    ),
    Break(
        "a dead epoch appends nothing",
        LOG,
        "s.id = ANY (p_sessions) AND s.owner = p_me ORDER BY s.id FOR KEY SHARE\n"
        "    ), kept AS MATERIALIZED (\n"
        "        SELECT w.*, h.user_id\n"
        "        FROM unnest(p_sessions, p_epochs, p_firsts, p_lasts, p_events)"
        " AS w (id, epoch, first, last, events)\n"
        "        JOIN held h ON h.id = w.id AND h.epoch = w.epoch",
        "s.id = ANY (p_sessions) ORDER BY s.id FOR KEY SHARE\n"
        "    ), kept AS MATERIALIZED (\n"
        "        SELECT w.*, h.user_id\n"
        "        FROM unnest(p_sessions, p_epochs, p_firsts, p_lasts, p_events)"
        " AS w (id, epoch, first, last, events)\n"
        "        JOIN held h ON h.id = w.id",
        LEASES + "test_a_dead_epoch_appends_nothing",
    ),
    Break(
        "expiry is checked again under the lock",
        SQL,
        "WHERE incarnation = p_owner AND alive_until < clock_timestamp()",
        "WHERE incarnation = p_owner",
        LEASES + "test_an_owner_that_beats_again_is_not_robbed_by_who_saw_it_dead",
    ),
    Break(
        "only who watched may take over",
        SQL,
        "OR (p_owner = ANY (p_dead)\n            AND EXISTS",
        "OR (true\n            AND EXISTS",
        LEASES + "test_an_expired_owner_is_taken_over_only_by_who_watched_it",
    ),
    Break(
        "an outage makes nobody steal",
        TURNS + "recovery.py",
        "and now - since >= self._lease",
        "",
        WATCH + "test_expired_at_first_sight_is_not_dead",
    ),
    Break(
        "a beat starts the watch anew",
        TURNS + "recovery.py",
        "            if value != beat.alive_until:\n                since = now\n",
        "",
        WATCH + "test_a_beat_starts_the_watch_anew",
    ),
    Break(
        "an older incarnation is gone at once",
        SQL,
        "        OR NOT EXISTS (SELECT FROM machines WHERE incarnation = p_owner)\n",
        "",
        LEASES + "test_an_older_incarnation_of_a_machine_is_taken_over_at_once",
    ),
    Break(
        "accepting claims in the same call",
        ACCEPTING,
        "IF v_lock.claimed AND v_busy = 0 THEN",
        "IF false THEN",
        LEASES + "test_accepting_claims_and_begins_in_one_call",
    ),
    Break(
        "a settle sent again changes nothing",
        LEDGER,
        "    again := EXISTS (SELECT FROM segments WHERE session_id = p_session AND epoch = p_epoch AND last = p_last);\n",
        "    again := false;\n",
        LEASES + "test_a_settle_sent_again_changes_nothing_and_answers_the_same",
    ),
    Break(
        "a segment sent again is written once",
        LOG,
        "            ON CONFLICT DO NOTHING\n    )",
        "    )",
        LEASES + "test_a_segment_sent_again_is_written_once",
    ),
    Break(
        "release looks at the queue again",
        LEDGER,
        "        IF next.turn_state IS DISTINCT FROM 'queued' THEN",
        "        IF true THEN",
        LEASES + "test_no_wake_up_is_lost_between_last_settle_and_release",
    ),
    Break(
        "takeover leaves a marker",
        PARKING,
        "    IF v_running IS NOT NULL THEN",
        "    IF false THEN",
        LEASES + "test_takeover_marks_what_is_settled",
    ),
    Break(
        "one turn of a session runs at a time",
        SQL,
        "CREATE UNIQUE INDEX turns_one_active",
        "CREATE INDEX turns_one_active",
        LEASES + "test_two_turns_of_a_session_never_run_at_once",
    ),
    Break(
        "no illegal transition of a turn",
        SQL,
        "IF NOT myhealth.turn_may_go(OLD.state, NEW.state) THEN",
        "IF false THEN",
        LEASES + "test_a_turn_cannot_skip_states",
    ),
    Break(
        "a re-sent interrupt interrupts nothing",
        ACCEPTING,
        "    IF FOUND THEN\n        status := CASE WHEN v_turn.body_hash",
        "    IF FOUND THEN\n        UPDATE turns t SET cancel_requested = (p_on_busy = 'interrupt')"
        " WHERE t.session_id = p_session;\n        status := CASE WHEN v_turn.body_hash",
        LEASES + "test_interrupt_stops_every_unfinished_turn_once",
    ),
    Break(
        "another user's session is not there",
        SQL,
        "FROM sessions s WHERE s.id = p_session AND s.user_id = p_user FOR NO KEY UPDATE;",
        "FROM sessions s WHERE s.id = p_session FOR NO KEY UPDATE;",
        LEASES + "test_another_users_session_is_not_there",
    ),
    Break(
        "rows are hidden without claims",
        SQL,
        "ALTER TABLE myhealth.messages ENABLE ROW LEVEL SECURITY;",
        "",
        LEASES + "test_row_level_security_hides_all_rows_without_claims",
    ),
    Break(
        "ENDs are told after the settle",
        TURNS + "settling.py",
        "            settled = await self._send(live, step, effect)\n",
        "            live.publish_settled(numbered)\n            settled = await self._send(live, step, effect)\n",
        LAWS + "test_nothing_that_settles_is_told_before_it_is_settled",
    ),
    Break(
        "no tool starts before its message is settled",
        TURNS + "turn.py",
        'without output.", writer)\n            return await self._settle(closing, messages, usage=usage)\n',
        'without output.", writer)\n'
        "            early = [history.ToolCall(b['id'], b['name'], b['input']) for b in done.content"
        " if b['type'] == 'tool_use']\n"
        "            await self._toolbox.run_all(early, self._live, self._turn_id, self._agent, 'UTC', 'en')\n"
        "            return await self._settle(closing, messages, usage=usage)\n",
        LAWS + "test_no_tool_starts_before_the_message_that_asked_is_settled",
    ),
    Break(
        "effect and result commit together",
        TURNS + "settling.py",
        "async with self._database.pool.acquire() as connection, connection.transaction():",
        "async with self._database.pool.acquire() as connection:",
        LAWS + "test_a_tools_effect_and_its_result_are_one_even_when_the_commit_fails",
    ),
    Break(
        "an effect is not done again",
        TURNS + "settling.py",
        "            if not settled.again:\n",
        "            if True:\n",
        LAWS + "test_an_effect_whose_outcome_was_unknown_is_not_done_again",
    ),
    Break(
        "a refused batch is bisected",
        TURNS + "committer.py",
        "        if len(batches) > 1:\n            middle",
        "        if False:\n            middle",
        LAWS + "test_one_refused_event_harms_one_session",
    ),
    Break(
        "a segment's bounds freeze",
        TURNS + "committer.py",
        "                batches = [batch for batch in batches if not batch.session.fenced]\n",
        "                batches = [Batch(batch.session, [*batch.session.pending]) for batch in batches]\n",
        LAWS + "test_a_commit_whose_answer_is_lost_doubles_nothing",
    ),
    Break(
        "a settle waits for the batch in flight",
        TURNS + "committer.py",
        "        while session in self._in_flight and not session.fenced:\n            await self._idle.wait()\n",
        "",
        LAWS + "test_a_settle_waits_for_the_group_commit_in_flight",
    ),
    Break(
        "database calls do not grow with tokens",
        TURNS + "committer.py",
        "            await asyncio.sleep(self._interval)\n",
        "            await asyncio.sleep(0)\n",
        LAWS + "test_database_calls_do_not_grow_with_tokens",
    ),
    Break(
        "settling never notifies",
        LEDGER,
        "    status := 'settled';\n",
        "    status := 'settled';\n    PERFORM pg_notify('myhealth', '');\n",
        LAWS + "test_settling_never_notifies",
    ),
    Break(
        "who lost its lease cuts its readers",
        TURNS + "fanout.py",
        "        self.pending = []\n        self.cut_subscribers()\n",
        "        self.pending = []\n",
        LAWS + "test_a_late_machine_that_lost_its_lease_publishes_nothing_more",
        also=(
            STREAM,
            "                    if self._told:\n",
            "                    if False:\n",
        ),
    ),
    Break(
        "a turn that brings its owners down is given up",
        TURNS + "runner.py",
        "        if claim.attempts > MAX_ATTEMPTS:\n",
        "        if False:\n",
        LAWS + "test_a_turn_that_keeps_bringing_its_owner_down_is_given_up",
    ),
    Break(
        "a parked turn has no owner",
        PARKING,
        "UPDATE sessions s SET owner = NULL, settled_epoch",
        "UPDATE sessions s SET settled_epoch",
        CALLS + "test_parking_gives_the_session_back_in_the_same_call",
    ),
    Break(
        "a dead epoch parks nothing",
        PARKING,
        "    IF v_session.owner IS DISTINCT FROM p_me OR v_session.epoch IS DISTINCT FROM p_epoch THEN\n",
        "    IF false THEN\n",
        CALLS + "test_a_dead_epoch_parks_nothing",
    ),
    Break(
        "a turn asked to stop does not park",
        PARKING,
        "    IF (SELECT t.cancel_requested FROM turns t WHERE t.session_id = p_session AND t.id = p_turn) THEN\n",
        "    IF false THEN\n",
        CALLS + "test_a_turn_asked_to_stop_parks_nothing",
    ),
    Break(
        "the first answer wins",
        CONSENT,
        "        WHEN v_call.state = 'answered' THEN 'conflict'\n",
        "",
        PARKED + "test_the_first_answer_wins_among_twenty",
    ),
    Break(
        "an expiry takes no answer away",
        PARKING,
        "status = 'timeout', answered_at = clock_timestamp()\n"
        "            WHERE c.session_id = p_session AND c.turn_id = v_turn AND c.state IN ('pending', 'claimed');",
        "status = 'timeout', answered_at = clock_timestamp()\n"
        "            WHERE c.session_id = p_session AND c.turn_id = v_turn;",
        CALLS + "test_an_overdue_turn_is_taken_by_one_sweep_and_its_calls_expire",
    ),
    Break(
        "an effect is answered by who claimed it",
        CONSENT,
        "(v_call.device = p_device) IS NOT TRUE",
        "false",
        PARKED + "test_an_effect_is_claimed_by_one_device",
    ),
    Break(
        "without a yes the tool does not run",
        TURNS + "parking.py",
        'elif row.kind == "approval" and row.status == "ok":',
        'elif row.kind == "approval":',
        PARKED + "test_without_a_yes_the_tool_never_runs",
        also=(
            TURNS + "toolbox.py",
            "known=call.name in allowed or (call.id in approved and call.name in on_approval)",
            "known=True",
        ),
    ),
    Break(
        "waking is no takeover",
        PARKING,
        "    ELSE\n        PERFORM unpark(p_session.id);\n    END IF;",
        "    END IF;",
        CALLS + "test_the_last_answer_wakes_the_turn_without_a_marker",
    ),
    Break(
        "a machine that leaves ends its runs before its group commit",
        TURNS + "machine.py",
        '        await self._end_work("recovery")\n',
        "        await self._end_work(*self._work)\n        await asyncio.sleep(0.2)\n",
        LAWS + "test_a_machine_that_leaves_writes_nothing_twice",
        (
            TURNS + "committer.py",
            "            for batch in batches:\n                self._on_refused(batch.session)\n            raise",
            "            raise",
        ),
    ),
    Break(
        "a settle that is not waited for fences its session",
        TURNS + "settling.py",
        "            live.fence()\n            raise",
        "            raise",
        LAWS + "test_a_settle_whose_end_is_not_waited_for_is_not_written_beside",
    ),
    Break(
        "a handover on purpose is no attempt",
        PARKING,
        "    IF p_force THEN\n        UPDATE turns",
        "    IF false THEN\n        UPDATE turns",
        LEASES + "test_a_handover_on_purpose_costs_no_attempt",
    ),
    Break(
        "who has work does not sleep",
        BACKEND + "src/agent_backend/sleeping.py",
        "if services.serving or hub.live or hub.claiming:",
        "if services.serving:",
        BACKEND + "tests/test_sleeping.py::test_a_turn_that_nobody_watches_is_finished_first",
        (
            TURNS + "machine.py",
            "if self.hub.live or self.hub.claiming:\n            return True\n        if await leases",
            "return False\n        if await leases",
        ),
    ),
    Break(
        "a reader outlives the connection it reads over",
        STREAM,
        "if loop.time() > give_up_at or self._machine.hub.leaving.is_set():",
        "if loop.time() > 0:",
        BACKEND + "tests/turns/test_faults.py::test_a_reader_outlives_the_connection_it_reads_over",
    ),
    Break(
        "consent: nothing is accepted without",
        ACCEPTING,
        "    ELSIF cardinality(missing) > 0 THEN\n",
        "    ELSIF false THEN\n",
        GIVEN + "test_a_turn_is_accepted_with_what_it_needs_and_found_again_without",
    ),
    Break(
        "consent: no answer to a call is taken without",
        CONSENT,
        "        WHEN cardinality(missing) > 0 THEN 'consent_required'\n",
        "",
        GIVEN + "test_withdrawing_stops_what_waits_runs_and_is_parked_and_nobody_elses",
    ),
    Break(
        "consent: a withdrawal and an acceptance take turns",
        CONSENT,
        "    PERFORM pg_advisory_xact_lock_shared(consent_lock_key(p_user));\n",
        "",
        GIVEN + "test_whoever_accepts_beside_a_withdrawal_is_refused_or_stopped",
    ),
    Break(
        "consent: its history is not rewritten",
        CONSENT,
        "    IF OLD.withdrawn_at IS NOT NULL OR NEW.withdrawn_at IS NULL\n",
        "    IF NEW.withdrawn_at IS NULL\n",
        GIVEN + "test_history_is_not_rewritten",
    ),
    Break(
        "consent: withdrawing stops what is not finished",
        CONSENT,
        "            UPDATE turns t SET cancel_requested = true\n                WHERE t.session_id = v_session\n",
        "            UPDATE turns t SET cancel_requested = false\n                WHERE t.session_id = v_session\n",
        GIVEN + "test_withdrawing_stops_what_waits_runs_and_is_parked_and_nobody_elses",
    ),
    Break(
        "consent: it is looked for before each model call",
        TURNS + "turn.py",
        'if await self._consents.missing(self._live.user_id, "model_call"):',
        "if False:",
        LOOK + "test_no_model_call_follows_a_tool_in_whose_run_the_consent_went",
    ),
    Break(
        "consent: it is looked for before each tool",
        TURNS + "turn.py",
        'if await self._consents.missing(live.user_id, "health_data"):',
        "if False:",
        LOOK + "test_no_tool_runs_when_its_consent_went_while_the_model_spoke",
    ),
    Break(
        "consent: a withdrawal is answered when it has happened",
        TURNS + "commands.py",
        "        await self._consents.until_stopped(user_id, tell)\n",
        "",
        LOOK + "test_withdrawing_anywhere_ends_what_runs_waits_and_is_parked",
    ),
    Break(
        "consent: a version that requires renewal ends those before",
        BACKEND + "src/agent_backend/consents.py",
        "            if renewals[version]:\n                break\n",
        "",
        LOOK + "test_a_new_version_that_requires_renewal_is_asked_for_anew",
    ),
    Break(
        "a policy speaks of the user",
        SQL,
        "CREATE POLICY own ON myhealth.turns FOR SELECT TO agent_backend USING (user_id = (SELECT myhealth.current_user_id()));",
        "CREATE POLICY own ON myhealth.turns FOR SELECT TO agent_backend USING (true);",
        ISOLATION + "test_no_row_of_a_is_there_for_b_or_for_nobody",
    ),
    Break(
        "a function answers with the asking user's rows",
        PRIVACY,
        "FROM sessions s WHERE s.id = p_id AND s.user_id = p_user;",
        "FROM sessions s WHERE s.id = p_id;",
        ISOLATION + "test_functions_that_take_a_user_give_b_nothing_of_a",
    ),
    Break(
        "a table of users has row level security",
        PARKING,
        "ALTER TABLE myhealth.tool_calls ENABLE ROW LEVEL SECURITY;\n",
        "",
        ISOLATION + "test_every_table_has_an_owner_or_a_reason",
    ),
    Break(
        "no function is everybody's",
        PARKING,
        "    myhealth.put_tool_result, myhealth.read_tool_calls, myhealth.keep_parked\n    FROM PUBLIC;",
        "    myhealth.put_tool_result, myhealth.read_tool_calls\n    FROM PUBLIC;",
        GRANTS + "test_functions_are_granted_by_name_and_definers_pin_their_search_path",
    ),
    Break(
        "a definer pins its search path",
        BACKEND + "migrations/0007_sleep.pre.sql",
        " SECURITY DEFINER SET search_path = myhealth, pg_temp",
        " SECURITY DEFINER",
        GRANTS + "test_functions_are_granted_by_name_and_definers_pin_their_search_path",
    ),
]


def main(words: list[str]) -> int:
    """Break what was asked for, or everything; return 1 if something went unnoticed."""
    chosen = [each for each in BREAKS if not words or any(word in each.law for word in words)]
    for each in BREAKS:
        _refuse_stale(each)
    unnoticed = 0
    with tempfile.TemporaryDirectory(prefix="myhealth-laws-") as name:
        copy = Path(name) / "checkout"
        ignore = shutil.ignore_patterns(".git", ".venv", "node_modules", "__pycache__", ".local", "out")
        shutil.copytree(ROOT, copy, ignore=ignore)
        for each in chosen:
            noticed = _noticed(copy, each)
            unnoticed += not noticed
            print(f"{'noticed  ' if noticed else 'UNNOTICED'}  {each.law}", flush=True)
    print(f"{len(chosen) - unnoticed} of {len(chosen)} broken laws were noticed")
    return 1 if unnoticed else 0


def _refuse_stale(each: Break) -> None:
    """End unless every text stands where it says, once, and in the newest definition of its function.

    A later migration may define a function anew; to break the old text would break nothing.
    """
    for file, text, _ in _edits(each):
        source = (ROOT / file).read_text(encoding="utf-8")
        if source.count(text) != 1:
            raise SystemExit(f"{each.law}: the text to break stands {source.count(text)} times in {file}")
        before = _FUNCTION.findall(source[: source.index(text)])
        if not file.endswith(".sql") or not before:
            continue
        for later in sorted((ROOT / BACKEND / "migrations").glob("*.sql")):
            if later.name > Path(file).name and before[-1] in _FUNCTION.findall(later.read_text("utf-8")):
                raise SystemExit(f"{each.law}: {later.name} defines {before[-1]} anew; break that one")


def _edits(each: Break) -> list[tuple[str, str, str]]:
    return [(each.file, each.text, each.replacement), *([each.also] if each.also else [])]


def _noticed(copy: Path, each: Break) -> bool:
    edits = _edits(each)
    originals = {file: (copy / file).read_text(encoding="utf-8") for file, _, _ in edits}
    for file, text, replacement in edits:
        (copy / file).write_text(originals[file].replace(text, replacement), encoding="utf-8")
    try:
        return _fails(copy, each)
    finally:
        for file, original in originals.items():
            (copy / file).write_text(original, encoding="utf-8")


def _fails(copy: Path, each: Break) -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", each.test],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy / "agent-backend" / "src")},
        capture_output=True,
        text=True,
        # More than pytest gives a test (pyproject.toml): one that hangs fails by that.
        timeout=400,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{each.law}: {each.test} could not be run:\n{done.stdout[-2000:]}")
    return done.returncode == 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
