"""Apps as Fly would show them, for plans."""

from __future__ import annotations

import msgspec

from myhealth_cli.deploy.environments import ENVIRONMENTS, deployed
from myhealth_cli.deploy.state import GOOD, App, Config, Image, ImageRef, Machine, Release, Secret

STAGING = deployed("staging")
PRODUCTION = deployed("production")
ALL = tuple(Secret(name, "Deployed") for name in STAGING.secrets)


def image(letter: str, app: str = "myhealth-agents-staging") -> Image:
    """Image a, b, ...: its digest and its release are named after it."""
    return Image(f"registry.fly.io/{app}:tag@sha256:{letter * 64}", f"release-{letter}")


def machine(number: int, runs: Image, *, good: tuple[Image, ...] = (), state: str = "started") -> Machine:
    """Return a machine that runs an image."""
    name, _, digest = runs.ref.partition("@")
    name = name.removesuffix(":tag")
    registry, _, repository = name.partition("/")
    metadata = {"fly_process_group": "app"}
    if good:
        metadata[GOOD] = msgspec.json.encode(good).decode()
    return Machine(
        id=f"machine{number}",
        state=state,
        region="fra",
        image_ref=ImageRef(registry, repository, "tag", digest),
        config=Config(metadata=metadata, env={"release": runs.release}),
    )


def app(*machines: Machine, name: str = "myhealth-agents-staging", releases: tuple[Release, ...] = ()) -> App:
    """Return an app with all its secrets."""
    return App(name, machines=machines, releases=releases, secrets=ALL)


__all__ = ["ALL", "ENVIRONMENTS", "PRODUCTION", "STAGING", "app", "image", "machine"]
