"""fly.toml as `deploy` and `config validate` read it, and the machine configurations it comes to.

The emulator's own reader (`fly_emulator.config`) is stricter than flyctl: an unknown key is refused without
`--strict` too. Sources: superfly/flyctl `internal/appconfig/machines.go`, `deploy/machines_launchinput.go`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from fly_emulator.config.fly_toml import AppConfig, load
from fly_emulator.config.toml_groups import compute_of, default_group
from fly_emulator.config.toml_machines import machine_config, release_machine_config
from fly_emulator.config.toml_problems import ConfigErrors, render
from fly_emulator.config.vm_sizes import PRESETS
from fly_emulator.flyctl.errors import FlyctlError
from fly_emulator.flyctl.words import Call
from fly_emulator.machine_config import Guest

_OF_TOML: Final = frozenset(
    ("checks", "env", "files", "init", "metrics", "mounts", "restart", "services", "statics", "stop_config")
)
"""What an update takes from fly.toml alone; everything else of a machine is carried over."""


def read(call: Call) -> tuple[Path, AppConfig]:
    """Read the fly.toml that is meant, and say so. Raises FlyctlError."""
    path = Path(call.flags["config"] or "fly.toml")
    if not path.is_file():
        raise FlyctlError(
            f"config file not found at specified path: {path} (also tried: {path}/fly.toml)"
            if call.flags["config"]
            else "app name is required"
        )
    print(f"Validating {path}")  # noqa: T201 - a program's output
    try:
        return path, load(path, app=call.flags["app"] or None)
    except ConfigErrors as error:
        strict = "strict validation failed" if call.flags.get("strict") else "the fly.toml is not valid"
        raise FlyctlError(strict, render(error)) from error


def with_env(config: AppConfig, pairs: tuple[str, ...]) -> AppConfig:
    """Return the configuration with the variables of `--env`. Raises FlyctlError."""
    more: dict[str, str] = {}
    for each in pairs:
        name, sign, value = each.partition("=")
        if not sign or not name:
            raise FlyctlError(f"failed parsing environment: '{each}': must be in the format NAME=VALUE")
        more[name] = value
    env = {**config.env, **more}
    return msgspec.structs.replace(
        config, env=env, document=msgspec.structs.replace(config.document, env=env)
    )


class Input:
    """Makes the machine configurations of one release."""

    def __init__(self, config: AppConfig, image: str, metadata: dict[str, str]) -> None:
        self._config = config
        self._document = config.document
        self._image = image
        self._metadata = metadata

    @property
    def groups(self) -> tuple[str, ...]:
        """The process groups of fly.toml."""
        return tuple(self._config.machines())

    def launch(self, group: str) -> dict[str, Any]:
        """Return a new machine's configuration."""
        return self._released(_plain(machine_config(self._document, group)), {})

    def update(self, before: dict[str, Any]) -> dict[str, Any]:
        """Return a machine's new configuration; its size stays where fly.toml names none (`scale` set it)."""
        metadata = before.get("metadata", {})
        group = metadata.get("fly_process_group", "app")
        made = _plain(machine_config(self._document, group))
        kept = {name: value for name, value in before.items() if name not in _OF_TOML}
        kept.pop("guest" if compute_of(self._document, group) else "", None)
        return self._released({**kept, **made}, metadata)

    def release_command(self, machines: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the release command's machine; None without one. Its size: that of the largest of ours."""
        made = release_machine_config(self._document)
        if made is None:
            return None
        config = self._released(_plain(made), {})
        if self._document.deploy.release_command_vm is None:
            config["guest"] = self._largest(machines)
        return config

    def _largest(self, machines: list[dict[str, Any]]) -> dict[str, Any]:
        group = default_group(self._document)
        sizes = [
            {**_plain(Guest()), **each["config"].get("guest", {})}
            for each in machines
            if each["config"].get("metadata", {}).get("fly_process_group") == group
        ]
        return max(sizes, key=lambda size: size.get("memory_mb", 0), default=_plain(PRESETS["shared-cpu-2x"]))

    def _released(self, made: dict[str, Any], before: dict[str, str]) -> dict[str, Any]:
        metadata = {**before, **made.get("metadata", {}), **self._metadata}
        return {**made, "image": self._image, "metadata": metadata}


def _plain(struct: msgspec.Struct) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(msgspec.json.encode(struct))
    for service in plain.get("services", []):
        if service.get("concurrency") == {}:
            del service["concurrency"]
    return plain
