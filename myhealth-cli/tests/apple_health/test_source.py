from __future__ import annotations

import io
import random
import zipfile
from datetime import date
from typing import TYPE_CHECKING

import pytest

from myhealth_cli.apple_health import Export
from myhealth_cli.apple_health.generate import generate_export
from myhealth_cli.errors import ExportDamagedError, ExportUnreadableError

if TYPE_CHECKING:
    from pathlib import Path

    from myhealth_cli.apple_health.samples import Sample

XML = (
    b"<HealthData>"
    + b'<Record type="HKQuantityTypeIdentifierStepCount" sourceName="x" unit="count" value="3"'
    b' startDate="2024-03-01 08:00:00 +0100" endDate="2024-03-01 08:05:00 +0100"/>' * 5 + b"</HealthData>"
)


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def read_some(path: Path) -> tuple[list[Sample], ExportDamagedError | None]:
    samples: list[Sample] = []
    with Export(path) as export:
        try:
            samples.extend(export.samples())
        except ExportDamagedError as damage:
            return samples, damage
        finally:
            assert export.position <= export.total
    return samples, None


def count(path: Path) -> int:
    with Export(path) as export:
        return sum(1 for _ in export.samples())


@pytest.mark.parametrize(
    "name", ["export.xml", "Export.xml", "Exportieren.xml", "exportación.xml", "导出.xml"]
)
def test_localized_names_are_found_by_their_content(tmp_path: Path, name: str) -> None:
    members = {
        "apple_health_export/export_cda.xml": b"<ClinicalDocument/>",
        "__MACOSX/apple_health_export/._export.xml": XML,
        "apple_health_export/workout-routes/route.gpx": b"<gpx/>",
        f"apple_health_export/{name}": XML,
    }
    path = pack(tmp_path / "export.zip", members)
    assert count(path) == 5
    with Export(path) as export:
        assert export.name == f"apple_health_export/{name}"
        assert export.total == len(XML)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"%PDF-1.7 ...", "neither a zip nor"),
        (b"<html></html>", "neither a zip nor"),
        (b"PK\x03\x04 and nothing more", "truncated zip"),
    ],
)
def test_other_files_are_named_as_what_they_are(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "export.zip"
    path.write_bytes(content)
    with pytest.raises(ExportUnreadableError, match=words) as caught:
        Export(path)
    assert caught.value.hint


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.zip", tmp_path):
        with pytest.raises(ExportUnreadableError, match="cannot read"):
            Export(path)


def test_a_zip_without_an_export_says_what_it_holds(tmp_path: Path) -> None:
    path = pack(tmp_path / "photos.zip", {"cat.jpg": b"...", "export_cda.xml": b"<ClinicalDocument/>"})
    with pytest.raises(ExportUnreadableError, match=r"without an Apple Health export.xml .*cat\.jpg"):
        Export(path)


def test_a_zip_cut_anywhere_keeps_what_arrived(tmp_path: Path) -> None:
    whole = generate_export(
        tmp_path / "export.zip", seed=2, days=1, end_date=date(2024, 6, 3), density=0.05
    ).path
    expected, _ = read_some(whole)
    content = whole.read_bytes()
    kept: list[int] = []
    for cut in sorted(random.Random(1).sample(range(2000, len(content)), 12)):
        broken = tmp_path / "cut.zip"
        broken.write_bytes(content[:cut])
        samples, damage = read_some(broken)
        assert damage is None or ("zip is truncated" in damage.reason and damage.offset > 0)
        assert samples == expected[: len(samples)]
        kept.append(len(samples))
    assert kept == sorted(kept)
    assert kept[-1] > 0.8 * len(expected)


def test_a_zip_streamed_without_sizes_is_read_when_cut(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        """A file that cannot seek, so that the zip gets data descriptors, as when written to a socket."""

        def __init__(self) -> None:
            self.content = b""

        def writable(self) -> bool:
            return True

        def write(self, data: object, /) -> int:
            assert isinstance(data, bytes | bytearray | memoryview)
            self.content += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # pyright: ignore[reportArgumentType]
        archive.writestr("apple_health_export/workout-routes/r.gpx", b"<gpx/>" * 50)
        archive.writestr("apple_health_export/Exportieren.xml", XML)
    path = tmp_path / "export.zip"
    path.write_bytes(pipe.content[: pipe.content.rindex(b"PK\x01\x02")])
    assert count(path) == 5


def test_a_damaged_zip_keeps_what_could_be_inflated(tmp_path: Path) -> None:
    made = generate_export(tmp_path / "export.zip", seed=2, days=2, end_date=date(2024, 6, 3)).path
    content = bytearray(made.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = b"\xff" * 64
    made.write_bytes(content)
    samples, damage = read_some(made)
    assert damage is not None
    assert "zip is damaged" in damage.reason
    assert len(samples) > 100
