"""Secrets are planted wherever one is taken, what can fail fails, and nothing that comes out shows them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import jwt
import pytest

from .client import Client, ended, say, take
from .ports import free_port
from .stack import START_SECONDS, Site

PLANTED = {
    "DATABASE_URL": f"dbpass{uuid4().hex}",
    "ANTHROPIC_API_KEY": f"sk-ant-api03-{uuid4().hex}",
    "SUPABASE_SERVICE_KEY": f"sb_secret_{uuid4().hex}",
    "AUTH_HS256_SECRET": f"shared{uuid4().hex}",
}
"""Each variable that takes a secret, and the part of its value nobody may see."""
_PIECE = 12
"""So many characters of a secret in a row are too many."""


def leaks(text: str, *more: str) -> list[str]:
    """Return the variables whose secret shows in a text, whole or a piece of it."""
    found: list[str] = []
    for name, secret in [*PLANTED.items(), *(("token", each) for each in more)]:
        body = secret.removeprefix("sk-ant-api03-").removeprefix("sb_secret_")
        if any(body[n : n + _PIECE] in text for n in range(0, len(body) - _PIECE + 1, 4)):
            found.append(name)
    return found


class Ran(NamedTuple):
    """What a command gave."""

    code: int
    said: str


@pytest.fixture(scope="module")
def planted(site: Site) -> dict[str, str]:
    """Return an environment full of secrets; its database is the site's, where any password will do."""
    base = site.environment(**{name: value for name, value in PLANTED.items() if name != "DATABASE_URL"})
    return {**base, "DATABASE_URL": with_user(site.database_url, "postgres")}


def with_user(url: str, user: str, host: str | None = None) -> str:
    """Return a database URL with another user, the planted password and, if given, another host."""
    parts = urlsplit(url)
    where = host if host is not None else parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{user}:{PLANTED['DATABASE_URL']}@{where}").geturl()


def run(env: dict[str, str], *arguments: str) -> Ran:
    """Run a command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "agent_backend", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    return Ran(done.returncode, done.stdout + done.stderr)


@pytest.mark.parametrize("name", PLANTED)
def test_a_leak_would_be_seen(name: str) -> None:
    secret = PLANTED[name]
    assert leaks(f"before {secret} after") == leaks(secret[-20:]) == [name]


def test_commands_that_succeed_and_fail_show_no_secret(planted: dict[str, str], site: Site) -> None:
    nobody = with_user(site.database_url, "nobody_of_this_name")
    away = with_user(site.database_url, "postgres", "127.0.0.1:1")
    swapped = dict(zip(PLANTED, [PLANTED[name] for name in reversed(PLANTED)], strict=True))
    scattered = {"PORT": PLANTED["SUPABASE_SERVICE_KEY"], "RELEASE": PLANTED["ANTHROPIC_API_KEY"]}
    scattered |= {
        "LOG_LEVEL": planted["DATABASE_URL"],
        "SUPABASE_URL": f"https://u:{PLANTED['DATABASE_URL']}@x",
    }
    tried: list[tuple[int, dict[str, str], tuple[str, ...]]] = [
        (0, {}, ("check-config",)),
        (0, {}, ("check-config", "--json")),
        (2, swapped, ("check-config",)),
        (2, {name: f'"{value}"' for name, value in PLANTED.items()}, ("check-config", "--json")),
        (2, scattered, ("check-config", "--json")),
        (2, scattered, ("serve",)),
        (2, {"DATABASE_URL": nobody}, ("serve",)),
        (2, {"DATABASE_URL": nobody}, ("migrate",)),
        (2, {"DATABASE_URL": away}, ("migrate",)),
    ]
    for code, env, arguments in tried:
        ran = run({**planted, "PORT": str(free_port()), **env}, *arguments)
        assert ran.code == code, (arguments, ran.said)
        assert leaks(ran.said) == [], (arguments, env.keys())
        assert "Traceback" not in ran.said


async def test_a_server_whose_issuer_and_model_refuse_it_shows_no_secret(
    planted: dict[str, str], site: Site
) -> None:
    metrics = free_port()
    issuer = "http://127.0.0.1:1/auth/v1"
    env = {
        **planted,
        "SUPABASE_URL": "http://127.0.0.1:1",
        "METRICS_PORT": str(metrics),
        "LOG_LEVEL": "debug",
    }
    now = int(time.time())
    claims = {"sub": str(uuid4()), "iss": issuer, "aud": "authenticated", "role": "authenticated"}
    claims |= {"iat": now, "exp": now + 600}
    good = jwt.encode(claims, PLANTED["AUTH_HS256_SECRET"], "HS256")
    unknown = jwt.encode(claims, PLANTED["AUTH_HS256_SECRET"] * 2, "HS256")
    stranger = site.headers()["Authorization"].removeprefix("Bearer ")
    said: list[str] = []
    with site.server("leaky", **env) as backend:
        async with aiohttp.ClientSession() as http:
            for token, status in ((good, 200), (unknown, 401), (stranger, 503)):
                headers = {"Authorization": f"Bearer {token}"}
                async with http.get(f"{backend.url}/v1/sessions", headers=headers) as response:
                    said.append(f"{response.headers} {await response.text()}")
                    assert response.status == status, said[-1]
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {good}"}) as http:
            client = Client(http, backend.url)
            session = await client.new_session()
            events = await take(client.answer(session, say(fault="401")), ended)
            said.append(str(events))
            assert events[-1].type == "RUN_ERROR"
            async with http.get(f"http://127.0.0.1:{metrics}/metrics") as response:
                said.append(await response.text())
    actions = {line["action"] for line in backend.log}
    assert {"hs256_accepted", "keys_not_fetched", "request_refused"} <= actions
    everything = json.dumps(backend.log) + "".join(said)
    assert leaks(everything, good.rpartition(".")[2], stranger.rpartition(".")[2], good.split(".")[1]) == []
