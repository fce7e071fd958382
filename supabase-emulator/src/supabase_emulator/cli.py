"""`supabase-emulator`: starts the server."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from aiohttp import web

from supabase_emulator.gateway import HERE
from supabase_emulator.project import PROJECT, Project
from supabase_emulator.server import create_app
from supabase_emulator.settings import MAX_TOKEN_SECONDS, Settings
from supabase_emulator.store import StateFileError

app = typer.Typer(
    add_completion=False, help="A local stand-in for Supabase Auth. It guards nothing: for development only."
)
_DEFAULTS = Settings()
_SHUTDOWN_SECONDS = 0.5


@app.callback()
def _root() -> None:
    """Keep `serve` a named command."""


@app.command()
def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; of this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 9999,
    state: Annotated[Path | None, typer.Option(help="File to keep users, sessions and keys in.")] = None,
    algorithm: Annotated[
        Literal["ES256", "RS256"], typer.Option(help="Of new signing keys.")
    ] = _DEFAULTS.algorithm,
    token_seconds: Annotated[
        int, typer.Option(help="Life of an access token.", min=1, max=MAX_TOKEN_SECONDS)
    ] = _DEFAULTS.token_seconds,
    anonymous: Annotated[bool, typer.Option(help="Allow anonymous sign-ins.")] = _DEFAULTS.anonymous,
) -> None:
    """Serve until SIGTERM or Ctrl-C. When it listens it prints a line of JSON: address and API keys."""
    if host not in HERE:
        typer.echo(f"--host {host} is not an address of this machine only: it guards nothing", err=True)
        raise typer.Exit(1)
    settings = Settings(state=state, algorithm=algorithm, token_seconds=token_seconds, anonymous=anonymous)
    try:
        asyncio.run(_serve(settings, host, port))
    except StateFileError as error:
        typer.echo(f"{error}; remove it, or name another with --state", err=True)
        raise typer.Exit(1) from error
    except OSError as error:
        typer.echo(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port", err=True)
        raise typer.Exit(1) from error


async def _serve(settings: Settings, host: str, port: int) -> None:
    application = create_app(settings)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound = runner.addresses[0]
        shown = f"[{bound[0]}]" if ":" in str(bound[0]) else bound[0]
        project = application[PROJECT]
        project.url = f"http://{shown}:{bound[1]}"
        stop = _stop_signals()
        _announce(project)
        await stop.wait()
    finally:
        await runner.cleanup()


def _announce(project: Project) -> None:
    line = {
        "action": "listening",
        "url": project.url,
        "publishable_key": project.store.kept.publishable_key,
        "secret_key": project.store.kept.secret_key,
        "anon_key": project.legacy["anon"],
        "service_role_key": project.legacy["service_role"],
    }
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


def _stop_signals() -> asyncio.Event:
    """Return what SIGINT and SIGTERM set."""
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    return stop


def main() -> None:
    """Entry point of the console script."""
    app()
