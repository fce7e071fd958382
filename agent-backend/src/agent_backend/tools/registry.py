"""Every tool an agent file can name."""

from __future__ import annotations

from agent_backend.tools.base import Tool
from agent_backend.tools.goals import get_goals, remove_goal, set_goal
from agent_backend.tools.health import get_daily_metrics, get_sleep, get_trend, get_workouts

TOOLS: dict[str, Tool] = {
    each.name: each
    for each in (
        get_daily_metrics,
        get_workouts,
        get_sleep,
        get_trend,
        get_goals,
        set_goal,
        remove_goal,
    )
}
