"""The deploy verbs of the command `myhealth`. Imports are inside, so that each starts quickly."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from myhealth_cli.deploy.verbs import Options

EXIT_FAILED = 1
EXIT_NOTHING_CHANGED = 2

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")]
_Where = Annotated[str, typer.Argument(help="staging or production.", show_default=False)]
_Url = Annotated[str | None, typer.Option(help="Probe at this address instead of the environment's.")]
_Bake = Annotated[float, typer.Option(min=0, max=3600, help="Seconds to watch before it counts as good.")]
_Ha = Annotated[bool, typer.Option(help="The first deploy makes two machines, or one.")]
_Smoke = Annotated[bool, typer.Option(help="Let flyctl watch each machine for ten seconds, too.")]
_FirstWord = Annotated[float, typer.Option(min=0.1, max=300, help="Seconds for the canary's first word.")]
_Ready = Annotated[float, typer.Option(min=1, max=600, help="Seconds for a machine to be ready.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    for command in (environments, doctor, setup, deploy, promote, rollback, status, logs, load):
        app.command()(command)


def environments(*, json: _Json = False) -> None:
    """Print the environments: apps, addresses, secrets and where each is set."""
    from myhealth_cli.deploy import listing  # noqa: PLC0415 - see the module's docstring

    leave(lambda: listing.run(as_json=json), json=json, reads=True)


def doctor(
    *,
    json: _Json = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask nothing over the network.")] = False,
) -> None:
    """Go through the epic's checklists: what is done, what is not, what only a person can say.

    Exit codes: 0 nothing failed, 1 something did.
    """
    from myhealth_cli.deploy import doctor as module  # noqa: PLC0415 - see the module's docstring

    leave(lambda: module.run(as_json=json, offline=offline), json=json, reads=True)


def setup(
    environment: _Where,
    *,
    from_: Annotated[
        Path | None, typer.Option("--from", help="File of KEY=VALUE lines; else the values are asked for.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Also set secrets that are set.")] = False,
    org: Annotated[str | None, typer.Option(help="Fly organisation; by default your own.")] = None,
    dry_run: _DryRun = False,
    json: _Json = False,
) -> None:
    """Make the app and set its secrets. Can be repeated: what is there stays.

    Values come from a file or are asked for without being shown, are looked at by the server's own rules, and
    go to flyctl on stdin; they are in force with the next deploy. Exit codes: 0 done, 1 it broke off (say it
    again), 2 nothing was changed.
    """
    from myhealth_cli.deploy import verbs  # noqa: PLC0415 - see the module's docstring

    def prompt(says: str) -> str:
        try:
            return str(typer.prompt(says, hide_input=True, default="", show_default=False, err=True))
        except typer.Abort as error:
            sys.stderr.write("\n")
            raise KeyboardInterrupt from error

    def go() -> int:
        return verbs.setup(
            environment,
            verbs.Options(dry_run=dry_run, as_json=json),
            file=from_,
            prompt=prompt if from_ is None and sys.stdin.isatty() else None,
            replace=replace,
            org=org,
        )

    leave(go, json=json, reads=dry_run)


def _options(
    url: str | None,
    bake: float,
    first_word: float,
    ready: float,
    *,
    ha: bool = True,
    smoke: bool = True,
    dry_run: bool,
    json: bool,
) -> Options:
    """Return what `deploy`, `promote` and `rollback` have in common; times in seconds."""
    from myhealth_cli.deploy import probe, verbs  # noqa: PLC0415 - see the module's docstring

    return verbs.Options(
        dry_run=dry_run,
        as_json=json,
        url=url,
        bake_s=bake,
        ha=ha,
        smoke=smoke,
        patiences=probe.Patiences(ready_s=ready, first_word_s=first_word),
    )


def deploy(
    environment: _Where,
    *,
    image: Annotated[str | None, typer.Option(help="Deploy this image; else this commit is built.")] = None,
    release: Annotated[str | None, typer.Option(help="What /version says (default: commit or tag).")] = None,
    url: _Url = None,
    bake: _Bake = 60.0,
    first_word: _FirstWord = 20.0,
    ready: _Ready = 60.0,
    ha: _Ha = True,
    smoke: _Smoke = True,
    dry_run: _DryRun = False,
    json: _Json = False,
) -> None:
    """Deploy to staging, through every gate; on a failure what ran before is deployed again.

    Exit codes: 0 done, 1 failed (it says what runs now), 2 nothing was changed.
    """
    from myhealth_cli.deploy import verbs  # noqa: PLC0415 - see the module's docstring

    def go() -> int:
        options = _options(url, bake, first_word, ready, ha=ha, smoke=smoke, dry_run=dry_run, json=json)
        return verbs.deploy(environment, options, image=image, release=release)

    leave(go, json=json, reads=dry_run)


def promote(
    *,
    url: _Url = None,
    image: Annotated[
        str | None, typer.Option(help="Only if staging runs this one: what its deploy has said, by digest.")
    ] = None,
    staging_url: Annotated[str | None, typer.Option(help="Probe staging at this address.")] = None,
    bake: _Bake = 120.0,
    first_word: _FirstWord = 20.0,
    ready: _Ready = 60.0,
    ha: _Ha = True,
    smoke: _Smoke = True,
    dry_run: _DryRun = False,
    json: _Json = False,
) -> None:
    """Put the very image that staging runs on production: by digest, not built again.

    Exit codes: 0 done, 1 failed (it says what runs now), 2 nothing was changed.
    """
    from myhealth_cli.deploy import verbs  # noqa: PLC0415 - see the module's docstring

    def go() -> int:
        options = _options(url, bake, first_word, ready, ha=ha, smoke=smoke, dry_run=dry_run, json=json)
        return verbs.promote(options, staging_url=staging_url, image=image)

    leave(go, json=json, reads=dry_run)


def rollback(
    number: Annotated[
        int | None, typer.Argument(min=1, help="A release's number, of `myhealth status`.")
    ] = None,
    *,
    environment: Annotated[str, typer.Option(help="staging or production.")] = "production",
    url: _Url = None,
    bake: _Bake = 30.0,
    first_word: _FirstWord = 20.0,
    ready: _Ready = 60.0,
    dry_run: _DryRun = False,
    json: _Json = False,
) -> None:
    """Deploy what was proven before the image that runs now, or the image of a release.

    Secrets, fly.toml and the database stay as they are. Exit codes as of `deploy`.
    """
    from myhealth_cli.deploy import verbs  # noqa: PLC0415 - see the module's docstring

    def go() -> int:
        options = _options(url, bake, first_word, ready, dry_run=dry_run, json=json)
        return verbs.rollback(environment, options, number=number)

    leave(go, json=json, reads=dry_run)


def status(environment: _Where, *, json: _Json = False) -> None:
    """Show machines, images, checks, who sleeps, the proven images and the last releases. Wakes nobody."""
    from myhealth_cli.deploy import status as module  # noqa: PLC0415 - see the module's docstring

    leave(lambda: module.run(environment, as_json=json), json=json, reads=True)


def logs(
    environment: _Where,
    *,
    follow: Annotated[bool, typer.Option(help="Go on until Ctrl-C, or end with what there is.")] = True,
    machine: Annotated[str | None, typer.Option(help="Only this machine, of `myhealth status`.")] = None,
    json: _Json = False,
) -> None:
    """Show the app's log; with --json as documents, one after another. Exit code 0 also after Ctrl-C."""
    from myhealth_cli.deploy import listing  # noqa: PLC0415 - see the module's docstring

    def go() -> int:
        return listing.logs(environment, follow=follow, machine=machine, as_json=json)

    leave(go, json=json, reads=True)


def load(
    url: Annotated[str, typer.Argument(help="Address of a deployed or local server.")],
    *,
    clients: Annotated[int, typer.Option(min=1, max=200, help="Conversations at the same time.")] = 10,
    turns: Annotated[int, typer.Option(min=1, max=2000, help="Turns in all, at most.")] = 50,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="No new turn after so long.")] = 60.0,
    ready: Annotated[float, typer.Option(min=0.1, max=600, help="Seconds for it to be there.")] = 30.0,
    token: Annotated[str | None, typer.Option(envvar="MYHEALTH_TOKEN", help="Bearer token.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Also where real users are and turns cost money.")
    ] = False,
    json: _Json = False,
) -> None:
    """Ask many questions at once, within bounds, and measure: first word, whole answer, failures.

    As the canary user (CANARY_*), with --token, or as a made-up user of a local stack. Exit codes: 0 every
    turn was answered, 1 some were not, 2 nothing was asked.
    """
    from myhealth_cli.deploy import load as module  # noqa: PLC0415 - see the module's docstring

    bounds = module.Bounds(clients=clients, turns=turns, seconds=seconds, ready_s=ready)
    leave(lambda: module.run(url, bounds, token=token, yes=yes, as_json=json), json=json, reads=True)


def leave(go: Callable[[], int], *, json: bool, reads: bool = False) -> None:
    """Run a verb and leave with its exit code; errors as words, or as JSON where that was asked for.

    `reads`: it changes nothing, however it ends.
    """
    from myhealth_cli.deploy import report, summary  # noqa: PLC0415 - see the module's docstring
    from myhealth_cli.deploy.errors import NothingChangedError  # noqa: PLC0415 - see the module's docstring
    from myhealth_cli.errors import MyHealthError  # noqa: PLC0415 - see the module's docstring

    def say(error: MyHealthError, how: str, *, changed: bool) -> None:
        if json:
            report.show_error(error, changed=changed)
        summary.write(summary.of_error(error, how, changed=changed))

    try:
        code = go()
    except MyHealthError as error:
        unchanged = isinstance(error, NothingChangedError)
        say(error, "refused" if unchanged else "failed", changed=not unchanged and not reads)
        hint = f"\n  {report.plain(error.hint)}" if error.hint else ""
        sys.stderr.write(f"myhealth: {report.plain(str(error))}{hint}\n")
        code = EXIT_NOTHING_CHANGED if unchanged else EXIT_FAILED
    except KeyboardInterrupt:
        again = "say it again" if reads else "say the same again: it goes on from what is there"
        error = MyHealthError("interrupted", hint=again)
        say(error, "interrupted", changed=not reads)
        sys.stderr.write(f"myhealth: {error}\n  {error.hint}\n")
        code = EXIT_FAILED
    except Exception as error:
        say(MyHealthError(type(error).__name__, hint="a fault of ours"), "broken", changed=not reads)
        raise
    raise typer.Exit(code)
