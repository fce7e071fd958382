"""What a question is about: metrics, sleep, workouts; and whether it asks for a trend."""

import re
from typing import Final

import msgspec


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """A subject: `name` is the metric's name, or `sleep`, or `workouts`."""

    name: str
    pattern: re.Pattern[str]
    de: str
    en: str
    tool_words: tuple[str, ...] = ("daily", "metric")
    """Words that a fitting tool's name contains, best first."""


def _topic(name: str, pattern: str, de: str, en: str, *tool_words: str) -> Topic:
    compiled = re.compile(pattern, re.IGNORECASE)
    if not tool_words:
        return Topic(name=name, pattern=compiled, de=de, en=en)
    return Topic(name=name, pattern=compiled, de=de, en=en, tool_words=tool_words)


TOPICS: Final = (
    _topic("steps", r"\bschritt|\bsteps?\b|\bwalk(?:ed|ing)?\b", "Schritte", "steps"),
    _topic(
        "active_energy",
        r"\baktiv\w*\s?(?:energie|kalorien)|\bactive (?:energy|calories)|\bkalorien|\bcalories|\bkcal\b"
        r"|\bverbrannt|\bburn(?:ed|t)?\b|\benergieverbrauch|\bactive_energy\b",
        "aktive Energie",
        "active energy",
    ),
    _topic("basal_energy", r"\bgrundumsatz|\bbasal|\bresting energy", "Grundumsatz", "basal energy"),
    _topic(
        "distance_walking_running",
        r"\bdistan[zc]|\bstrecke|\bkilometer|\bhow far\b|\bwie weit\b",
        "Strecke",
        "distance",
    ),
    _topic(
        "flights_climbed",
        r"\bstockwerk|\btreppe|\bflights?\b|\bstairs?\b|\bfloors?\b",
        "Stockwerke",
        "flights",
    ),
    _topic(
        "exercise_time",
        r"\b(?:trainings|bewegungs)(?:minuten|zeit)|\bexercise (?:minutes|time)|\baktive minuten",
        "Trainingszeit",
        "exercise time",
    ),
    _topic("resting_heart_rate", r"\bruhepuls|\bresting (?:heart|pulse)", "Ruhepuls", "resting heart rate"),
    _topic(
        "hrv_sdnn",
        r"\bhrv|\bherz(?:frequenz|raten)variabilit|\bheart rate variab",
        "Herzfrequenzvariabilität",
        "heart rate variability",
    ),
    _topic(
        "heart_rate", r"\bpuls\b|\bherzfrequenz\b|\bheart ?rate\b(?! variab)|\bbpm\b", "Puls", "heart rate"
    ),
    _topic("body_mass", r"\bgewicht|\bweight\b|\bweigh|\bbody mass|\bwiege\b", "Gewicht", "body mass"),
    _topic("vo2_max", r"\bvo2|\bcardio fitness", "VO2max", "VO2 max"),
    _topic("respiratory_rate", r"\batemfrequenz|\brespirat|\bbreathing", "Atemfrequenz", "respiratory rate"),
    _topic("oxygen_saturation", r"\bsauerstoff|\boxygen|\bspo2", "Sauerstoffsättigung", "oxygen saturation"),
    _topic(
        "body_temperature",
        r"\bk(?:ö|oe)rpertemperatur|\bbody temp|\bfieber|\bfever",
        "Temperatur",
        "temperature",
    ),
    _topic(
        "sleep",
        r"\bschlaf|\bschlief|\bgeschlafen|\bausgeschlafen|\bsle(?:ep|pt)|\btiefschlaf|\brem\b|\bnap\b",
        "Schlaf",
        "sleep",
        "sleep",
        "schlaf",
    ),
    _topic(
        "workouts",
        r"\bworkouts?\b|\btraining\b|\btrainings\b|\btrainiert|\btrained\b|\bsport\b|\bgejoggt|\bjogg|\bexercised?\b"
        r"(?! (?:minutes|time))|\b(?:a|my) runs?\b|\bläufe\b|\beinheiten",
        "Trainings",
        "workouts",
        "workout",
        "training",
    ),
)
_BY_NAME: Final = {topic.name: topic for topic in TOPICS}
_TREND: Final = re.compile(
    r"\btrend|\bentwickl|\bentwickelt|\bverlauf|\bveränder|\bverbesser|\bverschlechter|\bvergleich|\bchang(?:e|ed|ing)"
    r"|\bimprov|\bprogress|\bcompare|\bgetting (?:better|worse)|\bover time\b|\bbesser geworden",
    re.IGNORECASE,
)
_COVERED_BY: Final = {"heart_rate": "resting_heart_rate"}


def find(text: str) -> list[Topic]:
    """Topics of `text` in the order it names them; a general one gives way to its special form."""
    found = [(match.start(), topic) for topic in TOPICS if (match := topic.pattern.search(text))]
    names = {topic.name for _, topic in found}
    kept = [(start, topic) for start, topic in found if _COVERED_BY.get(topic.name) not in names]
    return [topic for _, topic in sorted(kept, key=lambda pair: pair[0])]


def wants_trend(text: str) -> bool:
    """Whether `text` asks how something developed."""
    return _TREND.search(text) is not None


def named(name: str) -> Topic | None:
    """Give the topic of a metric's name, or None."""
    return _BY_NAME.get(name)
