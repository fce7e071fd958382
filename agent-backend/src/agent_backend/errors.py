"""Every error of this package: one root, structured fields, and for operators a hint.

`web/problems.py` is the one place that turns these into HTTP responses. Nothing here formats a
response, and no message carries the text of a conversation, a health value or a token.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import NamedTuple


class FieldError(NamedTuple):
    """One thing wrong with one field of a request; `field` is a JSON path such as `$.content`."""

    field: str
    reason: str


class MissingConsent(NamedTuple):
    """A purpose that the user has to consent to, and the version of its text that is asked for now."""

    purpose: str
    version: str


class AgentBackendError(Exception):
    """Root of all errors this package raises on purpose."""


# --- the client's request ---------------------------------------------------------------------


class RequestError(AgentBackendError):
    """The request cannot be served as it is; the client can change that."""

    status = 400
    code = "bad_request"
    safety: tuple[str, str] | None = None
    """Category and fixed text when the message that was refused shows a red flag: it helps all the same."""

    def __init__(
        self,
        detail: str,
        *,
        errors: tuple[FieldError, ...] = (),
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.members: Mapping[str, object] = members or {}
        """Further members of the problem document, by name (RFC 9457, 3.2)."""


class InvalidRequest(RequestError):
    """A field is missing, malformed or out of range."""

    status = 422
    code = "invalid_request"


class MalformedRequest(RequestError):
    """The body is not JSON, or a path or query parameter cannot be read."""

    status = 400
    code = "malformed_request"


class Unauthorized(RequestError):
    """No valid bearer token."""

    status = 401
    code = "unauthorized"


class BudgetExceeded(RequestError):
    """A budget is used up until it is renewed."""

    status = 402
    code = "budget_exceeded"


class ExpiredToken(Unauthorized):
    """The token was ours and is over: its owner has to fetch a new one, and has guessed nothing."""


class Forbidden(RequestError):
    """A valid token that may not do this."""

    status = 403
    code = "forbidden"


class ConsentRequired(RequestError):
    """The user has not consented to what this needs, or not any more; `missing` says to what."""

    status = 403
    code = "consent_required"

    def __init__(self, detail: str, *, missing: tuple[MissingConsent, ...]) -> None:
        super().__init__(detail, members={"missing": [each._asdict() for each in missing]})
        self.missing = missing


class NotFound(RequestError):
    """No such thing for this user; another user's things answer the same."""

    status = 404
    code = "not_found"


class RequestTimeout(RequestError):
    """The request did not arrive in time; the connection cannot be used again."""

    status = 408
    code = "request_timeout"


class Conflict(RequestError):
    """Something different stands under this id already, or the state forbids it."""

    status = 409
    code = "conflict"


class AccountErased(RequestError):
    """The user asked for erasure: nothing of theirs is taken any more, however long the token lives."""

    status = 410
    code = "account_erased"


class PayloadTooLarge(RequestError):
    """The body is larger than the limit; reading stopped there."""

    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(RequestError):
    """The content type is not one this operation reads."""

    status = 415
    code = "unsupported_media_type"


class TooManyRequests(RequestError):
    """A limit is reached; `retry_after` seconds from now it may work.

    `limit` names it; `quota` is how much it allows in how many seconds, where it is a rate.
    """

    status = 429
    code = "too_many_requests"

    def __init__(
        self,
        detail: str,
        *,
        retry_after: float,
        limit: str | None = None,
        quota: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
        self.limit = limit
        self.quota = quota


class Unavailable(RequestError):
    """The server cannot serve this now (database away, draining).

    Whether a write was taken may be unknown: sending it again under its id is harmless and tells.
    """

    status = 503
    code = "unavailable"


# --- the operator's configuration ---------------------------------------------------------------


class OperatorError(AgentBackendError):
    """Something the person who runs the server must change; `hint` says what to do."""

    def __init__(self, problem: str, *, hint: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


class SettingsError(OperatorError):
    """An environment variable is missing or malformed."""


class AgentFileError(OperatorError):
    """An agent file cannot be used; `problem` names file, line and reason."""


class MigrationError(OperatorError):
    """The database's schema is not one this release can work with."""


class DeploymentMismatch(OperatorError):
    """The database belongs to another environment or app."""


# --- the model ------------------------------------------------------------------------------------


class EngineError(AgentBackendError):
    """A model call failed.

    `code` goes to the client in RUN_ERROR, `retryable` says whether asking again later may work,
    `started` whether any part of the answer had already arrived, `unbilled` whether it is free for certain.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        retryable: bool,
        started: bool = False,
        status: int | None = None,
        request_id: str | None = None,
        unbilled: bool = False,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.retryable = retryable
        self.started = started
        self.status = status
        self.request_id = request_id
        self.unbilled = unbilled


# --- budgets ----------------------------------------------------------------------------------------


class OverBudget(AgentBackendError):
    """A model call does not fit in a budget; `scope` names it, `resets_at` says when it is fresh again."""

    def __init__(self, scope: str, resets_at: dt.datetime | None) -> None:
        super().__init__(scope)
        self.scope = scope
        self.resets_at = resets_at


# --- tools ------------------------------------------------------------------------------------------


class ModelRetry(AgentBackendError):
    """The model called a tool wrongly; the text tells it how to call again."""


class ToolFailed(AgentBackendError):
    """The tool could not do what was asked; the text tells the model why. The turn goes on."""


# --- durability --------------------------------------------------------------------------------------


class LeaseLost(AgentBackendError):
    """Another owner holds the session, or ours is no longer valid: publish nothing more."""
