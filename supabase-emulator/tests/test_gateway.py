from __future__ import annotations

import pytest

from .conftest import Emulator

USERS = "/auth/v1/admin/users"


async def test_the_keys_are_public_and_cacheable_for_ten_minutes(emulator: Emulator) -> None:
    answer = await emulator.call("GET", "/auth/v1/.well-known/jwks.json", key=None)
    assert answer.headers["Cache-Control"] == "public, max-age=600"
    assert len(answer.body["keys"]) == 2
    assert all("d" not in key for key in answer.body["keys"])


async def test_everything_else_needs_an_api_key(emulator: Emulator) -> None:
    assert (await emulator.call("GET", "/auth/v1/health", key=None)).status == 401
    assert (await emulator.call("GET", "/auth/v1/health", key="sb_secret_other")).status == 401
    for kind in ("publishable", "secret", "anon", "service_role"):
        assert (await emulator.call("GET", "/auth/v1/health", key=kind)).status == 200


@pytest.mark.parametrize(
    ("key", "token", "status"),
    [
        ("secret", None, 200),
        ("secret", "secret", 200),
        ("service_role", "service_role", 200),
        ("anon", "service_role", 200),
        ("publishable", "service_role", 200),
        # A legacy key is a token: in `apikey` alone it names nobody.
        ("service_role", None, 401),
        ("publishable", None, 401),
        ("publishable", "publishable", 403),
        ("anon", "anon", 403),
        # An opaque key is none: in `Authorization` it must equal `apikey`.
        ("publishable", "secret", 401),
        (None, "secret", 401),
        (None, "service_role", 401),
    ],
)
async def test_who_may_administer(
    key: str | None, token: str | None, status: int, emulator: Emulator
) -> None:
    bearer = None if token is None else emulator.key(token)
    assert (await emulator.call("GET", USERS, key=key, token=bearer)).status == status


async def test_a_users_token_administers_nothing(emulator: Emulator) -> None:
    token = (await emulator.sign_up())["access_token"]
    for key in ("publishable", "secret"):
        answer = await emulator.call("GET", USERS, key=key, token=token)
        assert (answer.status, answer.body["error_code"]) == (403, "not_admin")


async def test_a_secret_key_is_not_for_browsers(emulator: Emulator) -> None:
    assert (await emulator.call("GET", USERS, key="secret", User_Agent="Mozilla/5.0 (X11)")).status == 401


@pytest.mark.parametrize("path", ["/auth/v1/.well-known/jwks.json", "/_emulator/requests", USERS])
@pytest.mark.parametrize("header", [{"Origin": "http://127.0.0.1"}, {"Host": "rebound.example"}])
async def test_web_pages_reach_nothing(path: str, header: dict[str, str], emulator: Emulator) -> None:
    assert (await emulator.call("GET", path, key="secret", **header)).status == 403


async def test_users_are_made_found_and_deleted(emulator: Emulator) -> None:
    made = await emulator.call(
        "POST", USERS, {"email": "b@example.com", "password": "password1"}, key="secret"
    )
    assert made.status == 200
    again = await emulator.call("POST", USERS, {"email": "b@example.com"}, key="secret")
    assert (again.status, again.body["error_code"]) == (422, "email_exists")
    one = f"{USERS}/{made.body['id']}"
    assert (await emulator.call("GET", one, key="secret")).body == made.body
    listed = await emulator.call("GET", f"{USERS}?page=1&per_page=1", key="secret")
    assert [each["id"] for each in listed.body["users"]] == [made.body["id"]]
    assert listed.headers["x-total-count"] == "1"
    credentials = {"email": "b@example.com", "password": "password1"}
    signed_in = await emulator.call("POST", "/auth/v1/token?grant_type=password", credentials)
    gone = await emulator.call("DELETE", one, key="secret")
    assert (gone.status, gone.body) == (200, {})
    assert (await emulator.call("DELETE", one, key="secret")).body["error_code"] == "user_not_found"
    assert (await emulator.call("GET", f"{USERS}/nobody", key="secret")).status == 404
    token = signed_in.body["access_token"]
    assert (await emulator.call("GET", "/auth/v1/user", token=token)).body["error_code"] == "user_not_found"
    refresh = {"refresh_token": signed_in.body["refresh_token"]}
    assert (await emulator.call("POST", "/auth/v1/token?grant_type=refresh_token", refresh)).status == 400


async def test_a_users_id_may_be_chosen(emulator: Emulator) -> None:
    chosen = {"id": "0199ab12-0000-7000-8000-000000000001", "email": "b@example.com"}
    assert (await emulator.call("POST", USERS, chosen, key="secret")).body["id"] == chosen["id"]
    assert (
        await emulator.call("POST", USERS, {"id": "1", "email": "c@example.com"}, key="secret")
    ).status == 400
