from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from myhealth_cli.apple_health.generate import generate_export

from .devprocess import PATIENCE_S, Dev, myhealth
from .ports import free_port


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "export.zip"
    return generate_export(path, seed=3, days=3, end_date=date(2025, 4, 20)).path


def run(stack: Dev, file: Path, url: str, user: str, *options: str) -> tuple[int, str]:
    process = myhealth(stack.folder, "import", str(file), "--url", url, "--user", user, *options)
    output, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output


def test_an_import_and_its_repetition(stack: Dev, export: Path) -> None:
    code, output = run(stack, export, stack.url, "importer")
    assert code == 2, output
    assert "the server asks for a consent" in output
    assert "--consent" in output
    code, output = run(stack, export, stack.url, "importer", "--consent")
    assert code == 0, output
    assert "Agreed: Processing of your health data" in output
    assert "intelligence" not in output, "an import needs the one consent"
    assert "heart_rate" in output
    assert " 0 there already" in output
    assert "EnvironmentalAudioExposure" in output
    code, output = run(stack, export, stack.url, "importer")
    assert code == 0, output
    assert " 0 new" in output


def test_a_damaged_file_is_imported_up_to_the_damage(stack: Dev, export: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "export.zip"
    damaged.write_bytes(export.read_bytes()[: export.stat().st_size // 2])
    code, output = run(stack, damaged, stack.url, "unlucky", "--consent")
    assert code == 1, output
    assert "export.xml is damaged at byte" in output
    assert "<Record> no." in output
    assert "samples before it are imported" in output
    assert " new, 0 there already" in output


def test_no_export_and_no_server(stack: Dev, export: Path, tmp_path: Path) -> None:
    other = tmp_path / "holiday.jpg"
    other.write_bytes(b"\xff\xd8\xff\xe0 not an export")
    code, output = run(stack, other, stack.url, "nobody")
    assert code == 2
    assert "neither a zip nor an Apple Health export.xml" in output
    code, output = run(stack, export, f"http://127.0.0.1:{free_port()}", "nobody")
    assert code == 2
    assert "Is the backend running?" in output
