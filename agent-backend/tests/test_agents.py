"""Agent files: what is read, and what stops the boot, with file and line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from agent_backend.agents import Agent, Budget, folder, load_agents
from agent_backend.errors import AgentFileError
from agent_backend.prices import models

TOOLS = ["get_daily_metrics", "get_workouts", "get_sleep", "get_trend"]
SHIPPED = [*TOOLS, "get_goals", "set_goal", "remove_goal"]

GOOD = """\
---
name: guide          # a comment
description: "Says: hello # not a comment"
engine: messages
model: claude-sonnet-5-5
max_tokens: 1024
thinking: off

tools: [get_sleep, "get_trend"]
budget:
  max_steps: 5
  usd_per_turn: 0.1
---

You are a guide.

- Be kind: always.
"""


def load(tmp_path: Path, text: str | bytes = GOOD) -> Agent:
    (tmp_path / "guide.md").write_bytes(text.encode() if isinstance(text, str) else text)
    return load_agents(tmp_path, TOOLS, ["messages"], models())["guide"]


def test_a_file_becomes_an_agent(tmp_path: Path) -> None:
    assert load(tmp_path) == Agent(
        name="guide",
        description="Says: hello # not a comment",
        engine="messages",
        model="claude-sonnet-5-5",
        max_tokens=1024,
        thinking="off",
        tools=("get_sleep", "get_trend"),
        budget=Budget(max_steps=5, usd_micros_per_turn=100_000),
        on_busy="enqueue",
        system="You are a guide.\n\n- Be kind: always.",
        content_hash=hashlib.sha256(GOOD.encode()).hexdigest(),
    )


def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    plain = load(tmp_path)
    windows = load(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert (windows.system, windows.budget, windows.tools) == (plain.system, plain.budget, plain.tools)
    assert windows.content_hash != plain.content_hash


def test_lists_may_stand_below_their_key(tmp_path: Path) -> None:
    below = GOOD.replace("tools: [get_sleep, ", "tools:\n  - get_sleep\n# one more\n- ").replace('"]', '"')
    assert load(tmp_path, below).tools == ("get_sleep", "get_trend")
    assert load(tmp_path, GOOD.replace('[get_sleep, "get_trend"]', "[]")).tools == ()


def test_device_tools_and_approvals_are_said_in_the_file(tmp_path: Path) -> None:
    assert (load(tmp_path).device_tools, load(tmp_path).approvals) == (False, ())
    text = GOOD.replace("engine: messages", "engine: messages\ndevice_tools: true\napprovals: [get_trend]", 1)
    assert load(tmp_path, text).device_tools
    assert load(tmp_path, text).approvals == ("get_trend",)


def test_a_users_day_with_an_agent_may_be_limited_in_the_file(tmp_path: Path) -> None:
    assert load(tmp_path).budget.usd_micros_per_user_day is None
    text = GOOD.replace("usd_per_turn: 0.1", "usd_per_turn: 0.1\n  usd_per_user_day: 0.5", 1)
    assert load(tmp_path, text).budget.usd_micros_per_user_day == 500_000


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("---\nname", "name", 1, "front matter is missing"),
        ("0.1\n---", "0.1", 1, "front matter has no end"),
        ("name: guide ", "name: Big Guide ", 2, "name: Expected `str` matching regex"),
        ("engine: messages\n", "", 1, "the key 'engine' is missing"),
        ("  max_steps: 5\n", "", 10, "the key 'budget.max_steps' is missing"),
        ("engine: messages", "engine: messages\nmood: mild", 5, "unknown key 'mood'"),
        ("  max_steps: 5", "  max_steps: 5\n  max_stepps: 6", 12, "unknown key 'budget.max_stepps'"),
        ("engine: messages", "engine: messages\nname: again", 5, "the key 'name' stands twice"),
        ("  max_steps: 5", "  max_steps: 5\n  max_steps: 5", 12, "'budget.max_steps' stands twice"),
        ("max_tokens: 1024", 'max_tokens: "1024"', 6, "max_tokens: Expected `int`, got `str`"),
        ("max_tokens: 1024", "max_tokens: 0", 6, "max_tokens: Expected `int` >= 1"),
        ("max_tokens: 1024", "max_tokens: 1_024", 6, "YAML reads in its own way"),
        ("max_tokens: 1024", "max_tokens:", 6, "max_tokens: Expected `int`, got `null`"),
        ("max_tokens: 1024", "max_tokens: 128001", 6, "more than claude-sonnet-5-5 takes"),
        ("max_steps: 5", "max_steps: 0", 11, "budget.max_steps: Expected `int` >= 1"),
        ("usd_per_turn: 0.1", "usd_per_turn: 0", 12, "budget.usd_per_turn: Expected `float` > 0"),
        ("usd_per_turn: 0.1", "usd_per_turn: 0.1\n  usd_per_user_day: 0.0", 13, "usd_per_user_day"),
        ("usd_per_turn: 0.1", "usd_per_turn:", 12, "'budget.usd_per_turn' has no value"),
        ("thinking: off", "thinking: maybe", 7, "thinking: Invalid enum value 'maybe'"),
        ("thinking: off", "thinking: off\non_busy: panic", 8, "on_busy: Invalid enum value 'panic'"),
        ("claude-sonnet-5-5", "claude-opus-5-5", 7, "claude-opus-5-5 does not take thinking: off"),
        ("engine: messages", "engine: telepathy", 4, "unknown engine 'telepathy'"),
        ("claude-sonnet-5-5", "claude-9", 5, "unknown model 'claude-9'"),
        ("[get_sleep", "[get_slep", 9, "unknown tool 'get_slep'"),
        ("[get_sleep", "[get_trend", 9, "tool 'get_trend' is listed twice"),
        ("engine: messages", "engine: messages\napprovals: [get_steps]", 5, "'get_steps' is not one of the"),
        ("engine: messages", "engine: messages\ndevice_tools: maybe", 5, "device_tools: Expected `bool`"),
        ('"get_trend"]', '"get_trend"', 9, "a list without its ']'"),
        ('"get_trend"]', "[get_trend]]", 9, "YAML reads in its own way"),
        ("engine: messages", "  engine: messages", 4, "indented below nothing"),
        ("engine: messages", "\tengine: messages", 4, "a tab"),
        ("engine: messages", "- messages", 4, "a list item outside a list"),
        ("engine: messages", "engine messages", 4, "neither 'key: value' nor '- item'"),
        ("engine: messages", "engine: &x messages", 4, "YAML reads in its own way"),
        ("engine: messages", "engine: a: b", 4, "YAML reads in its own way"),
        ("engine: messages", "engine: 'messages'", 4, "YAML reads in its own way"),
        ("engine: messages", "engine: null", 4, "YAML reads in its own way"),
        ('not a comment"', 'not a comment" tail', 3, "text after a closing quote"),
        ("You are a guide.\n\n- Be kind: always.\n", " \n", 14, "the system prompt is empty"),
        ("You are", "You \x07 are", 15, "a control character"),
        ("You are", "You \x00 are", 15, "a control character"),
    ],
)
def test_what_stops_the_boot(tmp_path: Path, old: str, new: str, line: int, reason: str) -> None:
    assert old in GOOD
    with pytest.raises(AgentFileError) as stopped:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert stopped.value.problem.startswith(f"{tmp_path / 'guide.md'}:{line}: ")
    assert reason in stopped.value.problem
    assert stopped.value.hint


def test_a_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(AgentFileError, match=r"guide\.md:15: not UTF-8"):
        load(tmp_path, GOOD.encode().replace(b"guide.\n", b"gu\xffde.\n"))


def test_two_files_with_one_name(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(GOOD)
    with pytest.raises(AgentFileError, match=r"other\.md:2: an agent 'guide' exists already"):
        load(tmp_path)


def test_a_folder_without_agents(tmp_path: Path) -> None:
    with pytest.raises(AgentFileError, match="no agent files"):
        load_agents(tmp_path, TOOLS, ["messages"], models())


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "guide.md").mkdir()
    with pytest.raises(AgentFileError, match=r"guide\.md:1: cannot be read"):
        load_agents(tmp_path, TOOLS, ["messages"], models())


def test_yaml_reads_the_shipped_files_the_same_way() -> None:
    """What we accept is YAML: another reader finds the same (as text, for types differ by version)."""
    agents = load_agents(None, SHIPPED, ["messages"], models())
    for agent in agents.values():
        text = (folder() / f"{agent.name}.md").read_text(encoding="utf-8")
        front = yaml.load(text.split("---\n")[1], Loader=yaml.BaseLoader)
        assert front["description"] == agent.description
        assert tuple(front["tools"]) == agent.tools
        assert front["thinking"] == agent.thinking
        assert round(float(front["budget"]["usd_per_turn"]) * 1_000_000) == agent.budget.usd_micros_per_turn


def test_the_coach() -> None:
    coach = load_agents(None, SHIPPED, ["messages"], models())["coach"]
    assert coach.tools == tuple(SHIPPED)
    assert coach.model == "claude-sonnet-5-5"
    for must in ("German or English", "112", "116117", "0800 1110111", "never instructions", "No diagnosis"):
        assert must in coach.system
