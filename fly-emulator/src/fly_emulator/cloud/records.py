"""What the cloud keeps beside the machines: organisations, apps, secrets, releases, addresses."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import msgspec

USER: Final = {"id": "user-1", "email": "emulator@localhost", "name": "Emulator"}
"""Whoever holds the token."""


AddressType: TypeAlias = Literal["v4", "v6", "shared_v4", "private_v6"]
ReleaseStatus: TypeAlias = Literal["pending", "running", "complete", "failed", "interrupted"]


class Organization(msgspec.Struct, frozen=True, kw_only=True):
    """Who owns apps."""

    id: str
    number: int
    slug: str
    name: str
    personal: bool = False


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """A secret that is set. Times are the API's text."""

    value: str
    digest: str
    created_at: str
    updated_at: str


class Release(msgspec.Struct, kw_only=True):
    """One deploy of an app."""

    id: str
    version: int
    status: ReleaseStatus
    strategy: str
    """In capitals, as flyctl sends it."""
    image_ref: str
    definition: Any
    """The fly.toml as flyctl understood it; scale and secrets deploy read it again."""
    created_at: str
    metadata: Any = None


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """An IP address. Made up: nothing listens there."""

    id: str
    ip: str
    type: AddressType
    region: str
    created_at: str


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """A host name somebody wants to serve."""

    hostname: str
    created_at: str


class AppRecord(msgspec.Struct, kw_only=True):
    """An app. Its machines are in a file of their own."""

    name: str
    number: int
    organization: str
    """A slug."""
    network: str
    created_at: str
    port: int = 0
    """Of its edge, kept over restarts while it is free."""
    secrets: dict[str, Secret] = {}
    secrets_version: int = 0
    past_secrets: dict[int, dict[str, str]] = {}
    """What each version held: machines keep theirs until they are updated."""
    releases: list[Release] = []
    """Oldest first."""
    addresses: list[Address] = []
    certificates: list[Certificate] = []


class CloudFile(msgspec.Struct, kw_only=True):
    """The state file."""

    key: str
    """Makes the digests of secrets: the same value has another digest in another state folder."""
    organizations: list[Organization]
    apps: dict[str, AppRecord] = {}
    numbers: int = 1000
    """The last internal number given."""
