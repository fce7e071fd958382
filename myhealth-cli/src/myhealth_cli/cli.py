"""The command `myhealth`: dev, chat, import, token, and the deploy verbs (deploy/cli.py).

Imports are inside, so that each starts quickly.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from myhealth_cli.deploy.cli import register
from myhealth_cli.errors import MyHealthError

EXIT_FAILED = 1
EXIT_NOTHING_DONE = 2

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="myHealth: run everything on your machine, talk to the coach, deploy to Fly.io and back.",
)

_Url = Annotated[str, typer.Option(envvar="MYHEALTH_URL", help="Address of the agent backend.")]
_Token = Annotated[
    str | None, typer.Option(envvar="MYHEALTH_TOKEN", help="Bearer token; without one a made-up user's.")
]
_User = Annotated[str, typer.Option(help="Made-up user to be.")]
_Consent = Annotated[
    bool, typer.Option("--consent", help="Agree to what the server asks for, without being asked.")
]
_URL = "http://localhost:3001"
_USER = "demo"


@app.command()
def dev(
    *,
    port: Annotated[int, typer.Option(envvar="PORT", min=1, max=65535, help="Port of the backend.")] = 3001,
    data: Annotated[
        Path, typer.Option(envvar="MYHEALTH_DATA", help="Folder for logs, demo data and the database.")
    ] = Path(".local/dev"),
    user: _User = _USER,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin with an empty database.")] = False,
    chat: Annotated[bool, typer.Option(help="Talk to the coach, or only serve.")] = True,
) -> None:
    """Start Postgres, the emulators and the backend, import demo data, and open a chat.

    Uses DATABASE_URL and ANTHROPIC_API_KEY instead of its own, where they are set. The backend runs behind a
    local Fly: idle for IDLE_SECONDS it sleeps, a request wakes it. Without a terminal this plays a short
    conversation. Whatever it has started ends with it.
    """
    from myhealth_cli.dev import Options, run  # noqa: PLC0415 - see the module's docstring

    raise typer.Exit(run(Options(port=port, folder=data, user=user, fresh=fresh, chat=chat)))


@app.command()
def chat(*, url: _Url = _URL, token: _Token = None, user: _User = _USER, consent: _Consent = False) -> None:
    """Talk to the coach in the terminal. Before the first word it asks for your consent."""
    from myhealth_cli.chat import run  # noqa: PLC0415 - see the module's docstring

    raise typer.Exit(run(url, token, user, consent=consent))


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Apple Health's export.zip, or the export.xml inside.")],
    *,
    url: _Url = _URL,
    token: _Token = None,
    user: _User = _USER,
    consent: _Consent = False,
) -> None:
    """Import an Apple Health export. Safe to repeat: nothing is stored twice.

    Exit codes: 0 everything was imported, 1 the file is damaged and what could be read is imported,
    2 nothing more could be done.
    """
    from myhealth_cli.import_command import run  # noqa: PLC0415 - see the module's docstring

    raise typer.Exit(run(file, url, token, user, consent=consent))


@app.command()
def token(*, url: _Url = _URL, user: _User = _USER) -> None:
    """Print a bearer token of a made-up user for the local stack that serves URL."""
    import asyncio  # noqa: PLC0415 - see the module's docstring

    from myhealth_cli.tokens import tokens_for  # noqa: PLC0415 - see the module's docstring

    typer.echo(asyncio.run(tokens_for(url, None, user).token()))


register(app)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except MyHealthError as error:
        hint = f"\n  {error.hint}" if error.hint else ""
        sys.stderr.write(f"myhealth: {error}{hint}\n")
        sys.exit(EXIT_FAILED)
