"""Reads a fly.toml as strictly as an emulator must: what a deploy would trip over is named here first.

`load` reads the form of every key (`toml_schema` over `toml_sections`), then what keys mean together
(`toml_rules`); `AppConfig.machines` is what flyctl would send (`toml_machines`).
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from fly_emulator.config.toml_groups import group_names
from fly_emulator.config.toml_lines import Lines
from fly_emulator.config.toml_machines import machine_config, release_machine_config, test_machine_configs
from fly_emulator.config.toml_problems import ConfigErrors, ConfigProblem
from fly_emulator.config.toml_rules import Rules
from fly_emulator.config.toml_schema import MISSING, Findings, read_section
from fly_emulator.config.toml_sections import BuildSection, FlyToml
from fly_emulator.machine_config import MachineConfig

_AT = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)")
_REFERENCE = "https://fly.io/docs/reference/configuration/"


class Deploy(msgspec.Struct, frozen=True, kw_only=True):
    """How a release replaces the one before. Defaults are flyctl's."""

    strategy: Literal["rolling", "immediate", "canary", "bluegreen"]
    max_unavailable: float
    """Below 1 a share of the machines, else a number of them."""
    wait_timeout: str
    release_command: str | None
    release_command_timeout: str


class AppConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A fly.toml that was read and found right."""

    app: str
    primary_region: str | None
    deploy: Deploy
    build: BuildSection
    env: dict[str, str]
    console_command: str | None
    swap_size_mb: int | None
    warnings: tuple[str, ...]
    """`file:line: key: text`, for what is accepted and not done, or hardly meant."""
    document: FlyToml

    def machines(self) -> dict[str, MachineConfig]:
        """Return what flyctl makes of it: a machine configuration for each process group."""
        return {group: machine_config(self.document, group) for group in group_names(self.document)}

    def release_machine(self) -> MachineConfig | None:
        """Return the machine that runs `release_command` before the others; None without one."""
        return release_machine_config(self.document)

    def test_machines(self, group: str) -> tuple[MachineConfig, ...]:
        """Return the machines that test a new one of the group (`machine_checks`) during a deploy."""
        return test_machine_configs(self.document, group)


def load(path: Path, *, app: str | None = None) -> AppConfig:
    """Read the fly.toml at `path`; `app` wins over its name. Raises ConfigErrors with all its problems."""
    return parse(_text(path), file=str(path), app=app)


def parse(text: str, *, file: str = "fly.toml", app: str | None = None) -> AppConfig:
    """Read the text of a fly.toml; `file` is what problems call it. Raises ConfigErrors."""
    findings = Findings(file, Lines(text), FlyToml)
    document = read_section(FlyToml, _table(text, file), "", findings)
    if document is MISSING:
        raise ConfigErrors(findings.problems)
    Rules(document, findings).check()
    name = app or document.app
    named = any(problem.key == "app" or problem.hint == "did you mean app?" for problem in findings.problems)
    if name is None and not named:
        findings.refuse(
            "app", "nothing", 'the app\'s name: app = "..."', "or pass the name, as with fly --app"
        )
    if findings.problems:
        raise ConfigErrors(sorted(findings.problems, key=lambda problem: problem.line or 0))
    return _app_config(document, name or "", findings.warnings)


def _app_config(document: FlyToml, name: str, warnings: tuple[str, ...]) -> AppConfig:
    deploy = document.deploy
    return AppConfig(
        app=name,
        primary_region=document.primary_region,
        deploy=Deploy(
            strategy=deploy.strategy,
            max_unavailable=0.33 if deploy.max_unavailable is None else deploy.max_unavailable,
            wait_timeout=deploy.wait_timeout or "5m0s",
            release_command=deploy.release_command or None,
            release_command_timeout=deploy.release_command_timeout or "5m0s",
        ),
        build=document.build,
        env=document.env,
        console_command=document.console_command or None,
        swap_size_mb=document.swap_size_mb,
        warnings=warnings,
        document=document,
    )


def _text(path: Path) -> str:
    def refused(found: str, hint: str) -> ConfigErrors:
        return ConfigErrors([ConfigProblem(file=str(path), found=found, expected="a fly.toml", hint=hint)])

    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refused(f"bytes that are not UTF-8 at offset {error.start}", "save it as UTF-8") from error
    except OSError as error:
        raise refused(error.strerror or "no readable file", "pass the path of the file") from error


def _table(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        problem = str(error)
        place = _AT.search(problem)
        line, column = (place[1], place[2]) if place else (None, None)
        said = _AT.sub("", problem)
        raise ConfigErrors([_syntax(file, said, int(line) if line else _end(text), column)]) from error
    except (ValueError, RecursionError) as error:
        raise ConfigErrors([_syntax(file, str(error), None, None)]) from error


def _end(text: str) -> int:
    return max(text.count("\n") + (not text.endswith("\n")), 1)


def _syntax(file: str, said: str, line: int | None, column: str | None) -> ConfigProblem:
    return ConfigProblem(
        file=file,
        line=line,
        column=int(column) if column else None,
        found=said[:1].lower() + said[1:],
        expected="TOML",
        hint=f"the keys are described at {_REFERENCE}",
    )
