"""The code of docs/classification.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

import pgembed
from pgembed import HNSW
from pgembed import queries as helpers
from pgembed.testing import HashEncoder
from tests.tables import library

GUIDE = (Path(__file__).parents[3] / "docs" / "classification.md").read_text(encoding="utf-8")

Base, Author, Article = library(HashEncoder(16), "title", index=HNSW(build="immediate"))


@pytest.fixture
def filled(engine):
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for n in range(16):
            title = "reset my password" if n % 2 else "the news of today"
            section = None if n in (4, 5) else "help" if n % 2 else "news"
            session.add(Article(id=n, title=title, section=section))
        session.commit()
        yield session


def test_the_python_of_the_guide(filled, capsys):
    names = {"session": filled, "select": select, "update": update, "Article": Article, "pgembed": pgembed}
    names |= {name: getattr(helpers, name) for name in helpers.__all__}
    for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        exec(block, names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["4 news", "5 help"]
    assert "min_share=0.9: 100% of the rows get a label, 100% of them right" in printed
    assert filled.get(Article, 4).section == "news"


def test_the_sql_of_the_guide(filled):
    (block,) = re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL)
    vector = "[" + ",".join(["1"] * 16) + "]"
    statements = [each for each in block.replace("[...]", vector).split(";") if each.strip()]
    assert len(statements) == 8
    found = [filled.execute(text(each.replace("::", "\\:\\:"))).all() for each in statements]
    assert sorted((row.key["id"], row.label) for row in found[0]) == [(4, "news"), (5, "help")]
    assert [len(rows) for rows in found[1:4]] == [2, 1, 16]
    assert [len(rows) for rows in found[4:]] == [14, 16, 2, 1]
    assert found[7][0].evaluated == 14
