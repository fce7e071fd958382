"""What the coach can look up: daily metrics, workouts, sleep, trends.

Every result names period, time zone, units and sources, and says which days have no data: a day without data
is missing, never zero. Texts that people or devices wrote (source names, activities, notes) appear only as
JSON strings, without characters that nobody sees, cut to a length.

A user may have switched weight and energy figures off (`eating_disorder` in the profile, read at every call,
so that it counts at once). Then the tools tell none of WITHHELD, nor what energy a workout took.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from itertools import groupby
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from agent_backend.db import health, profiles
from agent_backend.db.metrics import METRICS, Metric, MetricName
from agent_backend.errors import ModelRetry
from agent_backend.tools.base import ToolContext
from agent_backend.tools.function import tool
from agent_backend.tools.texts import shown
from agent_backend.tools.trend import MIN_POINTS, trend

MAX_DAYS = 400
DAILY_UP_TO = 62
"""Longer periods are told by week."""
WITHHELD: frozenset[MetricName] = frozenset({"body_mass", "active_energy", "basal_energy"})
MAX_WORKOUTS = 30
MAX_ACTIVITIES = 20
MIN_DAYS_PER_WEEK = 3
"""Of a cumulative metric; what is measured now and then, such as weight, may have one."""
_SOURCE_LENGTH = 60
_NOTE_LENGTH = 120
_ACTIVITY_LENGTH = 60
_WITHHELD = "Weight and energy figures are switched off for this user."
_ASLEEP = ("core", "deep", "rem", "asleep")

Start = Annotated[dt.date, "First day, YYYY-MM-DD, in the person's time zone"]
End = Annotated[dt.date, "Last day (included), YYYY-MM-DD; at most 400 days after the first"]


@tool
async def get_daily_metrics(
    context: ToolContext, metric: Annotated[MetricName, "What to look up"], start: Start, end: End
) -> dict[str, Any]:
    """Look up one health metric per day, with units, sources and the days that have no data.

    Cumulative metrics (steps, energy, distance, flights, exercise time) give a `value` per day, overlapping
    devices counted once; the others give avg, min, max and last, and in avg each ten minutes with samples
    weigh alike. Up to 62 days are listed by day, longer periods by week. Today is not over: it is named as
    `partial_day` and left out of the summary.
    """
    end = _checked_end(context, start, end)
    about = METRICS[metric]
    if metric in WITHHELD and await _switched_off(context):
        return {**_period(context, start, end), "metric": metric, "withheld": _WITHHELD}
    days = await health.daily(context.db, context.user_id, metric, start, end, context.time_zone)
    today = context.now.date()
    whole = [day for day in days if day.date != today] if about.cumulative else days
    result = {
        **_period(context, start, end),
        "metric": metric,
        "unit": about.unit,
        "days": (end - start).days + 1,
        "days_with_data": len(days),
        "sources": _sources(name for day in days for name in day.sources),
    }
    if about.cumulative and start <= today <= end:
        result["partial_day"] = today
    if whole:
        result["summary"] = _summary(whole, about)
    if (end - start).days < DAILY_UP_TO:
        result["missing_days"] = _gaps(start, end, {day.date for day in days})
        result["daily"] = [_day(day, about) for day in days]
    else:
        result["weekly"] = [
            {"start": first, "days_with_data": len(week), **_summary(week, about, brief=True)}
            for first, week in _by_week(whole)
        ]
    return result


@tool
async def get_workouts(
    context: ToolContext,
    start: Start,
    end: End,
    activity: Annotated[
        Annotated[str, Meta(max_length=60)] | None, "Only this activity, e.g. running; omit for all"
    ] = None,
) -> dict[str, Any]:
    """List workouts with start, duration, energy and distance, and totals per activity.

    A workout that a better device recorded too is marked `duplicate` and left out of the totals. At most the
    30 latest are listed; the totals count all.
    """
    end = _checked_end(context, start, end)
    found = await health.workouts(context.db, context.user_id, start, end, context.time_zone)
    without_energy = await _switched_off(context)
    if without_energy:
        found = [msgspec.structs.replace(each, energy_kcal=None) for each in found]
    chosen = [each for each in found if activity is None or _folded(each.activity) == _folded(activity)]
    result: dict[str, Any] = {
        **_period(context, start, end),
        "count": sum(not each.duplicate for each in chosen),
        "totals": _totals(chosen, without_energy=without_energy),
        "workouts": [_workout(each, ZoneInfo(context.time_zone)) for each in chosen[-MAX_WORKOUTS:]],
    }
    if len(chosen) > MAX_WORKOUTS:
        result["earlier_not_listed"] = len(chosen) - MAX_WORKOUTS
    if activity is not None:
        result["activity"] = shown(activity, _ACTIVITY_LENGTH)
        result["other_activities"] = [
            shown(name, _ACTIVITY_LENGTH)
            for name in sorted({each.activity for each in found if each not in chosen})[:MAX_ACTIVITIES]
        ]
    return result


@tool
async def get_sleep(context: ToolContext, start: Start, end: End) -> dict[str, Any]:
    """Look up sleep per night: minutes asleep, by stage (core, deep, rem), awake, in bed; from when to when.

    A night is named by the day it ends in and runs from noon to noon, so a nap after noon counts to the
    next day's night. `unspecified_min` is sleep whose stage no device told. Overlapping devices are counted
    once. Up to 62 nights are listed, longer periods by week.
    """
    end = _checked_end(context, start, end)
    stages = await health.sleep(context.db, context.user_id, start, end, context.time_zone)
    zone = ZoneInfo(context.time_zone)
    nights = [_night(list(group), zone) for _, group in groupby(stages, lambda each: each.night)]
    slept = [night for night in nights if "asleep_min" in night]
    result: dict[str, Any] = {
        **_period(context, start, end),
        "nights": (end - start).days + 1,
        "nights_with_data": len(nights),
        "sources": _sources(name for each in stages for name in each.sources),
    }
    if slept:
        result["averages"] = _averages(slept)
    if (end - start).days < DAILY_UP_TO:
        result["missing_nights"] = _gaps(start, end, {night["night"] for night in nights})
        result["nightly"] = nights
    else:
        weeks = groupby(slept, lambda night: _monday(night["night"]))
        result["weekly"] = [
            {"start": first, "nights_with_data": len(week), "averages": _averages(week)}
            for first, week in ((first, list(group)) for first, group in weeks)
        ]
    return result


@tool
async def get_trend(
    context: ToolContext,
    metric: Annotated[MetricName, "What to look up"],
    weeks: Annotated[int, Meta(ge=6, le=52, description="How many weeks back from yesterday")] = 12,
) -> dict[str, Any]:
    """Tell whether a metric rises or falls over the last weeks, from weekly means.

    Weeks are blocks of seven days, the last one ends yesterday. `direction` is only rising or falling where a
    statistical test supports it. With too little data it says so: then do not speak of a trend.
    """
    about = METRICS[metric]
    needed = MIN_DAYS_PER_WEEK if about.cumulative else 1
    end = context.now.date() - dt.timedelta(days=1)
    start = end - dt.timedelta(days=7 * weeks - 1)
    if metric in WITHHELD and await _switched_off(context):
        return {**_period(context, start, end), "metric": metric, "withheld": _WITHHELD}
    days = await health.daily(context.db, context.user_id, metric, start, end, context.time_zone)
    blocks = groupby(days, lambda day: (day.date - start).days // 7)
    usable = {
        number: _mean(week)
        for number, week in ((number, list(group)) for number, group in blocks)
        if len(week) >= needed
    }
    result = {
        **_period(context, start, end),
        "metric": metric,
        "unit": about.unit,
        "days": 7 * weeks,
        "days_with_data": len(days),
        "sources": _sources(name for day in days for name in day.sources),
        "weekly_means": [
            {"start": start + dt.timedelta(days=7 * number), "mean": _round(mean, about.digits + 1)}
            for number, mean in usable.items()
        ],
    }
    return result | _tell_trend(usable, about, needed)


def _tell_trend(usable: dict[int, float], about: Metric, needed: int) -> dict[str, Any]:
    if len(usable) < MIN_POINTS:
        reason = f"{len(usable)} weeks have data on at least {needed} days; {MIN_POINTS} weeks are needed"
        return {"enough_data": False, "reason": reason}
    line = trend([(float(number), mean) for number, mean in usable.items()])
    told: dict[str, Any] = {
        "enough_data": True,
        "direction": line.direction,
        "change_per_week": _round(line.slope, about.digits + 2),
        "from": _round(line.start, about.digits + 1),
        "to": _round(line.end, about.digits + 1),
        "method": "Theil-Sen line through weekly means; direction by Mann-Kendall test at 5 %",
    }
    if line.start > 0:
        told["change_percent"] = _round(100 * (line.end - line.start) / line.start, 1)
    return told


# --- periods --------------------------------------------------------------------------------------------


def _checked_end(context: ToolContext, start: dt.date, end: dt.date) -> dt.date:
    """Return the end, not later than today. Raises ModelRetry when the period cannot be looked up."""
    today = context.now.date()
    if end < start:
        raise ModelRetry("Argument `end` is before `start`.")
    if start > today:
        raise ModelRetry(f"Argument `start` is in the future: today is {today}.")
    if start.year < 1900:
        raise ModelRetry("Argument `start` is before 1900.")
    end = min(end, today)
    if (end - start).days >= MAX_DAYS:
        raise ModelRetry(f"The period is longer than {MAX_DAYS} days; ask for a shorter one.")
    return end


async def _switched_off(context: ToolContext) -> bool:
    return (await profiles.read(context.db, context.user_id)).eating_disorder


def _period(context: ToolContext, start: dt.date, end: dt.date) -> dict[str, Any]:
    return {"start": start, "end": end, "time_zone": context.time_zone}


def _gaps(start: dt.date, end: dt.date, present: set[dt.date]) -> list[str]:
    """Return the days that are not there, runs of them as `first..last`."""
    absent = [
        number for number in range((end - start).days + 1) if start + dt.timedelta(days=number) not in present
    ]
    runs = [[n for _, n in group] for _, group in groupby(enumerate(absent), lambda pair: pair[1] - pair[0])]
    told = [(start + dt.timedelta(days=run[0]), start + dt.timedelta(days=run[-1])) for run in runs]
    return [str(first) if first == last else f"{first}..{last}" for first, last in told]


def _monday(day: dt.date) -> dt.date:
    return day - dt.timedelta(days=day.weekday())


def _by_week(days: list[health.Day]) -> list[tuple[dt.date, list[health.Day]]]:
    return [(first, list(group)) for first, group in groupby(days, lambda day: _monday(day.date))]


# --- daily metrics --------------------------------------------------------------------------------------


def _value(day: health.Day) -> float:
    """Return what a day counts as in means: its total, or its average."""
    value = day.average if day.total is None else day.total
    assert value is not None, "a day with samples has one of the two"
    return value


def _mean(days: list[health.Day]) -> float:
    return sum(map(_value, days)) / len(days)


def _day(day: health.Day, about: Metric) -> dict[str, Any]:
    told: dict[str, Any] = {"date": day.date, "weekday": f"{day.date:%a}"}
    if about.cumulative:
        return told | {"value": _round(day.total, about.digits)}
    spread = {"avg": day.average, "min": day.minimum, "max": day.maximum, "last": day.latest}
    return told | {name: _round(value, about.digits) for name, value in spread.items()}


def _summary(days: list[health.Day], about: Metric, *, brief: bool = False) -> dict[str, Any]:
    """Return mean and extremes of some days; the extremes with their dates unless brief."""
    told: dict[str, Any] = {"mean_per_day": _round(_mean(days), about.digits)}
    if brief:
        return told
    low, high = min(days, key=_value), max(days, key=_value)
    told["lowest_day"] = {"date": low.date, "value": _round(_value(low), about.digits)}
    told["highest_day"] = {"date": high.date, "value": _round(_value(high), about.digits)}
    if about.cumulative:
        told["total"] = _round(sum(map(_value, days)), about.digits)
    return told


# --- workouts -------------------------------------------------------------------------------------------


def _workout(each: health.StoredWorkout, zone: ZoneInfo) -> dict[str, Any]:
    start = each.start.astimezone(zone)
    told: dict[str, Any] = {
        "date": start.date(),
        "weekday": f"{start:%a}",
        "time": f"{start:%H:%M}",
        "activity": shown(each.activity, _ACTIVITY_LENGTH),
        "duration_min": _round(each.duration_s / 60, 0),
        "energy_kcal": _round(each.energy_kcal, 0),
        "distance_km": None if each.distance_m is None else _round(each.distance_m / 1000, 2),
        "source": shown(each.source, _SOURCE_LENGTH),
        "note": each.note and shown(each.note, _NOTE_LENGTH),
        "duplicate": each.duplicate or None,
    }
    return {name: value for name, value in told.items() if value is not None}


def _totals(workouts: list[health.StoredWorkout], *, without_energy: bool) -> list[dict[str, Any]]:
    counted = sorted((each for each in workouts if not each.duplicate), key=lambda each: each.activity)
    groups = ((activity, list(group)) for activity, group in groupby(counted, lambda each: each.activity))
    return [
        {
            "activity": shown(activity, _ACTIVITY_LENGTH),
            "count": len(group),
            "duration_min": _round(sum(each.duration_s for each in group) / 60, 0),
            **(
                {}
                if without_energy
                else {"energy_kcal": _round(sum(each.energy_kcal or 0 for each in group), 0)}
            ),
            "distance_km": _round(sum(each.distance_m or 0 for each in group) / 1000, 2),
        }
        for activity, group in list(groups)[:MAX_ACTIVITIES]
    ]


def _folded(activity: str) -> str:
    return "".join(letter for letter in activity.casefold() if letter.isalnum())


# --- sleep ----------------------------------------------------------------------------------------------


def _night(stages: list[health.SleepStage], zone: ZoneInfo) -> dict[str, Any]:
    night = stages[0].night
    told: dict[str, Any] = {"night": night, "weekday": f"{night:%a}"}
    asleep = [each for each in stages if each.stage in _ASLEEP]
    if asleep:
        told["asleep_min"] = _round(sum(each.minutes for each in asleep), 0)
        told["from"] = f"{min(each.start for each in asleep).astimezone(zone):%H:%M}"
        told["to"] = f"{max(each.end for each in asleep).astimezone(zone):%H:%M}"
    for each in stages:
        told[f"{'unspecified' if each.stage == 'asleep' else each.stage}_min"] = _round(each.minutes, 0)
    return told


def _averages(nights: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean minutes of each stage over the nights that have it."""
    averages: dict[str, Any] = {}
    for stage in ("asleep", "core", "deep", "rem", "unspecified", "awake", "in_bed"):
        key = f"{stage}_min"
        minutes = [night[key] for night in nights if key in night]
        if minutes:
            averages[key] = _round(sum(minutes) / len(minutes), 0)
    return averages


# --- texts and numbers ----------------------------------------------------------------------------------


def _sources(names: Iterable[str]) -> list[str]:
    return [shown(name, _SOURCE_LENGTH) for name in list(dict.fromkeys(names))[:10]]


def _round(value: float | None, digits: int) -> float | int | None:
    """Round to `digits` decimals; an int where there are none."""
    if value is None:
        return None
    return round(value) if digits <= 0 else round(value, digits)
