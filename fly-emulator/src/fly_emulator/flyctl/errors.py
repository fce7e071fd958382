"""What goes wrong, in flyctl's words; `main` prints it and chooses the exit code."""

from __future__ import annotations


class FlyctlError(Exception):
    """A command failed. `more`: what flyctl prints below the line that begins with `Error:`."""

    def __init__(self, problem: str, more: str = "") -> None:
        super().__init__(problem)
        self.more = more


class ApiError(FlyctlError):
    """An API refused. `status`: HTTP's."""

    def __init__(self, problem: str, status: int, more: str = "") -> None:
        super().__init__(problem, more)
        self.status = status


class Interrupted(BaseException):
    """SIGINT or SIGTERM came; flyctl exits with 127."""
