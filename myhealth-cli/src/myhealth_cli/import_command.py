"""`myhealth import FILE`: a bar while it runs, then a table, and where a damaged file breaks off."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from myhealth_cli.chat import terminal_reader
from myhealth_cli.client import Client
from myhealth_cli.consent import HEALTH_DATA, agree
from myhealth_cli.errors import ExportUnreadableError, MyHealthError
from myhealth_cli.importer import DamagedImportError, ImportRefusedError, ImportResult, Target, import_export
from myhealth_cli.progress import import_bar
from myhealth_cli.signals import Interrupts
from myhealth_cli.tokens import tokens_for

if TYPE_CHECKING:
    from collections import Counter
    from pathlib import Path

    from myhealth_cli.tokens import TokenSource

IMPORTED, DAMAGED, FAILED = 0, 1, 2
_MOST = 10


def run(file: Path, url: str, token: str | None, user: str, *, consent: bool = False) -> int:
    """Import a file; return 0, 1 when the file is damaged, 2 when nothing more could be done.

    `consent`: agree to what the server asks for, without being asked.
    """
    return asyncio.run(_run(file, url, token, user, consent=consent))


async def _run(file: Path, url: str, token: str | None, user: str, *, consent: bool) -> int:
    interrupts = Interrupts()
    tokens = tokens_for(url, token, user)
    with interrupts.installed():
        try:
            try:
                return await _import(file, url, tokens)
            except ImportRefusedError as error:
                if error.code != "consent_required":
                    raise
            async with Client(url, tokens) as client:
                await agree(client, Console(), terminal_reader(), consent=consent, purposes=HEALTH_DATA)
            return await _import(file, url, tokens)
        except asyncio.CancelledError:
            if interrupts.received is None:
                raise
            sys.stderr.write("myhealth: stopped; the import can be repeated, nothing is stored twice\n")
            return 128 + interrupts.received
        except MyHealthError as error:
            _tell(error)
            return FAILED


async def _import(file: Path, url: str, tokens: TokenSource) -> int:
    console = Console()
    target = Target(url=url, token=await tokens.token(), renew=lambda: tokens.token(renew=True))
    try:
        with import_bar(Console(stderr=True), f"Importing {escape(file.name)}") as progress:
            result = await import_export(file, target, progress=progress)
    except DamagedImportError as error:
        _summarise(console, error.result)
        _tell(error)
        return DAMAGED
    _summarise(console, result)
    return IMPORTED


def _summarise(console: Console, result: ImportResult) -> None:
    table = Table(title=escape(result.file), title_justify="left", box=None, pad_edge=False)
    table.add_column("samples", justify="right")
    table.add_column("of")
    for name, count in result.samples.most_common():
        table.add_row(f"{count:,}", escape(name))
    console.print(table)
    console.print(
        f"{result.sent:,} samples sent: {result.stored:,} new, {result.unchanged:,} there already, "
        f"{result.replaced:,} replaced.",
        highlight=False,
    )
    if not result.sent:
        console.print("There is nothing in this export that the coach knows.", highlight=False)
    _list(console, "Not imported, because the coach does not know them", result.unknown_types)
    _list(console, "Unreadable", result.skipped)
    _list(console, "Refused by the server", result.refused)


def _list(console: Console, title: str, counts: Counter[str]) -> None:
    if not counts:
        return
    console.print(f"\n{title}:", highlight=False)
    for name, count in counts.most_common(_MOST):
        console.print(f"{count:>8,}  {escape(name)}", highlight=False)
    if len(counts) > _MOST:
        console.print(f"          and {len(counts) - _MOST} more kinds")


def _tell(error: MyHealthError) -> None:
    unread = " (nothing was imported)" if isinstance(error, ExportUnreadableError) else ""
    hint = f"\n  {error.hint}" if error.hint else ""
    sys.stderr.write(f"myhealth: {error}{unread}{hint}\n")
