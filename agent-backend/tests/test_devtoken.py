from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from agent_backend.auth import Authenticator
from agent_backend.devtoken import issue, seconds, user_id
from agent_backend.errors import OperatorError
from agent_backend.settings import Settings, read


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return read(
        {"DATABASE_URL": "postgresql://nowhere.invalid/x", "DEV_KEY_DIR": str(tmp_path / "a" / "keys")}
    )


def authenticator(settings: Settings) -> Authenticator:
    return Authenticator(
        jwks_url=settings.jwks_url, issuer=settings.auth_issuer, audience=settings.auth_audience
    )


async def test_the_server_accepts_the_token_by_the_same_code_as_any_other(settings: Settings) -> None:
    token = issue(settings, "alice", 600)
    principal = await authenticator(settings).authenticate(token)
    assert principal.user_id == user_id("alice") != user_id("bob")


async def test_the_key_stays_and_is_nobody_elses(settings: Settings) -> None:
    issue(settings, "alice", 600)
    checks = authenticator(settings)
    first = await checks.authenticate(issue(settings, "alice", 600))
    assert (await checks.authenticate(issue(settings, "alice", 700))).user_id == first.user_id
    for file in settings.dev_key_dir.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(file.name for file in settings.dev_key_dir.iterdir()) == ["jwks.json", "private-key.pem"]


async def test_of_many_that_start_at_once_all_use_the_same_key(settings: Settings) -> None:
    with ThreadPoolExecutor(8) as pool:
        making = [pool.submit(issue, settings, f"user{n}", 600) for n in range(8)]
        tokens = [each.result() for each in making]
    checks = authenticator(settings)
    for token in tokens:
        await checks.authenticate(token)


def test_the_private_half_is_not_published(settings: Settings) -> None:
    issue(settings, "alice", 600)
    (published,) = msgspec.json.decode((settings.dev_key_dir / "jwks.json").read_bytes())["keys"]
    assert sorted(published) == ["alg", "crv", "kid", "kty", "use", "x", "y"]


def test_there_are_no_made_up_users_outside_development(settings: Settings) -> None:
    with pytest.raises(OperatorError, match="staging"):
        issue(msgspec.structs.replace(settings, environment="staging"), "alice", 600)
    assert not settings.dev_key_dir.exists()


def test_a_key_that_cannot_be_used_is_named(settings: Settings) -> None:
    settings.dev_key_dir.mkdir(parents=True)
    (settings.dev_key_dir / "private-key.pem").write_text("no key")
    with pytest.raises(OperatorError) as refused:
        issue(settings, "alice", 600)
    assert str(settings.dev_key_dir) in refused.value.problem


@pytest.mark.parametrize("name", ["", "a b", "a\x00", "../x", "x" * 65])
def test_a_user_name_is_a_plain_one(name: str, settings: Settings) -> None:
    with pytest.raises(OperatorError):
        issue(settings, name, 600)


@pytest.mark.parametrize(("text", "expected"), [("30s", 30), ("15m", 900), ("12h", 43200), ("7d", 604800)])
def test_durations(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "12", "h", "0h", "-1h", "1.5h", "8d", "9999999d", "1h1m"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(OperatorError):
        seconds(text)
