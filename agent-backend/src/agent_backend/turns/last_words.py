"""What the coach says when a budget ends its turn: fixed words, in the user's language."""

from __future__ import annotations

import datetime as dt
from typing import Final
from zoneinfo import ZoneInfo

from agent_backend.turns.words import FixedWords

_GERMAN: Final = {
    "budget.user_day": "Für heute ist dein Kontingent aufgebraucht. Ab {until} bin ich wieder für dich da.",
    "budget.user_month": "Dein Kontingent für diesen Monat ist aufgebraucht. Ab {until} bin ich "
    "wieder für dich da.",
    "budget.agent_day": "Für heute ist mein Kontingent für dich aufgebraucht. Ab {until} geht es weiter.",
    "budget.global_day": "Im Moment kann ich nicht weiter antworten: Das Tageskontingent des Dienstes ist "
    "aufgebraucht. Ab {until} geht es weiter.",
    "budget.global_month": "Im Moment kann ich nicht weiter antworten: Das Monatskontingent des Dienstes ist "
    "aufgebraucht. Ab {until} geht es weiter.",
    "budget.turn": "Diese Antwort ist so aufwendig geworden, dass ich hier aufhöre. Stell mir den Rest gern "
    "als neue, kleinere Frage.",
    "budget.steps": "Ich komme hier mit so vielen Schritten nicht zum Ziel und höre auf. Stell mir den Rest "
    "gern als neue, kleinere Frage.",
}
_ENGLISH: Final = {
    "budget.user_day": "Your allowance for today is used up. I will be back for you from {until}.",
    "budget.user_month": "Your allowance for this month is used up. I will be back for you from {until}.",
    "budget.agent_day": "My allowance for you today is used up. We can go on from {until}.",
    "budget.global_day": "I cannot answer further right now: the service's allowance for today is used up. "
    "We can go on from {until}.",
    "budget.global_month": "I cannot answer further right now: the service's allowance for this month is "
    "used up. We can go on from {until}.",
    "budget.turn": "This answer has become so costly that I stop here. Please ask me for the rest as a new, "
    "smaller question.",
    "budget.steps": "I have taken as many steps as I may and stop here. Please ask me for the rest as a new, "
    "smaller question.",
}


def last_words(cause: str, resets_at: dt.datetime | None, locale: str, time_zone: str) -> FixedWords:
    """Return what the coach says when a budget ends its turn; `cause` is a scope, `turn` or `steps`."""
    german = locale.lower().startswith("de")
    notice = f"budget.{cause}"
    text = (_GERMAN if german else _ENGLISH)[notice]
    if resets_at is not None:
        local = resets_at.astimezone(ZoneInfo(time_zone))
        until = f"{local:%d.%m.%Y, %H:%M} Uhr" if german else f"{local:%Y-%m-%d, %H:%M}"
        text = text.format(until=until)
    return FixedWords(notice, text)
