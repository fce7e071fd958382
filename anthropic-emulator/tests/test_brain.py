"""The rules that stand in for a model: which tool, which arguments, which words."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from anthropic_emulator.brain import dates, results
from anthropic_emulator.brain.language import detect

from .client import DATES, METRICS, TOOLS, Emulator, ask

TUESDAY = date(2026, 11, 24)
CONTEXT = "Today is 2026-11-24 (Europe/Berlin)."


async def calls(emulator: Emulator, question: str, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    message = await emulator.say(question, **{"system": CONTEXT, "tools": TOOLS, **fields})
    return [(block["name"], block["input"]) for block in message["content"] if block["type"] == "tool_use"]


def metric(name: str, start: str, end: str) -> tuple[str, dict[str, Any]]:
    return "get_daily_metrics", {"metric": name, "start": start, "end": end}


def between(tool: str, start: str, end: str) -> tuple[str, dict[str, Any]]:
    return tool, {"start": start, "end": end}


WEEK = ("2026-11-18", "2026-11-24")
LAST_WEEK = ("2026-11-16", "2026-11-22")
YESTERDAY = ("2026-11-23", "2026-11-23")

QUESTIONS: list[tuple[str, list[tuple[str, dict[str, Any]]]]] = [
    ("How many steps did I take yesterday?", [metric("steps", *YESTERDAY)]),
    ("Wie viele Schritte bin ich gestern gegangen?", [metric("steps", *YESTERDAY)]),
    ("How much active energy did I burn last week?", [metric("active_energy", *LAST_WEEK)]),
    ("Wie viele Kalorien habe ich letzte Woche verbrannt?", [metric("active_energy", *LAST_WEEK)]),
    ("How did I sleep last night?", [between("get_sleep", "2026-11-23", "2026-11-24")]),
    ("Wie habe ich letzte Nacht geschlafen?", [between("get_sleep", "2026-11-23", "2026-11-24")]),
    ("Show my workouts this week", [between("get_workouts", "2026-11-23", "2026-11-24")]),
    (
        "Welche Trainings hatte ich in den letzten 14 Tagen?",
        [between("get_workouts", "2026-11-11", "2026-11-24")],
    ),
    ("What is my resting heart rate?", [metric("resting_heart_rate", *WEEK)]),
    ("Wie ist mein Ruhepuls?", [metric("resting_heart_rate", *WEEK)]),
    ("Wie war mein Puls am Montag?", [metric("heart_rate", *YESTERDAY)]),
    ("What was my weight on 2026-11-20?", [metric("body_mass", "2026-11-20", "2026-11-20")]),
    ("Wie viele Schritte vom 1.11. bis 5.11.2026?", [metric("steps", "2026-11-01", "2026-11-05")]),
    (
        "How are my steps trending over the last 6 weeks?",
        [("get_trend", {"metric": "steps", "weeks": 6})],
    ),
    ("Wie hat sich mein Gewicht entwickelt?", [("get_trend", {"metric": "body_mass", "weeks": 4})]),
    (
        "Compare my steps and how I slept last week",
        [("get_trend", {"metric": "steps", "weeks": 1}), between("get_sleep", *LAST_WEEK)],
    ),
    ("Steps and sleep last week?", [metric("steps", *LAST_WEEK), between("get_sleep", *LAST_WEEK)]),
    (
        "Wie war mein Schlaf und wie viele Schritte hatte ich vorgestern?",
        [between("get_sleep", "2026-11-22", "2026-11-22"), metric("steps", "2026-11-22", "2026-11-22")],
    ),
    ("Hello, who are you?", []),
    ("Danke, das war hilfreich", []),
]


@pytest.mark.parametrize(("question", "expected"), QUESTIONS, ids=[question for question, _ in QUESTIONS])
async def test_a_question_calls_the_right_tools(
    emulator: Emulator, question: str, expected: list[tuple[str, dict[str, Any]]]
) -> None:
    assert await calls(emulator, question) == expected


async def test_parallel_calls_can_be_forbidden(emulator: Emulator) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert await calls(emulator, "Steps and sleep last week?", tool_choice=choice) == [
        metric("steps", *LAST_WEEK)
    ]


async def test_a_forced_tool_is_called_whatever_is_asked(emulator: Emulator) -> None:
    forced = {"type": "tool", "name": "get_workouts"}
    message = await emulator.say("Hello", system=CONTEXT, tools=TOOLS, tool_choice=forced)
    assert [block["type"] for block in message["content"]] == ["tool_use"]
    assert message["content"][0]["input"] == {"start": WEEK[0], "end": WEEK[1]}
    assert await calls(emulator, "Steps yesterday?", tool_choice={"type": "none"}) == []


async def test_without_a_fitting_tool_it_says_so(emulator: Emulator) -> None:
    message = await emulator.say("Wie viele Schritte waren es gestern?", tools=TOOLS[1:3])
    assert message["stop_reason"] == "end_turn"
    assert "kein Werkzeug" in message["content"][0]["text"]


async def test_arguments_follow_the_schema_that_is_offered(emulator: Emulator) -> None:
    properties = {
        "metrics": {"type": "array", "items": {"enum": [name.upper() for name in METRICS]}},
        "from_date": DATES,
        "to_date": {"anyOf": [{"type": "null"}, DATES]},
        "granularity": {"enum": ["hour", "day"], "default": "day"},
        "limit": {"type": "integer", "default": 25},
        "raw": {"type": "boolean"},
        "days": {"type": "integer", "maximum": 5},
        "comment": {"type": "string"},
    }
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    tools = [{"name": "health_daily", "input_schema": schema}]
    assert await calls(emulator, "steps last week", tools=tools) == [
        (
            "health_daily",
            {
                "metrics": ["STEPS"],
                "from_date": LAST_WEEK[0],
                "to_date": LAST_WEEK[1],
                "granularity": "day",
                "limit": 25,
                "raw": False,
                "days": 5,
                "comment": "steps last week",
            },
        )
    ]


async def test_today_is_the_latest_date_the_conversation_names(emulator: Emulator) -> None:
    body = ask("Steps today?", system="Today is 2026-01-01.", tools=TOOLS)
    body["messages"].append({"role": "system", "content": "Current date: 2026-06-15"})
    message = (await emulator.post(body)).json
    assert message["content"][-1]["input"]["start"] == "2026-06-15"


async def test_context_in_tags_is_no_question(emulator: Emulator) -> None:
    context = "<context>Heute ist der 2026-11-24. Schlaf, sleep, workouts.</context>"
    assert await calls(emulator, f"{context}\nHow many steps today?", system="") == [
        metric("steps", "2026-11-24", "2026-11-24")
    ]


async def test_a_follow_up_inherits_the_topic(emulator: Emulator) -> None:
    body = ask("Wie viele Schritte waren es heute?", system=CONTEXT, tools=TOOLS)
    body["messages"] += [
        {"role": "assistant", "content": "8432."},
        {"role": "user", "content": "Und gestern?"},
    ]
    message = (await emulator.post(body)).json
    assert message["content"][-1]["input"] == metric("steps", *YESTERDAY)[1]
    assert message["content"][0]["text"] == "Ich sehe nach: Schritte."


async def told(emulator: Emulator, question: str, *contents: Any, is_error: bool = False) -> str:
    """Ask, answer each call with one of `contents`, and give what is said then."""
    body = ask(question, system=CONTEXT, tools=TOOLS)
    first = (await emulator.post(body)).json
    used = [block for block in first["content"] if block["type"] == "tool_use"]
    answers = [
        {
            "type": "tool_result",
            "tool_use_id": call["id"],
            "content": content if isinstance(content, str | list) else json.dumps(content),
            "is_error": is_error,
        }
        for call, content in zip(used, contents, strict=True)
    ]
    body["messages"] += [
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": answers},
    ]
    second = (await emulator.post(body)).json
    assert second["stop_reason"] == "end_turn"
    return second["content"][0]["text"]


async def test_the_answer_has_the_numbers_of_the_result(emulator: Emulator) -> None:
    days = [{"date": "2026-11-22", "value": 8432}, {"date": "2026-11-23", "value": 10077.5}]
    result = {"metric": "steps", "unit": "count", "time_zone": "Europe/Berlin", "days": days}
    text = await told(emulator, "Wie viele Schritte waren es letzte Woche?", result)
    assert text == (
        "[Simulation] Schritte vom 2026-11-16 bis 2026-11-22: insgesamt 18509,5, im Schnitt 9254,8. "
        "2026-11-22: 8432; 2026-11-23: 10077,5 (Europe/Berlin)."
    )
    english = await told(emulator, "How many steps last week?", result)
    assert english.startswith(
        "[simulation] Steps from 2026-11-16 to 2026-11-22: in total 18509.5, on average"
    )


PERIOD = {"start": "2026-11-18", "end": "2026-11-24", "time_zone": "Europe/Berlin"}
STEPS = {
    **PERIOD,
    "metric": "steps",
    "unit": "count",
    "days": 7,
    "days_with_data": 3,
    "sources": ["Anna's Apple Watch"],
    "partial_day": "2026-11-24",
    "summary": {
        "mean_per_day": 9000,
        "lowest_day": {"date": "2026-11-22", "value": 8000},
        "highest_day": {"date": "2026-11-23", "value": 10000},
        "total": 18000,
    },
    "missing_days": ["2026-11-18..2026-11-21"],
    "daily": [
        {"date": "2026-11-22", "weekday": "Sun", "value": 8000},
        {"date": "2026-11-23", "weekday": "Mon", "value": 10000},
        {"date": "2026-11-24", "weekday": "Tue", "value": 3210},
    ],
}
SLEEP = {
    **PERIOD,
    "units": {"asleep": "min", "stages": "min", "awake": "min", "in_bed": "min"},
    "averages": {"asleep": 431, "deep": 62},
    "missing_nights": [],
    "nightly": [
        {"night": "2026-11-23", "weekday": "Mon", "asleep": 440, "from": "23:10", "to": "06:55", "deep": 60},
        {"night": "2026-11-24", "weekday": "Tue", "asleep": 422, "from": "23:40", "to": "06:50", "deep": 64},
    ],
}
WORKOUTS = {
    **PERIOD,
    "units": {"duration": "min", "energy": "kcal", "distance": "km"},
    "count": 1,
    "totals": [{"activity": "running", "count": 1, "duration": 32, "energy": 310, "distance": 5.02}],
    "workouts": [
        {"date": "2026-11-20", "time": "07:10", "activity": "running", "duration": 32, "distance": 5.02}
    ],
}
TREND = {
    **PERIOD,
    "metric": "body_mass",
    "unit": "kg",
    "enough_data": True,
    "direction": "falling",
    "change_per_week": -0.12,
    "from": 82.4,
    "to": 81.1,
    "weekly_means": [{"start": "2026-11-10", "mean": 81.3}, {"start": "2026-11-17", "mean": 81.1}],
}


async def test_daily_metrics_are_told_with_extremes_and_gaps(emulator: Emulator) -> None:
    assert await told(emulator, "Wie viele Schritte waren es?", STEPS) == (
        "[Simulation] Schritte vom 2026-11-18 bis 2026-11-24: im Schnitt pro Tag 9000, "
        "am wenigsten 8000 (2026-11-22), am meisten 10000 (2026-11-23), insgesamt 18000. "
        "2026-11-22: 8000; 2026-11-23: 10000; 2026-11-24 (bisher): 3210. "
        "Keine Daten: 2026-11-18..2026-11-21 (Anna's Apple Watch, Europe/Berlin)."
    )


async def test_sleep_is_told_by_night(emulator: Emulator) -> None:
    assert await told(emulator, "How did I sleep last night?", SLEEP) == (
        "[simulation] Sleep from 2026-11-23 to 2026-11-24: asleep 431 min, deep 62 min. "
        "2026-11-23: asleep 440 min, deep 60 min; 2026-11-24: asleep 422 min, deep 64 min (Europe/Berlin)."
    )


async def test_workouts_are_told_one_by_one(emulator: Emulator) -> None:
    assert await told(emulator, "Which workouts this week?", WORKOUTS) == (
        "[simulation] Workouts from 2026-11-23 to 2026-11-24: "
        "2026-11-20 running: duration 32 min, distance 5.02 km (Europe/Berlin)."
    )


async def test_a_trend_is_told_with_its_direction(emulator: Emulator) -> None:
    assert await told(emulator, "Wie entwickelt sich mein Gewicht?", TREND) == (
        "[Simulation] Gewicht: fallend. Änderung pro Woche -0,12 kg, von 82,4 kg, auf 81,1 kg. "
        "2026-11-10: im Schnitt 81,3 kg; 2026-11-17: im Schnitt 81,1 kg (Europe/Berlin)."
    )
    short = {**PERIOD, "enough_data": False, "reason": "2 weeks have data"}
    text = await told(emulator, "Wie entwickelt sich mein Gewicht?", short)
    assert text == "[Simulation] Gewicht: zu wenig Daten für einen Trend (2 weeks have data) (Europe/Berlin)."


async def test_two_results_are_told_in_their_order(emulator: Emulator) -> None:
    text = await told(emulator, "Steps and sleep last week?", {"total": 50123}, {"asleep_min": 431})
    first, second = text.split("\n\n")
    assert "Steps" in first
    assert "50123" in first
    assert "Sleep" in second
    assert "asleep 431 min" in second


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("You walked 8432 steps.", "You walked 8432 steps."),
        ([{"type": "text", "text": '{"total": 7}'}], "in total 7"),
        ({}, "There is no data for this period."),
        ({"days": []}, "There is no data for this period."),
        ("", "nothing"),
    ],
)
async def test_results_of_other_shapes_are_told_too(emulator: Emulator, content: Any, part: str) -> None:
    assert part in await told(emulator, "Steps yesterday?", content)


async def test_a_failed_tool_is_told_as_such(emulator: Emulator) -> None:
    text = await told(emulator, "Steps yesterday?", "database is asleep", is_error=True)
    assert "could not be read (database is asleep)" in text


@pytest.mark.parametrize(
    "value",
    [
        [{"date": "2026-11-20", "value": 5}],
        {"rows": [{"date": "2026-11-20", "value": 5}]},
        {"data": {"2026-11-20": 5}},
        {"columns": ["date", "value"], "rows": [["2026-11-20", 5]]},
        {"values": [["2026-11-20", 5]]},
        {"a": {"b": [{"day": "2026-11-20", "value": 5}]}},
    ],
)
def test_tables_of_many_shapes_are_read(value: object) -> None:
    rows = results.read(json.dumps(value)).rows
    assert [(row.label, dict(row.numbers)) for row in rows] == [("2026-11-20", {"value": 5})]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("today", (TUESDAY, TUESDAY)),
        ("diesen Monat", (date(2026, 11, 1), TUESDAY)),
        ("last month", (date(2026, 10, 1), date(2026, 10, 31))),
        ("in den letzten drei Wochen", (date(2026, 11, 4), TUESDAY)),
        ("the last 30 days", (date(2026, 10, 26), TUESDAY)),
        ("on Tuesday", (TUESDAY, TUESDAY)),
        ("am Mittwoch", (date(2026, 11, 18), date(2026, 11, 18))),
        ("on 2026-02-31", None),
        ("ever", None),
    ],
)
def test_days_are_understood(text: str, expected: tuple[date, date] | None) -> None:
    found = dates.find(text, TUESDAY)
    assert (found and (found.start, found.end)) == expected


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        (["Wie geht es dir?"], "de"),
        (["How are you?"], "en"),
        (["8432"], "en"),
        (["8432", "Wie viele Schritte?"], "de"),
        (["Größe"], "de"),
    ],
)
def test_languages_are_told_apart(texts: list[str], language: str) -> None:
    assert detect(texts) == language


@pytest.mark.parametrize("question", ["Hallo", "Hi there", "Tell me a joke"])
async def test_small_talk_says_that_it_is_a_simulation(emulator: Emulator, question: str) -> None:
    message = await emulator.say(question, tools=TOOLS)
    assert message["content"][0]["text"].lower().startswith("[simulation]")
