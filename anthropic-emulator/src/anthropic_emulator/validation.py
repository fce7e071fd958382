"""Validation of a whole request body; what passes is a `MessagesRequest`."""

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from anthropic_emulator import content, fields
from anthropic_emulator.errors import ApiError, invalid
from anthropic_emulator.models import DEFAULT_THINKING, MODELS, Model
from anthropic_emulator.request import MessagesRequest, Thinking, ToolChoice, blocks
from anthropic_emulator.signing import conversation_digest, extend_digest, verify
from anthropic_emulator.tokens import JsonObject

VERSIONS: Final = frozenset({"2023-01-01", "2023-06-01", "2026-10-21"})
NO_SAMPLING_SINCE: Final = "2026-10-21"
_SAMPLING: Final = ("temperature", "top_p", "top_k")
_COUNT_FIELDS: Final = frozenset(
    {"model", "messages", "system", "tools", "tool_choice", "thinking", "cache_control", "output_config"}
)
_FIELDS: Final = _COUNT_FIELDS | {
    *("max_tokens", "stream", "stop_sequences", "metadata", "service_tier", "container", "inference_geo"),
    *_SAMPLING,
}
_TOOL_FIELDS: Final = frozenset(
    {"type", "name", "description", "input_schema", "cache_control", "strict", "input_examples"}
    | {"allowed_callers", "defer_loading", "eager_input_streaming"}
)
_TOOL_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}")
MAX_MESSAGES: Final = 100_000
MAX_BREAKPOINTS: Final = 4


def decode(body: bytes) -> JsonObject:
    """Give the JSON object in `body` or raise 400."""
    try:
        value: object = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"The request body is not valid JSON: {error}") from error
    return fields.obj(value, "body")


def validate(body: JsonObject, version: str, *, counting: bool = False) -> MessagesRequest:
    """Check a decoded body against all rules; `counting` is for `/v1/messages/count_tokens`.

    Raises `ApiError`: 404 for an unknown model, else 400 with the path of the offending field.
    """
    fields.only(body, _COUNT_FIELDS if counting else _FIELDS)
    model = _model(fields.required(body, "model"))
    max_tokens = 1 if counting else _max_tokens(body, model)
    _sampling(body, version)
    messages = _messages(body)
    system = content.text_blocks(body["system"], "system") if body.get("system") else []
    tools = _tools(body)
    thinking = _thinking(body, model)
    request = MessagesRequest(
        model=model,
        max_tokens=max_tokens,
        messages=messages,
        system=system,
        tools=tools,
        tool_choice=_tool_choice(body, tools, thinking),
        thinking=thinking,
        stop_sequences=_stop_sequences(body),
        stream="stream" in body and fields.boolean(body["stream"], "stream"),
        cache_control=_automatic(body),
    )
    _breakpoints(request)
    _signatures(request)
    return request


def _model(value: object) -> Model:
    name = fields.string(value, "model")
    if name not in MODELS:
        raise ApiError(404, f"model: {name}")
    return MODELS[name]


def _max_tokens(body: JsonObject, model: Model) -> int:
    asked = fields.integer(fields.required(body, "max_tokens"), "max_tokens", 0)
    if asked > model.max_output:
        raise invalid(
            f"max_tokens: {asked} > {model.max_output}, which is the maximum allowed number of output "
            f"tokens for {model.id}"
        )
    return asked


def _sampling(body: JsonObject, version: str) -> None:
    for name in _SAMPLING:
        if name not in body:
            continue
        if version >= NO_SAMPLING_SINCE:
            raise invalid(f"{name}: Extra inputs are not permitted")
        if name == "top_k":
            fields.integer(body[name], name, 0)
        else:
            fields.number(body[name], name, 0, 1)


def _messages(body: JsonObject) -> list[JsonObject]:
    items = fields.array(fields.required(body, "messages"), "messages")
    if len(items) > MAX_MESSAGES:
        raise invalid(f"messages: at most {MAX_MESSAGES} messages are allowed")
    found = [content.message(item, n, last=n == len(items) - 1) for n, item in enumerate(items)]
    content.roles(found)
    content.tool_pairs(found)
    return found


def _tools(body: JsonObject) -> list[JsonObject]:
    if body.get("tools") is None:
        return []
    found = [_tool(item, f"tools.{n}") for n, item in enumerate(fields.array(body["tools"], "tools"))]
    if len({tool["name"] for tool in found}) != len(found):
        raise invalid("tools: Tool names must be unique.")
    return found


def _tool(value: object, path: str) -> JsonObject:
    tool = fields.obj(value, path)
    name = fields.string(fields.required(tool, "name", path), fields.at(path, "name"))
    if not _TOOL_NAME.fullmatch(name):
        raise invalid(f"{path}.name: String should match pattern '^{_TOOL_NAME.pattern}$'")
    content.cache_control(tool, path)
    if tool.get("type") not in (None, "custom"):
        return tool
    fields.only(tool, _TOOL_FIELDS, path)
    if tool.get("description") is not None:
        fields.string(tool["description"], fields.at(path, "description"))
    here = fields.at(path, "input_schema")
    schema = fields.obj(fields.required(tool, "input_schema", path), here)
    fields.choice(fields.required(schema, "type", here), ("object",), fields.at(here, "type"))
    return tool


def _thinking(body: JsonObject, model: Model) -> Thinking:
    if body.get("thinking") is None:
        _effort(body, DEFAULT_THINKING)
        return Thinking(kind=DEFAULT_THINKING, omitted=True)
    config = fields.obj(body["thinking"], "thinking")
    kind = fields.choice(
        fields.required(config, "type", "thinking"),
        ("adaptive", "between_tools", "disabled", "enabled"),
        "thinking.type",
    )
    if kind not in model.thinking_types:
        raise invalid(_unsupported(kind, model))
    fields.only(config, ("type", "display") if kind == "adaptive" else ("type",), "thinking")
    display = config.get("display")
    if display is not None:
        fields.choice(display, ("summarized", "omitted"), "thinking.display")
    _effort(body, kind)
    # What adaptive thinking says is omitted unless asked for; notes between tool calls are shown.
    default = "omitted" if kind == "adaptive" else "summarized"
    return Thinking(kind=kind, omitted=(display or default) == "omitted")


def _unsupported(kind: str, model: Model) -> str:
    """Say which thinking mode to use instead; texts from the migration guides of the models."""
    if kind == "disabled" and "between_tools" in model.thinking_types:
        return 'To turn thinking off on this model, send "thinking": {"type": "between_tools"}.'
    return (
        f'"thinking.type.{kind}" is not supported for this model. '
        'Use "thinking.type.adaptive" and "output_config.effort" to control thinking behavior.'
    )


def _effort(body: JsonObject, kind: str) -> None:
    config = fields.obj(body.get("output_config") or {}, "output_config")
    effort = config.get("effort")
    if effort is not None:
        fields.choice(effort, ("low", "medium", "high", "xhigh", "max"), "output_config.effort")
    if kind in ("between_tools", "disabled") and effort in ("xhigh", "max"):
        raise invalid(f'output_config.effort: "{effort}" is not supported with "thinking.type.{kind}".')


def _tool_choice(body: JsonObject, tools: Sequence[JsonObject], thinking: Thinking) -> ToolChoice:
    if body.get("tool_choice") is None:
        return ToolChoice()
    config = fields.obj(body["tool_choice"], "tool_choice")
    fields.only(config, ("type", "name", "disable_parallel_tool_use"), "tool_choice")
    kind = fields.choice(
        fields.required(config, "type", "tool_choice"), ("auto", "any", "tool", "none"), "tool_choice.type"
    )
    forced = kind in {"any", "tool"}
    if forced and thinking.on:
        raise invalid("Thinking may not be enabled when tool_choice forces tool use.")
    if kind != "none" and not tools:
        raise invalid("tool_choice may only be specified while providing tools.")
    name = None
    if kind == "tool":
        name = fields.string(fields.required(config, "name", "tool_choice"), "tool_choice.name")
        if name not in {tool["name"] for tool in tools}:
            raise invalid(f"Tool '{name}' not found in provided tools")
    serial = config.get("disable_parallel_tool_use") or False
    return ToolChoice(
        kind=kind,
        name=name,
        parallel=not fields.boolean(serial, "tool_choice.disable_parallel_tool_use"),
    )


def _stop_sequences(body: JsonObject) -> list[str]:
    items = fields.array(body.get("stop_sequences") or [], "stop_sequences")
    found = [fields.string(item, f"stop_sequences.{n}") for n, item in enumerate(items)]
    for n, item in enumerate(found):
        if not item.strip():
            raise invalid(f"stop_sequences.{n}: each stop sequence must contain non-whitespace")
    return found


def _automatic(body: JsonObject) -> JsonObject | None:
    if body.get("cache_control") is None:
        return None
    content.cache_control(body, "")
    return fields.obj(body["cache_control"], "cache_control")


def _breakpoints(request: MessagesRequest) -> None:
    """At most four `cache_control` marks in all, and no 1h mark after a 5m one."""
    marked = [(f"tools.{n}", tool) for n, tool in enumerate(request.tools)]
    marked += [(f"system.{n}", block) for n, block in enumerate(request.system)]
    for m, turn in enumerate(request.messages):
        marked += [(f"messages.{m}.content.{n}", block) for n, block in enumerate(blocks(turn))]
    controls = [(path, block["cache_control"]) for path, block in marked if block.get("cache_control")]
    if request.cache_control:
        controls.append(("", request.cache_control))
    if len(controls) > MAX_BREAKPOINTS:
        raise invalid(
            f"A maximum of {MAX_BREAKPOINTS} blocks with cache_control may be provided. "
            f"Found {len(controls)}."
        )
    short = False
    for path, value in controls:
        long = fields.obj(value, path).get("ttl") == "1h"
        if long and short:
            raise invalid(
                f"{fields.at(path, 'cache_control.ttl')}: a ttl='1h' cache_control block must not come after "
                "a ttl='5m' cache_control block. Note that blocks are processed in the following order: "
                "tools, system, messages."
            )
        short = short or not long


def _signatures(request: MessagesRequest) -> None:
    """Check every thinking block: as the emulator made it, and where it made it."""
    chain = conversation_digest(request.system, request.tools)
    others = MODELS.keys() - {request.model.id}
    before = ""
    for m, turn in enumerate(request.messages):
        for n, block in enumerate(blocks(turn)):
            if block["type"] != "thinking":
                continue
            signature = str(block["signature"])
            verdict = verify(request.model.id, others, str(block["thinking"]), signature, chain, before)
            before = signature
            broken = f"messages.{m}.content.{n}: Invalid `signature` in `thinking` block"
            if verdict == "invalid":
                raise invalid(broken)
            if verdict == "moved":
                raise invalid(
                    f"{broken}. The block is bound to a different conversation. Remove the block, or set "
                    '`thinking.block_binding.prefix_mismatch_behavior` to "drop_block".'
                )
        chain = extend_digest(chain, turn)
