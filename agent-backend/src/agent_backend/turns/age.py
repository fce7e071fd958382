"""Who may talk with the coach: nobody too young, and, where it is asked for, nobody of unknown age; pure.

Article 8 of the GDPR lets states go down to 13 years; one age, the highest, is kept everywhere, because
nobody knows for certain where a user lives. An age counts when everybody of that birth year has reached it.
"""

from __future__ import annotations

import datetime as dt

from agent_backend.db.profiles import Profile
from agent_backend.errors import Forbidden
from agent_backend.guardrails import certain_age, guardrails, is_minor
from agent_backend.turns.words import FixedWords


class AgeRequired(Forbidden):
    """The profile has no year of birth."""

    code = "age_required"


class TooYoung(Forbidden):
    """The user may not use the coach yet."""

    code = "too_young"


_GERMAN = {
    "age_required": "Bevor ich antworten kann, trag bitte dein Geburtsjahr in dein Profil ein.",
    "too_young": "Der Coach ist erst ab {age} Jahren da. Sprich gern mit deinen Eltern oder einer Ärztin.",
}
_ENGLISH = {
    "age_required": "Before I can answer, please add your year of birth to your profile.",
    "too_young": "The coach is for people from {age}. Please talk with your parents or a doctor instead.",
}


def refusal(profile: Profile, now: dt.datetime, *, required: bool) -> AgeRequired | TooYoung | None:
    """Return why this user gets no answer, or None. `required`: an unknown year of birth is a reason."""
    minimum = guardrails().age.minimum
    if profile.birth_year is None:
        return AgeRequired("The profile needs birth_year first: PUT /v1/me/profile.") if required else None
    if certain_age(profile.birth_year, now.date()) < minimum:
        return TooYoung(f"The coach is for people from {minimum} years.")
    return None


def words(refused: AgeRequired | TooYoung, locale: str) -> FixedWords:
    """Return what a turn that was taken before says instead of an answer."""
    texts = _GERMAN if locale.lower().startswith("de") else _ENGLISH
    return FixedWords(f"age.{refused.code}", texts[refused.code].format(age=guardrails().age.minimum))


def told(profile: Profile, now: dt.datetime) -> str:
    """Return what the model is told of the mode, with a space before it; empty for most users."""
    if profile.eating_disorder:
        return " Weight and energy figures are switched off for this user: give none, and set no such goals."
    if is_minor(profile.birth_year, now.date()):
        return " The user is under 18: no weight or calorie goals."
    return ""
