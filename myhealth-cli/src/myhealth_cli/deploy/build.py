"""Builds the image of a checkout, on Fly's builder, and pushes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from myhealth_cli.deploy.errors import GateError

if TYPE_CHECKING:
    from pathlib import Path

    from myhealth_cli.deploy import plan
    from myhealth_cli.deploy.flyctl import Flyctl

BUILD_S: Final = 1800.0


async def push(fly: Flyctl, folder: Path, step: plan.BuildImage) -> str:
    """Build the checkout in `folder`, push the image and return its label. Raises GateError, FlyctlError."""
    dockerfile = (folder / step.config).parent / "Dockerfile"
    await fly.run(
        *("deploy", ".", "--app", step.app, "--config", step.config, "--dockerfile", str(dockerfile)),
        *_base(dockerfile),
        *("--build-only", "--push", "--image-label", step.label, "--yes"),
        seconds=BUILD_S,
    )
    return step.label


def _base(dockerfile: Path) -> tuple[str, ...]:
    """Return how a build is told its base by digest, where that is kept (scripts/base_digest.py).

    That a tag had this digest when CI looked says nothing of what a builder pulls later, or has from before.
    Raises GateError when it is the digest of another tag.
    """
    file = dockerfile.with_name("base-image.digest")
    if not file.exists():
        return ()
    tag, _, digest = file.read_text(encoding="utf-8").strip().partition(" ")
    if f"ARG PYTHON={tag}\n" not in dockerfile.read_text(encoding="utf-8"):
        raise GateError(f"{file.name} is about {tag}, which is not the Dockerfile's base")
    return ("--build-arg", f"PYTHON={tag}@{digest}")
