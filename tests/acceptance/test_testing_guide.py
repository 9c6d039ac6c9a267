"""The ``conftest.py`` of the guide, in an application of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "columns.md"

MODELS = """
from pgembed import Encoder, Vector, embedding_column
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    words: Mapped[str]
    vec: Mapped[Vector | None] = embedding_column(
        "words", encoder=Encoder("all-MiniLM-L6-v2", fingerprint="f" * 32, dimensions=16)
    )
"""
TESTS = """
from pgembed import semantic_search
from sqlalchemy.orm import Session

from app.models import Note

def test_notes(engine, encoders):
    with Session(engine) as session:
        session.add_all([Note(words="reset my password"), Note(words="the printer smokes")])
        session.commit()
        found = session.execute(semantic_search(Note.vec, "forgotten password", limit=1)).scalar_one()
        assert found.words == "reset my password"
    assert [len(call) for call in encoders[0].calls] == [2, 1]
"""


def test_the_guide() -> None:
    """Twice, since its folder is kept; without any encoder to be found."""
    section = GUIDE.read_text(encoding="utf-8").partition("## In your tests")[2]
    conftest = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    with tempfile.TemporaryDirectory(prefix="pgembed-") as name:
        folder = Path(name)
        (folder / "app").mkdir()
        (folder / "app" / "models.py").write_text(MODELS)
        (folder / "conftest.py").write_text(conftest)
        (folder / "test_notes.py").write_text(TESTS)
        for _ in range(2):
            command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:asyncio"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "1 passed" in done.stdout
