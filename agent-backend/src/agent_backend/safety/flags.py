"""Red flags with what is said about them: the detectors, the texts and the helplines, read once."""

from __future__ import annotations

from functools import cache

import msgspec

from agent_backend.safety import Flag
from agent_backend.safety.detector import Detector
from agent_backend.safety.lexicon import Category, FlagFile, HelplineFile, TextFile, load

_EU = frozenset(
    "BE BG CY CZ DK EE ES FI FR GR HR HU IT LT LU LV MT NL PL PT RO SE SI SK IS NO".split()  # noqa: SIM905
)
"""Where 112 is the emergency number and the file names nothing more; the European Economic Area."""
_SAME = {"LI": "CH", "UK": "GB"}
_CRISIS = "suicidality"
_NAMES_CRISIS = frozenset({"suicidality", "self_harm", "harm_to_others", "poisoning"})
"""Categories whose texts name a crisis line already."""


def in_message(text: str, locale: str) -> Flag | None:
    """Return the most urgent red flag in a user's message."""
    found = _messages().find(text)
    if not found:
        return None
    category = found[0]
    said = fixed_text(category, locale)
    if _CRISIS in found and category not in _NAMES_CRISIS:
        said += " " + _filled(_texts().crisis_too[language(locale)], locale)
    return Flag(category, said)


def in_answer(text: str, locale: str) -> Flag | None:
    """Return the gravest thing in an answer that must not stand alone."""
    found = _answers().find(text)
    return Flag(found[0], fixed_text(found[0], locale)) if found else None


def in_follow_up(text: str, category: str, locale: str) -> Flag | None:
    """Return the flag of `category` again if a message says that it goes on or has become worse."""
    return Flag(category, fixed_text(category, locale)) if _follow_ups().find(text) else None


def caution(category: str) -> str:
    """Return what the model is told in the turns after a flag."""
    return _texts().caution.format(category=category.replace("_", " "))


def categories() -> tuple[str, ...]:
    """Return every category of messages and of answers, each file's in the order of urgency."""
    files = (load("red_flags.json", FlagFile), load("answers.json", FlagFile))
    return tuple(category.name for file in files for category in file.categories)


def language(locale: str) -> str:
    """Return the language of a locale's texts: German if it is German, else English."""
    return "de" if locale.lower().startswith("de") else "en"


def region(locale: str) -> str:
    """Return the key of a locale's helplines: a country's, `EU`, or "" where none is known."""
    country = next((part for part in locale.upper().split("-")[1:] if len(part) == 2 and part.isalpha()), "")
    country = _SAME.get(country, country)
    if country in _helplines().lines["en"]:
        return country
    return "EU" if country in _EU else ""


def fixed_text(category: str, locale: str) -> str:
    """Return what is said about a category."""
    return _filled(_texts().texts[language(locale)][category], locale)


def _filled(text: str, locale: str) -> str:
    lines = _helplines().lines[language(locale)][region(locale)]
    return " ".join(text.format(**lines).split())


def warm() -> None:
    """Read and compile everything."""
    in_message("warm", "en")
    in_answer("warm", "en")
    fixed_text("cardiac", "en")


@cache
def _messages() -> Detector:
    return Detector(load("red_flags.json", FlagFile))


@cache
def _answers() -> Detector:
    return Detector(load("answers.json", FlagFile))


@cache
def _follow_ups() -> Detector:
    file = load("red_flags.json", FlagFile)
    again = Category(name="again", rules=[], certain=file.follow_up)
    return Detector(msgspec.structs.replace(file, contexts={}, categories=[again], typing=None))


@cache
def _texts() -> TextFile:
    return load("texts.json", TextFile)


@cache
def _helplines() -> HelplineFile:
    return load("helplines.json", HelplineFile)
