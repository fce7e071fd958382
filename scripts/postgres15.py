"""Runs the database tests on the machine's own Postgres 15, in a cluster of their own that disappears again.

Production runs on a Postgres older than the embedded one; what the SQL needs must be there as well.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARIES = Path(os.environ.get("POSTGRES15", "/usr/lib/postgresql/15")) / "bin"
TESTS = ("agent-backend/tests/db", "agent-backend/tests/turns")
START_SECONDS = 30
# Nothing here has to survive a power cut.
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
}


def main() -> int:
    """Run the tests; return pytest's exit code, or 0 where there is no Postgres 15."""
    if not (BINARIES / "initdb").exists():
        print(f"skipped: no Postgres 15 in {BINARIES}")
        return 0
    with cluster() as url:
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *sys.argv[1:], *TESTS]
        env = {**os.environ, "TEST_DATABASE_URL": url}
        return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode


@contextmanager
def cluster() -> Generator[str]:
    """Run a server on a socket in a temporary folder; yield its superuser's URL."""
    # Postgres refuses root; Debian's package brings the user `postgres`.
    account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    identity = (account.pw_uid, account.pw_gid) if account else (os.geteuid(), os.getegid())
    folder = Path(tempfile.mkdtemp(prefix="myhealth-pg15-"))
    os.chown(folder, *identity)
    data = folder / "data"
    try:
        initdb = [
            "initdb",
            "-D",
            str(data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        ]
        end(start(initdb, identity), expect=0)
        settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        server = start(["postgres", "-D", str(data), "-k", str(folder), *settings], identity)
        try:
            wait_until_ready(server, data / "postmaster.pid")
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            server.send_signal(2)  # SIGINT: a fast shutdown
            end(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start(command: list[str], identity: tuple[int, int]) -> subprocess.Popen[bytes]:
    """Start one of Postgres' programs as the user it may run as."""
    user, group = identity if os.geteuid() == 0 else (None, None)
    return subprocess.Popen(
        [str(BINARIES / command[0]), *command[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        user=user,
        group=group,
        extra_groups=None if user is None else [],
    )


def end(process: subprocess.Popen[bytes], expect: int | None = None) -> None:
    """Wait for the end; fail if the exit code is not what was expected."""
    code = process.wait(timeout=120)
    if expect is not None and code != expect:
        raise SystemExit(f"{process.args} ended with {code}")


def wait_until_ready(server: subprocess.Popen[bytes], pid_file: Path) -> None:
    """Return once postmaster.pid says so."""
    deadline = time.monotonic() + START_SECONDS
    while not (pid_file.exists() and "ready" in pid_file.read_text(encoding="utf-8")):
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("Postgres 15 did not start")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
