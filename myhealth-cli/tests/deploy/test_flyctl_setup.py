"""`myhealth setup` at a terminal: a person who types, mistypes, gives up and says it again."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from myhealth_cli.deploy.environments import deployed

from .installed import ROOT, Ended, myhealth
from .stage import find, speaking
from .test_values import GOOD

FLYCTL = find()
_PATIENCE_S = 60.0
_WORD = "typed-word"


class Desk(NamedTuple):
    """A checkout as it is, a local Fly, and who is logged in there."""

    checkout: Path
    env: dict[str, str]

    def run(self, *words: str) -> Ended:
        """Run `myhealth` without a terminal."""
        return myhealth(*words, folder=self.checkout, env=self.env)

    def secrets(self, environment: str = "staging") -> list[str]:
        """Return the names of the secrets that are set."""
        ended = self.run("status", environment, "--json")
        return sorted(each.partition(" ")[0] for each in ended.json()["secrets"]) if ended.code == 0 else []

    def type(self, *words: str, answers: Sequence[str]) -> tuple[int, str]:
        """Run `myhealth` at a terminal; answer its prompts in turn. Return its code and all that was seen."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(self.checkout)
            os.execve(sys.executable, [sys.executable, "-m", "myhealth_cli", *words], self.env)
        seen, waiting, ends = b"", list(answers), time.monotonic() + _PATIENCE_S
        code = None
        try:
            while read := _read(terminal, ends):
                seen += read
                if waiting and seen.endswith(b": "):
                    os.write(terminal, waiting.pop(0).encode())
        finally:
            if time.monotonic() > ends:
                os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.close(terminal)
        assert not waiting, seen.decode()
        return code, seen.decode()


def _read(terminal: int, ends: float) -> bytes:
    """Return what comes; nothing at the end, or when it takes too long."""
    if not select.select([terminal], [], [], max(0.0, ends - time.monotonic()))[0]:
        return b""
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's word for: the other side has closed it.
        return b""


@pytest.fixture
def desk(tmp_path: Path) -> Generator[Desk]:
    backend = tmp_path / "checkout" / "agent-backend"
    backend.mkdir(parents=True)
    for name in ("staging", "production"):
        shutil.copy(ROOT / deployed(name).config, backend)
    words = ("fly_emulator", "serve", "--port", "0", "--json", "--state", str(tmp_path / "fly"))
    with speaking(*words, log=tmp_path / "log") as fly:
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "FLYCTL": str(FLYCTL), "TERM": "dumb"}
        yield Desk(backend.parent, {**env, **fly["env"]})


def test_a_person_at_a_terminal(desk: Desk) -> None:
    # Gives up in the middle: nothing is there.
    code, seen = desk.type("setup", "staging", answers=[f"{GOOD['DATABASE_URL']}\n", "\x03"])
    assert code == 2, seen
    assert "myhealth: interrupted" in seen
    assert "there is no app" in desk.run("status", "staging").err

    # Mistypes, is asked again, and is done.
    code, seen = desk.type(
        "setup",
        "staging",
        answers=[
            "\n",
            f"{GOOD['DATABASE_URL'].replace('5432', '6543')}\n",
            f"{GOOD['DATABASE_URL']}\n",
            f"sk-ant-{_WORD}\n",
            f"{GOOD['SUPABASE_URL']}\n",
            f"sb_publishable_{_WORD}\n",
            f"sb_secret_{_WORD}\n",
            *("\n", "\n"),  # what is optional
        ],
    )
    assert code == 0, seen
    for says in ("is needed", "names port 6543", "is a publishable key", "set secrets, for the next deploy"):
        assert says in seen
    assert desk.secrets() == sorted(GOOD)

    # What was typed is nowhere to be seen afterwards.
    kept = "".join(each.read_text("utf-8") for each in (desk.checkout / ".local/deploys").iterdir())
    for typed in (_WORD, "word@aws", "abcdefghij"):
        assert typed not in seen + kept

    # Said again: only what is optional is asked for, then there is nothing to do.
    code, seen = desk.type("setup", "staging", answers=["\n", "\n"])
    assert (code, "nothing to do" in seen) == (0, True), seen

    # --replace asks for all; what is left out stays.
    code, seen = desk.type("setup", "staging", "--replace", answers=["\n", "sk-ant-other\n", *["\n"] * 4])
    assert (code, "next deploy: ANTHROPIC_API_KEY" in seen) == (0, True), seen
    assert desk.secrets() == sorted(GOOD)


def test_nobody_at_a_terminal(desk: Desk, tmp_path: Path) -> None:
    alone = desk.run("setup", "staging", "--json")
    assert (alone.code, alone.json()["changed"]) == (2, False)
    assert "--from FILE" in alone.json()["hint"]

    file = tmp_path / "production.env"
    lines = [f"{name}={value}\n" for name, value in GOOD.items()]
    file.write_text("".join(lines).replace("5432", "6543"), "utf-8")
    wrong = desk.run("setup", "production", "--from", str(file))
    assert (wrong.code, "port 6543" in wrong.err) == (2, True), wrong
    assert desk.secrets("production") == []

    file.write_text("".join(lines), "utf-8")
    file.chmod(0o644)
    planned = desk.run("setup", "production", "--from", str(file), "--dry-run", "--json")
    assert [each["step"] for each in planned.json()["steps"]] == ["create_app", "stage_secrets"]
    assert "chmod 600" in planned.err
    file.chmod(0o600)
    done = desk.run("setup", "production", "--from", str(file), "--json")
    assert (done.code, done.json()["ok"], "chmod" in done.err) == (0, True, False), done
    assert desk.secrets("production") == sorted(GOOD)
    assert "sk-ant" not in done.out + done.err + planned.out + planned.err
