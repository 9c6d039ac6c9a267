"""The README, the quickstart and the examples, run as they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from pgembed import Encoder
from pgembed.database import embedded

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def encoders(minilm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGEMBED_ENCODERS", str(minilm_folder.parent))


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


def printed(command: Sequence[str] | str, folder: Path) -> str:
    """What a command prints, the blanks at the ends of its lines apart. A string is read by a shell."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, encoding="utf-8", shell=isinstance(command, str)
    )
    assert done.returncode == 0, done.stderr
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def test_the_first_program_of_the_readme_prints_what_is_shown(server_folder: Path) -> None:
    server_folder.mkdir()
    (server_folder / "first.py").write_text(blocks("README.md", "python")[0], encoding="utf-8")
    command = [sys.executable, "-W", "error", "first.py"]
    assert printed(command, server_folder) == blocks("README.md", "text")[0]


def test_the_fingerprint_in_the_readme_is_that_of_the_weights_in_the_package(minilm: Encoder) -> None:
    names: dict[str, Any] = {"Encoder": Encoder}
    exec(blocks("README.md", "python")[2], names)
    shown = names["minilm"]
    assert (shown.fingerprint, shown.dimensions) == (minilm.fingerprint, minilm.dimensions)


def test_the_line_of_the_readme_that_declares_parts_is_all_that_a_class_needs(tmp_path: Path) -> None:
    first, line, _ = blocks("README.md", "python")
    declared = first.partition("\nwith database")[0].rstrip().replace("HNSW,", "HNSW, Part, embedding_parts,")
    program = f"{declared}\n    body: Mapped[str]\n    {line}\nprint(sorted(Base.metadata.tables))\n"
    (tmp_path / "parts.py").write_text(program, encoding="utf-8")
    assert printed([sys.executable, "-W", "error", "parts.py"], tmp_path) == "['article', 'article_parts']\n"


def test_the_quickstart_prints_what_is_shown(server_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are written under the names that stand before them, then its commands are run in order."""
    server_folder.mkdir()
    guide = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    for name, code in re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", guide, re.DOTALL):
        (server_folder / name).write_text(code, encoding="utf-8")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    commands = 0
    with embedded(server_folder / "data"):  # no command starts and stops it for itself
        for block in blocks("docs/quickstart.md", "console"):
            for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
                if command.startswith("export "):
                    monkeypatch.setenv(*command.removeprefix("export ").split("=", 1))
                else:
                    assert printed(command, server_folder) == shown, command
                    commands += 1
    assert commands == 10


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(example: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error", example], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "I forgot my password" in done.stdout


def test_the_sql_of_the_readme_is_installed(engine: Engine) -> None:
    (block,) = blocks("README.md", "sql")
    with engine.connect() as connection:
        for name in re.findall(r"FROM (pgembed\.\w+)", block):
            known = connection.exec_driver_sql(
                f"SELECT to_regclass('{name}') IS NOT NULL OR EXISTS (SELECT FROM pg_proc "
                f"WHERE format('%%s.%%s', pronamespace::regnamespace, proname) = '{name}')"
            )
            assert known.scalar(), name
