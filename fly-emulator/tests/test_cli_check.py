"""`fly-emulator check`, as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from inline_snapshot import snapshot

GOOD = """\
app = "x"
primary_region = "fra"
[deploy]
release_command = "migrate"
[http_service]
internal_port = 8080
force_https = true
auto_stop_machines = true
processes = ["web"]
[[http_service.checks]]
path = "/"
[processes]
web = "serve"
worker = "work --hard"
[checks.queue]
type = "tcp"
port = 9
processes = ["worker"]
[mounts]
source = "data"
destination = "/data"
processes = ["worker"]
[metrics]
port = 9091
"""


def check(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fly_emulator", "check", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_good_file_is_summed_up(tmp_path: Path) -> None:
    (tmp_path / "fly.toml").write_text(GOOD)

    ran = check(tmp_path)

    assert ran.returncode == 0
    assert ran.stderr == snapshot(
        'warning: fly.toml:8: http_service.auto_stop_machines: the older form: write "stop"\n'
    )
    assert ran.stdout == snapshot("""\
x in fra, deployed rolling
before a release: migrate
web: 1 shared CPU, 256 MiB, runs serve
  stop: SIGINT, SIGKILL after 5s; restart: on-failure (at most 10 times)
  tcp 80 http to https, 443 http+tls -> 8080: connections, soft limit 20, hard limit none; autostop stop, autostart on, at least 0 running; 1 check
  metrics: port 9091/metrics
worker: 1 shared CPU, 256 MiB, runs work --hard
  stop: SIGINT, SIGKILL after 5s; restart: on-failure (at most 10 times)
  check queue: tcp on port 9
  volume data at /data
""")  # noqa: E501 - the operator's text as it is


def test_a_bad_file_exits_with_2_and_every_problem(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('app = "x"\n[http_servce]\n[[vm]]\nmemory = "lots"\n')

    ran = check(tmp_path, "other.toml")

    assert ran.returncode == 2
    assert ran.stdout == ""
    assert "other.toml:2: http_servce: found an unknown key" in ran.stderr
    assert "hint: did you mean http_service?" in ran.stderr
    assert 'other.toml:4: vm[0].memory: found "lots" (a string)' in ran.stderr
    assert ran.stderr.endswith("2 problems\n")


@pytest.mark.parametrize(("arguments", "code"), [(("-a", "given"), 0), ((), 2)])
def test_the_name_may_be_given(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    (tmp_path / "fly.toml").write_text("[env]\n")

    assert check(tmp_path, *arguments).returncode == code


def test_a_missing_file(tmp_path: Path) -> None:
    ran = check(tmp_path)

    assert ran.returncode == 2
    assert ran.stderr == snapshot("""\
fly.toml: found No such file or directory, expected a fly.toml
  hint: pass the path of the file
1 problem
""")
