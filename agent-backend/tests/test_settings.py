from __future__ import annotations

import base64
import copy
import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent_backend import __version__
from agent_backend.errors import SettingsError
from agent_backend.settings import VARIABLES, Secret, Settings, SettingsErrors, inspect, read

MINIMAL = {"DATABASE_URL": "postgresql://user:hunter2@db.example/app?sslmode=verify-full"}
PRODUCTION = {
    **MINIMAL,
    "ENVIRONMENT": "production",
    "FLY_APP_NAME": "coach-prod",
    "FLY_MACHINE_ID": "e286",
    "ANTHROPIC_API_KEY": "sk-ant-hunter2",
    "SUPABASE_URL": "https://ref.supabase.co",
    "SUPABASE_SERVICE_KEY": "sb_secret_hunter2hunter2",
}


def test_development_needs_only_a_database() -> None:
    settings = read(MINIMAL)
    assert (settings.host, settings.port, settings.metrics_port) == ("127.0.0.1", 3001, 9091)
    assert settings.app_name == "myhealth-agents"
    assert settings.machine_id.endswith("-3001")
    assert settings.jwks_url == (settings.dev_key_dir / "jwks.json").as_uri()
    assert settings.release == __version__


def test_limits_are_on_but_in_development() -> None:
    assert (read(MINIMAL).limit_factor, read(PRODUCTION).limit_factor) == (0, 1)
    assert (read(MINIMAL).trust_fly_client_ip, read(PRODUCTION).trust_fly_client_ip) == (False, True)


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
        ("MAX_CONNECTIONS", "15"),
        ("LIMIT_FACTOR", "-1"),
        ("LIMIT_FACTOR", "1001"),
        ("TRUST_FLY_CLIENT_IP", "yes"),
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
        ("SUPABASE_SERVICE_KEY", ""),
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


# --- credentials ------------------------------------------------------------------------------------


def legacy(**claims: Any) -> str:
    """Return a legacy API key: a JWT whose signature nobody here checks."""
    said = {"iss": "supabase", "ref": "ref", "role": "service_role", "iat": 1, "exp": 4_102_444_800, **claims}
    parts = [{"alg": "HS256", "typ": "JWT"}, said]
    coded = [base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=").decode() for each in parts]
    return ".".join([*coded, "aHVudGVyMg"])


POOLER = "postgresql://agent.ref:hunter2@aws-0-eu-central-1.pooler.supabase.com"

REFUSED = [
    ("SUPABASE_SERVICE_KEY", "sb_publishable_hunter2", "publishable", "secret key"),
    ("SUPABASE_SERVICE_KEY", "sbp_hunter2", "management", "secret key"),
    ("SUPABASE_SERVICE_KEY", "hunter2", "neither", "secret key"),
    ("SUPABASE_SERVICE_KEY", '"sb_secret_hunter2hunter2"', "quotes", "SUPABASE_SERVICE_KEY"),
    ("SUPABASE_SERVICE_KEY", "sb_secret_hunter2 hunter2", "blanks", "SUPABASE_SERVICE_KEY"),
    ("SUPABASE_SERVICE_KEY", legacy(role="anon"), "anon key", "secret key"),
    ("SUPABASE_SERVICE_KEY", legacy(role="authenticated"), "token", "secret key"),
    ("SUPABASE_SERVICE_KEY", legacy(exp=1), "expired", "secret key"),
    ("SUPABASE_SERVICE_KEY", legacy(ref="other"), "another project", "same project"),
    ("SUPABASE_SERVICE_KEY", "a.b.c", "neither", "secret key"),
    ("DATABASE_URL", f"{POOLER}:6543/postgres?sslmode=verify-full", "transaction pooler", "5432"),
    (
        "DATABASE_URL",
        "postgresql://a:hunter2@db.ref.supabase.co:6543/postgres?sslmode=verify-full",
        "LISTEN",
        "5432",
    ),
    (
        "DATABASE_URL",
        POOLER.replace("agent.ref", "agent") + ":5432/postgres?sslmode=verify-full",
        "no project",
        "ROLE.REF",
    ),
    (
        "DATABASE_URL",
        POOLER.replace("agent.ref", "agent.other") + ":5432/postgres?sslmode=verify-full",
        "another project",
        "same",
    ),
    (
        "DATABASE_URL",
        "postgresql://a:hunter2@db.other.supabase.co:5432/postgres?sslmode=verify-full",
        "another project",
        "same",
    ),
    ("DATABASE_URL", "postgresql://a:[YOUR-PASSWORD]@db.ref.supabase.co:5432/postgres", "[YOUR", "password"),
    ("DATABASE_URL", "postgresql://a:hunter2#x@db.ref.supabase.co:5432/postgres", "taken apart", "%23"),
    ("DATABASE_URL", "postgresql://a:hunter2/x@db.ref.supabase.co:5432/postgres", "taken apart", "%2F"),
    ("DATABASE_URL", "postgresql://a:hunter2@x@db.ref.supabase.co:5432/postgres", "taken apart", "%40"),
    ("DATABASE_URL", "postgresql://a:hunter2@db.ref.supabase.co:port/postgres", "taken apart", "%3A"),
    ("DATABASE_URL", "postgresql://a:hunter2@one.example:5432,two.example:5432/x", "taken apart", "%3A"),
    ("DATABASE_URL", "postgresql://a:hunter2@elsewhere.example/x?sslmode", "NAME=VALUE", "verify-full"),
    ("ANTHROPIC_API_KEY", "sk-ant-admin01-hunter2", "admin key", "Console"),
    ("ANTHROPIC_API_KEY", "sk-ant-oat01-hunter2", "subscription", "Console"),
    ("ANTHROPIC_API_KEY", "sk-proj-hunter2", "form", "Console"),
    ("SUPABASE_URL", "https://supabase.com/dashboard/project/ref", "address alone", "without a path"),
    ("SUPABASE_URL", "https://ref.supabase.co/auth/v1", "address alone", "without a path"),
    ("SUPABASE_URL", "https://a:hunter2@ref.supabase.co", "not a URL", "SUPABASE_URL"),
    ("SUPABASE_URL", "http://ref.supabase.co", "https://", "SUPABASE_URL"),
    ("AUTH_HS256_SECRET", "hunter2", "fewer than 32", "JWT Keys"),
    ("AUTH_HS256_SECRET", "-----BEGIN-PUBLIC-KEY-----hunter2hunter2hunter2", "public key", "JWT Keys"),
    ("AUTH_HS256_SECRET", '{"kty":"EC","x":"hunter2hunter2hunter2"}', "public key", "JWT Keys"),
    ("AUTH_HS256_SECRET", legacy(), "not the secret", "JWT Keys"),
    ("SENTRY_DSN", "hunter2", "not a DSN", "Client Keys"),
    ("SENTRY_DSN", "https://[hunter2@sentry.example/7", "not a DSN", "Client Keys"),
    ("SENTRY_DSN", "https://sentry.example/7?hunter2", "not a DSN", "Client Keys"),
    ("SENTRY_DSN", "sntrys_hunter2", "auth token", "Client Keys"),
    ("SENTRY_DSN", "https://abc:hunter2@sentry.example/7", "secret key", "Client Keys"),
    ("SENTRY_DSN", "https://hunter2@sentry.example/project", "number of a project", "Client Keys"),
    ("SENTRY_DSN", "http://hunter2@sentry.example/7", "https://", "Client Keys"),
    ("SENTRY_DSN", "https://hunter2@sentry example/7", "blanks", "SENTRY_DSN"),
]


@pytest.mark.parametrize(("name", "value", "problem", "hint"), REFUSED)
def test_a_wrong_credential_is_named_for_what_it_is(name: str, value: str, problem: str, hint: str) -> None:
    report = inspect({**PRODUCTION, name: value})
    (error,) = report.errors
    assert error.problem.startswith(f"{name} ")
    assert problem in error.problem
    assert hint in error.hint
    told = repr([*report.errors, *report.warnings]) + "".join(
        each.problem + each.hint for each in report.errors
    )
    assert "hunter2" not in told
    assert value not in told


@pytest.mark.parametrize(
    ("name", "value", "warning"),
    [
        ("SUPABASE_SERVICE_KEY", "sb_secret_hunter2hunter2", None),
        ("SUPABASE_SERVICE_KEY", legacy(), "legacy key"),
        ("DATABASE_URL", f"{POOLER}:5432/postgres?sslmode=verify-full", None),
        (
            "DATABASE_URL",
            POOLER.replace("eu-central-1", "us-east-1") + ":5432/postgres?sslmode=verify-full",
            "us-east-1",
        ),
        (
            "DATABASE_URL",
            "postgresql://a:hunter2@db.ref.supabase.co:5432/postgres?sslmode=verify-full",
            "IPv6",
        ),
        ("DATABASE_URL", "postgresql://a:hunter2@127.0.0.1:6543/x", None),
        ("DATABASE_URL", "postgresql://a:hunter2@[::1]:5432/x", None),
        ("DATABASE_URL", "postgresql:///x?host=/tmp/socket", None),
        ("DATABASE_URL", "postgresql://a:hunter%232@elsewhere.example/x?sslmode=verify-full", None),
        ("DATABASE_URL", "postgresql://a:hunter2@elsewhere.example/x?sslmode=require", "whose certificate"),
        ("DATABASE_URL", "postgresql://a:hunter2@top1.nearest.of.db.internal:5432/x", None),
        ("AUTH_HS256_SECRET", "hunter2" * 6, "whoever knows it"),
        ("SENTRY_DSN", "https://0123456789abcdef@o1.ingest.de.sentry.io/4501", None),
        ("SENTRY_DSN", "https://0123456789abcdef@bugs.example:8000/below/7", None),
    ],
)
def test_what_is_right_is_taken_and_what_is_doubtful_is_said(
    name: str, value: str, warning: str | None
) -> None:
    report = inspect({**PRODUCTION, name: value})
    assert report.errors == []
    assert [warning in each.problem for each in report.warnings if warning] == ([True] if warning else [])
    assert read({**PRODUCTION, name: value}).environment == "production"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", f"{POOLER}:5432/postgres"),
        ("DATABASE_URL", f"{POOLER}:5432/postgres?sslmode=require"),
        ("MIGRATE_DATABASE_URL", f"{POOLER}:5432/postgres?sslmode=verify-ca"),
        ("DATABASE_URL", "postgresql://a:hunter2@db.ref.supabase.co:5432/postgres?sslmode=require"),
        ("DATABASE_URL", "postgresql://a:hunter2@elsewhere.example/x?sslmode=prefer"),
        # What asyncpg makes of these: it takes the last of a kind, decodes names, and tries all hosts.
        ("DATABASE_URL", "postgresql://a:hunter2@elsewhere.example/x?sslmode=verify-full&sslmode=disable"),
        ("DATABASE_URL", "postgresql://a:hunter2@elsewhere.example/x?sslmode=verify-full&ssl%6Dode=disable"),
        ("DATABASE_URL", "postgresql:///x?host=elsewhere.example&user=a&password=hunter2"),
        ("DATABASE_URL", "postgresql:///x?host=/tmp,elsewhere.example"),
        ("DATABASE_URL", "postgresql://a:hunter2@elsewhere.example,top1.db.internal:5432/x"),
        ("DATABASE_URL", f"{POOLER}.:5432/postgres?sslmode=require"),
        ("DATABASE_URL", "postgresql://a:hunter2@DB.REF.SUPABASE.CO:5432/x?sslmode=require"),
        ("ANTHROPIC_BASE_URL", "http://proxy.example"),
    ],
)
def test_outside_development_nothing_crosses_a_network_in_the_clear(name: str, value: str) -> None:
    [error] = inspect({**PRODUCTION, name: value}).errors
    assert error.problem.startswith(name)
    there = {**MINIMAL, name: value}
    assert [
        each.problem
        for each in inspect(there).warnings
        if any(word in each.problem for word in ("TLS", "clear", "whose certificate"))
    ]
    assert inspect(there).errors == []


def test_in_development_keys_may_have_any_form() -> None:
    report = inspect({**MINIMAL, "ANTHROPIC_API_KEY": "emulated", "SUPABASE_URL": "http://127.0.0.1:9999"})
    assert report.errors == []


@pytest.mark.parametrize(
    "name",
    [
        "PORT",
        "ENVIRONMENT",
        "MACHINE_ID",
        "LEASE_SECONDS",
        "JWKS_URL",
        "LOG_LEVEL",
        "RELEASE",
        "AUTH_AUDIENCE",
    ],
)
@pytest.mark.parametrize(
    "value",
    [
        PRODUCTION["SUPABASE_SERVICE_KEY"],
        PRODUCTION["DATABASE_URL"],
        "sk-ant-another-hunter2",
        legacy(),
        "https://a:hunter2@proxy.example",
    ],
)
def test_a_secret_in_the_wrong_variable_is_not_shown_either(name: str, value: str) -> None:
    report = inspect({**PRODUCTION, name: value})
    told = "".join(each.problem + each.hint for each in [*report.errors, *report.warnings])
    assert name in told
    assert "hunter2" not in told + str(report.shown())
    assert value not in told + str(report.shown())
