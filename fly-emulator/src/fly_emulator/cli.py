"""`fly-emulator`: what it does with a fly.toml. Exit code 2: the operator has to change something."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fly_emulator.cloud.images import Entry, Images
from fly_emulator.config.fly_toml import AppConfig, load
from fly_emulator.config.summary import summary
from fly_emulator.config.toml_problems import ConfigErrors, render
from fly_emulator.errors import EmulatorError
from fly_emulator.machine_config import duration_seconds

EXIT_OPERATOR = 2

app = typer.Typer(add_completion=False, help="A local Fly, from the fly.toml that is deployed.")
image = typer.Typer(help="Images are names for local commands.")
app.add_typer(image, name="image")

# What every command that reads a fly.toml takes.
File: TypeAlias = Annotated[Path, typer.Argument(help="The fly.toml.", show_default=True)]
State: TypeAlias = Annotated[Path, typer.Option(help="Folder that survives a restart.")]
Name: TypeAlias = Annotated[str | None, typer.Option("--app", "-a", help="The app's name, over the file's.")]


@app.command()
def check(file: File = Path("fly.toml"), *, name: Name = None) -> None:
    """Read a fly.toml strictly: name every problem, or say what its machines are."""
    config = read(file, name)
    typer.echo(summary(config))


@app.command()
def run(
    file: File = Path("fly.toml"),
    *,
    name: Name = None,
    command: Annotated[str, typer.Option(help="What stands for the image's command.")] = "",
    port: Annotated[int, typer.Option(help="Of the edge, plain HTTP; 0: a free one.")] = 8080,
    https_port: Annotated[int | None, typer.Option(help="Of the edge, TLS with a local certificate.")] = None,
    api_port: Annotated[int, typer.Option(help="Of the Machines API; 0: a free one.")] = 4280,
    machines: Annotated[int, typer.Option(min=1, help="Machines of each group with services.")] = 2,
    minute: Annotated[str, typer.Option(help="How long one of Fly's minutes lasts, as in 1s.")] = "1m",
    state: State = Path(".fly-emulator"),
    env: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE over the file's env; may be repeated.")
    ] = None,
    secret: Annotated[
        list[str] | None, typer.Option(help="NAME of a variable to pass on as a secret; may be repeated.")
    ] = None,
    asleep: Annotated[bool, typer.Option(help="Leave the machines stopped until a request comes.")] = False,
    json: Annotated[bool, typer.Option(help="Print one line of JSON that says where everything is.")] = False,
) -> None:
    """Run the app's machines as processes behind an edge that wakes them, until Ctrl-C."""
    # Here, because servers take a third of a second to load, and `image add` is said dozens of times.
    from fly_emulator.run import RunOptions  # noqa: PLC0415
    from fly_emulator.run import run as run_app  # noqa: PLC0415

    config = read(file, name)
    try:
        options = RunOptions(
            command=tuple(shlex.split(command)),
            port=port,
            https_port=https_port,
            api_port=api_port,
            machines=machines,
            minute_seconds=_minute(minute),
            state=state,
            env=_pairs(env or []),
            secrets=tuple(secret or []),
            asleep=asleep,
            json=json,
        )
        code = run_app(config, options)
    except EmulatorError as error:
        raise refused(error) from error
    raise typer.Exit(code)


@app.command()
def serve(
    *,
    port: Annotated[int, typer.Option(help="Of the API; 0: a free one.")] = 4280,
    region: Annotated[str, typer.Option(help="The one region there is.")] = "fra",
    minute: Annotated[str, typer.Option(help="How long one of Fly's minutes lasts, as in 1s.")] = "1m",
    state: State = Path(".fly-emulator"),
    env: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE that every machine gets; may be repeated.")
    ] = None,
    addresses: Annotated[
        bool, typer.Option(help="Keep the addresses of apps; without, flyctl checks no DNS after a deploy.")
    ] = True,
    json: Annotated[bool, typer.Option(help="Print one line of JSON that says where everything is.")] = False,
) -> None:
    """Be a whole little Fly for flyctl: apps, images, secrets, releases, machines; until Ctrl-C."""
    # Here, because GraphQL takes a tenth of a second to load and no other command needs it.
    from fly_emulator.serve import ServeOptions  # noqa: PLC0415
    from fly_emulator.serve import serve as serve_cloud  # noqa: PLC0415

    try:
        options = ServeOptions(
            port=port,
            region=region,
            minute_seconds=_minute(minute),
            state=state,
            env=_pairs(env or []),
            addresses=addresses,
            json=json,
        )
        code = serve_cloud(options)
    except EmulatorError as error:
        raise refused(error) from error
    raise typer.Exit(code)


@image.command("add")
def image_add(
    reference: Annotated[str, typer.Argument(help="As in registry.fly.io/app:tag.")],
    *,
    command: Annotated[str, typer.Option(help="What a machine with this image runs.")],
    entrypoint: Annotated[
        str, typer.Option(help="What stays before the command when another one is named, as of a container.")
    ] = "",
    cwd: Annotated[str | None, typer.Option(help="Where it runs.")] = None,
    env: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE that the image sets; may be repeated.")
    ] = None,
    pulls: Annotated[
        str | None, typer.Option(help="A reference that is run in its place: a pull that failed unnoticed.")
    ] = None,
    state: State = Path(".fly-emulator"),
) -> None:
    """Let a name stand for a local command, as a push does; a server that runs sees it at once."""
    try:
        words = tuple(shlex.split(command))
        if not words:
            raise EmulatorError("--command is empty", hint="say what a machine with this image runs")
        before = tuple(shlex.split(entrypoint))
        entry = Entry(command=words, entrypoint=before, cwd=cwd, env=_pairs(env or []), pulls=pulls)
        typer.echo(f"{reference}@{Images(state).add(reference, entry)}")
    except EmulatorError as error:
        raise refused(error) from error


@image.command("list")
def image_list(*, state: State = Path(".fly-emulator")) -> None:
    """Show the images, each with its digest and command."""
    try:
        known = Images(state).all()
    except EmulatorError as error:
        raise refused(error) from error
    for reference, entry in sorted(known.items()):
        note = f" (pulls {entry.pulls})" if entry.pulls else ""
        typer.echo(f"{reference}@{entry.digest}  {shlex.join(entry.command)}{note}")


@image.command("remove")
def image_remove(
    reference: Annotated[str, typer.Argument()], *, state: State = Path(".fly-emulator")
) -> None:
    """Forget an image; machines that have it keep it."""
    try:
        Images(state).remove(reference)
    except EmulatorError as error:
        raise refused(error) from error


def _minute(text: str) -> float:
    try:
        seconds = duration_seconds(text)
    except ValueError as error:
        raise EmulatorError(f"--minute {text}: {error}", hint="--minute 1s makes tests wait less") from error
    if seconds <= 0:
        raise EmulatorError(f"--minute {text} is no time", hint="--minute 1s makes tests wait less")
    return seconds


def _pairs(given: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for each in given:
        name, found, value = each.partition("=")
        if not found or not name:
            raise EmulatorError(f"--env {name or each!r} has no value", hint="write --env NAME=VALUE")
        pairs[name] = value
    return pairs


def read(file: Path, name: str | None) -> AppConfig:
    """Load a fly.toml and print its warnings; print its problems and exit with 2 where it has any."""
    try:
        config = load(file, app=name)
    except EmulatorError as error:
        raise refused(error) from error
    for warning in config.warnings:
        typer.echo(f"warning: {warning}", err=True)
    return config


def refused(error: EmulatorError) -> typer.Exit:
    """Print what the operator has to change, and return the exit to raise."""
    if isinstance(error, ConfigErrors):
        typer.echo(render(error), err=True)
    else:
        typer.echo(
            f"fly-emulator: {error.problem}" + (f"\n  hint: {error.hint}" if error.hint else ""), err=True
        )
    return typer.Exit(EXIT_OPERATOR)


def main() -> None:
    """Entry point of the console script."""
    app()
