"""The cloud as it runs: every app with its machines, its edge and its machines' sockets."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec

from fly_emulator.clock import timestamp
from fly_emulator.cloud import addresses
from fly_emulator.cloud.access import DeployTokens
from fly_emulator.cloud.images import Images
from fly_emulator.cloud.logs import AppLog
from fly_emulator.cloud.records import Address, AppRecord, Organization, Release
from fly_emulator.cloud.store import Store
from fly_emulator.cloud.vault import Vault
from fly_emulator.edge.options import EdgeOptions
from fly_emulator.edge.proxy import Edge
from fly_emulator.errors import EmulatorError, StateError
from fly_emulator.machines.api import MachineSockets, create_api
from fly_emulator.machines.environment import is_free
from fly_emulator.machines.fleet import Fleet, open_fleet
from fly_emulator.machines.settings import MachineSettings

HOST: Final = "127.0.0.1"
_NAME: Final = re.compile(r"^[a-z0-9][a-z0-9-]{0,61}[a-z0-9]$")


class CloudSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator decides about all apps."""

    region: str = "fra"
    machines: MachineSettings = MachineSettings()
    edge: EdgeOptions = EdgeOptions()
    addresses: bool = True
    """Off: addresses are given and forgotten. flyctl then has none whose DNS it would ask 8.8.8.8 for."""


class App:
    """An app that runs. Made by `Cloud`."""

    def __init__(self, record: AppRecord, vault: Vault, log: AppLog, fleet: Fleet, edge: Edge) -> None:
        self.record = record
        self.vault = vault
        self.log = log
        self.fleet = fleet
        self.edge = edge
        self.stack = AsyncExitStack()

    @property
    def hostname(self) -> str:
        """Its name at Fly; here it is served at `url`."""
        return f"{self.record.name}.fly.dev"

    @property
    def url(self) -> str:
        """Where its edge listens."""
        return self.edge.http_url

    @property
    def current(self) -> Release | None:
        """The newest release, whatever became of it."""
        return self.record.releases[-1] if self.record.releases else None

    @property
    def deployed(self) -> bool:
        """Say whether a release has ever been completed, or there are machines."""
        return bool(self.fleet.machines()) or any(each.status == "complete" for each in self.record.releases)

    @property
    def status(self) -> str:
        """`pending` before the first deploy, `suspended` when nothing runs (fly-go `flaps_apps.go`)."""
        if not self.deployed:
            return "pending"
        runs = any(machine.state not in ("stopped", "suspended") for machine in self.fleet.machines())
        return "deployed" if runs else "suspended"


class Cloud:
    """Make it, `open` it, `close` it. `fleets` is what the Machines API serves."""

    def __init__(self, directory: Path, settings: CloudSettings, log: Callable[[str], None]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.settings = settings
        self.images = Images(directory)
        self.tokens = DeployTokens()
        self.store = Store(directory)
        self.apps: dict[str, App] = {}
        self.fleets: dict[str, Fleet] = {}
        self._write = log
        self._changing = asyncio.Lock()

    # Its own life.

    async def open(self) -> None:
        """Take up the apps of the state file. Their machines are stopped until something starts them."""
        for record in self.store.state.apps.values():
            await self._open(record)

    async def close(self) -> None:
        """Stop every machine of every app."""
        await asyncio.gather(*(app.stack.aclose() for app in self.apps.values()))
        self.apps.clear()
        self.fleets.clear()

    # What the APIs ask.

    def app(self, name: str) -> App:
        """Find an app. Raises StateError (404)."""
        try:
            return self.apps[name]
        except KeyError:
            raise StateError(f"not_found: app not found: {name}", status=404) from None

    def organization(self, slug: str) -> Organization:
        """Find an organisation by slug or id. Raises StateError (404)."""
        for each in self.store.state.organizations:
            if slug in (each.slug, each.id):
                return each
        raise StateError(f"not_found: organization not found: {slug}", status=404)

    def add_organization(self, name: str) -> Organization:
        """Make an organisation; its slug comes of its name. Raises StateError (422): it is taken."""
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        taken = {each.slug for each in self.store.state.organizations}
        if not slug or slug in taken:
            raise StateError("name_taken: Name has already been taken", status=422)
        made = Organization(id=f"org-{slug}", number=self.store.number(), slug=slug, name=name)
        self.store.state.organizations.append(made)
        self.store.save()
        return made

    async def create(self, name: str, organization: str, network: str = "default") -> App:
        """Make an app. Raises StateError: 400 bad name, 404 no such organisation, 422 it is taken."""
        if not _NAME.match(name):
            raise StateError(
                "invalid_argument: Name may contain only lowercase letters, numbers and dashes", status=400
            )
        owner = self.organization(organization)
        async with self._changing:
            if name in self.apps:
                raise StateError("name_taken: Name has already been taken", status=422)
            record = AppRecord(
                name=name,
                number=self.store.number(),
                organization=owner.slug,
                network=network or "default",
                created_at=timestamp(),
            )
            app = await self._open(record)
            self.store.state.apps[name] = record
            self.store.save()
        return app

    async def destroy(self, name: str) -> None:
        """Destroy an app and its machines. Raises StateError (404)."""
        async with self._changing:
            app = self.app(name)
            for machine in app.fleet.machines():
                await machine.destroy(force=True)
            del self.apps[name], self.fleets[name], self.store.state.apps[name]
            await app.stack.aclose()
            self.store.save()
            shutil.rmtree(self._folder(name), ignore_errors=True)

    def changed(self, app: App) -> None:
        """Write what was changed in an app's record."""
        machines = app.fleet.machines()
        app.vault.forget(frozenset(machine.record.provision.secrets for machine in machines))
        self.store.save()

    def assign(self, app: App, kind: object, region: str) -> Address:
        """Give an app an address. Raises StateError (422)."""
        before = app.record.addresses
        made = addresses.assign(app.record, kind, region)
        if not self.settings.addresses:
            app.record.addresses = before
        self.changed(app)
        return made

    def urls(self) -> Mapping[str, str]:
        """Return where each app is served."""
        return {name: app.url for name, app in self.apps.items()}

    # Inside.

    def _folder(self, name: str) -> Path:
        return self.directory / "apps" / name

    async def _open(self, record: AppRecord) -> App:
        folder = self._folder(record.name)
        folder.mkdir(parents=True, exist_ok=True)
        log = AppLog(lambda line: self._write(f"{record.name} {line}"))
        vault = Vault(record, self.store.state.key, self.store.save)
        fleet = await open_fleet(
            record.name,
            primary_region=self.settings.region,
            directory=folder,
            settings=msgspec.structs.replace(self.settings.machines, find_image=self.images.pull),
            log=log,
            secrets=vault,
        )
        edge = Edge(
            fleet,
            host=HOST,
            http_port=record.port if record.port and is_free(record.port) else 0,
            https_port=None,
            options=self.settings.edge,
            log=lambda message: self._write(f"{record.name} {timestamp()} {message}"),
            state_dir=folder,
        )
        app = App(record, vault, log, fleet, edge)
        app.stack.push_async_callback(fleet.close)
        try:
            await self._serve(app)
        except EmulatorError:
            await app.stack.aclose()
            raise
        record.port = edge.addresses[80][1]
        self.apps[record.name] = app
        self.fleets[record.name] = fleet
        return app

    async def _serve(self, app: App) -> None:
        sockets = MachineSockets(app.fleet, create_api({app.fleet.app: app.fleet}, trusted=True))
        await sockets.start()
        app.stack.push_async_callback(sockets.close)
        await app.edge.start()
        app.stack.push_async_callback(app.edge.stop)
