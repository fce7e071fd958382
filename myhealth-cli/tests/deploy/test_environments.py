from __future__ import annotations

import tomllib

import pytest

from myhealth_cli.deploy.environments import ENVIRONMENTS, deployed
from myhealth_cli.deploy.errors import NothingChangedError

from .installed import ROOT, myhealth


@pytest.mark.parametrize("name", ["staging", "production"])
def test_the_table_says_what_fly_toml_says(name: str) -> None:
    environment = deployed(name)
    document = tomllib.loads((ROOT / environment.config).read_text("utf-8"))
    assert document["app"] == environment.app
    assert document["primary_region"] == environment.region
    assert document["env"]["ENVIRONMENT"] == name
    assert environment.url == f"https://{environment.app}.fly.dev"
    assert not set(environment.secrets) & set(document["env"])


def test_the_table_says_what_the_epic_says() -> None:
    epic = (ROOT / "docs" / "epic.md").read_text("utf-8")
    for each in ENVIRONMENTS:
        assert f"| {each.name.capitalize()} `{each.url}` |" in epic
    for name in ("ANTHROPIC_API_KEY", "SUPABASE_URL", "SUPABASE_SERVICE_KEY"):
        assert f"| `{name}` |" in epic
        assert all(name in deployed(each).secrets for each in ("staging", "production"))
    assert "`FLY_API_TOKEN`" in epic
    assert all("FLY_API_TOKEN" in each.in_place("GitHub secrets") for each in ENVIRONMENTS if each.app)
    assert "DATABASE_URL" in deployed("production").secrets


def test_the_servers_required_secrets_are_in_the_table() -> None:
    settings = (ROOT / "agent-backend/src/agent_backend/settings.py").read_text("utf-8")
    for name in (*deployed("production").secrets, *deployed("production").optional):
        assert f'"{name}": ' in settings


def test_development_is_not_at_fly() -> None:
    with pytest.raises(NothingChangedError):
        deployed("development")


def test_it_is_printed() -> None:
    words = myhealth("environments")
    assert (words.code, words.err) == (0, "")
    assert "production: https://myhealth-agents.fly.dev, app myhealth-agents in fra" in words.out
    found = myhealth("environments", "--json").json()
    assert [each["name"] for each in found] == ["development", "staging", "production"]
    assert found[0]["url"] == "http://localhost:3001"
    assert "  SENTRY_DSN in fly secrets, optional: " in words.out
