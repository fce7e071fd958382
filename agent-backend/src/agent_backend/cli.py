"""The command `agent-backend`: serve, migrate, check-config, healthcheck, tombstones, token.

argparse and imports inside the commands, because `serve` is on the path of every wake.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from agent_backend.errors import OperatorError

if TYPE_CHECKING:
    from agent_backend.settings import Settings

EXIT_FAILED = 1
EXIT_OPERATOR = 2

_HEALTH_SECONDS = 2.5


def main(argv: Sequence[str] | None = None, env: Mapping[str, str] = os.environ) -> int:
    """Run a command and return its exit code: 0, or 2 when the operator has to change something."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments, env)
    except OperatorError as error:
        sys.stderr.write(f"agent-backend: {error.problem}\n  hint: {error.hint}\n")
        return EXIT_OPERATOR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agent-backend", description="The agent backend.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the server until SIGTERM or SIGINT")
    serve.set_defaults(run=_serve)
    migrate = commands.add_parser("migrate", help="bring the database's schema up to this release")
    migrate.add_argument("--release", help="the release being deployed (default: RELEASE)")
    migrate.set_defaults(run=_migrate)
    check = commands.add_parser("check-config", help="check the environment variables and name every problem")
    check.add_argument(
        "--json", action="store_true", help="print one JSON document: ok, errors, warnings, settings"
    )
    check.set_defaults(run=_check_config)
    health = commands.add_parser("healthcheck", help="ask the server on this machine whether it lives")
    health.set_defaults(run=_healthcheck)
    tombstones = commands.add_parser("tombstones", help="carry erasures over a restore from a backup")
    tombstones.add_argument(
        "what", choices=["dump", "load"], help="write them to stdout; read them from stdin"
    )
    tombstones.set_defaults(run=_tombstones)
    token = commands.add_parser("token", help="print a token for a made-up user (development only)")
    token.add_argument("--user", required=True, help="any name; the same name is the same user")
    token.add_argument("--ttl", default="12h", help="how long it is valid: 30s, 15m, 12h, 7d (default 12h)")
    token.set_defaults(run=_token)
    return parser


def _settings(env: Mapping[str, str]) -> Settings:
    from agent_backend.settings import read  # noqa: PLC0415 - see the module's docstring

    return read(env)


def _serve(_arguments: argparse.Namespace, env: Mapping[str, str]) -> int:
    import gc  # noqa: PLC0415 - see the module's docstring

    # The boot makes hundreds of thousands of objects that stay; looking for garbage among them is waste.
    gc.disable()
    try:
        settings = _settings(env)
        from agent_backend.listening import listen  # noqa: PLC0415 - see the module's docstring
        from agent_backend.telemetry import note_boot_phase  # noqa: PLC0415 - see the module's docstring

        # Before the rest is imported: the proxy's first try to connect succeeds, and waits for the answer.
        listening = listen(settings.host, settings.port, "PORT")
        note_boot_phase("listening")
        from agent_backend.server import run  # noqa: PLC0415 - see the module's docstring

        return run(settings, listening)
    finally:
        gc.enable()


def _migrate(arguments: argparse.Namespace, env: Mapping[str, str]) -> int:
    import asyncio  # noqa: PLC0415 - see the module's docstring

    import asyncpg  # noqa: PLC0415 - see the module's docstring

    from agent_backend.db.migrate import migrate  # noqa: PLC0415 - see the module's docstring

    settings = _settings(env)
    name, dsn = _owners(settings)
    try:
        applied = asyncio.run(
            migrate(
                dsn,
                release=arguments.release or settings.release,
                environment=settings.environment,
                app=settings.app_name,
            )
        )
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # A failed migration has an error of its own: this is about the way to the database.
        raise _away("migrate the database", "migrated", error, name) from error
    print("\n".join(f"applied {name}" for name in applied) or "the schema is up to date")  # noqa: T201
    return 0


def _owners(settings: Settings) -> tuple[str, str]:
    """Return the variable that names the schema's owner, and its URL: the server's login may do less."""
    if settings.migrate_database_url:
        return "MIGRATE_DATABASE_URL", settings.migrate_database_url.reveal()
    return "DATABASE_URL", settings.database_url.reveal()


def _away(does: str, done: str, error: Exception, name: str) -> OperatorError:
    import asyncpg  # noqa: PLC0415 - see the module's docstring

    from agent_backend.db import dsn  # noqa: PLC0415 - see the module's docstring

    if isinstance(error, dsn.UNTRUSTED):
        return dsn.untrusted(error, name)
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return OperatorError(
            f"the role of {name} may not {does} ({type(error).__name__})",
            hint="set MIGRATE_DATABASE_URL to a URL of the schema's owner (docs/security.md)",
        )
    return OperatorError(
        f"the database cannot be {done} ({type(error).__name__})",
        hint=f"check that it runs, and user, password, host and database name in {name}",
    )


def _tombstones(arguments: argparse.Namespace, env: Mapping[str, str]) -> int:
    import asyncio  # noqa: PLC0415 - see the module's docstring

    import asyncpg  # noqa: PLC0415 - see the module's docstring

    from agent_backend.db import tombstones  # noqa: PLC0415 - see the module's docstring

    settings = _settings(env)
    name, dsn = _owners(settings)
    try:
        if arguments.what == "dump":
            sys.stdout.buffer.write(asyncio.run(tombstones.dump(dsn)))
            return 0
        account = settings.supabase_url is not None and bool(settings.supabase_service_key)
        added, begun = asyncio.run(tombstones.load(dsn, sys.stdin.buffer.read(), account=account))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise _away("read or write tombstones", "asked for its tombstones", error, name) from error
    print(f"added {added} tombstones, {begun} users are being erased again")  # noqa: T201
    return 0


def _check_config(arguments: argparse.Namespace, env: Mapping[str, str]) -> int:
    from agent_backend.settings import inspect  # noqa: PLC0415 - see the module's docstring

    report = inspect(env)
    errors, warnings = _drafts(report.settings.environment)
    errors, warnings = [*report.errors, *errors], [*report.warnings, *warnings]
    if arguments.json:
        import json  # noqa: PLC0415 - see the module's docstring

        found = {
            kind: [{"problem": each.problem, "hint": each.hint} for each in found]
            for kind, found in (("errors", errors), ("warnings", warnings))
        }
        print(json.dumps({"ok": not errors, **found, "settings": report.shown()}))  # noqa: T201
        return EXIT_OPERATOR if errors else 0
    for kind, found in (("", errors), ("warning: ", warnings)):
        for each in found:
            sys.stderr.write(f"agent-backend: {kind}{each.problem}\n  hint: {each.hint}\n")
    if report.errors:
        return EXIT_OPERATOR
    # Shown beside drafts too: who looks at a server that runs wants its settings.
    for name, value in report.shown().items():
        print(f"{name:<22}{'-' if value is None else value}")  # noqa: T201 - secrets show as Secret(***)
    return EXIT_OPERATOR if errors else 0


def _drafts(environment: str) -> tuple[list[OperatorError], list[OperatorError]]:
    """Return what nobody has signed, as errors and as warnings: only development may do without."""
    from agent_backend import consents, reviews  # noqa: PLC0415 - see the module's docstring

    unsigned: list[OperatorError] = [
        OperatorError(
            f"{name} is a draft that no named person has signed",
            hint="who is competent (a clinician, counsel) reads it and signs: reviewed_by, with the date",
        )
        for name in (*reviews.unsigned(), *consents.load().unreviewed())
    ]
    match environment:
        case "production":
            return unsigned, []
        case "staging":
            return [], unsigned
        case _:
            return [], []


def _healthcheck(_arguments: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Ask /livez, for hosts that look at an image's HEALTHCHECK; 1 when nothing answers.

    Not /readyz: such hosts restart what fails it, and one that waits for its database is not helped by that.
    """
    from http.client import HTTPConnection, HTTPException  # noqa: PLC0415 - see the module's docstring

    port = env.get("PORT", "").strip() or "3001"
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise OperatorError(f"PORT is {port[:20]!r}, which is not a port", hint="set PORT as for `serve`")
    # The server listens on :: or on 127.0.0.1, and :: takes IPv4 as well.
    connection = HTTPConnection("127.0.0.1", int(port), timeout=_HEALTH_SECONDS)
    try:
        connection.request("GET", "/livez")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        sys.stderr.write(f"agent-backend: no answer on port {port} ({type(error).__name__})\n")
        return EXIT_FAILED
    finally:
        connection.close()
    print(f"/livez answers {status}")  # noqa: T201
    return 0 if status == 200 else EXIT_FAILED


def _token(arguments: argparse.Namespace, env: Mapping[str, str]) -> int:
    from agent_backend.devtoken import issue, seconds  # noqa: PLC0415 - see the module's docstring

    # A token needs no database, and this is typed by hand in shells that know of none.
    settings = _settings({"DATABASE_URL": "postgresql://unused", **env})
    print(issue(settings, arguments.user, seconds(arguments.ttl)))  # noqa: T201
    return 0
