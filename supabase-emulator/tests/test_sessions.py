from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import jwt
import pytest

from supabase_emulator.settings import Settings

from .conftest import PASSWORD, Emulator


async def verified(emulator: Emulator, token: str) -> dict[str, Any]:
    """Check a token as any backend would: by the JWKS."""
    keys = jwt.PyJWKSet.from_dict(
        (await emulator.call("GET", "/auth/v1/.well-known/jwks.json", key=None)).body
    )
    key = keys[jwt.get_unverified_header(token)["kid"]]
    return jwt.decode(
        token, key, ["ES256", "RS256"], audience="authenticated", issuer=f"{emulator.url}/auth/v1"
    )


async def test_signing_up_gives_a_token_with_the_claims_supabase_documents(emulator: Emulator) -> None:
    answer = await emulator.sign_up()
    claims = await verified(emulator, answer["access_token"])
    assert claims["exp"] - claims["iat"] == 3600 == answer["expires_in"]
    assert abs(claims["iat"] - time.time()) < 5
    assert claims["role"] == claims["aud"] == "authenticated"
    assert claims["email"] == "a@example.com"
    assert claims["aal"] == "aal1"
    assert claims["amr"][0]["method"] == "password"
    assert claims["is_anonymous"] is False
    assert UUID(claims["session_id"])
    assert claims["sub"] == answer["user"]["id"]


@pytest.mark.parametrize("settings", [Settings(algorithm="RS256")])
async def test_keys_may_be_rsa(emulator: Emulator) -> None:
    token = (await emulator.sign_up())["access_token"]
    assert jwt.get_unverified_header(token)["alg"] == "RS256"
    assert await verified(emulator, token)


async def test_a_password_opens_a_session_of_its_own(emulator: Emulator) -> None:
    first = await emulator.sign_up()
    credentials = {"email": "A@Example.com", "password": PASSWORD}
    again = await emulator.call("POST", "/auth/v1/token?grant_type=password", credentials)
    assert again.status == 200
    one, two = (
        jwt.decode(each["access_token"], options={"verify_signature": False}) for each in (first, again.body)
    )
    assert one["sub"] == two["sub"]
    assert one["session_id"] != two["session_id"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (
            "token?grant_type=password",
            {"email": "a@example.com", "password": "wrong"},
            400,
            "invalid_credentials",
        ),
        (
            "token?grant_type=password",
            {"email": "b@example.com", "password": "x"},
            400,
            "invalid_credentials",
        ),
        ("token?grant_type=password", {}, 400, "invalid_credentials"),
        ("token?grant_type=magic", {}, 400, "invalid_credentials"),
        ("token?grant_type=refresh_token", {"refresh_token": "none"}, 400, "refresh_token_not_found"),
        ("token?grant_type=refresh_token", {}, 400, "validation_failed"),
        ("signup", {"email": "a@example.com", "password": PASSWORD}, 422, "user_already_exists"),
        ("signup", {"email": "nonsense", "password": PASSWORD}, 400, "validation_failed"),
        ("signup", {"email": "c@example.com", "password": "short"}, 422, "weak_password"),
        ("signup", {"email": 7}, 400, "bad_json"),
        ("signup", {}, 422, "anonymous_provider_disabled"),
    ],
)
async def test_refusals_have_supabases_form(
    path: str, body: object, status: int, code: str, emulator: Emulator
) -> None:
    await emulator.sign_up()
    old = await emulator.call("POST", f"/auth/v1/{path}", body)
    assert (old.status, old.body["code"], old.body["error_code"]) == (status, status, code)
    new = await emulator.call("POST", f"/auth/v1/{path}", body, X_Supabase_Api_Version="2024-01-01")
    assert (new.status, new.body["code"], new.headers["x-sb-error-code"]) == (status, code, code)


@pytest.mark.parametrize("settings", [Settings(anonymous=True)])
async def test_anonymous_people_are_marked(emulator: Emulator) -> None:
    answer = await emulator.call("POST", "/auth/v1/signup", {})
    claims = await verified(emulator, answer.body["access_token"])
    assert claims["is_anonymous"] is True
    assert claims["role"] == "authenticated"


class TestRefreshing:
    @staticmethod
    async def refresh(emulator: Emulator, token: str) -> Any:
        return await emulator.call(
            "POST", "/auth/v1/token?grant_type=refresh_token", {"refresh_token": token}
        )

    async def test_gives_a_new_pair_in_the_same_session(self, emulator: Emulator) -> None:
        first = await emulator.sign_up()
        second = (await self.refresh(emulator, first["refresh_token"])).body
        assert second["refresh_token"] != first["refresh_token"]
        one, two = [
            jwt.decode(each["access_token"], options={"verify_signature": False}) for each in (first, second)
        ]
        assert one["session_id"] == two["session_id"]

    async def test_a_lost_answer_can_be_asked_for_again(self, emulator: Emulator) -> None:
        first = await emulator.sign_up()
        second = (await self.refresh(emulator, first["refresh_token"])).body
        emulator.project.clock.advance(3600)
        again = await self.refresh(emulator, first["refresh_token"])
        assert again.body["refresh_token"] == second["refresh_token"]

    async def test_a_token_used_long_ago_ends_the_session(self, emulator: Emulator) -> None:
        first = await emulator.sign_up()
        second = (await self.refresh(emulator, first["refresh_token"])).body
        third = (await self.refresh(emulator, second["refresh_token"])).body
        emulator.project.clock.advance(11)
        assert (await self.refresh(emulator, first["refresh_token"])).body[
            "error_code"
        ] == "refresh_token_already_used"
        assert (await self.refresh(emulator, third["refresh_token"])).body[
            "error_code"
        ] == "refresh_token_not_found"


async def test_whose_token_it_is(emulator: Emulator) -> None:
    answer = await emulator.sign_up()
    assert (await emulator.call("GET", "/auth/v1/user", token=answer["access_token"])).body == answer["user"]
    assert (await emulator.call("GET", "/auth/v1/user")).body["error_code"] == "no_authorization"
    bad = await emulator.call("GET", "/auth/v1/user", token=answer["access_token"][:-4] + "AAAA")
    assert (bad.status, bad.body["error_code"]) == (403, "bad_jwt")
    emulator.project.clock.advance(3601)
    late = await emulator.call("GET", "/auth/v1/user", token=answer["access_token"])
    assert (late.status, late.body["error_code"]) == (403, "bad_jwt")


@pytest.mark.parametrize(("scope", "left"), [("global", 0), ("local", 1), ("others", 1)])
async def test_signing_out_ends_sessions(scope: str, left: int, emulator: Emulator) -> None:
    await emulator.sign_up()
    credentials = {"email": "a@example.com", "password": PASSWORD}
    token = (await emulator.call("POST", "/auth/v1/token?grant_type=password", credentials)).body[
        "access_token"
    ]
    assert (await emulator.call("POST", f"/auth/v1/logout?scope={scope}", token=token)).status == 204
    assert len(emulator.project.store.sessions) == left
    after = await emulator.call("GET", "/auth/v1/user", token=token)
    assert after.status == (200 if scope == "others" else 403)
    # The token itself stays good for backends that look at its signature only.
    assert await verified(emulator, token)
