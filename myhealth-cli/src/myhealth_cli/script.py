"""The conversation `myhealth dev` plays where nobody can type: it shows that the whole path works.

Every turn must end well, call a tool that returned data, and answer with some of its figures. Before the last
question the server's machine is left to fall asleep, so that it has to wake to answer.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Final, TextIO

from myhealth_cli.errors import MyHealthError
from myhealth_cli.ids import uuid7
from myhealth_cli.plain import PlainView
from myhealth_cli.transcript import Transcript
from myhealth_cli.turn import show

if TYPE_CHECKING:
    from uuid import UUID

    from myhealth_cli.client import Client
    from myhealth_cli.machine import Machine

QUESTIONS: Final = (
    "Wie viele Schritte bin ich letzte Woche gegangen?",
    "How did I sleep in the last 7 nights?",
    "Welche Trainings habe ich in den letzten zwei Wochen gemacht?",
    "What is the trend of my resting heart rate over the last 8 weeks?",
)
_PATIENCE_S: Final = 30.0
_NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)*")


class ScriptFailedError(MyHealthError):
    """A turn of the scripted conversation did not go as it must."""

    def __init__(self, question: str, reason: str) -> None:
        super().__init__(f"the conversation failed at {question!r}: {reason}")


async def play(client: Client, out: TextIO, machine: Machine) -> None:
    """Ask every question in one session and write the answers. Raises ScriptFailedError."""
    session_id = uuid7()
    await client.put_session(session_id)
    for question in QUESTIONS:
        if question is QUESTIONS[-1]:
            await _fall_asleep(machine, out)
        out.write(f"\n? {question}\n")
        _check(question, await _ask(client, session_id, question, out, machine))
    out.write(f"\n{len(QUESTIONS)} questions asked, {len(QUESTIONS)} answered from the data.\n")


async def _fall_asleep(machine: Machine, out: TextIO) -> None:
    """Wait until the machine sleeps, and say so; one that is told not to sleep is not waited for long."""
    out.write("\n· idle ...\n")
    out.flush()
    began = time.monotonic()
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await machine.until("asleep")
    except TimeoutError:
        out.write(f"· still awake after {_PATIENCE_S:.0f} s\n")
    else:
        out.write(f"· asleep after {(time.monotonic() - began) * 1000:,.0f} ms\n")
    out.flush()


async def _ask(client: Client, session_id: UUID, question: str, out: TextIO, machine: Machine) -> Transcript:
    transcript, view = Transcript(), PlainView(out)
    await show(client.send(session_id, uuid7(), question), transcript, view, machine)
    return transcript


def _check(question: str, transcript: Transcript) -> None:
    if transcript.ending != "success":
        raise ScriptFailedError(question, transcript.problem or f"the turn was {transcript.ending}")
    results = [block.result for block in transcript.blocks if block.kind == "call"]
    if not results or not all(results):
        raise ScriptFailedError(question, "no tool returned anything")
    answer = " ".join(block.text for block in transcript.blocks if block.kind == "text")
    figures = set().union(*(_figures(each) for each in results if each))
    if not figures & _figures(answer):
        raise ScriptFailedError(question, "the answer has none of the figures the tools returned")


def _figures(text: str) -> set[str]:
    """Return the numbers of a text without their separators: 8,420 and 8.420 and 8420 are the same."""
    return {re.sub("[.,]", "", number) for number in _NUMBER.findall(text)}
