"""scripts/version_skew.py as a whole, on a small repository whose releases have a test or two.

Their environment is this one, so that nothing is installed. With what production runs, asked of the real
flyctl: myhealth-cli/tests/deploy/test_workflow_steps.py. With real releases: by hand, and in CI.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BOOTSTRAP = f"""
from pathlib import Path
Path(".venv").symlink_to({str(Path(sys.executable).parent.parent)!r})
"""
TESTS = """
import asyncio, os, asyncpg

def test_the_schema_is_the_newer_one():
    async def applied():
        connection = await asyncpg.connect(os.environ["TEST_DATABASE_URL"])
        await connection.execute("CREATE DATABASE mine")
        await connection.close()
        mine = await asyncpg.connect(os.environ["TEST_DATABASE_URL"], database="mine")
        names = [row["name"] for row in await mine.fetch("SELECT name FROM myhealth.migrations")]
        await mine.close()
        return names
    assert "0001_base.pre.sql" in asyncio.run(applied()), "a new database has the schema"

def test_that_is_late_on_a_busy_machine():
    begun = os.environ["HOME"] + "/late"
    before = os.path.exists(begun)
    open(begun, "w").close()
    assert before

def test_what_the_newer_schema_breaks():
    assert "FLY_API_TOKEN" not in os.environ
    assert not "broken"
"""
WAITS = """
import os, time
def test_that_lasts():
    open(os.environ["HOME"] + "/begun", "w").close()
    try:
        time.sleep(60)
    finally:
        open(os.environ["HOME"] + "/ended", "w").close()
"""


class Repository:
    """A clone with the script and our migrations. `temporary`: where the script may leave nothing."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.root = folder / "clone"
        self.home = folder / "home"
        self.temporary = temporary
        for each in (self.root / "scripts", self.root / "acceptance", self.home):
            each.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def env(self, **more: str) -> dict[str, str]:
        """Return the script's environment."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(self.home), "TMPDIR": str(self.temporary), **more}

    def git(self, *words: str) -> str:
        """Run git here."""
        command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com", *words]
        return subprocess.run(
            command, cwd=self.root, env=self.env(), check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self, **files: str) -> str:
        """Commit files of acceptance/ and scripts/; return the commit."""
        for name, text in files.items():
            folder = "scripts" if name == "bootstrap" else "acceptance"
            (self.root / folder / f"{name}.py").write_text(text, "utf-8")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "a release")
        return self.git("rev-parse", "HEAD")

    def newest(self) -> None:
        """Make the tree what is about to be deployed: it has the script and our migrations."""
        shutil.copy(ROOT / "scripts" / "version_skew.py", self.root / "scripts")
        (self.root / "agent-backend").mkdir()
        (self.root / "agent-backend" / "migrations").symlink_to(ROOT / "agent-backend" / "migrations")

    def command(self, *words: str) -> list[str]:
        """Return how the script is run."""
        return [sys.executable, str(self.root / "scripts" / "version_skew.py"), *words]

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the script."""
        return subprocess.run(
            self.command(*words),
            cwd=self.root,
            env=self.env(**env),
            capture_output=True,
            text=True,
            check=False,
        )

    def left(self) -> list[str]:
        """Return what is left: temporary folders, worktrees, a Postgres."""
        found = [each.name for each in self.temporary.glob("myhealth-skew-*")]
        found += self.git("worktree", "list").splitlines()[1:]
        running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        return found + [line for line in running.splitlines() if str(self.temporary) in line]


@pytest.fixture
def repository(tmp_path: Path) -> Generator[Repository]:
    # Not below pytest's own: root's Postgres runs as somebody else, who may not go there.
    with tempfile.TemporaryDirectory(prefix="skew-test-") as temporary:
        Path(temporary).chmod(0o755)
        yield Repository(tmp_path, Path(temporary))


def test_a_test_that_fails_is_named_and_nothing_is_left(repository: Repository) -> None:
    old = repository.commit(bootstrap=BOOTSTRAP, test_turns=TESTS)
    repository.newest()
    ended = repository.run(old, FLY_API_TOKEN="made up")
    assert ended.returncode == 1, ended
    assert "2 failed, 1 passed" in ended.stdout
    again = ended.stdout.partition("tried once more")[2]
    assert "FAILED acceptance/test_turns.py::test_what_the_newer_schema_breaks" in again
    assert "1 failed, 1 passed" in again
    assert "skew: FAILED after" in ended.stdout
    assert repository.left() == []


def test_a_trial_that_is_interrupted_tidies_up(repository: Repository) -> None:
    old = repository.commit(bootstrap=BOOTSTRAP, test_turns=WAITS)
    repository.newest()
    command = repository.command(old)
    with subprocess.Popen(
        command, cwd=repository.root, env=repository.env(), stdout=subprocess.DEVNULL
    ) as run:
        while not (repository.home / "begun").exists():
            assert run.poll() is None
        # A cancelled step of GitHub's gets both.
        run.send_signal(signal.SIGINT)
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 2
    assert (repository.home / "ended").exists(), "the old tests end what they have started"
    assert repository.left() == []


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"test_turns": TESTS}, "has no scripts/bootstrap.py: it is older than this trial"),
        ({"bootstrap": BOOTSTRAP}, "has none of acceptance/test_turns.py"),
        (
            {"test_turns": TESTS, "bootstrap": "raise SystemExit('no network')"},
            "cannot be installed: no network",
        ),
    ],
)
def test_a_release_that_cannot_be_tried_did_not_pass(
    repository: Repository, files: dict[str, str], says: str
) -> None:
    old = repository.commit(**files)
    repository.newest()
    ended = repository.run(old)
    assert ended.returncode == 2, ended
    assert says in ended.stderr
    assert repository.left() == []


def test_a_shallow_clone_says_so(repository: Repository, tmp_path: Path) -> None:
    old = repository.commit(test_turns=TESTS)
    repository.newest()
    repository.commit()
    repository.git("clone", "--quiet", "--depth=1", repository.root.as_uri(), str(tmp_path / "shallow"))
    repository.root = tmp_path / "shallow"
    ended = repository.run(old[:12])
    assert (ended.returncode, "is it a shallow one" in ended.stderr) == (2, True), ended
