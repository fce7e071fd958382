"""Apps, images, secrets, releases and logs over the APIs, with the shapes that flyctl sends and reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fly_emulator.cloud.images import Entry, Images
from fly_emulator.cloud.running import CloudSettings
from fly_emulator.errors import EmulatorError

from .clouds import TOKEN, V1, V2, WEB_COMMAND, CloudClient, clouded, machine
from .fleets import QUICK, alive


async def test_an_app_is_made_listed_and_destroyed_with_its_machines(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        made = await client.ok("GET", "/v1/apps/shop")
        assert (made["name"], made["status"], made["organization"]["slug"]) == ("shop", "pending", "personal")
        machine_id = await client.start()
        pid = client.cloud.app("shop").fleet.find(machine_id).pid
        assert pid is not None
        listed = await client.ok("GET", "/v1/apps?org_slug=personal")
        assert [(each["name"], each["machine_count"]) for each in listed["apps"]] == [("shop", 1)]
        assert (await client.ok("GET", "/v1/apps?org_slug=other"))["apps"] == []
        await client.ok("DELETE", "/v1/apps/shop")
        assert not alive(pid)
        assert (await client.ask("GET", "/v1/apps/shop"))[0] == 404
        await client.app()
        assert await client.ok("GET", "/v1/apps/shop/machines") == []


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("shop", 422, "name_taken"),
        ("Shop", 400, "invalid_argument"),
        ("../shop", 400, "invalid_argument"),
        ("", 400, "invalid_argument"),
    ],
)
async def test_names_of_apps_are_checked(tmp_path: Path, name: str, status: int, code: str) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        answer = await client.ask("POST", "/v1/apps", {"name": name, "org_slug": "personal"})
        assert (answer[0], answer[1]["status"]) == (status, code)


async def test_an_app_outlives_the_emulator_and_wakes_with_its_secrets(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        await client.ok("POST", "/v1/apps/shop/secrets", {"values": {"KEY": "first"}})
        await client.start()
        url = client.cloud.app("shop").url
    async with clouded(tmp_path) as client:
        assert client.cloud.app("shop").url == url
        shown = await client.ok("GET", "/v1/apps/shop")
        assert shown["status"] == "suspended"
        assert (await client.env())["KEY"] == "first"


async def test_a_machine_keeps_its_secrets_and_its_image_until_it_is_updated(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        await client.ok("POST", "/v1/apps/shop/secrets", {"values": {"KEY": "first", "GONE": "x"}})
        machine_id = await client.start()
        before = client.cloud.app("shop").fleet.find(machine_id).image.digest
        await client.ok("POST", "/v1/apps/shop/secrets", {"values": {"KEY": "second", "GONE": None}})
        client.cloud.images.add(V1, Entry(command=WEB_COMMAND, env={"NUMBER": "pushed again"}))
        at = f"/v1/apps/shop/machines/{machine_id}"
        await client.ok("POST", f"{at}/restart")
        await client.ok("GET", f"{at}/wait?state=started")
        shown = await client.ok("GET", at)
        assert shown["image_ref"]["digest"] == before
        env = await client.env()
        assert (env["KEY"], env["GONE"], env["NUMBER"]) == ("first", "x", "1")
        await client.ok("POST", at, machine())
        await client.ok("GET", f"{at}/wait?state=started")
        env = await client.env()
        assert (env["KEY"], env.get("GONE"), env["NUMBER"]) == ("second", None, "pushed again")
        assert (await client.ok("GET", at))["image_ref"]["digest"] not in ("", before)


async def test_secrets_are_shown_by_digest_and_never_by_value(tmp_path: Path) -> None:
    async with clouded(tmp_path / "one") as client, clouded(tmp_path / "other") as other:
        for each in (client, other):
            await each.app()
            answer = await each.ok(
                "POST", "/v1/apps/shop/secrets", {"values": {"B": "canary", "A": "canary", "NONE": None}}
            )
            assert answer["version"] == 1
            assert "canary" not in str(answer)
        listed = (await client.ok("GET", "/v1/apps/shop/secrets?show_secrets=true"))["secrets"]
        assert [each["name"] for each in listed] == ["A", "B"]
        assert listed[0]["digest"] == listed[1]["digest"]
        assert len(listed[0]["digest"]) == 16
        assert "canary" not in str(listed)
        elsewhere = (await other.ok("GET", "/v1/apps/shop/secrets"))["secrets"]
        assert elsewhere[0]["digest"] != listed[0]["digest"]
        assert (await client.ok("DELETE", "/v1/apps/shop/secrets/A"))["version"] == 2
        assert (await client.ask("DELETE", "/v1/apps/shop/secrets/A"))[0] == 404
        assert (await client.ask("POST", "/v1/apps/shop/secrets", {"values": {"A": 1}}))[0] == 400
        set_again = await client.ok("POST", "/v1/apps/shop/secrets/B", {"value": "other"})
        assert set_again["digest"] != listed[1]["digest"]
        assert set_again["created_at"] == listed[1]["created_at"]
    mode = (tmp_path / "one" / "cloud.json").stat().st_mode
    assert mode & 0o077 == 0


async def test_an_entrypoint_stays_before_a_command_of_the_machines_own(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        client.cloud.images.add(V2, Entry(command=("image",), entrypoint=("/bin/echo", "entry")))
        for init in ({}, {"cmd": ["machine"]}):
            config = {"image": V2, "init": init, "restart": {"policy": "no"}, "auto_destroy": True}
            made = await client.ok("POST", "/v1/apps/shop/machines", {"config": config})
            await client.ok("GET", f"/v1/apps/shop/machines/{made['id']}/wait?state=destroyed")
        said = (await client.ok("GET", "/api/v1/apps/shop/logs?next_token="))["data"]
        lines = [each["attributes"]["message"] for each in said]
        assert [line for line in lines if line.startswith("entry")] == ["entry image", "entry machine"]


async def test_an_image_that_is_not_there_cannot_be_pulled(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        status, document = await client.ask("POST", "/v1/apps/shop/machines", machine("registry.fly.io/x:y"))
        assert status == 400
        assert "registry.fly.io/x:y" in document["error"]
        machine_id = await client.start()
        at = f"/v1/apps/shop/machines/{machine_id}"
        assert (await client.ask("POST", at, machine("registry.fly.io/x:y")))[0] == 400
        assert (await client.ok("GET", at))["state"] == "started"


async def test_a_pull_that_failed_unnoticed_shows_in_the_digest_only(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        images = client.cloud.images
        wanted = images.add(V2, Entry(command=WEB_COMMAND, env={"NUMBER": "2"}, pulls=V1))
        await client.app()
        machine_id = await client.start(V2)
        shown = await client.ok("GET", f"/v1/apps/shop/machines/{machine_id}")
        assert (shown["config"]["image"], shown["image_ref"]["tag"]) == (V2, "v2")
        assert shown["image_ref"]["digest"] == images.all()[V1].digest != wanted
        assert (await client.env())["NUMBER"] == "1"


def test_images_are_kept_in_a_file_and_found_by_digest(tmp_path: Path) -> None:
    images = Images(tmp_path / "state")
    digest = images.add(V1, Entry(command=("true",)))
    assert Images(tmp_path / "state").find(V1) is not None
    assert images.find(f"{V1}@{digest}") is not None
    assert images.find(f"{V1}@sha256:{'0' * 64}") is None
    assert images.add(V1, Entry(command=("true",))) == digest
    with pytest.raises(EmulatorError, match="add registry"):
        raise_hint(lambda: images.add(V2, Entry(command=("true",), pulls="registry.fly.io/none:1")))
    images.remove(V1)
    assert images.find(V1) is None
    with pytest.raises(EmulatorError):
        images.remove(V1)


def raise_hint(work: object) -> None:
    """Raise an operator's error with its hint as the text."""
    assert callable(work)
    try:
        work()
    except EmulatorError as error:
        raise EmulatorError(error.hint) from error


async def test_releases_have_versions_and_a_fate(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        assert (await client.ask("GET", "/api/v1/apps/shop/releases/current"))[0] == 404
        definition = {"env": {"A": "1"}}
        for image in (V1, V2):
            body = {"app_name": "shop", "strategy": "ROLLING", "definition": definition, "image": image}
            made = (await client.ok("POST", "/api/v1/releases", body))["release"]
        assert (made["version"], made["status"], made["image_ref"]) == (2, "pending", V2)
        done = await client.ok(
            "PATCH", f"/api/v1/releases/{made['id']}", {"status": "complete", "metadata": {"a": 1}}
        )
        assert (done["stable"], done["in_progress"]) == (True, False)
        listed = (await client.ok("GET", "/api/v1/apps/shop/releases?limit=1"))["releases"]
        assert [each["version"] for each in listed] == [2]
        assert list(await client.ok("GET", "/api/v1/releases/all_current")) == ["shop"]
        for path, body, status in (
            (f"/api/v1/releases/{made['id']}", {"status": "great"}, 422),
            ("/api/v1/releases/release-none", {"status": "failed"}, 404),
        ):
            assert (await client.ask("PATCH", path, body))[0] == status
        # A restart names no image: it keeps the one there is.
        again = await client.ok("POST", "/api/v1/releases", {"app_name": "shop", "image": ""})
        assert again["release"]["image_ref"] == V2
        current = """query ($n: String!) { app(name: $n) {
            currentReleaseUnprocessed { version } currentRelease { version configDefinition }
        } }"""
        app = (await client.graphql(current, n="shop"))["app"]
        assert app["currentReleaseUnprocessed"]["version"] == 3
        assert app["currentRelease"] == {"version": 2, "configDefinition": definition}


async def test_a_release_command_runs_to_its_end_and_says_how_it_ended(tmp_path: Path) -> None:
    """As flyctl: create without launch, wait for `stopped`, start, wait for `destroyed`, read the event."""
    async with clouded(tmp_path) as client:
        await client.app()
        config = {
            "image": V1,
            "auto_destroy": True,
            "restart": {"policy": "no"},
            "init": {"exec": ["/bin/sh", "-c", "echo migrating $RELEASE_COMMAND; exit 3"]},
            "env": {"RELEASE_COMMAND": "1"},
        }
        made = await client.ok("POST", "/v1/apps/shop/machines", {"config": config, "skip_launch": True})
        at = f"/v1/apps/shop/machines/{made['id']}"
        await client.ok("GET", f"{at}/wait?state=stopped&timeout=10")
        await client.ok("POST", f"{at}/start")
        await client.ok("GET", f"{at}/wait?state=destroyed&timeout=10")
        status, document = await client.ask("GET", f"{at}/wait?state=started&timeout=1")
        assert (status, document["status"]) == (404, "not_found")
        events = (await client.ok("GET", at))["events"]
        kinds = [each["type"] for each in events]
        assert kinds.index("exit") < kinds.index("start")
        assert events[kinds.index("exit")]["request"]["exit_event"]["exit_code"] == 3
        said = await client.ok("GET", f"/api/v1/apps/shop/logs?next_token=&instance={made['id']}")
        assert "migrating 1" in [each["attributes"]["message"] for each in said["data"]]


async def test_a_log_is_read_on_from_where_one_was(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        first = await client.start()
        path = "/api/v1/apps/shop/logs?next_token="
        page = await client.ok("GET", path)
        assert {each["attributes"]["instance"] for each in page["data"]} == {first}
        token = page["meta"]["next_token"]
        second = await client.start()
        later = await client.ok("GET", path + token)
        assert second in {each["attributes"]["instance"] for each in later["data"]}
        assert min(int(each["id"]) for each in later["data"]) > int(token)
        last = later["meta"]["next_token"]
        assert (await client.ok("GET", path + last))["meta"]["next_token"] >= last
        assert (await client.ask("GET", path + "x"))[0] == 400


async def test_a_machine_is_seen_listening_at_its_internal_port(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        machine_id = await client.start()
        await client.env()
        shown = await client.ok("GET", f"/v1/apps/shop/machines/{machine_id}/ps")
        assert shown[0]["listen_sockets"] == [{"proto": "tcp", "address": "0.0.0.0:8080"}]


async def test_addresses_and_certificates_are_kept(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        for kind in ("v6", "shared_v4", "shared_v4"):
            await client.ok("POST", "/v1/apps/shop/ip_assignments", {"type": kind, "region": ""})
        found = (await client.ok("GET", "/v1/apps/shop/ip_assignments"))["ips"]
        assert [each["shared"] for each in found] == [False, True]
        assert (await client.ask("POST", "/v1/apps/shop/ip_assignments", {"type": "v5"}))[0] == 422
        await client.ok("DELETE", f"/v1/apps/shop/ip_assignments/{found[0]['ip']}")
        assert len((await client.ok("GET", "/v1/apps/shop/ip_assignments"))["ips"]) == 1
        made = await client.ok("POST", "/v1/apps/shop/certificates/acme", {"hostname": "example.test"})
        assert made["configured"] is False
        body = {"hostname": "example.test"}
        assert (await client.ask("POST", "/v1/apps/shop/certificates/acme", body))[0] == 422
        assert (await client.ok("GET", "/v1/apps/shop/certificates"))["total_count"] == 1
        await client.ok("DELETE", "/v1/apps/shop/certificates/example.test")
        assert (await client.ask("GET", "/v1/apps/shop/certificates/example.test"))[0] == 404


async def test_addresses_can_be_given_and_forgotten(tmp_path: Path) -> None:
    async with clouded(tmp_path, CloudSettings(machines=QUICK, addresses=False)) as client:
        await client.app()
        made = await client.ok("POST", "/v1/apps/shop/ip_assignments", {"type": "v6"})
        assert made["ip"].startswith("2001:db8::")
        assert (await client.ok("GET", "/v1/apps/shop/ip_assignments"))["ips"] == []


@pytest.mark.parametrize("path", ["/graphql", "/api/v1/organizations", "/v1/apps"])
@pytest.mark.parametrize(
    ("header", "value", "status"),
    [("Authorization", "Bearer x", 401), ("Host", "evil.example", 403), ("Origin", "http://127.0.0.1", 403)],
)
async def test_every_door_wants_the_token_and_no_web_page(
    tmp_path: Path, path: str, header: str, value: str, status: int
) -> None:
    async with clouded(tmp_path) as client:
        method = "POST" if path == "/graphql" else "GET"
        assert (await client.ask(method, path, {"query": "{ viewer { __typename } }"}, {header: value}))[
            0
        ] == status
        assert TOKEN not in os.environ.values()


async def test_graphql_says_what_it_does_not_know(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        unknown = await client.refused('{ app(name: "shop") { postgresClusters } }')
        assert "postgresClusters" in unknown["message"]
        missing = await client.refused("query ($n: String) { app(name: $n) { id } }", n="none")
        assert missing["message"] == 'Could not find App "none"'
        assert missing["extensions"]["code"] == "NOT_FOUND"
        wrong = await client.ask("POST", "/graphql", {"query": 1})
        assert wrong[0] == 400


async def test_graphql_shows_apps_and_finds_images(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        machine_id = await client.start()
        await image_is_found(client)
        shown = await client.graphql(
            """query ($n: String!) { appcompact: app(name: $n) {
                 id internalNumericId hostname deployed status appUrl organization { slug internalNumericId }
                 postgresAppRole: role { name } ipAddresses { nodes { address } } sharedIpAddress
                 imageDetails { repository tag digest } machines { nodes { id state config app { name } } }
               } }""",
            n="shop",
        )
        app = shown["appcompact"]
        assert isinstance(app["internalNumericId"], int)
        assert isinstance(app["organization"]["internalNumericId"], str)
        assert (app["deployed"], app["status"], app["postgresAppRole"]) == (True, "deployed", None)
        assert [each["id"] for each in app["machines"]["nodes"]] == [machine_id]
        assert (app["imageDetails"]["repository"], app["imageDetails"]["tag"]) == ("shop", "v1")
        listed = await client.graphql(
            "{ apps(first: 200) { pageInfo { hasNextPage } nodes { name status } } }"
        )
        assert listed["apps"] == {
            "pageInfo": {"hasNextPage": False},
            "nodes": [{"name": "shop", "status": "deployed"}],
        }
        viewer = await client.graphql("{ viewer { ... on User { email } ... on Macaroon { email } } }")
        assert viewer == {"viewer": {"email": "emulator@localhost"}}


async def image_is_found(client: CloudClient) -> None:
    """Look up as before a deploy: nothing for a reference that is not there."""
    query = """query ($r: String!) { app(name: "shop") {
        image(ref: $r) { id digest ref compressedSize: compressedSizeFull }
    } }"""
    found = (await client.graphql(query, r=V1))["app"]["image"]
    assert (found["ref"], found["digest"]) == (V1, client.cloud.images.all()[V1].digest)
    assert int(found["compressedSize"]) > 0
    assert (await client.graphql(query, r="registry.fly.io/x:y"))["app"]["image"] is None


async def test_graphql_changes_organisations_and_apps(tmp_path: Path) -> None:
    async with clouded(tmp_path) as client:
        await client.app()
        made = await client.graphql(
            """mutation ($i: CreateOrganizationInput!) { createOrganization(input: $i) {
                 organization { id slug type }
               } }""",
            i={"name": "My Health"},
        )
        organization = made["createOrganization"]["organization"]
        assert (organization["slug"], organization["type"]) == ("my-health", "SHARED")
        await client.graphql(
            "mutation ($i: MoveAppInput!) { moveApp(input: $i) { app { organization { slug } } } }",
            i={"appId": "shop", "organizationId": organization["id"]},
        )
        assert (await client.ok("GET", "/v1/apps/shop"))["organization"]["slug"] == "my-health"
        await client.graphql("mutation ($a: ID!) { deleteApp(appId: $a) { organization { id } } }", a="shop")
        assert (await client.ask("GET", "/v1/apps/shop"))[0] == 404
