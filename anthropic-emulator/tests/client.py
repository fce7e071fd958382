"""A small client of the emulator for its tests: plain HTTP, no SDK."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import aiohttp

HEADERS = {"x-api-key": "test-key", "anthropic-version": "2026-10-21"}
SHOWN = {"type": "adaptive", "display": "summarized"}
DATES = {"type": "string", "format": "date"}
METRICS = ["steps", "active_energy", "heart_rate", "resting_heart_rate", "body_mass"]
TOOLS: list[dict[str, Any]] = [
    {
        "name": "get_daily_metrics",
        "description": "Daily values of one metric.",
        "input_schema": {
            "type": "object",
            "properties": {"metric": {"type": "string", "enum": METRICS}, "start": DATES, "end": DATES},
            "required": ["metric", "start", "end"],
        },
    },
    {
        "name": "get_workouts",
        "input_schema": {
            "type": "object",
            "properties": {"start": DATES, "end": DATES},
            "required": ["start", "end"],
        },
    },
    {
        "name": "get_sleep",
        "input_schema": {
            "type": "object",
            "properties": {"start": DATES, "end": DATES},
            "required": ["start", "end"],
        },
    },
    {
        "name": "get_trend",
        "input_schema": {
            "type": "object",
            "properties": {
                "metric": {"$ref": "#/$defs/Metric"},
                "weeks": {"type": "integer", "minimum": 1, "maximum": 52},
            },
            "required": ["metric", "weeks"],
            "$defs": {"Metric": {"enum": METRICS}},
        },
    },
]


class Event(NamedTuple):
    """One server-sent event."""

    name: str
    data: dict[str, Any]


class Answer(NamedTuple):
    """A response: its status, headers, and raw body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def events(self) -> list[Event]:
        return parse(self.body)


def parse(raw: bytes) -> list[Event]:
    """Read complete events; every one must have exactly the lines `event:` and `data:`."""
    found: list[Event] = []
    for part in raw.decode().split("\n\n")[:-1]:
        first, second = part.split("\n")
        found.append(Event(first.removeprefix("event: "), json.loads(second.removeprefix("data: "))))
    return found


def assemble(events: Sequence[Event]) -> dict[str, Any]:
    """Put a message together from its events, as SDKs do."""
    message = dict(events[0].data["message"])
    content: list[dict[str, Any]] = []
    partial: dict[int, str] = {}
    for name, data in events:
        if name == "content_block_start":
            content.append(dict(data["content_block"]))
        elif name == "content_block_delta":
            block, delta = content[data["index"]], data["delta"]
            key = delta["type"].removesuffix("_delta")
            if key == "input_json":
                partial[data["index"]] = partial.get(data["index"], "") + delta["partial_json"]
            else:
                block[key] = block.get(key, "") + delta[key]
        elif name == "message_delta":
            message.update(data["delta"])
            message["usage"] = {**message["usage"], **data["usage"]}
    for index, text in partial.items():
        content[index]["input"] = json.loads(text)
    return {**message, "content": content}


class Emulator:
    """A running emulator and how to talk to it."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def post(self, body: object, path: str = "/v1/messages", **headers: str) -> Answer:
        sent = {**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=io.BytesIO(data), headers=sent) as response:
            return Answer(response.status, response.headers, await response.read())

    async def stream(self, body: Mapping[str, object], **headers: str) -> list[Event]:
        answer = await self.post({**body, "stream": True}, **headers)
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"].startswith("text/event-stream")
        return answer.events

    async def say(self, text: str, **fields: object) -> dict[str, Any]:
        """Ask one question without streaming."""
        answer = await self.post(ask(text, **fields))
        assert answer.status == 200, answer.body
        return answer.json

    async def control(self, method: str, path: str, body: object = None) -> Answer:
        url = f"{self.url}/_emulator/{path}"
        async with self.session.request(method, url, json=body) as response:
            return Answer(response.status, response.headers, await response.read())

    async def advance(self, seconds: float) -> None:
        assert (await self.control("POST", "clock", {"advance_s": seconds})).status == 200


def ask(text: str, **fields: object) -> dict[str, Any]:
    """Body of a request with one user message, to Haiku without thinking unless told otherwise."""
    model = fields.pop("model", "claude-haiku-5-5")
    thinking = {"type": "disabled"} if model == "claude-haiku-5-5" else SHOWN
    return {
        "model": model,
        "max_tokens": 4096,
        "thinking": thinking,
        "messages": [{"role": "user", "content": text}],
        **fields,
    }
