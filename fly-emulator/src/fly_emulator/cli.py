"""`fly-emulator`: what it does with a fly.toml. Exit code 2: the operator has to change something."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fly_emulator.errors import EmulatorError
from fly_emulator.fly_toml import AppConfig, load
from fly_emulator.summary import summary
from fly_emulator.toml_problems import ConfigErrors, render

EXIT_OPERATOR = 2

app = typer.Typer(add_completion=False, help="A local Fly, from the fly.toml that is deployed.")

# What every command that reads a fly.toml takes.
File: TypeAlias = Annotated[Path, typer.Argument(help="The fly.toml.", show_default=True)]
Name: TypeAlias = Annotated[str | None, typer.Option("--app", "-a", help="The app's name, over the file's.")]


@app.callback()
def _root() -> None:
    """Keep `check` a named command."""


@app.command()
def check(file: File = Path("fly.toml"), *, name: Name = None) -> None:
    """Read a fly.toml strictly: name every problem, or say what its machines are."""
    config = read(file, name)
    typer.echo(summary(config))


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
