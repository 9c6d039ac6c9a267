"""The code of docs/queries.md runs."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import DateTime, Integer, bindparam, func, select, text
from sqlalchemy.orm import Session, aliased, mapped_column

import pgembed
from pgembed import HNSW, Reranker, Words, export_onnx
from pgembed import queries as helpers
from pgembed.testing import HashEncoder
from tests.tables import library
from tests.unit.parts.test_guide import SEARCH, SPLITTING, run

RERANKERS = Path(__file__).parents[2] / "golden" / "rerankers"
GUIDE = (Path(__file__).parents[3] / "docs" / "queries.md").read_text(encoding="utf-8")


Base, Author, Article = library(
    HashEncoder(16), "title", "body", index=HNSW(build="immediate"), words=Words("title", "body")
)
Article.likes = mapped_column(Integer, default=3)
Article.published = mapped_column(DateTime, default=func.localtimestamp())


@pytest.fixture
def filled(engine):
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        ada = Author(name="Ada")
        titles = ["reset my password", "printer on fire", "error E1234 after reset", "the news of today"]
        for n, title in enumerate(titles * 3):
            session.add(
                Article(
                    title=title, section="news" if "news" in title else "help", author=ada if n % 2 else None
                )
            )
        session.commit()
        yield session


def test_the_python_of_the_guide(filled, capsys, tmp_path, monkeypatch):
    export_onnx(RERANKERS / "bert", tmp_path / "ms-marco-MiniLM-L6-v2")
    monkeypatch.setenv("PGEMBED_ENCODERS", str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    names = {"session": filled, "select": select, "func": func, "bindparam": bindparam, "aliased": aliased}
    names["timedelta"] = timedelta
    names |= {name: getattr(helpers, name) for name in helpers.__all__}
    names |= {"Article": Article, "Author": Author, "Reranker": Reranker, "pgembed": pgembed}
    for block in blocks:
        exec(block, names)
    assert len(blocks) >= 7
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "1.00  reset my password"
    assert len([line for line in printed if re.fullmatch(r"0\.\d\d  .*(reset|printer).*", line)]) >= 5


def test_the_sql_of_the_guide(filled):
    statements = [
        statement
        for block in re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL)
        for statement in block.split(";")
        if statement.strip()
    ]
    assert len(statements) == 16
    for statement in statements:
        vector = "[" + ",".join(["1"] * 16) + "]"
        result = filled.execute(text(statement.replace("[...]", vector).replace("::", "\\:\\:")))
        if result.returns_rows:
            assert result.all()


def test_the_guide_to_long_texts(engine, capsys, minilm_folder, monkeypatch):
    monkeypatch.setenv("PGEMBED_ENCODERS", str(minilm_folder.parent))
    declaration = SPLITTING[SPLITTING.index("from sqlalchemy") : SPLITTING.index("sorted(Base")]
    source = SPLITTING[SPLITTING.index("guide = ") : SPLITTING.index("pieces = ")]
    names = {}
    exec(compile(declaration + source, "<guide>", "exec", dont_inherit=True), names)
    names["Base"].metadata.create_all(engine)
    with Session(engine) as session:
        assert run(SEARCH, {**names, "session": session}, capsys) == 2
