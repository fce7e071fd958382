"""All but `deploy` and what changes a machine: what APIs are asked, and what flyctl prints of the answers.

Sources: superfly/flyctl `internal/command/{auth,apps,config,logs,machine,releases,secrets,status,tokens}/`,
`internal/appsecrets`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime
from typing import Any, Final

from fly_emulator.flyctl import app_shape, shapes
from fly_emulator.flyctl.api import VERSION, Api
from fly_emulator.flyctl.errors import ApiError, FlyctlError
from fly_emulator.flyctl.secrets import parse_secrets
from fly_emulator.flyctl.words import Call

_VIEWER: Final = "query { viewer { ... on User { id email enablePaidHobby } ... on Macaroon { email } } }"
_ORGANIZATIONS: Final = (
    "query($admin: Boolean!) { organizations(admin: $admin) { nodes "
    "{ id slug rawSlug name type paidPlan billable viewerRole internalNumericId } } }"
)
_APPS: Final = (
    'query($org: ID, $after: String) { apps(type: "container", first: 200, after: $after, organizationId: '
    "$org) { pageInfo { hasNextPage endCursor } nodes { id name deployed hostname platformVersion network "
    "organization { slug name } currentRelease { createdAt status } status } } }"
)
_APP: Final = (
    "query ($appName: String!) { appcompact:app(name: $appName) { id internalNumericId name hostname "
    "cnameTarget deployed network status appUrl platformVersion organization { id internalNumericId slug "
    "paidPlan } postgresAppRole: role { name } } }"
)
_CURRENT: Final = (
    "query ($appName: String!) { app(name:$appName) { currentRelease:currentReleaseUnprocessed "
    "{ version } } }"
)
_RELEASES: Final = (
    "query($appName: String!, $limit: Int!) { app(name: $appName) { releases: releasesUnprocessed(first: "
    "$limit) { nodes { id version description reason status imageRef stable user { id email name } "
    "createdAt } } } }"
)
_CREATE_LIMITED: Final = (
    "mutation CreateLimitedAccessToken ($name: String!, $organizationId: ID!, $profile: String!, "
    "$profileParams: JSON, $expiry: String!) { createLimitedAccessToken(input: {name:$name,organizationId:"
    "$organizationId,profile:$profile,profileParams:$profileParams,expiry:$expiry}) "
    "{ limitedAccessToken { tokenHeader } } }"
)
_POLL_S: Final = 0.128


def write(text: str) -> None:
    """Print to stdout."""
    sys.stdout.write(text + "\n")


def write_json(value: Any) -> None:
    """Print as flyctl does."""
    write(json.dumps(value, indent=4, ensure_ascii=False))


def access_token(call: Call) -> str:
    """Return the token. Raises FlyctlError: there is none."""
    names = ("FLY_ACCESS_TOKEN", "FLY_API_TOKEN")
    found = call.flags["access-token"] or next(
        (os.environ[each] for each in names if os.environ.get(each)), ""
    )
    if not found:
        raise FlyctlError("no access token available. Please login with 'flyctl auth login'")
    # A scheme before the first token is no part of it (superfly/fly-go `tokens.Parse`).
    return found.removeprefix("FlyV1 ").removeprefix("Bearer ")


def session(call: Call) -> Api:
    """Return the APIs, logged in. Raises FlyctlError."""
    return Api(access_token(call))


def app_name(call: Call) -> str:
    """Return the app that is meant: `--app`, else FLY_APP, else fly.toml's. Raises FlyctlError."""
    if found := call.flags["app"] or os.environ.get("FLY_APP", ""):
        return found
    path = call.flags["config"] or "fly.toml"
    if os.path.isfile(path):  # noqa: PTH113 - pathlib would be most of what a command imports
        import tomllib  # noqa: PLC0415

        with open(path, "rb") as file:  # noqa: PTH123
            if name := tomllib.load(file).get("app"):
                return str(name)
    raise FlyctlError(
        "the config for your app is missing an app name, add an app field to the fly.toml file or specify "
        "with the -a flag"
    )


def version(call: Call) -> None:
    """Print which flyctl this stands for, and that it is not that."""
    if call.flags["json"]:
        write_json({"Name": "flyctl-emulator", "Version": VERSION})
    else:
        write(f"flyctl-emulator v{VERSION}")


def whoami(call: Call) -> None:
    """`auth whoami`."""
    try:
        viewer = session(call).graphql(_VIEWER)["viewer"]
    except FlyctlError as error:
        if str(error).startswith("no access token"):
            raise
        raise FlyctlError(f"failed retrieving current user: {error}") from error
    write_json({"email": viewer["email"]}) if call.flags["json"] else write(viewer["email"])


def token(call: Call) -> None:
    """`auth token`."""
    found = access_token(call)
    if call.flags["json"]:
        write_json({"token": found})
        return
    write(found)
    if not call.flags["quiet"]:
        sys.stderr.write("The 'fly auth token' command is deprecated. Use 'fly tokens create' instead.\n\n")


def deploy_token(call: Call) -> None:
    """`tokens create deploy`."""
    name, api = app_name(call), session(call)
    try:
        app = api.graphql(_APP, appName=name)["appcompact"]
    except FlyctlError as error:
        raise FlyctlError(f"failed retrieving app {name}: {error}") from error
    try:
        made = api.graphql(
            _CREATE_LIMITED,
            name=call.flags["name"],
            organizationId=app["organization"]["id"],
            profile="deploy",
            profileParams={"app_id": app["id"]},
            expiry=call.flags["expiry"],
        )
    except FlyctlError as error:
        raise FlyctlError(f"failed creating token: {error}") from error
    header = made["createLimitedAccessToken"]["limitedAccessToken"]["tokenHeader"]
    write_json({"token": header}) if call.flags["json"] else write(header)


def create(call: Call) -> None:
    """`apps create`."""
    name = call.arguments[0] if call.arguments else call.flags["name"]
    if not name:
        raise FlyctlError("name argument or flag must be specified when not running interactively")
    api = session(call)
    nodes = api.graphql(_ORGANIZATIONS, admin=False)["organizations"]["nodes"]
    organization = _organization(nodes, call.flags["org"])
    body = {"name": name, "org_slug": organization["slug"], "network": "", "app_role_id": ""}
    try:
        api.flaps("POST", "/apps?wait=true", body)
    except ApiError as error:
        if "name_taken" not in str(error):
            raise
        raise FlyctlError(
            str(error),
            "App names are unique across all of Fly.io, not just your organization, so this name may be held "
            "by an app you cannot see. Try a different name.\n",
        ) from error
    api.flaps("GET", f"/apps/{name}")
    write(f"New app created: {name}")


def _organization(nodes: list[dict[str, Any]], slug: str) -> dict[str, Any]:
    if slug:
        for each in nodes:
            if slug in {each["slug"], each["rawSlug"]}:
                return each
        raise FlyctlError(f"Organization {slug} not found")
    personal = [each for each in nodes if each["type"] == "PERSONAL"]
    if len(nodes) == 1 and personal:
        sys.stderr.write(f"automatically selected personal organization: {personal[0]['name']}\n")
        return personal[0]
    raise FlyctlError("org slug must be specified when not running interactively")


def apps(call: Call) -> None:
    """`apps list`."""
    nodes = session(call).graphql(_APPS)["apps"]["nodes"]
    if call.flags["json"]:
        write_json([app_shape.app(each) for each in nodes])
    else:
        rows = [(each["name"], each["organization"]["slug"], each["status"]) for each in nodes]
        shapes.table(("NAME", "OWNER", "STATUS"), rows)


def validate(call: Call) -> None:
    """Run `config validate`. The local reader is stricter than flyctl, without --strict too."""
    from fly_emulator.flyctl.toml import read  # noqa: PLC0415

    read(call)
    write("\x1b[32m✓\x1b[0m Configuration is valid\n")


def releases(call: Call) -> None:
    """`releases`."""
    name = app_name(call)
    try:
        found = session(call).graphql(_RELEASES, appName=name, limit=25)["app"]["releases"]["nodes"]
    except FlyctlError as error:
        if str(error).startswith("no access token"):
            raise
        raise FlyctlError(f"failed retrieving app releases {name}: {error}") from error
    if call.flags["json"]:
        write_json([shapes.release(each) for each in found])
        return
    rows = [
        (f"v{each['version']}", each["status"], each["user"]["email"], each["imageRef"]) for each in found
    ]
    shapes.table(("VERSION", "STATUS", "USER", "DOCKER IMAGE"), rows)


def machines(call: Call) -> None:
    """`machine list`."""
    name = app_name(call)
    try:
        found = session(call).flaps("GET", f"/apps/{name}/machines")
    except ApiError as error:
        raise FlyctlError(f"failed to list VMs: {error}") from error
    if call.flags["json"]:
        write_json([shapes.machine(each) for each in found])
        return
    rows = [(each["id"], each["name"], each["state"], each["region"]) for each in found]
    shapes.table(("ID", "NAME", "STATE", "REGION"), rows)


def status(call: Call) -> None:
    """`status`."""
    name, api = app_name(call), session(call)
    try:
        app = api.graphql(_APP, appName=name)["appcompact"]
    except FlyctlError as error:
        raise FlyctlError(f"failed to get app: {error}") from error
    found = api.flaps("GET", f"/apps/{name}/machines")
    active: list[dict[str, Any]] = [each for each in found if shapes.is_active(each)]
    active.sort(key=lambda each: each["id"], reverse=True)
    if not call.flags["json"]:
        write(f"{name}: {app['status']}, {app['hostname']}")
        shapes.table(
            ("ID", "STATE", "REGION"), [(each["id"], each["state"], each["region"]) for each in active]
        )
        return
    current = api.graphql(_CURRENT, appName=name)["app"]["currentRelease"]
    ours = [shapes.machine(each) for each in active if shapes.is_platform(each)]
    write_json(shapes.status(app, current["version"] if current else 0, ours))


def import_secrets(call: Call) -> None:
    """`secrets import --stage`: values come on stdin and are shown nowhere."""
    name, api = app_name(call), session(call)
    if not call.flags["stage"]:
        raise FlyctlError("`secrets import` without --stage is not emulated: it would deploy")
    api.graphql(_APP, appName=name)
    values = parse_secrets(sys.stdin.read())
    if not values:
        raise FlyctlError("requires at least one SECRET=VALUE pair")
    try:
        api.flaps("POST", f"/apps/{name}/secrets", {"values": values})
    except ApiError as error:
        raise FlyctlError(f"update secrets: {error}") from error
    write(
        "Secrets have been staged, but not set on VMs. Deploy or update machines in this app for the secrets "
        "to take effect.\n"
    )


def secrets(call: Call) -> None:
    """`secrets list`: which release of each machine is younger than a secret's last change says its state."""
    name, api = app_name(call), session(call)
    found = api.flaps("GET", f"/apps/{name}/secrets")["secrets"]
    releases_of = [
        each["config"].get("metadata", {}).get("fly_release_version", "")
        for each in api.flaps("GET", f"/apps/{name}/machines")
        if shapes.is_platform(each) and shapes.is_active(each)
    ]
    made: dict[str, datetime] = {}
    if any(releases_of):
        listed = api.uiex("GET", f"/apps/{name}/releases?limit={max(20, 2 * len(set(releases_of)))}")
        made = {str(each["version"]): _time(each["created_at"]) for each in listed["releases"]}
    rows = [
        {"name": each["name"], "digest": each["digest"], "status": _deployed(each, releases_of, made)}
        for each in found
    ]
    if call.flags["json"]:
        write_json(rows)
    else:
        shapes.table(("NAME", "DIGEST", "STATUS"), [tuple(each.values()) for each in rows])


def _deployed(secret: dict[str, Any], releases_of: list[str], made: dict[str, datetime]) -> str:
    changed = _time(secret["updated_at"])
    have = sum(each in made and changed <= made[each] for each in releases_of)
    if not have:
        return "Staged"
    return "Deployed" if have == len(releases_of) else "Partial"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def logs(call: Call) -> None:
    """Run `logs`: what there is; without `--no-tail` also what comes, by polling."""
    name, api = app_name(call), session(call)
    token, which = "", f"instance={call.flags['machine']}&" if call.flags["machine"] else ""
    while True:
        page = api.uiex("GET", f"/apps/{name}/logs?{which}next_token={token}")
        token = page["meta"]["next_token"] or token
        for each in page["data"]:
            entry = shapes.log_entry(each["attributes"])
            write_json(entry) if call.flags["json"] else write(shapes.log_line(entry))
        sys.stdout.flush()
        if call.flags["no-tail"] and page["data"]:
            return
        if not page["data"]:
            time.sleep(_POLL_S)
