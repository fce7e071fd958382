"""`flyctl deploy --image`, step by step as flyctl takes them.

Source: superfly/flyctl `internal/command/deploy/`: `deploy.go`, `machines.go`, `deploy_first.go`,
`machines_deploymachinesapp.go`. Left out, because nothing depends on it: the report of a build that is none,
the look at listening sockets after an update (a warning), DNS, LaunchDarkly.
"""

from __future__ import annotations

import sys
import tomllib
from typing import Any, Final, NamedTuple

from fly_emulator.flyctl import bluegreen, release_command, rolling, shapes
from fly_emulator.flyctl.api import VERSION, Api
from fly_emulator.flyctl.commands import session, write
from fly_emulator.flyctl.errors import ApiError, FlyctlError, Interrupted
from fly_emulator.flyctl.leased import Leased
from fly_emulator.flyctl.rolling import Entry
from fly_emulator.flyctl.toml import Input, read, with_env
from fly_emulator.flyctl.words import Call
from fly_emulator.machine_config import duration_seconds

_IMAGE: Final = (
    "query ($appName: String!, $imageRef: String!) { app(name: $appName) { id image(ref: $imageRef) "
    "{ id digest ref compressedSize: compressedSizeFull manifest } } }"
)
_STRATEGIES: Final = ("rolling", "immediate", "bluegreen")
_LAUNCHED: Final = frozenset(("started", "starting", "failed"))
"""States in which an update starts a machine; in any other it stays as it is, and is not looked at."""


class Options(NamedTuple):
    """What flags and fly.toml say of how it is deployed. Times in seconds."""

    strategy: str
    wait: float
    release_command_wait: float
    max_unavailable: float
    smoke: bool
    ha: bool
    release_command: bool
    excluded: tuple[str, ...] = ()
    """Machines that stay as they are."""


def deploy(call: Call) -> None:
    """Run the command. Raises FlyctlError."""
    if not call.flags["image"]:
        raise FlyctlError(
            "a build is not emulated: there is no builder",
            "Name an image: --image REF, which `fly-emulator image add REF --command ...` has made.",
        )
    api = session(call)
    sys.stderr.write("==> Verifying app config\n")
    path, config = read(call)
    config = with_env(config, call.flags["env"])
    write("\x1b[32m✓\x1b[0m Configuration is valid")
    options = _options(call, config.deploy)
    if config.document.machine_checks or any(config.test_machines(group) for group in config.machines()):
        raise FlyctlError("machine_checks are not emulated")
    definition = {**tomllib.loads(path.read_text("utf-8")), "env": config.env}
    app = config.app
    shown = api.flaps("GET", f"/apps/{app}")
    image = _resolved(api, app, call.flags["image"])
    write(f"\nWatch your deployment at https://fly.io/apps/{app}/monitoring\n")
    deployment = Deployment(api, shown, options, image, config, definition)
    deployment.run()
    write(f"\nVisit your newly deployed app at https://{app}.fly.dev/\n")


def _options(call: Call, said: Any) -> Options:
    strategy = call.flags["strategy"] or said.strategy
    if strategy not in _STRATEGIES:
        raise FlyctlError(
            f"strategy {strategy} is not emulated", f"This stand-in has: {', '.join(_STRATEGIES)}"
        )
    return Options(
        strategy=strategy,
        wait=_seconds(call, "wait-timeout", said.wait_timeout),
        release_command_wait=_seconds(call, "release-command-timeout", said.release_command_timeout),
        max_unavailable=said.max_unavailable,
        smoke=call.flags["smoke-checks"],
        ha=call.flags["ha"],
        release_command=not call.flags["skip-release-command"],
        excluded=tuple(call.flags["exclude-machines"]),
    )


def _seconds(call: Call, name: str, said: str) -> float:
    value = call.flags[name]
    try:
        return float(value) if value.isdecimal() else duration_seconds(value or said)
    except ValueError as error:
        raise FlyctlError(
            f"invalid duration value {value} used for --{name} flag: valid options are a number of seconds, "
            "number with time unit (i.e.: 5m, 180s) or 'none'"
        ) from error


def _resolved(api: Api, app: str, image: str) -> str:
    sys.stderr.write(f"==> Building image\nSearching for image '{image}' remotely...\n")
    found = api.graphql(_IMAGE, appName=app, imageRef=image)["app"]["image"]
    if found is None:
        raise FlyctlError(f'failed to fetch an image or build from source: could not find image "{image}"')
    sys.stderr.write(f"image found: {found['id']}\n")
    return found["ref"]


class Deployment:
    """One deploy of one app: makes the release, replaces the machines, says what became of it."""

    def __init__(
        self,
        api: Api,
        app: dict[str, Any],
        options: Options,
        image: str,
        config: Any,
        definition: dict[str, Any],
    ) -> None:
        self._api, self._options, self._config = api, options, config
        self._app = app["name"]
        self._image = image
        known = [each for each in self._list() if each["id"] not in options.excluded]
        found = [each for each in known if shapes.is_platform(each)]
        self._machines = [Leased(api, self._app, each) for each in found if shapes.is_active(each)]
        self._old_commands = [Leased(api, self._app, each) for each in found if release_command.is_one(each)]
        self._first = not self._machines and app["status"] not in ("deployed", "suspended")
        if self._first:
            self._addresses(app["organization"]["slug"])
        self._release = api.uiex(
            "POST",
            "/releases",
            {
                "app_name": self._app,
                "build_id": 1,
                "definition": definition,
                "image": image,
                "strategy": options.strategy.upper(),
            },
        )["release"]
        self._input = Input(
            config,
            image,
            {
                "fly_flyctl_version": VERSION,
                "fly_release_id": self._release["id"],
                "fly_release_version": str(self._release["version"]),
            },
        )

    def _list(self) -> list[dict[str, Any]]:
        try:
            return self._api.flaps("GET", f"/apps/{self._app}/machines")
        except ApiError as error:
            raise FlyctlError(f"failed to list VMs even after retries: {error}") from error

    def _addresses(self, organization: str) -> None:
        path = f"/apps/{self._app}/ip_assignments"
        if not any(each.services for each in self._config.machines().values()):
            return
        if self._api.flaps("GET", path)["ips"]:
            return
        write(f"Provisioning ips for {self._app}")
        for kind in ("v6", "shared_v4"):
            body = {"type": kind, "region": "", "org_slug": organization, "network": "", "service_name": ""}
            write(f"  {kind}: {self._api.flaps('POST', path, body)['ip']}")

    def run(self) -> None:
        """Deploy, and tell the release how it went. Raises FlyctlError, Interrupted."""
        self._tell("running")
        try:
            self._replace()
        except Interrupted:
            self._tell("interrupted", "")
            raise
        except FlyctlError as error:
            self._tell("failed", str(error))
            raise
        self._tell("complete", "")

    def _tell(self, status: str, error: str | None = None) -> None:
        info = {"post_deployment_info": {"flyctl_version": VERSION, "error": error}}
        body = {"status": status, "metadata": None if error is None else info}
        self._api.uiex("PATCH", f"/releases/{self._release['id']}", body)

    def _replace(self) -> None:
        if self._options.release_command:
            self._release_command()
        groups = [_group(each.found) for each in self._machines]
        gone = [each for each in self._machines if _group(each.found) not in self._input.groups]
        for each in gone:
            each.destroy()
        self._machines = [each for each in self._machines if each not in gone]
        for group in sorted(set(self._input.groups) - set(groups)):
            self._create(group)
        if not self._machines:
            return
        entries = [Entry(each, self._update(each.found)) for each in self._machines]
        self._under_lease(entries)

    def _release_command(self) -> None:
        config = self._input.release_command([each.found for each in self._machines])
        if config is None:
            return
        for each in self._old_commands:
            each.destroy()
        try:
            release_command.run(
                self._api,
                self._app,
                {"config": config, "region": self._config.primary_region, "skip_launch": True},
                wait=self._options.wait,
                longest=self._options.release_command_wait,
                says=self._config.deploy.release_command,
            )
        except FlyctlError as error:
            raise FlyctlError(f"release command failed - aborting deployment. {error}", error.more) from error

    def _create(self, group: str) -> None:
        """Make the machines of a group that has none: a second one where the edge serves it."""
        write(f"No machines in group {group}, launching a new machine")
        config = self._input.launch(group)
        count = 2 if self._options.ha and config.get("services") else 1
        for _ in range(count):
            rolling.spawn(self._api, self._app, self._new(config), self._options)

    def _new(self, config: dict[str, Any]) -> dict[str, Any]:
        return {
            "config": config,
            "region": self._config.primary_region,
            "skip_secrets": False,
            "lease_ttl": int(self._options.wait),
        }

    def _update(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return what an update asks for: a machine that is not running stays so, and is not looked at."""
        launch = {
            "config": self._input.update(found["config"]),
            "region": found["region"],
            "skip_secrets": False,
        }
        return launch if found["state"] in _LAUNCHED else {**launch, "skip_launch": True}

    def _under_lease(self, entries: list[Entry]) -> None:
        try:
            for each in entries:
                each.machine.lease()
            write(f"Updating existing machines in '{self._app}' with {self._options.strategy} strategy")
            if self._options.strategy == "bluegreen":
                bluegreen.BlueGreen(self._api, self._app, entries, self._options.wait).deploy()
            elif self._options.strategy == "immediate":
                rolling.immediate(entries)
            else:
                rolling.rolling(self._api, self._app, entries, self._options)
        finally:
            for each in entries:
                each.machine.release()


def _group(found: dict[str, Any]) -> str:
    return found["config"].get("metadata", {}).get("fly_process_group", "app")
