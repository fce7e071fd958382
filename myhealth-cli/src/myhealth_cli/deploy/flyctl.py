"""flyctl as a child process: argument lists, secrets on stdin only, answers as JSON.

Which flyctl: FLYCTL, else `flyctl` or `fly` on PATH, else .local/flyctl/flyctl. Its own variables
(FLY_API_TOKEN, FLY_API_BASE_URL, ...) are passed through; of the rest of the environment only what any
program needs.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from myhealth_cli.deploy.errors import FlyctlError, NothingChangedError
from myhealth_cli.tokens import minimal_env

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

_LOCAL: Final = Path(".local/flyctl/flyctl")
_COLOURS: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_QUERY: Final = re.compile(r"failed to run query \{.*\}: ")
_REASON: Final = re.compile(r"^\S+Z +((?:agent-backend|hint): .*)$", re.MULTILINE)
_READ_S: Final = 60.0
_END_S: Final = 10.0
"""What a flyctl that was told to end gets to give its leases back."""
_NEEDED: Final = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "DOCKER_HOST", "XDG_CONFIG_HOME", "CI")


def find(env: Mapping[str, str] = os.environ, folder: Path | None = None) -> Path:
    """Return the flyctl to use. Raises NothingChangedError when there is none."""
    if given := env.get("FLYCTL"):
        found = shutil.which(given, path=env.get("PATH", ""))
        if found is None:
            raise NothingChangedError(
                f"FLYCTL names {given}, which is no program", hint="correct or unset it"
            )
        return Path(found)
    for name in ("flyctl", "fly"):
        if found := shutil.which(name, path=env.get("PATH", "")):
            return Path(found)
    local = (folder or Path.cwd()) / _LOCAL
    if local.is_file() and os.access(local, os.X_OK):
        return local
    raise NothingChangedError(
        "flyctl is not installed", hint="`brew install flyctl`, or https://fly.io/docs/flyctl/install/"
    )


class Flyctl:
    """Calls one flyctl binary in one folder (the repository's root)."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self.binary = binary
        self._folder = folder
        self.inherited: tuple[int, ...] = ()
        """Descriptors each flyctl keeps open: a lock's, so that it outlives us with a flyctl that does."""

    async def run(self, *arguments: str, stdin: str | None = None, seconds: float = _READ_S) -> str:
        """Run flyctl and return its stdout. Raises FlyctlError, also when it takes longer than `seconds`.

        It gets a process group of its own, so that a Ctrl-C at the terminal reaches us first; when we are
        cancelled it is ended with us.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                self.binary,
                *arguments,
                cwd=self._folder,
                env=child_env(),
                stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                pass_fds=self.inherited,
            )
        except OSError as error:
            raise FlyctlError(
                f"{self.binary} does not start: {error.strerror}", hint="Is it a flyctl for this machine?"
            ) from error
        try:
            async with asyncio.timeout(seconds):
                out, err = await process.communicate(None if stdin is None else stdin.encode())
        except TimeoutError as error:
            raise FlyctlError(
                f"flyctl {arguments[0]} did not end within {seconds:.0f} s", hint="Is the network there?"
            ) from error
        finally:
            if process.returncode is None:
                await _end(process)
        if process.returncode and process.returncode < 0:
            raise FlyctlError(f"flyctl {arguments[0]} was killed (signal {-process.returncode})")
        if process.returncode != 0:
            raise FlyctlError(
                _last_words(err, out) or f"flyctl {arguments[0]} ended with {process.returncode}"
            )
        return out.decode("utf-8", "replace")

    async def read(self, answer: type[T], *arguments: str) -> T:
        """Run a command with `--json` and decode it; keys come in lower snake case, however they are spelt.

        An empty answer is an empty one of that type (flyctl writes null for no list). Raises FlyctlError.
        """
        text = await self.run(*arguments, "--json")
        try:
            document = msgspec.json.decode(text or "null")
            return answer() if document is None else msgspec.convert(_lowered(document), answer, strict=False)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise FlyctlError(
                f"flyctl {' '.join(arguments[:2])} answers something else than expected: {error}",
                hint="Is this the pinned version of flyctl (docs/design/deploy.md)?",
            ) from error


async def _end(process: asyncio.subprocess.Process) -> None:
    """End flyctl and what it has started; one that does not listen is killed: the way back waits for it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _END_S)
            return


def child_env() -> dict[str, str]:
    """Return flyctl's environment."""
    own = tuple(name for name in os.environ if name.startswith("FLY_"))
    return minimal_env(keep=(*own, *_NEEDED), NO_COLOR="1", FLY_NO_UPDATE_CHECK="1")


def _last_words(err: bytes, out: bytes) -> str:
    """Return what flyctl says went wrong: from its `Error:` on, in one line of bounded length.

    Of a release command that failed flyctl shows the log before; what the server says there is the reason.
    """
    text = _COLOURS.sub("", (err or out).decode("utf-8", "replace")).strip()
    before, _, words = text.rpartition("Error: ")
    words = _QUERY.sub("", " ".join(words.split()))
    if "Error: " not in text:
        return words[-500:]  # its progress comes first
    if "release command failed" in words:
        words = "; ".join([words, *(" ".join(each.split()) for each in _REASON.findall(before))])
    return words[:500]


def _lowered(value: Any) -> Any:
    if isinstance(value, dict):
        return {_snake(key): _lowered(each) for key, each in value.items()}
    return [_lowered(each) for each in value] if isinstance(value, list) else value


def _snake(key: str) -> str:
    """`ImageRef` and `imageRef` become image_ref, `ID` id. Names in capitals as values of maps stay."""
    if key.isupper() and "_" in key:
        return key
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
