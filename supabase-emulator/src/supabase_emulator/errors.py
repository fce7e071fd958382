"""Errors as Supabase Auth answers them.

Forms and codes follow `internal/api/errors.go` and `internal/api/apierrors/errorcode.go` of supabase/auth:
clients that send `X-Supabase-Api-Version: 2024-01-01` get `code` and `message`, others the older form.
The gateway in front of Auth has a form of its own.
"""

from typing import Final

import msgspec

API_VERSION: Final = "X-Supabase-Api-Version"
_NEW_FORM: Final = "2024-01-01"


class AuthError(Exception):
    """A request Auth refuses: HTTP status, the code clients go by, the text a person reads."""

    def __init__(self, status: int, code: str, message: str, **more: object) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.more = more

    def body(self, version: str | None) -> bytes:
        """Return the JSON a client of this API version reads."""
        if version is not None and version >= _NEW_FORM:
            return msgspec.json.encode({"code": self.code, "message": self.message, **self.more})
        form = {"code": self.status, "error_code": self.code, "msg": self.message}
        return msgspec.json.encode({**form, **self.more})


class GatewayError(Exception):
    """A request that does not reach Auth: no API key, or one that is not this project's."""

    def __init__(self, message: str, hint: str, status: int = 401) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.hint = hint

    def body(self) -> bytes:
        """Return the gateway's JSON."""
        return msgspec.json.encode({"message": self.message, "hint": self.hint})


def bad_json(reason: str) -> AuthError:
    """Make the refusal of a body that is not what the endpoint reads."""
    return AuthError(400, "bad_json", f"Could not parse request body as JSON: {reason}")
