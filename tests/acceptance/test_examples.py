"""The README and the examples, run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def encoders(minilm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGEMBED_ENCODERS", str(minilm_folder.parent))


def test_the_model_of_the_readme(engine: Engine) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    declaration, use = block.split("session.add_all(", 1)

    class Base(DeclarativeBase):
        pass

    with Session(engine) as session:
        names: dict[str, Any] = {
            "__name__": "readme",
            "Base": Base,
            "Mapped": Mapped,
            "mapped_column": mapped_column,
            "session": session,
        }
        exec(compile(declaration, "README.md", "exec", dont_inherit=True), names)
        Base.metadata.create_all(engine)
        article = names["Article"]
        names["articles"] = [
            article(title="I forgot my password", section="account"),
            article(title="The screen stays black", section="hardware"),
        ]
        results = use.replace("session.execute", "results.append(session.execute").replace(
            ".all()", ".all())"
        )
        names["results"] = []
        exec("session.add_all(" + results, names)
        found, classes = names["results"]
        assert found[0].Article.title == "I forgot my password"
        assert [row.label for row in classes] == ["hardware", "account"]
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT pending FROM pgembed.status").scalar() == 0


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(example: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error", example], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "I forgot my password" in done.stdout


def test_the_sql_of_the_readme_is_installed(engine: Engine) -> None:
    (block,) = re.findall(r"```sql\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    with engine.connect() as connection:
        for name in re.findall(r"FROM (pgembed\.\w+)", block):
            known = connection.exec_driver_sql(
                f"SELECT to_regclass('{name}') IS NOT NULL OR EXISTS (SELECT FROM pg_proc "
                f"WHERE format('%%s.%%s', pronamespace::regnamespace, proname) = '{name}')"
            )
            assert known.scalar(), name
