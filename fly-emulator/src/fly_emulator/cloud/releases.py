"""Releases: what `fly deploy` records before it touches a machine, and how it ends.

Source: superfly/flyctl `internal/uiex/releases.go`, superfly/fly-go `resource_releases.go`.
"""

from __future__ import annotations

from secrets import token_hex
from typing import Any, Final

import msgspec

from fly_emulator.clock import timestamp
from fly_emulator.cloud.records import USER, AppRecord, Release, ReleaseStatus
from fly_emulator.errors import StateError

KEPT: Final = 500


def add(
    app: AppRecord, *, image: str, strategy: str, definition: Any, status: ReleaseStatus = "pending"
) -> Release:
    """Record a release with the next version."""
    version = app.releases[-1].version + 1 if app.releases else 1
    release = Release(
        id=f"release-{token_hex(8)}",
        version=version,
        status=status,
        strategy=strategy or "ROLLING",
        image_ref=image,
        definition=definition,
        created_at=timestamp(),
    )
    app.releases = [*app.releases, release][-KEPT:]
    return release


def update(release: Release, status: object, metadata: Any) -> None:
    """Note what became of a release. Raises StateError (422)."""
    try:
        release.status = msgspec.convert(status, ReleaseStatus)
    except msgspec.ValidationError as error:
        raise StateError(f"invalid_argument: status: {error}", status=422) from error
    if metadata is not None:
        release.metadata = metadata


def shown(release: Release) -> dict[str, Any]:
    """Write a release as api.fly.io's REST routes do."""
    return {
        "id": release.id,
        "version": release.version,
        "stable": release.status == "complete",
        "in_progress": release.status in ("pending", "running"),
        "status": release.status,
        "strategy": release.strategy,
        "user": USER["email"],
        "created_at": release.created_at,
        "image_ref": release.image_ref,
    }
