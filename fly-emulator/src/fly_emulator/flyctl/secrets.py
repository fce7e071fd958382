"""NAME=VALUE lines as `flyctl secrets import` reads them.

Source: superfly/flyctl `internal/command/secrets/parser.go`.
"""

from __future__ import annotations

from fly_emulator.flyctl.errors import FlyctlError

_QUOTES = '"""'


def parse_secrets(text: str) -> dict[str, str]:
    """Read secrets: comments, one pair of quotes around a value, values of several lines between three.

    Raises FlyctlError; it quotes the line that is no pair, as flyctl does.
    """
    found: dict[str, str] = {}
    name, lines = "", list[str]()
    for line in text.splitlines():
        if name:
            if line.endswith(_QUOTES):
                found[name] = "\n".join([*lines, line.removesuffix(_QUOTES)])
                name = ""
            else:
                lines.append(line)
            continue
        if line.startswith("#") or not line.strip():
            continue
        key, sign, value = line.partition("=")
        if not sign:
            raise FlyctlError(
                "Failed to parse secrets from stdin: Secrets must be provided as NAME=VALUE pairs "
                f"({line} is invalid)"
            )
        key, value = key.strip(), _without_comment(value.lstrip(" "))
        if value.startswith(_QUOTES) and not (value.endswith(_QUOTES) and len(value) >= 6):
            name, lines = key, [value.removeprefix(_QUOTES)]
        else:
            found[key] = _unquoted(value)
    return found


def _without_comment(value: str) -> str:
    before, sign, _ = value.partition("#")
    return before.rstrip(" ") if sign and before.count('"') % 2 == 0 else value


def _unquoted(value: str) -> str:
    for quotes in (_QUOTES, '"', "'"):
        if value.startswith(quotes) and value.endswith(quotes) and len(value) >= 2 * len(quotes):
            return value[len(quotes) : -len(quotes)]
    return value
