from __future__ import annotations

import os
from pathlib import Path

import asyncpg
import pytest

from myhealth_cli.postgres import Postgres
from myhealth_cli.processes import AlreadyRunningError, Family


async def ask(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_data_stays_as_long_as_its_folder(tmp_path: Path) -> None:
    state = tmp_path / ("a folder whose name is too long for the path of a socket" * 2)
    state.mkdir()
    async with Family(state) as family:
        url = await Postgres(state).start(family)
        await ask(url, "CREATE TABLE kept AS SELECT 42 AS n")
    async with Family(state) as family:
        url = await Postgres(state).start(family)
        assert await ask(url, "SELECT n FROM kept") == 42
    if (state / "postgres").is_symlink():  # root's data is elsewhere, and this is all that names it
        (state / "postgres").unlink()
    else:
        (state / "postgres").rename(tmp_path / "removed")
    async with Family(state) as family:
        url = await Postgres(state).start(family)
        assert await ask(url, "SELECT to_regclass('kept')::text") is None


async def test_nobody_else_can_connect(tmp_path: Path) -> None:
    async with Family(tmp_path) as family:
        postgres = Postgres(tmp_path)
        url = await postgres.start(family)
        assert await ask(url, "SHOW listen_addresses") == ""
        folder = str(await ask(url, "SHOW unix_socket_directories"))
        assert os.stat(folder).st_mode & 0o077 == 0  # noqa: PTH116 - it blocks nobody


async def test_a_folder_has_one_family_at_a_time(tmp_path: Path) -> None:
    async with Family(tmp_path):
        with pytest.raises(AlreadyRunningError) as refused:
            async with Family(tmp_path):
                pass
        assert refused.value.pid == os.getpid()
