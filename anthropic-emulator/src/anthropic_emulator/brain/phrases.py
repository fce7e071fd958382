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
_MAIN_KEYS: Final = ("value", "total", "sum", "average", "avg", "mean", "asleep", "duration")
_SUMMED_UNITS: Final = frozenset({"", "kcal", "m", "min", "km"})
_TOTALS: Final = (
    *("mean_per_day", "total", "sum", "average", "avg", "mean", "daily_average", "minimum", "maximum"),
    *("change_per_week", "change_percent", "from", "to"),
)
_STAGES: Final = frozenset({"core", "deep", "rem", "unspecified"})
_WORDS: Final[dict[str, tuple[str, str]]] = {
    "total": ("insgesamt", "in total"),
    "sum": ("insgesamt", "in total"),
    "average": ("im Schnitt", "on average"),
    "avg": ("im Schnitt", "on average"),
    "mean": ("im Schnitt", "on average"),
    "mean_per_day": ("im Schnitt pro Tag", "on average per day"),
    "daily_average": ("im Schnitt pro Tag", "on average per day"),
    "minimum": ("mindestens", "at least"),
    "maximum": ("höchstens", "at most"),
    "last": ("zuletzt", "latest"),
    "count": ("Anzahl", "count"),
    "asleep": ("geschlafen", "asleep"),
    "in_bed": ("im Bett", "in bed"),
    "awake": ("wach", "awake"),
    "core": ("Kernschlaf", "core"),
    "deep": ("Tiefschlaf", "deep"),
    "rem": ("REM", "REM"),
    "unspecified": ("ohne Phase", "no stage"),
    "duration": ("Dauer", "duration"),
    "energy": ("Energie", "energy"),
    "distance": ("Strecke", "distance"),
    "days_with_data": ("Tage mit Daten", "days with data"),
    "change_per_week": ("Änderung pro Woche", "change per week"),
    "change_percent": ("Änderung", "change"),
    "from": ("von", "from"),
    "to": ("auf", "to"),
    "rising": ("steigend", "rising"),
    "falling": ("fallend", "falling"),
    "no clear trend": ("kein klarer Trend", "no clear trend"),
}
_SUFFIXES: Final = {
    "_s": "s",
    "_min": "min",
    "_minutes": "min",
    "_h": "h",
    "_m": "m",
    "_km": "km",
    "_kcal": "kcal",
    "_bpm": "bpm",
    "_percent": "%",
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
    parts = [part for part in (_trend(findings, language), _totals(findings, language)) if part]
    rows = findings.rows[-_MAX_ROWS:]
    if rows:
        partial = findings.words.get("partial_day")
        parts.append("; ".join(_row(row, findings, partial, language) for row in rows))
    if not parts:
        return _say(
            ("Es gibt keine Daten für diesen Zeitraum.", "There is no data for this period."), language
        )
    missing = findings.lists.get("missing_days") or findings.lists.get("missing_nights")
    if missing:
        parts.append(f"{_say(('keine Daten', 'no data'), language)}: {', '.join(missing[:_MAX_ROWS])}")
    sources = [*findings.lists.get("sources", ()), findings.words.get("source", "")]
    origin = ", ".join(filter(None, (*sources, findings.words.get("time_zone"))))
    sentences = [part[:1].upper() + part[1:] for part in parts[1:]]
    return ". ".join((parts[0], *sentences)) + (f" ({origin})." if origin else ".")


def _trend(findings: Findings, language: Language) -> str:
    """Say what a trend tool found, or why it found nothing."""
    if findings.words.get("enough_data") == "false":
        text = _say(("zu wenig Daten für einen Trend", "too little data for a trend"), language)
        return f"{text} ({findings.words.get('reason', '')})"
    direction = findings.words.get("direction")
    return _say(_WORDS.get(direction, (direction, direction)), language) if direction else ""


def _word(key: str, language: Language) -> str:
    plain = key.replace("_", " ")
    return _say(_WORDS.get(key, (plain, plain)), language)


def _unit(key: str, findings: Findings) -> str:
    """Give the unit the result names for a field, or the one the field's own name ends in."""
    suffix = next((unit for end, unit in _SUFFIXES.items() if key.endswith(end)), "")
    named_unit = findings.words.get(f"units.{'stages' if key in _STAGES else key}")
    counted = key == "count" or key.startswith(("days", "nights"))
    unit = suffix or named_unit or ("" if counted else findings.words.get("unit", ""))
    return "" if unit == "count" else unit


def _field(key: str, value: float, findings: Findings, language: Language) -> str:
    amount = f"{number(value, language)} {_unit(key, findings)}".strip()
    if key in ("value", "value1"):
        return amount
    name = key if key in _WORDS else next((key[: -len(s)] for s in _SUFFIXES if key.endswith(s)), key)
    return f"{_word(name, language)} {amount}"


def _row(row: Row, findings: Findings, partial: str | None, language: Language) -> str:
    words = [word for key, word in row.words.items() if key in ("activity", "type", "name", "stage")]
    fields = [_field(key, value, findings, language) for key, value in row.numbers.items()]
    if partial and row.label == partial:
        words.append(_say(("(bisher)", "(so far)"), language))
    head = " ".join(filter(None, (row.label, *words)))
    told = ", ".join(fields) if fields else _say(("keine Daten", "no data"), language)
    return f"{head}: {told}" if head else told


def _totals(findings: Findings, language: Language) -> str:
    """Give the tool's own totals if it has any, else those of its rows; nothing about a single row."""
    if len(findings.rows) == 1:
        return ""
    own: list[str] = []
    for path, value in findings.numbers.items():
        group, _, key = path.rpartition(".")
        if not findings.rows or key in _TOTALS or group == "averages":
            own.append(_extreme(group, value, findings, language) or _field(key, value, findings, language))
        elif group.endswith(("lowest_day", "highest_day")):
            own.append(_extreme(group, value, findings, language))
    return ", ".join(own) if own or not findings.rows else _row_totals(findings, language)


def _extreme(group: str, value: float, findings: Findings, language: Language) -> str:
    """Say which day was the lowest or the highest; empty for other groups."""
    kinds = {"lowest_day": ("am wenigsten", "lowest"), "highest_day": ("am meisten", "highest")}
    kind = kinds.get(group.rpartition(".")[2])
    if kind is None:
        return ""
    day = findings.words.get(f"{group}.date", "")
    return f"{_say(kind, language)} {number(value, language)} ({day})"


def _row_totals(findings: Findings, language: Language) -> str:
    keys = [key for row in findings.rows for key in row.numbers]
    key = next((key for key in _MAIN_KEYS if key in keys), keys[0] if keys else "")
    values = [row.numbers[key] for row in findings.rows if key in row.numbers]
    if not values:
        return ""
    unit = _unit(key, findings)
    mean = (
        f"{_word('average', language)} {number(round(sum(values) / len(values), 1), language)} {unit}".strip()
    )
    if unit not in _SUMMED_UNITS or key in ("average", "avg", "mean"):
        return mean
    return (
        f"{_word('total', language)} {number(round(sum(values), 2), language)} {unit}".strip() + f", {mean}"
    )
