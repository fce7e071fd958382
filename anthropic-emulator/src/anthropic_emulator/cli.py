"""`anthropic-emulator`: starts the server."""

import asyncio
import signal
import sys
from typing import Annotated

import msgspec
import typer
import uvloop
from aiohttp import web

from anthropic_emulator.server import create_app
from anthropic_emulator.settings import Settings

app = typer.Typer(add_completion=False, help="A local Messages API. There is no AI in it.")
_DEFAULTS = Settings()
_BACKLOG = 1024
_SHUTDOWN_SECONDS = 0.5


@app.callback()
def _root() -> None:
    """Keep `serve` a named command."""


@app.command()
def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8082,
    ttft_ms: Annotated[
        float, typer.Option(help="Milliseconds to the first delta.", min=0)
    ] = _DEFAULTS.ttft_ms,
    delta_delay_ms: Annotated[
        float, typer.Option(help="Milliseconds between deltas.", min=0)
    ] = _DEFAULTS.delay_ms,
    jitter: Annotated[
        float, typer.Option(help="Share by which delays between deltas vary.", min=0, max=1)
    ] = _DEFAULTS.jitter,
    seed: Annotated[int | None, typer.Option(help="Makes ids the same in every run.")] = None,
    cache_min_tokens: Annotated[
        int, typer.Option(help="Smallest prefix the prompt cache keeps.", min=0)
    ] = _DEFAULTS.cache_min_tokens,
    keep_requests: Annotated[
        int, typer.Option(help="How many requests /_emulator/requests remembers.", min=1)
    ] = _DEFAULTS.keep_requests,
    requests_per_minute: Annotated[
        int, typer.Option(help="Requests a key may make in a minute.", min=1)
    ] = _DEFAULTS.requests_per_minute,
    gullible: Annotated[
        bool, typer.Option("--gullible", help="Obey whatever tool results and other texts say.")
    ] = _DEFAULTS.gullible,
    api_key: Annotated[str | None, typer.Option(help="Let in this key only; absent: any key.")] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. Prints one line of JSON with the address when it listens."""
    settings = Settings(
        ttft_ms=ttft_ms,
        delay_ms=delta_delay_ms,
        jitter=jitter,
        seed=seed,
        cache_min_tokens=cache_min_tokens,
        keep_requests=keep_requests,
        requests_per_minute=requests_per_minute,
        gullible=gullible,
        api_key=api_key,
    )
    try:
        uvloop.run(_serve(settings, host, port))
    except OSError as error:
        typer.echo(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port", err=True)
        raise typer.Exit(1) from error


async def _serve(settings: Settings, host: str, port: int) -> None:
    runner = web.AppRunner(create_app(settings), access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=_BACKLOG)
        await site.start()
        bound = runner.addresses[0]
        shown = f"[{bound[0]}]" if ":" in str(bound[0]) else bound[0]
        _announce(f"http://{shown}:{bound[1]}")
        await _stopped()
    finally:
        await runner.cleanup()


def _announce(url: str) -> None:
    sys.stdout.write(msgspec.json.encode({"action": "listening", "url": url}).decode() + "\n")
    sys.stdout.flush()


async def _stopped() -> None:
    """Wait for SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await stop.wait()


def main() -> None:
    """Entry point of the console script."""
    app()
