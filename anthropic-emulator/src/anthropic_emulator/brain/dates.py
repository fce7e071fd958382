"""Which days a question is about."""

import re
from datetime import date, timedelta
from typing import Final

import msgspec


class Span(msgspec.Struct, frozen=True):
    """First and last day, both included."""

    start: date
    end: date

    @property
    def days(self) -> int:
        """How many days it has."""
        return (self.end - self.start).days + 1


_NUMBERS: Final = {
    **dict.fromkeys(("one", "ein", "eine", "einen", "einem", "einer"), 1),
    **dict.fromkeys(("two", "zwei"), 2),
    **dict.fromkeys(("three", "drei"), 3),
    **dict.fromkeys(("four", "vier"), 4),
    **dict.fromkeys(("five", "fünf"), 5),
    **dict.fromkeys(("six", "sechs"), 6),
    **dict.fromkeys(("seven", "sieben"), 7),
    **dict.fromkeys(("eight", "acht"), 8),
    **dict.fromkeys(("ten", "zehn"), 10),
    **dict.fromkeys(("twelve", "zwölf"), 12),
    **dict.fromkeys(("fourteen", "vierzehn"), 14),
    **dict.fromkeys(("thirty", "dreißig"), 30),
}
_COUNT: Final = r"(\d{1,3}|" + "|".join(_NUMBERS) + ")"
_LAST_N: Final = re.compile(
    rf"\b{_COUNT}\s+(day|night|week|month|year|tag|nacht|nächt|woche|monat|jahr)", re.IGNORECASE
)
_UNIT_DAYS: Final = {
    **dict.fromkeys(("day", "night", "tag", "nacht", "nächt"), 1),
    **dict.fromkeys(("week", "woche"), 7),
    **dict.fromkeys(("month", "monat"), 30),
    **dict.fromkeys(("year", "jahr"), 365),
}
_ISO: Final = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b")
_DOTTED: Final = re.compile(r"\b(\d{1,2})\.\s?(\d{1,2})\.(?:\s?(\d{4}))?")
_WEEKDAYS: Final = (
    ("monday", "montag"),
    ("tuesday", "dienstag"),
    ("wednesday", "mittwoch"),
    ("thursday", "donnerstag"),
    ("friday", "freitag"),
    ("saturday", "samstag", "sonnabend"),
    ("sunday", "sonntag"),
)
_LAST: Final = r"(?:last|past|previous|letzte[nrms]?|vergangene[nrms]?|vorige[nrms]?)"
_THIS: Final = r"(?:this|current|diese[nrms]?|laufende[nrms]?)"
_RULES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        (r"\bday before yesterday\b|\bvorgestern\b", "before_yesterday"),
        (r"\byesterday\b|\bgestern\b", "yesterday"),
        (rf"\b{_LAST}\s+(?:night|nacht)\b|\btonight\b|\bheute nacht\b", "last_night"),
        (r"\btoday\b|\bheute\b", "today"),
        (rf"\b{_THIS}\s+(?:week|woche)\b", "this_week"),
        (rf"\b{_LAST}\s+(?:week|woche)\b", "last_week"),
        (rf"\b{_THIS}\s+(?:month|monats?)\b", "this_month"),
        (rf"\b{_LAST}\s+(?:month|monats?)\b", "last_month"),
        (rf"\b(?:{_THIS}|{_LAST})\s+(?:year|jahre?s?)\b", "year"),
    )
)


def find(text: str, today: date) -> Span | None:
    """Days named in `text`, in German or English, seen from `today`; None when it names none."""
    explicit = _explicit(text, today)
    if explicit:
        return Span(min(explicit), max(explicit))
    counted = _LAST_N.search(text)
    if counted:
        number = _NUMBERS.get(counted[1].lower()) or int(counted[1]) or 1
        return last(today, number * _UNIT_DAYS[counted[2].lower()])
    for pattern, kind in _RULES:
        if pattern.search(text):
            return _relative(kind, today)
    return _weekday(text, today)


def last(today: date, days: int) -> Span:
    """Give the last `days` days up to `today`."""
    return Span(today - timedelta(days=days - 1), today)


def _explicit(text: str, today: date) -> list[date]:
    found: list[date] = []
    parts = [(y, m, d) for y, m, d in _ISO.findall(text)]
    parts += [(y or str(today.year), m, d) for d, m, y in _DOTTED.findall(text)]
    for year, month, day in parts:
        try:
            found.append(date(int(year), int(month), int(day)))
        except ValueError:
            continue
    return found


def _relative(kind: str, today: date) -> Span:
    day = timedelta(days=1)
    monday = today - day * today.weekday()
    first = today.replace(day=1)
    spans = {
        "today": Span(today, today),
        "yesterday": Span(today - day, today - day),
        "before_yesterday": Span(today - 2 * day, today - 2 * day),
        "last_night": Span(today - day, today),
        "this_week": Span(monday, today),
        "last_week": Span(monday - 7 * day, monday - day),
        "this_month": Span(first, today),
        "last_month": Span((first - day).replace(day=1), first - day),
        "year": last(today, 365),
    }
    return spans[kind]


def _weekday(text: str, today: date) -> Span | None:
    lowered = text.lower()
    for number, names in enumerate(_WEEKDAYS):
        if any(re.search(rf"\b{name}", lowered) for name in names):
            day = today - timedelta(days=(today.weekday() - number) % 7)
            return Span(day, day)
    return None
