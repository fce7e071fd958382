"""What goes wrong for the person at the terminal: one root class, each with a hint what to do."""

from __future__ import annotations


class MyHealthError(Exception):
    """Root of the errors `myhealth` prints instead of a stack trace.

    `str(error)` says what happened; `hint` says what the person can do about it, or is empty.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ExportUnreadableError(MyHealthError):
    """The file holds no Apple Health export that could be opened at all; nothing was read."""


class ExportDamagedError(MyHealthError):
    """The export breaks off or is malformed; every sample before `offset` has been delivered.

    `offset` is the byte in the uncompressed XML where reading stopped, `element` the element there
    with its ordinal (``<Record> no. 1234``), `reason` the parser's words.
    """

    def __init__(self, reason: str, *, offset: int, element: str, hint: str = "") -> None:
        super().__init__(f"export.xml is damaged at byte {offset:,}, at {element}: {reason}", hint=hint)
        self.reason = reason
        self.offset = offset
        self.element = element
