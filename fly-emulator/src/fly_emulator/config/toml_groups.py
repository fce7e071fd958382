"""Which parts of a fly.toml belong to which process group.

Source: superfly/flyctl ad0172f `internal/appconfig/processgroups.go`. What names no group belongs to the
default group alone; only `[[vm]]` without groups belongs to all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from fly_emulator.config.toml_sections import Compute, FlyToml, HttpService, ServiceSection

DEFAULT_GROUP = "app"


class Grouped(Protocol):
    """A section that may name groups."""

    @property
    def processes(self) -> tuple[str, ...]:
        """The groups it belongs to."""
        ...


G = TypeVar("G", bound=Grouped)


def group_names(document: FlyToml) -> tuple[str, ...]:
    """Return the process groups, sorted; `app` alone where none is named."""
    return tuple(sorted(document.processes)) or (DEFAULT_GROUP,)


def default_group(document: FlyToml) -> str:
    """Return `app`, else the first group."""
    names = group_names(document)
    return DEFAULT_GROUP if DEFAULT_GROUP in names else names[0]


def belongs(document: FlyToml, section: Grouped, group: str) -> bool:
    """Say whether a section belongs to a group."""
    return group in section.processes if section.processes else group == default_group(document)


def of_group(document: FlyToml, sections: Iterable[G], group: str) -> list[G]:
    """Return the sections that belong to a group, in their order."""
    return [section for section in sections if belongs(document, section, group)]


def services_of(document: FlyToml, group: str) -> Sequence[HttpService | ServiceSection]:
    """Return a group's services, `[http_service]` first."""
    http = [document.http_service] if document.http_service else []
    return of_group(document, [*http, *document.services], group)


def compute_of(document: FlyToml, group: str) -> Compute | None:
    """Return the `[[vm]]` of a group: the first that names it, else the first that names none."""
    fitting = [vm for vm in document.vm if not vm.processes or group in vm.processes]
    return next((vm for vm in fitting if vm.processes), fitting[0] if fitting else None)
