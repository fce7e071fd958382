"""The OpenAPI 3.1 document, made from the declared operations; `scripts/openapi.py` writes it.

Event streams and the WebSocket have no place of their own in OpenAPI 3.1: `x-itemSchema` holds the
schema of one event's `data` (OpenAPI 3.2 calls it itemSchema), `x-websocket` the frames of both sides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from agent_backend import __version__
from agent_backend.web.operations import About, Operation, SocketOperation
from agent_backend.web.problems import MEDIA_TYPE, Problem

_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"{(\w+)}")
_SECURITY = [{"bearer": []}]

_DESCRIPTION = """\
Durable conversations with agents. Clients make the ids (UUIDs, version 7 recommended) and PUT; sending \
again is harmless. Strings must not contain control characters other than tab and line ends. Errors are \
RFC 9457 problem documents; every response carries `X-Request-Id`."""

_REPLIES = {
    200: "Done, or done before.",
    201: "Created.",
    202: "Accepted; it happens from here on.",
    204: "Done; there is nothing to say.",
}
_PROBLEMS = {
    400: "The body, the query or a cursor cannot be read.",
    401: "There is no valid token.",
    402: "A budget is used up; `scope` and `resets_at` say which and until when.",
    403: "The token is valid, and this is not allowed: `missing` names the consents it needs.",
    404: "No such thing for this user.",
    408: "The body did not arrive in time.",
    409: "Something different stands under this id, or the state forbids it.",
    410: "The account was erased.",
    413: "The body is too large.",
    415: "The body is not of a type that is read here.",
    422: "A field is missing, malformed or out of range; `errors` names it.",
    426: "This path speaks WebSocket only.",
    429: "A limit is reached.",
    503: "Not now; nothing was taken. `errors` may say why.",
}
_PROBLEM_HEADERS = {
    401: ("WWW-Authenticate", "the scheme to authenticate with"),
    426: ("Upgrade", "what to upgrade to"),
    429: ("Retry-After", "seconds"),
    503: ("Retry-After", "seconds"),
}
_RATE_HEADERS = {
    "RateLimit-Policy": "the rate that is used up: how much (q) in how many seconds (w)",
    "RateLimit": "what is left of it (r), and in how many seconds there is more (t)",
}
"""Of a 429 for a rate: draft-ietf-httpapi-ratelimit-headers."""


def document(operations: Sequence[Operation], sockets: Sequence[SocketOperation]) -> dict[str, Any]:
    """Return the document as plain data, its parts in the order of declaration."""
    builder = _Builder(operations, sockets)
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = builder.operation(each)
    for each in sockets:
        paths.setdefault(each.path, {})["get"] = builder.socket(each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "myHealth Agents",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://localhost:3001", "description": "make run"}],
        "paths": paths,
        "components": builder.components(),
    }


class _Builder:
    """Makes the parts and remembers which problems were referred to."""

    def __init__(self, operations: Sequence[Operation], sockets: Sequence[SocketOperation]) -> None:
        types = [*_types(operations, sockets), Problem]
        schemas, self._schemas = msgspec.json.schema_components(types, ref_template=_REF)
        self._by_type = dict(zip(map(_key, types), schemas, strict=True))
        self._queries = {each.query.__name__ for each in operations if each.query is not None}
        self._problems: set[int] = set()
        self._operations = operations

    def operation(self, op: Operation) -> dict[str, Any]:
        """Return the operation object."""
        result = _about(op.name, op.about.get("summary"), op.about.get("tag"))
        if "description" in op.about:
            result["description"] = op.about["description"]
        parameters = [_path_parameter(name) for name in _PARAMETER.findall(op.path)]
        if op.query is not None:
            parameters += self._query_parameters(op.query)
        if parameters:
            result["parameters"] = parameters
        if op.body is not None:
            content = {"application/json": {"schema": self._by_type[_key(op.body)]}}
            result["requestBody"] = {"required": True, "content": content}
        result["responses"] = self._responses(op)
        result["security"] = _SECURITY if op.auth else []
        return result

    def socket(self, op: SocketOperation) -> dict[str, Any]:
        """Return the GET that asks for the upgrade."""
        result = _about(op.name, op.about.get("summary"), op.about.get("tag"))
        if "description" in op.about:
            result["description"] = op.about["description"]
        result["responses"] = {
            "101": {"description": "The socket is open."},
            **self._refer((401, 403, 426, 429, 503)),
        }
        result["security"] = _SECURITY
        result["x-websocket"] = {
            "client": self._by_type[_key(op.about["client"])],
            "server": self._by_type[_key(op.about["server"])],
        }
        return result

    def components(self) -> dict[str, Any]:
        """Return everything that is referred to."""
        schemas = {name: schema for name, schema in self._schemas.items() if name not in self._queries}
        return {
            "schemas": dict(sorted(schemas.items())),
            "responses": {f"Problem{status}": _problem(status) for status in sorted(self._problems)},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A Supabase access token; in development `agent-backend token`.",
                }
            },
        }

    def _links(self, op: Operation) -> dict[str, Any]:
        """Return what can be asked next of what this operation has made, or has found under its ids.

        That is every operation that needs no other ids, and each PUT below it under an id of the client's.
        """
        ids = _ids(op)
        links: dict[str, Any] = {}
        for other in self._operations if ids and op.method in {"PUT", "POST"} else ():
            wanted = _ids(other)
            more = [name for name in wanted if name not in ids]
            below = other.method == "PUT" and wanted[:-1] == ids and wanted[-1].endswith("_id")
            if other is not op and wanted and (not more or below):
                known = {name: f"$request.path.{name}" for name in wanted if name in ids}
                links[other.name] = {"operationId": other.name, "parameters": known}
        return links

    def _responses(self, op: Operation) -> dict[str, Any]:
        responses: dict[str, dict[str, Any]] = {}
        links = self._links(op)
        for status, kind in op.about.get("replies", {}).items():
            reply: dict[str, Any] = {"description": _REPLIES[status]}
            responses[str(status)] = reply
            if kind is not None:
                reply["content"] = {"application/json": {"schema": self._by_type[_key(kind)]}}
            if links:
                reply["links"] = links
        if "archive" in op.about:
            zipped = {"application/zip": {"schema": {"type": "string", "format": "binary"}}}
            responses["200"] = {"description": op.about["archive"], "content": zipped}
        stream = op.about.get("stream")
        if stream is not None:
            media = {"schema": {"type": "string"}, "x-itemSchema": self._by_type[_key(stream.item)]}
            reply = responses.setdefault(str(stream.status), {"description": stream.description})
            reply.setdefault("content", {})["text/event-stream"] = media
        return {**dict(sorted(responses.items())), **self._refer(sorted(_problems(op)))}

    def _refer(self, statuses: Sequence[int]) -> dict[str, Any]:
        self._problems.update(statuses)
        return {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in statuses}

    def _query_parameters(self, query: type[Any]) -> list[dict[str, Any]]:
        schema = self._schemas[query.__name__]
        required = schema.get("required", [])
        parameters: list[dict[str, Any]] = []
        for name, declared in schema["properties"].items():
            field = dict(declared)
            parameter = {"name": name, "in": "query", "required": name in required}
            if "description" in field:
                parameter["description"] = field.pop("description")
            parameters.append({**parameter, "schema": _without_null(field)})
        return parameters


def _types(operations: Sequence[Operation], sockets: Sequence[SocketOperation]) -> list[Any]:
    found: list[Any] = []
    for op in operations:
        stream = op.about.get("stream")
        found += [op.body, op.query, *op.about.get("replies", {}).values(), stream.item if stream else None]
    for socket in sockets:
        found += [socket.about["client"], socket.about["server"]]
    unique = {_key(each): each for each in found if each is not None}
    return list(unique.values())


def _key(kind: Any) -> str:
    """Return what tells types apart; unions are equal by value, not by identity."""
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else repr(kind)


def _ids(op: Operation) -> list[str]:
    """Return the path parameters that name something: an agent's name is the same for everybody."""
    return [name for name in _PARAMETER.findall(op.path) if name != "agent"]


def _about(name: str, summary: str | None, tag: str | None) -> dict[str, Any]:
    result: dict[str, Any] = {"operationId": name}
    if summary:
        result["summary"] = summary
    if tag:
        result["tags"] = [tag]
    return result


def _problems(op: Operation) -> set[int]:
    """Return the statuses an operation can fail with, from its declaration."""
    about: About = op.about
    statuses = set(about.get("problems", ()))
    if op.auth:
        statuses |= {401, 403, 410, 429, 503}
    if op.body is not None:
        statuses |= {400, 408, 413, 415, 422}
    if op.query is not None:
        statuses |= {400, 422}
    if _PARAMETER.search(op.path):
        statuses |= {422}
    return statuses


def _problem(status: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "description": _PROBLEMS[status],
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REF.format(name="Problem")}}},
    }
    if status in _PROBLEM_HEADERS:
        name, text = _PROBLEM_HEADERS[status]
        named = {name: text, **(_RATE_HEADERS if status == 429 else {})}
        result["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in named.items()
        }
    return result


def _path_parameter(name: str) -> dict[str, Any]:
    schema = {"type": "string", "format": "uuid"} if name.endswith("_id") else {"type": "string"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Leave out `null`: a query parameter that is not there is how a query says it."""
    kinds = [each for each in schema.get("anyOf", []) if each != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    if rest.get("default", ...) is None:
        del rest["default"]
    if len(kinds) == 1:
        return {**kinds[0], **rest}
    return {"anyOf": kinds, **rest} if kinds else rest
