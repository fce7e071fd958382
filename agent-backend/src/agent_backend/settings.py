"""The configuration: environment variables, read once, checked, frozen.

`read()` reports every problem at once, `inspect()` also what is only doubtful. No error, log or repr ever
shows a secret's value, or what looks like one and was put into the wrong variable.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, TypeAlias, TypeVar
from urllib.parse import urlsplit

import msgspec

from agent_backend import __version__, credentials
from agent_backend.credentials import Found, looks_secret
from agent_backend.errors import SettingsError

Environment: TypeAlias = Literal["development", "staging", "production"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
Sleep: TypeAlias = Literal["never", "exit", "suspend"]

DEVELOPMENT_ISSUER = "https://development.invalid/auth/v1"

_ANTHROPIC = "https://api.anthropic.com"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ENVIRONMENTS: tuple[Environment, ...] = ("development", "staging", "production")
_LOG_LEVELS: tuple[LogLevel, ...] = ("debug", "info", "warning", "error")
_YES_NO = ("yes", "no")
_SLEEPS: tuple[Sleep, ...] = ("never", "exit", "suspend")

T = TypeVar("T", bound=str)


class Secret:
    """A value that shows itself only to who asks for it by `reveal()`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not serialised")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings; `VARIABLES` names the variable behind each."""

    database_url: Secret
    migrate_database_url: Secret
    """Of the schema's owner; empty: `migrate` takes `database_url`. The server never connects with it."""
    environment: Environment
    app_name: str
    """With the environment, what the database's deployment marker must say."""
    machine_id: str
    release: str
    """What is deployed: a git commit, else the package's version."""
    host: str
    port: int
    metrics_port: int
    """0: no metrics server."""
    anthropic_api_key: Secret
    anthropic_base_url: str
    supabase_url: str | None
    supabase_service_key: Secret
    jwks_url: str
    auth_issuer: str
    auth_audience: str
    auth_hs256_secret: Secret
    """Empty unless the project still signs with the legacy shared secret."""
    dev_key_dir: Path
    agents_dir: Path | None
    """None: the agents that come with the package."""
    lease_seconds: float
    """A machine without a heartbeat for so long is dead; one third of it bounds lock waits."""
    group_commit_ms: int
    pool_min: int
    pool_max: int
    drain_seconds: float
    """What running turns get after SIGTERM; less than fly.toml's kill_timeout."""
    sleep: Sleep
    """How an idle server sleeps: it ends with 0, or has its machine suspended through the machine's API."""
    idle_seconds: float
    """Without a turn, a reader or a request for so long, it sleeps."""
    fly_api_socket: Path
    """The machine's own API: a Unix socket on every Fly machine."""
    event_retention_days: float
    """When events of finished turns shrink to their messages; 0 keeps them."""
    require_birth_year: bool
    """Without one in the profile there is no answer: nobody can tell whether the user is old enough."""
    session_retention_days: float
    """When sessions without activity are deleted; 0 keeps them."""
    health_retention_days: float
    """When samples are deleted, by their time; 0 keeps them."""
    ledger_retention_days: float
    """When what single model calls have cost is deleted; a running month stays whole. 0 keeps it."""
    erasure_retention_days: float
    """How long an erased user's writes are refused; longer than tokens live and backups are kept."""
    tool_call_seconds: float
    """How long a call waits for a device or for the user's yes."""
    user_usd_per_day: Decimal
    """What one user's model calls may cost; days and months are UTC's."""
    user_usd_per_month: Decimal
    global_usd_per_day: Decimal
    """What all users' model calls together may cost."""
    global_usd_per_month: Decimal
    max_body_bytes: int
    max_connections: int
    """Open at once; the process's limit of descriptors may make it fewer."""
    limit_factor: float
    """Multiplies what a user and an address may do (web/limits.py); 0: nothing is counted."""
    trust_fly_client_ip: bool
    """Whether Fly-Client-IP is believed, from a private address."""
    log_level: LogLevel
    sentry_dsn: Secret
    """Empty: errors are only logged."""


VARIABLES: dict[str, str] = {
    "DATABASE_URL": "postgresql://... of a role that is a member of agent_backend (required)",
    "MIGRATE_DATABASE_URL": "postgresql://... of the schema's owner, for `migrate` (default DATABASE_URL)",
    "ENVIRONMENT": "development | staging | production (default development)",
    "APP_NAME": "the deployment's name (default FLY_APP_NAME, in development myhealth-agents)",
    "MACHINE_ID": "unique among running servers (default FLY_MACHINE_ID, else host name and port)",
    "RELEASE": "what is deployed, such as a git commit (default the package's version)",
    "HOST": "address to listen on (default 127.0.0.1 in development, else ::)",
    "PORT": "port to listen on (default 3001)",
    "METRICS_PORT": "port of /metrics, 0 for none (default 9091)",
    "ANTHROPIC_API_KEY": "key of the Messages API (required outside development)",
    "ANTHROPIC_BASE_URL": "where the Messages API is (default https://api.anthropic.com)",
    "SUPABASE_URL": "https://REF.supabase.co; gives JWKS_URL and AUTH_ISSUER their defaults",
    "SUPABASE_SERVICE_KEY": "sb_secret_... or a service_role key (required outside development)",
    "JWKS_URL": "http(s):// or, in development, file:// of the keys that tokens are checked with",
    "AUTH_ISSUER": "the tokens' iss (default SUPABASE_URL/auth/v1)",
    "AUTH_AUDIENCE": "the tokens' aud (default authenticated)",
    "AUTH_HS256_SECRET": "legacy JWT secret, only while a project migrates (default: HS256 is refused)",
    "DEV_KEY_DIR": "folder of the development key (default .local/keys)",
    "AGENTS_DIR": "folder of agent files (default those of the package)",
    "LEASE_SECONDS": "1 to 300 (default 15)",
    "GROUP_COMMIT_MS": "10 to 2000 (default 100)",
    "POOL_MIN": "connections kept open, 1 to 100 (default 2)",
    "POOL_MAX": "connections at most, 1 to 100 (default 10)",
    "DRAIN_SECONDS": "0 to 290 (default 25)",
    "SLEEP": "never | exit | suspend: what an idle server does (default never)",
    "IDLE_SECONDS": "0.1 to 86400: idle for so long, it sleeps (default 300)",
    "FLY_API_SOCKET": "Unix socket of the machine's own API, for SLEEP=suspend (default /.fly/api)",
    "EVENT_RETENTION_DAYS": "0 to 3650, 0 keeps all (default 30)",
    "REQUIRE_BIRTH_YEAR": "yes | no: no turns without a year of birth (default no in development, else yes)",
    "SESSION_RETENTION_DAYS": "idle sessions are deleted, 0 to 3650, 0 keeps all (default 0)",
    "HEALTH_RETENTION_DAYS": "older samples are deleted, 0 to 36500, 0 keeps all (default 0)",
    "LEDGER_RETENTION_DAYS": "what single model calls cost, 0 to 3650, 0 keeps all (default 400)",
    "ERASURE_RETENTION_DAYS": "how long erased users are refused, 7 to 3650 (default 90)",
    "TOOL_CALL_SECONDS": "how long a device or the user has to answer a call, 1 to 86400 (default 120)",
    "USER_USD_PER_DAY": "0.01 to 1000000, of one user's model calls (default 1, in development 1000)",
    "USER_USD_PER_MONTH": "0.01 to 1000000 (default 10, in development 10000)",
    "GLOBAL_USD_PER_DAY": "0.01 to 1000000, of all users together (default 20, in development 10000)",
    "GLOBAL_USD_PER_MONTH": "0.01 to 1000000 (default 200, in development 100000)",
    "MAX_BODY_BYTES": "1024 to 33554432 (default 1048576)",
    "MAX_CONNECTIONS": "open at once, 16 to 100000; fewer if descriptors are few (default 3000)",
    "LIMIT_FACTOR": "0 to 1000: multiplies all limits per user and address, 0 is none (default 1, in "
    "development 0)",
    "TRUST_FLY_CLIENT_IP": "on | off: believe Fly-Client-IP (default on where FLY_APP_NAME is set)",
    "LOG_LEVEL": "debug | info | warning | error (default info)",
    "SENTRY_DSN": "https://KEY@HOST/PROJECT: where errors are sent (default: they are only logged)",
}


_SECRETS = (
    *("DATABASE_URL", "MIGRATE_DATABASE_URL", "ANTHROPIC_API_KEY", "SUPABASE_SERVICE_KEY"),
    *("AUTH_HS256_SECRET", "SENTRY_DSN"),
)
_HIDDEN = "a value that looks like a secret"
_SHORTEST_SECRET = 6


class SettingsErrors(SettingsError):
    """Several variables are wrong; `each` names them one by one."""

    def __init__(self, each: list[SettingsError]) -> None:
        super().__init__(
            "; ".join(error.problem for error in each),
            hint="; ".join(dict.fromkeys(error.hint for error in each)),
        )
        self.each = each


class _Reader:
    """Takes values out of the environment and collects what is wrong with them."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.errors: list[SettingsError] = []
        self.warnings: list[SettingsError] = []
        self._secrets = [
            value for name in _SECRETS if len(value := env.get(name, "").strip()) >= _SHORTEST_SECRET
        ]

    def get(self, *names: str) -> str | None:
        """Return the first variable that is set and not blank."""
        return next((value for name in names if (value := self._env.get(name, "").strip())), None)

    def wrong(self, name: str, found: str, hint: str | None = None) -> None:
        """Note a problem; `found` describes the form, it never quotes a secret."""
        self.errors.append(SettingsError(f"{name} {found}", hint=hint or f"set {name}: {VARIABLES[name]}"))

    def note(self, name: str, found: Iterable[Found], *, fatal: bool = True) -> None:
        """Note what was found about a variable; without `fatal` all of it is only doubtful."""
        for each in found:
            error = SettingsError(f"{name} {each.problem}", hint=each.hint)
            (self.errors if fatal and each.fatal else self.warnings).append(error)

    def shown(self, value: str, length: int = 80) -> str:
        """Return a value as an error may quote it: not if it is a secret that stands in the wrong place."""
        return _HIDDEN if self._hides(value) else repr(value[:length])

    def _hides(self, value: str) -> bool:
        return looks_secret(value) or any(each in value for each in self._secrets)

    def plain(self, name: str, default: str | None) -> str:
        """Return a value that is shown and logged, so that no secret may stand there."""
        value = self.get(name)
        if value is not None and self._hides(value):
            self.wrong(name, f"is {_HIDDEN}, and this is shown in logs")
        return value or default or ""

    def secret(self, name: str) -> Secret:
        """Return a secret, which is one word."""
        value = self.get(name) or ""
        if re.search(r"[\s\x00-\x1f\x7f]|[^\x00-\x7f]", value) or value[:1] in ('"', "'"):
            self.wrong(name, "has quotes around it, or blanks or other characters that no key has")
        return Secret(value)

    def name(self, name: str, default: str | None, *aliases: str) -> str:
        value = self.get(name, *aliases) or default
        if value is None:
            self.wrong(name, "is missing")
        elif not _NAME.fullmatch(value) or self._hides(value):
            self.wrong(
                name, f"is {self.shown(value)}, which is not a name of letters, digits, dots and dashes"
            )
        return value or ""

    def number(self, name: str, default: int, low: int, high: int) -> int:
        value = self.get(name)
        if value is None:
            return default
        if not re.fullmatch(r"[0-9]{1,12}", value):
            self.wrong(name, f"is {self.shown(value, 40)}, which is not a whole number")
            return default
        if not low <= int(value) <= high:
            self.wrong(name, f"is {value}, which is not from {low} to {high}")
        return int(value)

    def seconds(self, name: str, default: float, low: float, high: float) -> float:
        value = self.get(name)
        if value is None:
            return default
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value):
            self.wrong(name, f"is {self.shown(value, 40)}, which is not a number")
            return default
        if not low <= float(value) <= high:
            self.wrong(name, f"is {value}, which is not from {low:g} to {high:g}")
        return float(value)

    def usd(self, name: str, default: int) -> Decimal:
        """Return an amount of money, exact to a micro-dollar."""
        value = self.get(name)
        if value is None:
            return Decimal(default)
        if not re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,6})?", value):
            self.wrong(name, f"is {value[:40]!r}, which is not an amount of US dollars such as 2.50")
            return Decimal(default)
        if not Decimal("0.01") <= Decimal(value) <= 1_000_000:
            self.wrong(name, f"is {value}, which is not from 0.01 to 1000000")
        return Decimal(value)

    def switch(self, name: str, default: bool) -> bool:  # noqa: FBT001 - the setting's own value
        found: Literal["on", "off"] = self.one_of(name, "on" if default else "off", ("on", "off"))
        return found == "on"

    def url(self, name: str, default: str | None, *schemes: str, secret: bool = False) -> str | None:
        value = self.get(name)
        if value is None:
            return default
        try:
            parts = urlsplit(value)
            usable = parts.scheme in schemes and bool(parts.netloc or parts.path.strip("/"))
            usable = usable and (secret or not parts.username)
        except ValueError:
            usable = False
        if not usable:
            shown = f"has {len(value)} characters and" if secret else f"is {self.shown(value)}, which"
            self.wrong(
                name, f"{shown} is not a URL that begins with {' or '.join(f'{s}://' for s in schemes)}"
            )
        return value

    def database_url(self, name: str) -> Secret:
        """Return a database's URL, with a better word than "no URL" where there is one."""
        value = self.get(name) or ""
        found = credentials.unreadable_database_url(value)
        if found is not None:
            self.note(name, [found])
            return Secret(value)
        return Secret(self.url(name, None, "postgresql", "postgres", secret=True) or "")

    def one_of(self, name: str, default: T, allowed: tuple[T, ...]) -> T:
        value = self.get(name)
        found = next((each for each in allowed if each == value), None)
        if value is not None and found is None:
            self.wrong(name, f"is {self.shown(value, 40)}, which is none of {', '.join(allowed)}")
        return found or default


class Report(NamedTuple):
    """What was read, what is wrong, what is only doubtful. With errors, the settings are not to be used."""

    settings: Settings
    errors: list[SettingsError]
    warnings: list[SettingsError]

    def shown(self) -> dict[str, str | int | float | None]:
        """Return each variable's value as it may be shown."""
        values = {name: getattr(self.settings, name.lower()) for name in VARIABLES}
        plain = {
            name: value if value is None or isinstance(value, (int, float)) else str(value)
            for name, value in values.items()
        }
        return {name: _HIDDEN if looks_secret(str(value)) else value for name, value in plain.items()}


def inspect(env: Mapping[str, str]) -> Report:
    """Read the settings from environment variables, and report on them. Raises nothing."""
    reader = _Reader(env)
    settings = _read(reader)
    _check_together(reader, settings)
    _check_credentials(reader, settings)
    return Report(settings, reader.errors, reader.warnings)


def read(env: Mapping[str, str]) -> Settings:
    """Read the settings from environment variables.

    Raises SettingsError for one problem, SettingsErrors for several.
    """
    report = inspect(env)
    if len(report.errors) == 1:
        raise report.errors[0]
    if report.errors:
        raise SettingsErrors(report.errors)
    return report.settings


def _read(reader: _Reader) -> Settings:
    environment: Environment = reader.one_of("ENVIRONMENT", "development", _ENVIRONMENTS)
    development = environment == "development"
    port = reader.number("PORT", 3001, 1, 65535)
    keys = Path(reader.get("DEV_KEY_DIR") or ".local/keys").absolute()
    supabase = reader.url("SUPABASE_URL", None, "https", "http")
    issuer, jwks = _token_defaults(supabase, keys, development=development)
    agents = reader.get("AGENTS_DIR")
    machine = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:50]
    return Settings(
        database_url=reader.database_url("DATABASE_URL"),
        migrate_database_url=reader.database_url("MIGRATE_DATABASE_URL"),
        environment=environment,
        app_name=reader.name("APP_NAME", "myhealth-agents" if development else None, "FLY_APP_NAME"),
        machine_id=reader.name("MACHINE_ID", f"{machine}-{port}", "FLY_MACHINE_ID"),
        release=reader.plain("RELEASE", __version__),
        host=reader.plain("HOST", "127.0.0.1" if development else "::"),
        port=port,
        metrics_port=reader.number("METRICS_PORT", 9091, 0, 65535),
        anthropic_api_key=reader.secret("ANTHROPIC_API_KEY"),
        anthropic_base_url=reader.url("ANTHROPIC_BASE_URL", _ANTHROPIC, "https", "http") or "",
        supabase_url=supabase,
        supabase_service_key=reader.secret("SUPABASE_SERVICE_KEY"),
        jwks_url=reader.url("JWKS_URL", jwks, "https", "http", "file") or "",
        auth_issuer=reader.plain("AUTH_ISSUER", issuer),
        auth_audience=reader.plain("AUTH_AUDIENCE", "authenticated"),
        auth_hs256_secret=reader.secret("AUTH_HS256_SECRET"),
        dev_key_dir=keys,
        agents_dir=Path(agents).absolute() if agents else None,
        lease_seconds=reader.seconds("LEASE_SECONDS", 15, 1, 300),
        group_commit_ms=reader.number("GROUP_COMMIT_MS", 100, 10, 2000),
        pool_min=reader.number("POOL_MIN", 2, 1, 100),
        pool_max=reader.number("POOL_MAX", 10, 1, 100),
        drain_seconds=reader.seconds("DRAIN_SECONDS", 25, 0, 290),
        sleep=reader.one_of("SLEEP", "never", _SLEEPS),
        idle_seconds=reader.seconds("IDLE_SECONDS", 300, 0.1, 86400),
        fly_api_socket=Path(reader.get("FLY_API_SOCKET") or "/.fly/api"),
        event_retention_days=reader.seconds("EVENT_RETENTION_DAYS", 30, 0, 3650),
        require_birth_year=reader.one_of("REQUIRE_BIRTH_YEAR", "no" if development else "yes", _YES_NO)
        == "yes",
        session_retention_days=reader.seconds("SESSION_RETENTION_DAYS", 0, 0, 3650),
        health_retention_days=reader.seconds("HEALTH_RETENTION_DAYS", 0, 0, 36_500),
        ledger_retention_days=reader.seconds("LEDGER_RETENTION_DAYS", 400, 0, 3650),
        erasure_retention_days=reader.seconds("ERASURE_RETENTION_DAYS", 90, 7, 3650),
        tool_call_seconds=reader.seconds("TOOL_CALL_SECONDS", 120, 1, 86_400),
        user_usd_per_day=reader.usd("USER_USD_PER_DAY", 1000 if development else 1),
        user_usd_per_month=reader.usd("USER_USD_PER_MONTH", 10_000 if development else 10),
        global_usd_per_day=reader.usd("GLOBAL_USD_PER_DAY", 10_000 if development else 20),
        global_usd_per_month=reader.usd("GLOBAL_USD_PER_MONTH", 100_000 if development else 200),
        max_body_bytes=reader.number("MAX_BODY_BYTES", 1024 * 1024, 1024, 32 * 1024 * 1024),
        max_connections=reader.number("MAX_CONNECTIONS", 3000, 16, 100_000),
        limit_factor=reader.seconds("LIMIT_FACTOR", 0 if development else 1, 0, 1000),
        trust_fly_client_ip=reader.switch("TRUST_FLY_CLIENT_IP", reader.get("FLY_APP_NAME") is not None),
        log_level=reader.one_of("LOG_LEVEL", "info", _LOG_LEVELS),
        sentry_dsn=reader.secret("SENTRY_DSN"),
    )


def _token_defaults(supabase: str | None, keys: Path, *, development: bool) -> tuple[str | None, str | None]:
    """Return the issuer and the JWKS URL that follow from where the tokens come from."""
    if supabase is not None:
        issuer = supabase.rstrip("/") + "/auth/v1"
        return issuer, issuer + "/.well-known/jwks.json"
    if development:
        return DEVELOPMENT_ISSUER, (keys / "jwks.json").as_uri()
    return None, None


def _check_together(reader: _Reader, settings: Settings) -> None:
    """Note what is missing, and what does not fit together."""
    wrong = _wrong(reader)
    required = {
        "DATABASE_URL": bool(settings.database_url),
        "JWKS_URL": bool(settings.jwks_url),
        "AUTH_ISSUER": bool(settings.auth_issuer),
    }
    if settings.environment != "development":
        required["ANTHROPIC_API_KEY"] = bool(settings.anthropic_api_key)
        if settings.supabase_url is not None:
            required["SUPABASE_SERVICE_KEY"] = bool(settings.supabase_service_key)
        # The keys' address follows from the project's: what is said of one need not be said of the other.
        for name in ("SUPABASE_URL", "JWKS_URL"):
            value = settings.supabase_url if name == "SUPABASE_URL" else settings.jwks_url
            if value and not wrong & {"SUPABASE_URL", name} and urlsplit(value).scheme != "https":
                reader.wrong(name, "does not begin with https://, which only development may do")
                wrong.add(name)
    for name, there in required.items():
        if not there and name not in wrong:
            reader.wrong(name, "is missing")
    if settings.pool_max < settings.pool_min:
        reader.wrong("POOL_MAX", f"is {settings.pool_max}, which is less than POOL_MIN {settings.pool_min}")
    if settings.metrics_port == settings.port:
        reader.wrong("METRICS_PORT", f"is {settings.port}, and so is PORT")


def _check_credentials(reader: _Reader, settings: Settings) -> None:
    """Note what the credentials say of themselves."""
    wrong, development = _wrong(reader), settings.environment == "development"
    url = settings.supabase_url if "SUPABASE_URL" not in wrong else None
    if url is not None:
        reader.note("SUPABASE_URL", credentials.supabase_url(url))
    project = credentials.project_ref(url)
    if (key := settings.supabase_service_key) and "SUPABASE_SERVICE_KEY" not in wrong:
        found = credentials.service_key(key.reveal(), project, time.time())
        reader.note("SUPABASE_SERVICE_KEY", found)
    if (key := settings.anthropic_api_key) and "ANTHROPIC_API_KEY" not in wrong:
        found = credentials.anthropic_key(key.reveal(), settings.anthropic_base_url)
        reader.note("ANTHROPIC_API_KEY", found, fatal=not development)
    if (dsn := settings.sentry_dsn) and "SENTRY_DSN" not in wrong:
        reader.note("SENTRY_DSN", credentials.sentry_dsn(dsn.reveal(), development=development))
    if (key := settings.auth_hs256_secret) and "AUTH_HS256_SECRET" not in wrong:
        reader.note("AUTH_HS256_SECRET", credentials.hs256_secret(key.reveal()))
    both = {"DATABASE_URL": settings.database_url, "MIGRATE_DATABASE_URL": settings.migrate_database_url}
    for name, value in ((name, each.reveal()) for name, each in both.items() if each and name not in wrong):
        reader.note(name, credentials.database_url(value, project))
        reader.note(name, credentials.plain_database(value), fatal=not development)
    if "ANTHROPIC_BASE_URL" not in wrong:
        found = credentials.plain_http(settings.anthropic_base_url)
        reader.note("ANTHROPIC_BASE_URL", found, fatal=not development)


def _wrong(reader: _Reader) -> set[str]:
    """Return the variables that something is wrong with already."""
    return {error.problem.partition(" ")[0] for error in reader.errors}
