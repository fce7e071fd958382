"""Where the server runs: development, staging and production in one table, in the epic's terms.

Everything that needs a name, an address or a secret's name reads it here. The epic contradicts itself once
(`myhealth.fly.dev` in a drawing): Fly derives the address from the app's name, so the app's name wins.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from myhealth_cli.deploy.errors import NothingChangedError

Name: TypeAlias = Literal["development", "staging", "production"]
Place: TypeAlias = Literal["fly secrets", "GitHub secrets"]


class SecretName(msgspec.Struct, frozen=True):
    """A secret of an environment, and where it is set. `why` is for the person who sets it.

    `optional`: the environment works without it; `setup` sets it where a value is given.
    """

    name: str
    place: Place
    why: str
    optional: bool = False


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """One environment. `app` is Fly's name for it and `config` its fly.toml; development has neither."""

    name: Name
    url: str
    app: str | None = None
    config: str | None = None
    region: str | None = None
    secrets: tuple[SecretName, ...] = ()

    def in_place(self, place: Place) -> tuple[str, ...]:
        """Return the names of the secrets that must be set in `place`."""
        return tuple(each.name for each in self.secrets if each.place == place and not each.optional)

    def optional_in(self, place: Place) -> tuple[str, ...]:
        """Return the names of the secrets that may be set in `place`."""
        return tuple(each.name for each in self.secrets if each.place == place and each.optional)


class Deployed(msgspec.Struct, frozen=True, kw_only=True):
    """An environment at Fly: what `Environment` has, with nothing missing. `optional`: secrets, too."""

    name: Name
    url: str
    app: str
    config: str
    region: str
    secrets: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """The names of all secrets in Fly, those that must be there first."""
        return (*self.secrets, *self.optional)


_FLY: Final = (
    SecretName(
        "DATABASE_URL",
        "fly secrets",
        "Postgres: the session pooler (user ROLE.REF) or direct, port 5432, with ?sslmode=verify-full",
    ),
    SecretName("ANTHROPIC_API_KEY", "fly secrets", "the Messages API; one key for each environment"),
    SecretName("SUPABASE_URL", "fly secrets", "https://REF.supabase.co: whose tokens are believed"),
    SecretName("SUPABASE_SERVICE_KEY", "fly secrets", "sb_secret_...: deletes accounts"),
    SecretName(
        "MIGRATE_DATABASE_URL",
        "fly secrets",
        "Postgres as the schema's owner, for the release command; DATABASE_URL is then the server's own",
        optional=True,
    ),
    SecretName(
        "SENTRY_DSN", "fly secrets", "where errors are sent; without it they are only logged", optional=True
    ),
)
_GITHUB: Final = (
    SecretName("FLY_API_TOKEN", "GitHub secrets", "a deploy token of this app: `fly tokens create deploy`"),
    SecretName("SUPABASE_URL", "GitHub secrets", "where the canary user signs in"),
    SecretName("SUPABASE_PUBLISHABLE_KEY", "GitHub secrets", "sb_publishable_...: what an app has"),
    SecretName("CANARY_EMAIL", "GitHub secrets", "the user who asks one question after each deploy"),
    SecretName("CANARY_PASSWORD", "GitHub secrets", "the canary user's password"),
)

ENVIRONMENTS: Final[tuple[Environment, ...]] = (
    Environment(name="development", url="http://localhost:3001"),
    Environment(
        name="staging",
        url="https://myhealth-agents-staging.fly.dev",
        app="myhealth-agents-staging",
        config="agent-backend/fly.staging.toml",
        region="fra",
        secrets=(*_FLY, *_GITHUB),
    ),
    Environment(
        name="production",
        url="https://myhealth-agents.fly.dev",
        app="myhealth-agents",
        config="agent-backend/fly.toml",
        region="fra",
        secrets=(*_FLY, *_GITHUB),
    ),
)


def deployed(name: str) -> Deployed:
    """Return staging or production. Raises NothingChangedError: any other name."""
    for each in ENVIRONMENTS:
        if each.name == name and each.app and each.config and each.region:
            return Deployed(
                name=each.name,
                url=each.url,
                app=each.app,
                config=each.config,
                region=each.region,
                secrets=each.in_place("fly secrets"),
                optional=each.optional_in("fly secrets"),
            )
    raise NothingChangedError(
        f"there is no environment {name!r} at Fly", hint="say staging or production (`myhealth environments`)"
    )
