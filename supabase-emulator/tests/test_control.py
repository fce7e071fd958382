from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import aiohttp
import jwt
import pytest

from supabase_emulator.project import Project
from supabase_emulator.settings import Settings
from supabase_emulator.store import StateFileError

from .conftest import Emulator
from .test_sessions import verified

JWKS = "/auth/v1/.well-known/jwks.json"


async def kids(emulator: Emulator) -> set[str]:
    return {key["kid"] for key in (await emulator.call("GET", JWKS, key=None)).body["keys"]}


async def test_a_standby_key_is_published_before_it_signs(emulator: Emulator) -> None:
    before = await kids(emulator)
    old = (await emulator.sign_up())["access_token"]
    rotated = await emulator.call("POST", "/_emulator/rotate", {})
    assert rotated.body["current"] in before
    new = (await emulator.sign_up("b@example.com"))["access_token"]
    assert jwt.get_unverified_header(new)["kid"] == rotated.body["current"]
    assert await verified(emulator, old)
    assert await verified(emulator, new)
    assert len(await kids(emulator)) == 3


async def test_revoking_withdraws_the_key_and_its_tokens(emulator: Emulator) -> None:
    old = (await emulator.sign_up())["access_token"]
    kid = jwt.get_unverified_header(old)["kid"]
    assert (await emulator.call("POST", "/_emulator/rotate", {"revoke": True})).body["revoked"] == [kid]
    assert kid not in await kids(emulator)
    assert (await emulator.call("GET", "/auth/v1/user", token=old)).body["error_code"] == "bad_jwt"


async def test_a_rotation_may_come_unannounced_and_change_the_algorithm(emulator: Emulator) -> None:
    before = await kids(emulator)
    asked = {"unannounced": True, "algorithm": "RS256"}
    rotated = (await emulator.call("POST", "/_emulator/rotate", asked)).body
    assert rotated["current"] not in before
    assert rotated["algorithm"] == "RS256"


async def test_outages_come_and_go(emulator: Emulator) -> None:
    for kind, status in (("status", 503), ("garbage", 200), ("empty", 200), ("huge", 200)):
        await emulator.call("POST", "/_emulator/outage", {"kind": kind, "count": 1})
        answer = await emulator.call("GET", JWKS, key=None)
        assert answer.status == status
        assert answer.body in (None, {"keys": []})
        assert len(await kids(emulator)) == 2
    await emulator.call("POST", "/_emulator/outage", {"kind": "reset"})
    with pytest.raises(aiohttp.ClientConnectionError):
        await emulator.call("GET", JWKS, key=None)
    assert (await emulator.call("GET", "/auth/v1/health")).status == 200
    await emulator.call("POST", "/_emulator/outage", {"kind": "status", "everything": True})
    assert (await emulator.call("GET", "/auth/v1/health")).status == 503
    assert (await emulator.call("DELETE", "/_emulator/outage")).status == 204
    assert (await emulator.call("GET", "/auth/v1/health")).status == 200


async def test_requests_are_remembered_without_their_secrets(emulator: Emulator) -> None:
    await emulator.call("GET", "/auth/v1/admin/users", key="secret")
    answer = await emulator.call("GET", "/_emulator/requests", key=None)
    seen = {"method": "GET", "path": "/auth/v1/admin/users", "status": 200, "key": "secret"}
    assert answer.body == {"requests": [seen]}


async def test_the_life_of_tokens_can_be_chosen(emulator: Emulator) -> None:
    assert (await emulator.call("POST", "/_emulator/clock", {"token_seconds": 2})).status == 200
    assert (await emulator.sign_up())["expires_in"] == 2
    assert (await emulator.call("POST", "/_emulator/clock", {"token_seconds": 604_801})).status == 400


def test_a_state_file_keeps_users_and_keys_for_its_owner(tmp_path: Path) -> None:
    state = tmp_path / "sub" / "state.json"
    first = Project(Settings(state=state))
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    second = Project(Settings(state=state))
    assert second.keys.jwks() == first.keys.jwks()
    assert second.legacy == first.legacy
    state.write_text("[]", encoding="utf-8")
    with pytest.raises(StateFileError):
        Project(Settings(state=state))


def test_the_command_says_where_it_listens_and_is_for_this_machine_only() -> None:
    command = [sys.executable, "-m", "supabase_emulator", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        process.terminate()
        assert process.wait(timeout=10) == 0
    assert line["url"].startswith("http://127.0.0.1:")
    assert line["secret_key"].startswith("sb_secret_")
    refused = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "this machine only" in refused.stderr
