"""Deploy tokens, as `fly tokens create deploy` asks for them: each for one app, several in one header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .clouds import V1, CloudClient, clouded

MAKE = """mutation ($app: JSON!, $profile: String!) { createLimitedAccessToken(input: {
  name: "ci", organizationId: "org-1", profile: $profile, profileParams: $app, expiry: "720h" })
  { limitedAccessToken { tokenHeader } } }"""
APP = "query ($name: String!, $ref: String!) { app(name: $name) { name image(ref: $ref) { digest } } }"
CREATE = 'mutation { createOrganization(input: {name: "Other"}) { organization { slug } } }'


async def token(client: CloudClient, app: str) -> str:
    """Make a deploy token for an app."""
    made = await client.graphql(MAKE, app={"app_id": app}, profile="deploy")
    return made["createLimitedAccessToken"]["limitedAccessToken"]["tokenHeader"]


async def graphql(client: CloudClient, header: str, query: str, **variables: str) -> dict[str, Any]:
    """Ask GraphQL with another token; return the whole answer."""
    question = {"query": query, "variables": variables}
    status, answer = await client.ask("POST", "/graphql", question, {"Authorization": header})
    assert status == 200
    return answer


async def test_it_sees_its_own_app_and_no_other(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        await client.app("other")
        mine, theirs = await token(client, "shop"), await token(client, "other")
        assert mine.startswith("FlyV1 ")

        async def status(header: str, path: str, method: str = "GET") -> int:
            return (await client.ask(method, path, headers={"Authorization": header}))[0]

        for path in ("/v1/apps/shop", "/v1/apps/shop/machines", "/v1/apps/shop/secrets"):
            assert await status(mine, path) == 200
            assert await status(theirs, path) == 403, path
        for path in ("/v1/apps", "/api/v1/organizations", "/_emulator/apps"):
            assert await status(mine, path) == 403, path
        assert await status(mine, "/v1/apps/shop", "DELETE") == 403
        both = f"{mine},{theirs.removeprefix('FlyV1 ')}"
        assert await status(both, "/v1/apps/shop") == await status(both, "/v1/apps/other") == 200
        # flyctl takes the scheme off the first only.
        assert await status(f"{mine},{theirs}", "/v1/apps/other") == 403
        assert await status("FlyV1 deploy_none", "/v1/apps/shop") == 401


async def test_what_graphql_tells_it(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        await client.app("other")
        mine, theirs = await token(client, "shop"), await token(client, "other")
        found = await graphql(client, mine, APP, name="shop", ref=V1)
        assert found["data"]["app"]["image"]["digest"].startswith("sha256:")
        away = await graphql(client, theirs, APP, name="shop", ref=V1)
        assert away["errors"][0]["message"] == 'Could not find App "shop"'
        assert (await graphql(client, theirs, APP, name="other", ref=V1))["data"]["app"]["image"] is None
        for query in ("{ apps { nodes { name } } }", "{ organizations { nodes { slug } } }", CREATE):
            refused = await graphql(client, mine, query)
            assert refused["errors"][0]["extensions"]["code"] == "UNAUTHORIZED", query
        assert (await graphql(client, mine, "{ viewer { __typename } }"))["data"]["viewer"] == {
            "__typename": "Macaroon"
        }


@pytest.mark.parametrize(
    ("profile", "app", "says"), [("deploy", "none", "Could not find App"), ("ssh", "shop", "no ssh tokens")]
)
async def test_what_is_not_made(tmp_path: Path, profile: str, app: str, says: str) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        assert says in (await client.refused(MAKE, app={"app_id": app}, profile=profile))["message"]
