"""Open what people have: `export.zip` as Apple wrote it, or the `export.xml` inside, as a stream of bytes.

Apple localises the file's name (`Export.xml`, `Exportieren.xml`, `exportación.xml`), so a member is
chosen by what it contains. A zip whose end is missing has no directory; it is then read from the front,
local header by local header (APPNOTE.TXT 4.3.7), so that what arrived is not lost.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from contextlib import ExitStack, suppress
from typing import IO, TYPE_CHECKING, Final, NamedTuple, Self

from myhealth_cli.errors import ExportUnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

CHUNK: Final = 1 << 16
_HEAD: Final = 1 << 16
_MARKS: Final = (b"<!DOCTYPE HealthData", b"<HealthData")
_LOCAL: Final = struct.Struct("<4sHHHHHIIIHH")
_LOCAL_MAGIC: Final = b"PK\x03\x04"
_DEFLATED: Final = 8
_HOW: Final = (
    "On the iPhone: Health, your picture, Export All Health Data; pass the export.zip or its export.xml."
)


class Source:
    """The export's XML as a stream. A context manager; `name` says which file or member is read.

    `total` and `position` measure progress in the same unit: bytes of XML where the length is known,
    else bytes of the damaged zip. Raises ExportUnreadableError when there is no export in the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = ExitStack()
        self._problem = ""
        self.name = path.name
        self.total = 0
        self.position = 0
        try:
            self._chunks = self._open()
        except OSError as error:
            self._files.close()
            raise ExportUnreadableError(f"cannot read {path}: {error.strerror}") from error
        except ExportUnreadableError:
            self._files.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.close()

    @property
    def problem(self) -> str:
        """Why the bytes ended too early (a cut zip, a wrong checksum); empty when they did not."""
        return self._problem

    def chunks(self) -> Iterator[bytes]:
        """Give the XML's bytes, once; a damaged container ends them early and sets `problem`."""
        try:
            yield from self._chunks
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            self._problem = f"the zip is damaged ({error})"

    def _open(self) -> Iterator[bytes]:
        file = self._files.enter_context(self._path.open("rb"))
        head = file.read(_HEAD)
        file.seek(0)
        if not head:
            raise ExportUnreadableError(f"{self._path} is empty", hint=_HOW)
        if head.startswith((_LOCAL_MAGIC, b"PK\x05\x06")):
            return self._open_zip(file)
        if not _is_export(head):
            raise ExportUnreadableError(
                f"{self._path} is neither a zip nor an Apple Health export.xml", hint=_HOW
            )
        self.total = self._path.stat().st_size
        return self._read(file)

    def _read(self, file: IO[bytes]) -> Iterator[bytes]:
        while chunk := file.read(CHUNK):
            self.position += len(chunk)
            yield chunk

    def _open_zip(self, file: IO[bytes]) -> Iterator[bytes]:
        try:
            archive = self._files.enter_context(zipfile.ZipFile(file))
        except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError):
            return self._salvage(file)
        member = _find_member(archive)
        if member is None:
            names = ", ".join(archive.namelist()[:5]) or "nothing"
            raise ExportUnreadableError(
                f"{self._path} is a zip without an Apple Health export.xml (it holds {names})", hint=_HOW
            )
        self.name, self.total = member.filename, member.file_size
        return self._read(self._files.enter_context(archive.open(member)))

    def _salvage(self, file: IO[bytes]) -> Iterator[bytes]:
        """Find the export in a zip without directory; the search happens now, the reading later."""
        self.total = self._path.stat().st_size
        file.seek(0)
        with suppress(zlib.error):
            for entry in _local_entries(file):
                head = next(entry.chunks, b"")
                if entry.name.lower().endswith(".xml") and _is_export(head):
                    self.name = entry.name
                    return self._salvaged(file, head, entry.chunks)
        raise ExportUnreadableError(
            f"{self._path} is a truncated zip, and the part that is there holds no export.xml",
            hint="Copy the file again, in full.",
        )

    def _salvaged(self, file: IO[bytes], head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
        self._problem = "the zip is truncated: its directory is missing"
        yield head
        for chunk in rest:
            self.position = min(file.tell(), self.total)
            yield chunk


def _is_export(head: bytes) -> bool:
    return any(mark in head for mark in _MARKS)


def _find_member(archive: zipfile.ZipFile) -> zipfile.ZipInfo | None:
    candidates = [info for info in archive.infolist() if _may_be_export(info.filename)]
    candidates.sort(key=lambda info: not info.filename.lower().endswith("/export.xml"))
    for info in candidates:
        try:
            with archive.open(info) as member:
                head = member.read(_HEAD)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
            continue  # encrypted, or broken within its first bytes: not something we can read
        if _is_export(head):
            return info
    return None


def _may_be_export(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(".xml") and not base.startswith("._")


class _Entry(NamedTuple):
    name: str
    chunks: Iterator[bytes]


def _local_entries(file: IO[bytes]) -> Iterator[_Entry]:
    """Walk local headers until the bytes no longer make sense; each entry is read to its end on the way."""
    while True:
        header = file.read(_LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(_LOCAL_MAGIC):
            return
        _, _, flags, method, _, _, _, size, _, name_length, extra_length = _LOCAL.unpack(header)
        name = file.read(name_length).decode("utf-8", "replace")
        file.read(extra_length)
        streamed = bool(flags & 0x08) or size == 0xFFFFFFFF
        if method == _DEFLATED:
            chunks = _inflate(file)
        elif method == 0 and not streamed:
            chunks = _stored(file, size)
        else:
            return  # stored with unknown length, or another method: where it ends cannot be known
        yield _Entry(name, chunks)
        for _ in chunks:
            pass
        if streamed:
            _skip_descriptor(file)


def _inflate(file: IO[bytes]) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    while not inflater.eof:
        packed = inflater.unconsumed_tail or file.read(CHUNK)
        if not packed:
            if rest := inflater.flush():
                yield rest
            return
        chunk = inflater.decompress(packed, CHUNK)
        if chunk:
            yield chunk
    file.seek(-len(inflater.unused_data), 1)


def _stored(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0 and (chunk := file.read(min(CHUNK, size))):
        size -= len(chunk)
        yield chunk


def _skip_descriptor(file: IO[bytes]) -> None:
    """Stand on the next local header, past a data descriptor of 12 to 24 bytes (APPNOTE.TXT 4.3.9)."""
    here = file.tell()
    found = file.read(32).find(b"PK\x03\x04")
    file.seek(here + max(found, 0))
