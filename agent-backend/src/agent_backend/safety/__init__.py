"""Safety in code: red flags in what users write and in what the model answers, with fixed texts.

Pure: text in, flag out. What is looked for, what is said and which telephone numbers are named stands in
`data/*.json`, to be read and signed by people who are no programmers (`reviews`). The limits of such a
detector are on the page docs/design/safety.md: it is no medical device, and it misses things.

Nothing is read or compiled before the first check or `warm`, so that the boot does not pay for it.
"""

from __future__ import annotations

from typing import NamedTuple


class Flag(NamedTuple):
    """A red flag: its category (`cardiac`, `answer_dose`, ...) and the fixed text to say, for a locale."""

    category: str
    text: str


def check(text: str, locale: str) -> Flag | None:
    """Return the red flag in a user's message, if there is one; `locale` is a BCP 47 tag."""
    from agent_backend.safety import flags  # noqa: PLC0415 - not needed to boot

    return flags.in_message(text, locale)


def check_answer(text: str, locale: str) -> Flag | None:
    """Return what must not stand alone in an answer of the model's, if there is anything."""
    from agent_backend.safety import flags  # noqa: PLC0415 - not needed to boot

    return flags.in_answer(text, locale)


def check_follow_up(text: str, category: str, locale: str) -> Flag | None:
    """Return the flag of `category` again if a message says that it goes on or has become worse."""
    from agent_backend.safety import flags  # noqa: PLC0415 - not needed to boot

    return flags.in_follow_up(text, category, locale)


class _State:
    warm = False


def warm() -> None:
    """Read and compile the data files; takes some tens of milliseconds, and may run in a thread."""
    from agent_backend.safety import flags  # noqa: PLC0415 - not needed to boot

    flags.warm()
    _State.warm = True


def is_warm() -> bool:
    """Say whether `warm` is done: until then a check is better made in a thread."""
    return _State.warm
