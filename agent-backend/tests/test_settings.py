from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent_backend import __version__
from agent_backend.errors import SettingsError
from agent_backend.settings import VARIABLES, Secret, Settings, SettingsErrors, read

MINIMAL = {"DATABASE_URL": "postgresql://user:hunter2@db.example/app"}
PRODUCTION = {
    **MINIMAL,
    "ENVIRONMENT": "production",
    "FLY_APP_NAME": "coach-prod",
    "FLY_MACHINE_ID": "e286",
    "ANTHROPIC_API_KEY": "sk-ant-hunter2",
    "SUPABASE_URL": "https://ref.supabase.co",
}


def test_development_needs_only_a_database() -> None:
    settings = read(MINIMAL)
    assert (settings.host, settings.port, settings.metrics_port) == ("127.0.0.1", 3001, 9091)
    assert settings.app_name == "myhealth-agents"
    assert settings.machine_id.endswith("-3001")
    assert settings.jwks_url == (settings.dev_key_dir / "jwks.json").as_uri()
    assert settings.release == __version__


def test_production_takes_its_names_from_fly_and_its_keys_from_supabase() -> None:
    settings = read(PRODUCTION)
    assert (settings.host, settings.app_name, settings.machine_id) == ("::", "coach-prod", "e286")
    assert settings.jwks_url == "https://ref.supabase.co/auth/v1/.well-known/jwks.json"
    assert settings.auth_issuer == "https://ref.supabase.co/auth/v1"
    assert read({**PRODUCTION, "APP_NAME": "other"}).app_name == "other"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://user:hunter2@x/y"),
        ("DATABASE_URL", "hunter2"),
        ("DATABASE_URL", "   "),
        ("DATABASE_URL", "postgresql://[::hunter2"),
        ("ENVIRONMENT", "prod"),
        ("APP_NAME", "two words"),
        ("MACHINE_ID", "../x"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "3001.5"),
        ("PORT", "-1"),
        ("PORT", "٣٠٠١"),
        ("PORT", "9" * 5000),
        ("METRICS_PORT", "3001"),
        ("ANTHROPIC_BASE_URL", "api.anthropic.com"),
        ("SUPABASE_URL", "ftp://x"),
        ("JWKS_URL", "gopher://x"),
        ("LEASE_SECONDS", "nan"),
        ("LEASE_SECONDS", "0.5"),
        ("GROUP_COMMIT_MS", "5"),
        ("POOL_MAX", "1"),
        ("DRAIN_SECONDS", "291"),
        ("MAX_BODY_BYTES", "1"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_variable_is_named_with_a_hint(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read({**MINIMAL, name: value})
    assert not isinstance(refused.value, SettingsErrors)
    assert refused.value.problem.startswith(f"{name} ")
    assert refused.value.hint == f"set {name}: {VARIABLES[name]}"
    assert "hunter2" not in repr(refused.value) + refused.value.problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLY_APP_NAME", ""),
        ("ANTHROPIC_API_KEY", ""),
        ("SUPABASE_URL", "http://ref.supabase.co"),
        ("JWKS_URL", "file:///keys/jwks.json"),
        ("JWKS_URL", "FILE:///keys/jwks.json"),
        ("JWKS_URL", "\x01file:///keys/jwks.json"),
        ("JWKS_URL", "Http://ref.supabase.co/jwks.json"),
    ],
)
def test_outside_development_more_is_asked(name: str, value: str) -> None:
    with pytest.raises(SettingsError):
        read({**PRODUCTION, name: value})


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(SettingsErrors) as refused:
        read({"PORT": "x", "LOG_LEVEL": "loud"})
    named = [each.problem.partition(" ")[0] for each in refused.value.each]
    assert named == ["PORT", "LOG_LEVEL", "DATABASE_URL"]
    for name in named:
        assert name in refused.value.problem


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        read(MINIMAL).port = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_every_variable_has_its_setting_and_every_setting_its_variable() -> None:
    assert [name.lower() for name in VARIABLES] == [*Settings.__struct_fields__]


_LEAKS: dict[str, Any] = {
    "repr": repr,
    "str": str,
    "format": "{}".format,
    "json": json.dumps,
    "msgspec": msgspec.json.encode,
    "builtins": msgspec.to_builtins,
    "pickle": pickle.dumps,
    "copy": copy.deepcopy,
}


@pytest.mark.parametrize("way", _LEAKS)
def test_a_secret_does_not_show_itself(way: str) -> None:
    secret = Secret("hunter2")
    try:
        shown = _LEAKS[way](secret)
    except (TypeError, NotImplementedError):
        shown = None
    assert "hunter2" not in str(shown)
    assert "hunter2" not in repr(read(PRODUCTION))
    assert secret.reveal() == "hunter2"


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read({**MINIMAL, "AGENTS_DIR": "agents"})
    assert settings.agents_dir == tmp_path / "agents"
    assert settings.dev_key_dir == tmp_path / ".local" / "keys"
