"""Puts results into German and English sentences.

Numbers stay the tool's own; only the decimal mark changes.
"""

from collections.abc import Sequence
from typing import Final

from anthropic_emulator.brain.conversation import ToolOutcome
from anthropic_emulator.brain.language import Language
from anthropic_emulator.brain.results import Findings, Row, read
from anthropic_emulator.brain.topics import Topic, named

LABEL: Final = {"de": "[Simulation]", "en": "[simulation]"}
_MAX_ROWS: Final = 14
_MAX_TEXT: Final = 1200
_MAIN_KEYS: Final = (
    *("value", "total", "sum", "average", "avg", "mean", "asleep_min", "asleep_minutes", "asleep_h"),
    *("asleep_hours", "duration_min", "duration_s", "minutes"),
)
_SUMMED_UNITS: Final = frozenset({"", "kcal", "m", "min", "km"})
_TOTALS: Final = (
    "total",
    "sum",
    "average",
    "avg",
    "mean",
    "daily_average",
    "minimum",
    "maximum",
    "min",
    "max",
)
_WORDS: Final[dict[str, tuple[str, str]]] = {
    "total": ("insgesamt", "in total"),
    "sum": ("insgesamt", "in total"),
    "average": ("im Schnitt", "on average"),
    "avg": ("im Schnitt", "on average"),
    "mean": ("im Schnitt", "on average"),
    "daily_average": ("im Tagesschnitt", "on average per day"),
    "minimum": ("mindestens", "at least"),
    "maximum": ("höchstens", "at most"),
    "asleep": ("geschlafen", "asleep"),
    "in_bed": ("im Bett", "in bed"),
    "awake": ("wach", "awake"),
    "core": ("Kernschlaf", "core"),
    "deep": ("Tiefschlaf", "deep"),
    "rem": ("REM", "REM"),
    "duration": ("Dauer", "duration"),
    "energy": ("Energie", "energy"),
    "distance": ("Strecke", "distance"),
    "slope_per_day": ("Änderung pro Tag", "change per day"),
    "slope_per_week": ("Änderung pro Woche", "change per week"),
    "change": ("Änderung", "change"),
    "direction": ("Richtung", "direction"),
}
_SUFFIXES: Final = {
    "_s": "s",
    "_seconds": "s",
    "_min": "min",
    "_minutes": "min",
    "_h": "h",
    "_hours": "h",
    "_m": "m",
    "_km": "km",
    "_kcal": "kcal",
    "_bpm": "bpm",
    "_percent": "%",
    "_pct": "%",
}
_GREETINGS: Final = {
    "de": (
        "{label} Hallo! Ich stehe hier für Claude ein und enthalte keine KI. Frag mich nach Schritten, "
        "aktiver Energie, Schlaf, Trainings oder Trends, dann lese ich deine Daten und nenne dir die Zahlen."
    ),
    "en": (
        "{label} Hello! I stand in for Claude here and contain no AI. Ask me about steps, active energy, "
        "sleep, workouts or trends, and I will read your data and tell you the numbers."
    ),
}
_LOOKING: Final = {"de": "Ich sehe nach: {topics}.", "en": "Let me look up your {topics}."}
_NO_TOOL: Final = {
    "de": "{label} Du fragst nach: {topics}. Dafür wurde mir kein Werkzeug angeboten.",
    "en": "{label} You are asking about {topics}, but I was offered no tool for that.",
}
_THOUGHTS: Final = {
    "de": (
        "Gefragt ist: {topics}. Zeitraum {start} bis {end}.",
        "Die Ergebnisse sind da: {topics}. Ich fasse zusammen.",
    ),
    "en": (
        "The question is about {topics}, {start} to {end}.",
        "The results are in: {topics}. I will sum them up.",
    ),
}


def _say(pair: tuple[str, str], language: Language) -> str:
    return pair[0 if language == "de" else 1]


def topic_names(topics: Sequence[Topic], language: Language) -> str:
    """Names of topics as a list in words."""
    names = [topic.de if language == "de" else topic.en for topic in topics]
    joiner = " und " if language == "de" else " and "
    return joiner.join(filter(None, (", ".join(names[:-1]), names[-1] if names else "")))


def greeting(language: Language) -> str:
    """Answer to anything that is no question about data."""
    return _GREETINGS[language].format(label=LABEL[language])


def looking(topics: Sequence[Topic], language: Language) -> str:
    """Sentence before the tool calls."""
    return _LOOKING[language].format(topics=topic_names(topics, language))


def no_tool(topics: Sequence[Topic], language: Language) -> str:
    """Answer when no offered tool fits."""
    return _NO_TOOL[language].format(label=LABEL[language], topics=topic_names(topics, language))


def thought(topics: Sequence[Topic], start: str, end: str, language: Language, *, after_tools: bool) -> str:
    """Text of a thinking block."""
    names = topic_names(topics, language) or (
        "nichts Bestimmtes" if language == "de" else "nothing in particular"
    )
    return _THOUGHTS[language][after_tools].format(topics=names, start=start, end=end)


def number(value: float, language: Language) -> str:
    """Write a number as users read it: no thousands mark, at most two decimals, a comma in German."""
    text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return text.replace(".", ",") if language == "de" else text


def answer(outcomes: Sequence[ToolOutcome], language: Language) -> str:
    """Answer made of all tool results."""
    said = [_outcome(outcome, language) for outcome in outcomes]
    return f"{LABEL[language]} " + "\n\n".join(said)


def _outcome(outcome: ToolOutcome, language: Language) -> str:
    subject = _subject(outcome, language)
    if outcome.failed:
        text = ("Das ließ sich nicht lesen", "That could not be read")
        return f"{subject}: {_say(text, language)} ({outcome.content.strip()[:_MAX_TEXT]})."
    findings = read(outcome.content)
    if findings.text is not None:
        return f"{subject}: {findings.text[:_MAX_TEXT] or _say(('keine Angaben', 'nothing'), language)}"
    body = _body(findings, language)
    return f"{subject}: {body}"


def _subject(outcome: ToolOutcome, language: Language) -> str:
    metric = outcome.arguments.get("metric")
    topic = named(str(metric)) if metric else None
    if topic is None:
        topic = next((named(name) for name in ("sleep", "workouts") if name[:5] in outcome.name), None)
    name = topic_names([topic], language) if topic else str(metric or outcome.name)
    name = name[:1].upper() + name[1:]
    start, end = outcome.arguments.get("start"), outcome.arguments.get("end")
    if not start or not end:
        return name
    if start == end:
        return f"{name} {_say(('am', 'on'), language)} {start}"
    return f"{name} {_say(('vom', 'from'), language)} {start} {_say(('bis', 'to'), language)} {end}"


def _body(findings: Findings, language: Language) -> str:
    unit = findings.words.get("unit", "")
    unit = "" if unit == "count" else unit
    parts: list[str] = []
    if findings.rows:
        parts.append("; ".join(_row(row, unit, language) for row in findings.rows[-_MAX_ROWS:]))
    totals = _totals(findings, unit, language)
    if totals:
        parts.append(totals[:1].upper() + totals[1:] if parts else totals)
    if not parts:
        return _say(
            ("Es gibt keine Daten für diesen Zeitraum.", "There is no data for this period."), language
        )
    source = ", ".join(findings.words[key] for key in ("time_zone", "source") if findings.words.get(key))
    return ". ".join(parts) + (f" ({source})." if source else ".")


def _word(key: str, language: Language) -> str:
    plain = key.replace("_", " ")
    return _say(_WORDS.get(key, (plain, plain)), language)


def _key(key: str, language: Language) -> tuple[str, str]:
    """Give a field's name in words, and the unit its suffix tells."""
    for suffix, unit in _SUFFIXES.items():
        if key.endswith(suffix):
            key = key[: -len(suffix)]
            return _word(key, language), unit
    return _word(key, language), ""


def _field(key: str, value: float, unit: str, language: Language) -> str:
    name, own = _key(key, language)
    amount = f"{number(value, language)} {own or unit}".strip()
    return amount if key in ("value", "value1") else f"{name} {amount}"


def _row(row: Row, unit: str, language: Language) -> str:
    words = [word for key, word in row.words.items() if key in ("activity", "type", "name", "stage")]
    only_unit = unit if len(row.numbers) == 1 else ""
    fields = [_field(key, value, only_unit, language) for key, value in row.numbers.items()]
    head = " ".join(filter(None, (row.label, *words)))
    told = ", ".join(fields) if fields else _say(("keine Daten", "no data"), language)
    return f"{head}: {told}" if head else told


def _totals(findings: Findings, unit: str, language: Language) -> str:
    """Give the tool's own totals if it has any, else those of its rows."""
    scalars = dict(findings.numbers)
    if not findings.rows:
        return ", ".join(_field(key, value, unit, language) for key, value in scalars.items())
    own = {
        key: value for key, value in scalars.items() if key in _TOTALS or key.startswith(("slope", "change"))
    }
    if own:
        return ", ".join(_field(key, value, unit, language) for key, value in own.items())
    key = _main_key(findings.rows)
    values = [row.numbers[key] for row in findings.rows if key in row.numbers] if key else []
    if key is None or len(values) <= 1:
        return ""
    own_unit = _key(key, language)[1] or unit
    mean = _field("average", round(sum(values) / len(values), 1), own_unit, language)
    if own_unit not in _SUMMED_UNITS:
        return mean
    return f"{_field('total', round(sum(values), 2), own_unit, language)}, {mean}"


def _main_key(rows: Sequence[Row]) -> str | None:
    keys = [key for row in rows for key in row.numbers]
    return next((key for key in _MAIN_KEYS if key in keys), keys[0] if keys else None)
