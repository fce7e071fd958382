"""`tool`: an async function with type hints becomes a `Tool`.

    @tool
    async def get_steps(context: ToolContext, day: Annotated[date, "The day, YYYY-MM-DD"]) -> dict[str, Any]:
        '''Tell how many steps the person took on a day.'''

The docstring is what the model reads, each argument's `Annotated` text (or `msgspec.Meta`) its description.
Arguments are validated by the types before the function runs; what it returns is encoded as JSON, unless it
is a `ToolResult` already.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

import msgspec

from agent_backend.errors import ModelRetry
from agent_backend.tools.base import ToolContext, ToolResult

_encode = msgspec.json.Encoder().encode
_AT_FIELD = re.compile(r"^(?P<reason>.*) - at `\$\.?(?P<field>[^`]*)`$", re.DOTALL)
_NAMED_FIELD = re.compile(r"^Object (?P<what>missing required|contains unknown) field `(?P<field>[^`]*)`")


def tool(function: Callable[..., Awaitable[Any]]) -> FunctionTool:
    """Make a tool of an async function whose first parameter takes the `ToolContext`.

    Raises TypeError at import when the function lacks a docstring or an argument lacks a description.
    """
    return FunctionTool(function)


class FunctionTool:
    """A `Tool` made of a function; `name` is the function's."""

    def __init__(self, function: Callable[..., Awaitable[Any]]) -> None:
        self._function = function
        self.name: str = function.__name__
        self.description: str = inspect.getdoc(function) or ""
        if not self.description:
            raise TypeError(f"tool {self.name} needs a docstring: the model reads it")
        self.arguments = self._arguments()
        self.input_schema: dict[str, Any] = self._schema()
        self._check: Callable[..., Awaitable[None]] | None = None

    def checked_by(self, check: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """Have a function with the same parameters look first; it raises what the function would."""
        self._check = check
        return check

    def _arguments(self) -> type[msgspec.Struct]:
        """Return the arguments as a struct; unknown ones are refused."""
        hints = get_type_hints(self._function, include_extras=True)
        _context, *parameters = inspect.signature(self._function).parameters.values()
        fields: list[Any] = []
        for each in parameters:
            hint = _described(hints[each.name])
            required = each.default is inspect.Parameter.empty
            fields.append((each.name, hint) if required else (each.name, hint, each.default))
        return msgspec.defstruct(
            f"{self.name}_arguments", fields, kw_only=True, frozen=True, forbid_unknown_fields=True
        )

    def _schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the arguments, without references."""
        document = msgspec.json.schema(self.arguments)
        schema = _inlined(document, document["$defs"])
        for name, described in schema["properties"].items():
            if "description" not in described:
                raise TypeError(f"tool {self.name}: argument {name} needs a description")
        schema.pop("title")
        return schema

    async def run(self, context: ToolContext, arguments: dict[str, Any]) -> ToolResult:
        """Validate and run. Raises ModelRetry naming the wrong argument, and what the function raises."""
        given = self._validated(arguments)
        await self._look_first(context, given)
        result = await self._function(context, **msgspec.structs.asdict(given))
        return result if isinstance(result, ToolResult) else ToolResult(content=_encode(result).decode())

    async def check(self, context: ToolContext, arguments: dict[str, Any]) -> None:
        """Raise what `run` would raise at once, without looking anything up that the tool is for."""
        await self._look_first(context, self._validated(arguments))

    async def _look_first(self, context: ToolContext, given: msgspec.Struct) -> None:
        if self._check is not None:
            await self._check(context, **msgspec.structs.asdict(given))

    def _validated(self, arguments: dict[str, Any]) -> msgspec.Struct:
        try:
            given = msgspec.convert(arguments, self.arguments)
            _encode(given)
        except msgspec.ValidationError as error:
            raise ModelRetry(self._explain(str(error))) from None
        except UnicodeEncodeError:
            raise ModelRetry(_explain_surrogates(arguments)) from None
        return given

    def _explain(self, message: str) -> str:
        properties: dict[str, Any] = self.input_schema["properties"]
        if named := _NAMED_FIELD.match(message):
            reason = (
                "is missing"
                if "missing" in named["what"]
                else f"does not exist; there are {list(properties)}"
            )
            return _printable(f"Argument `{named['field']}` {reason}.")
        if at := _AT_FIELD.match(message):
            allowed = properties.get(at["field"], {}).get("enum")
            hint = f" Allowed: {', '.join(map(str, allowed))}." if allowed else ""
            return _printable(f"Argument `{at['field']}`: {at['reason']}.{hint}")
        return _printable(f"The arguments of {self.name} must be an object: {message}.")


def _explain_surrogates(arguments: dict[str, Any]) -> str:
    """Name the arguments that hold half a character: JSON can spell it, but nothing can store or send it."""
    wrong = [name for name, value in arguments.items() if "\\ud" in ascii(value)]
    return _printable(f"Argument `{'`, `'.join(wrong)}` contains a lone surrogate, which is no character.")


def _printable(text: str) -> str:
    """Keep what the model wrote from breaking our own encoding or filling its context."""
    return text.encode("utf-8", "replace").decode()[:1000]


def _described(hint: Any) -> Any:
    """Turn `Annotated[T, "text"]` into what msgspec reads as a description."""
    if get_origin(hint) is not Annotated:
        return hint
    kind, *notes = get_args(hint)
    metas = [msgspec.Meta(description=note) if isinstance(note, str) else note for note in notes]
    return Annotated[(kind, *metas)]  # pyright: ignore[reportReturnType] - built at run time


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """Return the schema with each `$ref` replaced by what it points to."""
    if isinstance(node, list):
        return [_inlined(each, definitions) for each in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    entries = cast("dict[str, Any]", node)
    if reference := entries.get("$ref"):
        target = definitions[str(reference).removeprefix("#/$defs/")]
        entries = {**target, **{key: value for key, value in entries.items() if key != "$ref"}}
    return {key: _inlined(value, definitions) for key, value in entries.items() if key != "$defs"}
