"""Consents: what the server asks for, shown whole in the person's language, and their yes or no."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.markup import escape

from myhealth_cli.errors import MyHealthError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from rich.console import Console

    from myhealth_cli.client import Client, ConsentText

HEALTH_DATA: Final = ("health_data_processing",)
"""What storing samples needs; a chat needs everything that is asked for."""
_YES: Final = {"y", "yes", "j", "ja"}
_NO: Final = {"n", "no", "nein"}


class NoConsentError(MyHealthError):
    """The person did not agree, or nobody was there to be asked."""


async def missing(client: Client, purposes: Collection[str] = ()) -> list[ConsentText]:
    """Return the texts that still wait for a yes, in the language of the profile; `purposes`: only these."""
    given = {each.purpose for each in await client.consents() if each.given}
    texts = [
        each
        for each in await client.consent_texts()
        if each.purpose not in given and (not purposes or each.purpose in purposes)
    ]
    if not texts:
        return []
    language = "de" if (await client.profile()).locale.lower().startswith("de") else "en"
    return [each for each in texts if each.locale == language]


async def agree(
    client: Client,
    console: Console,
    read: Callable[[], Awaitable[str]] | None,
    *,
    consent: bool,
    purposes: Collection[str] = (),
) -> None:
    """Show what is missing and ask for each; `consent`: agree without asking. Raises NoConsentError.

    `read` reads a line; None: nobody can be asked.
    """
    for text in await missing(client, purposes):
        if not consent:
            if read is None:
                raise NoConsentError(
                    f"the server asks for a consent: {text.title}",
                    hint="Run this in a terminal to read it whole and be asked, or pass --consent to agree.",
                )
            console.print(f"\n[bold]{escape(text.text.partition(chr(10))[0])}[/]", highlight=False)
            console.print(escape(text.text.partition("\n")[2]), highlight=False)
            await _yes(console, read, text)
        await client.give_consent(text)
        console.print(f"Agreed: {escape(text.title)} ({text.version}).", highlight=False)


async def _yes(console: Console, read: Callable[[], Awaitable[str]], text: ConsentText) -> None:
    """Ask until the answer is yes. Raises NoConsentError when it is no."""
    while True:
        console.print("[bold]Do you agree? y/n[/]")
        yes = await yes_or_no(read)
        if yes:
            return
        if yes is False:
            raise NoConsentError(f"without your consent this does not work: {text.title}")


async def yes_or_no(read: Callable[[], Awaitable[str]]) -> bool | None:
    """Read a yes or a no; None if it is neither. Who leaves has said no."""
    try:
        answer = (await read()).strip().lower()
    except (EOFError, KeyboardInterrupt):
        return False
    return True if answer in _YES else False if answer in _NO else None
