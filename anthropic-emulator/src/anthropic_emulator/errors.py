"""The API's errors: one exception, one body.

Body and types follow `types/shared/error_*.py` of anthropic-sdk-python; the status of each type follows
its `_exceptions.py`.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

STATUS_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class ApiError(Exception):
    """A request the API refuses: HTTP `status`, the `message` a client reads, extra response `headers`."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers: Mapping[str, str] = headers or {}

    @property
    def kind(self) -> str:
        """The error's `type` as clients see it, such as `overloaded_error`."""
        return STATUS_TYPES.get(self.status, "api_error")

    def body(self, request_id: str) -> bytes:
        """JSON of the error, as sent in a response body or as `data:` of an `error` event."""
        return msgspec.json.encode(
            {
                "type": "error",
                "error": {"type": self.kind, "message": self.message},
                "request_id": request_id,
            }
        )


def invalid(message: str) -> ApiError:
    """Make a 400 `invalid_request_error` with the path of the field at the head of its message."""
    return ApiError(400, message)
