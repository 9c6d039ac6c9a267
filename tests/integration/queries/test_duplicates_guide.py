"""The code of docs/duplicates.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import DateTime, ForeignKey, Integer, func
from sqlalchemy.orm import Mapped, Session, aliased, mapped_column

import pgembed
from pgembed import HNSW, Vector, embedding_column
from pgembed.exc import DuplicateMeaningError
from pgembed.testing import HashEncoder
from tests.tables import library

GUIDE = (Path(__file__).parents[3] / "docs" / "duplicates.md").read_text(encoding="utf-8")

Base, Author, Article = library(HashEncoder(16), "title", "body", index=HNSW(build="immediate"))


class Question(Base):
    __tablename__ = "question"
    id: Mapped[int] = mapped_column(primary_key=True)
    article_id: Mapped[int | None] = mapped_column(ForeignKey("article.id"))
    text: Mapped[str]
    embedding: Mapped[Vector | None] = embedding_column("text", encoder=HashEncoder(16))


Article.published = mapped_column(DateTime, default=func.localtimestamp())
Article.topic = mapped_column(Integer)


@pytest.fixture
def filled(engine):
    Base.metadata.create_all(engine)
    titles = ["reset my password", "printer on fire", "error E1234 after reset", "the news of today"]
    with Session(engine) as session:
        for n, title in enumerate(titles * 3):
            session.add(Article(title=title, section="help" if n < 4 else "news"))
        session.flush()
        session.add(Question(text="my password?", article_id=1))
        session.commit()
        yield session


def test_the_python_of_the_guide(filled, capsys):
    names = dict(vars(sqlalchemy))
    names |= {name: getattr(pgembed.queries, name) for name in pgembed.queries.__all__}
    names |= {"kmeans": pgembed.kmeans, "write_labels": pgembed.write_labels}
    names |= {"session": filled, "Article": Article, "Question": Question, "aliased": aliased}
    names |= {"Base": Base, "Session": Session, "engine": filled.get_bind(), "__name__": __name__}
    names |= {"Mapped": Mapped, "mapped_column": mapped_column, "Vector": Vector, "encoder": HashEncoder(16)}
    names |= {"embedding_column": embedding_column, "DuplicateMeaningError": DuplicateMeaningError}
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    for block in blocks:
        exec(block, names | {"session": filled})
    assert len(blocks) >= 5
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 16
    assert printed[-2:] == ["1 1.00", "1"]
    assert printed[-3].startswith("public.article None deleted")
    assert printed[0].endswith("(F1 1.00)")
    assert printed[1] == "group 1 of 3: 1 (1.00)"
    assert filled.scalar(sqlalchemy.select(func.count()).select_from(Article)) == 4


def test_the_sql_of_the_guide(filled):
    statements = "".join(re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL)).split(";")[:-1]
    assert len(statements) >= 5
    for statement in statements:
        vector = filled.scalar(sqlalchemy.text("SELECT embedding\\:\\:text FROM article LIMIT 1"))
        result = filled.execute(sqlalchemy.text(statement.replace("[...]", vector).replace("::", "\\:\\:")))
        assert not result.returns_rows or result.all(), statement
