"""Parts of long texts on a real server: what is encoded, what stays, what other sessions do meanwhile."""

from __future__ import annotations

import os
import re
import sys
import threading
import tracemalloc
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import HNSW, semantic_search
from pgembed.cli.known import declared_on, index_on
from pgembed.columns import PendingIndex
from pgembed.exc import DeclarationError
from pgembed.filling import Counts, Worker, backfill
from pgembed.filling.backfill import estimate, pending
from pgembed.filling.cycle import Cycle
from pgembed.filling.parts import PartsWriting
from pgembed.filling.targets import Target, registered_targets, target_of
from pgembed.parts import Part, PartsTable, add_parts, embedding_parts, parts_of
from pgembed.testing import HashEncoder
from tests.tables import execute, rows

from .conftest import FAST, Picky


class Articles:
    """A table ``article`` with parts of its bodies, and what tests ask about it."""

    def __init__(self, engine: Engine, encoder: Picky | None = None, **options: Any) -> None:
        class Base(DeclarativeBase):
            pass

        self.encoder = encoder or Picky(max_tokens=12)

        class Article(Base):
            __tablename__ = "article"
            id: Mapped[int] = mapped_column(primary_key=True)
            title: Mapped[str | None] = mapped_column(Text)
            body: Mapped[str | None] = mapped_column(Text)
            parts: Mapped[list[Part]] = embedding_parts(
                "body", encoder=self.encoder, **{"context": "title", "fill": "worker", **options}
            )

        self.base, self.model, self.engine = Base, Article, engine
        Base.metadata.create_all(engine)
        bound = parts_of(Article.parts)
        assert bound is not None
        self.bound: PartsTable = bound

    @property
    def target(self) -> Target:
        with self.engine.begin() as connection:
            return target_of(connection, self.bound)

    def insert(self, *bodies: str | None) -> None:
        """Rows as a client without pgembed writes them; ids count from 1."""
        with self.engine.begin() as connection:
            connection.execute(
                insert(self.model.__table__), [{"title": "a title", "body": b} for b in bodies]
            )

    def edit(self, id: int, body: str | None) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(self.model.__table__).where(self.model.id == id).values(body=body))

    def fill(self, **options: Any) -> Counts:
        return Cycle(self.engine, self.target, FAST, **options).run(once=True)

    def create_pending_index(self) -> None:
        indexes = self.model.__table__.indexes
        next(index for index in indexes if isinstance(index, PendingIndex)).create(self.engine)

    def pending(self) -> int:
        return pending(self.engine, self.bound)

    def parts(self, id: int = 1) -> dict[int, tuple[str, tuple[float, ...]]]:
        """Text and vector by key, in the order of the text."""
        p = self.bound.parts.c
        found = select(p.id, p.text, p.embedding).where(p.article_id == id).order_by(p.number)
        with self.engine.connect() as connection:
            return {key: (text, tuple(vector)) for key, text, vector in connection.execute(found)}

    def check(self) -> None:
        """Every fresh row has the parts of its text, each once, with the vectors of what stands there."""
        fresh = HashEncoder(self.encoder.dimensions, self.encoder.name)
        article, p = self.model.__table__, self.bound.parts.c
        with self.engine.connect() as connection:
            texts = connection.execute(
                select(article.c.id, article.c.body, article.c.title).where(~self.bound.pending())
            ).all()
            for number, body, title in texts:
                found = connection.execute(
                    select(p.number, p.start, p.end, p.text, p.digest, p.embedding)
                    .where(p.article_id == number)
                    .order_by(p.number)
                ).all()
                wanted = self.bound.declaration.cut((body, title) if self.bound.sources[1:] else (body,))
                cuts = [(cut.number, cut.start, cut.end, cut.text, cut.digest) for cut in wanted]
                assert [tuple(part)[:5] for part in found] == cuts
                for part, cut in zip(found, wanted, strict=True):
                    assert np.array_equal(part.embedding, fresh.encode_documents([cut.encoded])[0])
            orphans = (
                select(func.count())
                .select_from(self.bound.parts)
                .where(p.article_id.not_in(select(article.c.id)))
            )
            assert connection.scalar(orphans) == 0


def prose(count: int, word: str = "paragraph") -> str:
    return "\n\n".join(f"This is {word} number {i} about subject {i * 7919 % 997}." for i in range(count))


@pytest.fixture
def articles(engine: Engine) -> Articles:
    return Articles(engine)


def test_parts_are_split_encoded_and_written_with_the_digest(articles: Articles) -> None:
    articles.insert(prose(20), prose(3), "short", "", None)
    counts = articles.fill()
    assert articles.pending() == 0
    assert (counts.claimed, counts.written, counts.failed) == (5, 5, 0)
    articles.check()
    assert len(articles.parts(1)) > 10
    assert [len(articles.parts(number)) for number in (3, 4, 5)] == [1, 0, 0]
    # Each text once: the two texts have parts in common.
    encoded = [text for call in articles.encoder.calls for text in call]
    assert len(encoded) == len(set(encoded)) == counts.encoded
    assert articles.fill().claimed == 0
    assert rows(articles.engine, "SELECT * FROM pgembed.lease") == []


def test_an_edit_encodes_the_parts_that_it_touches_and_the_others_keep_vector_and_key(
    articles: Articles,
) -> None:
    body = prose(200)
    articles.insert(body, "another text")
    articles.fill()
    before = articles.parts()
    for edited in (
        body.replace("subject 100", "topic 100").replace("number 100 ", "number one hundred "),
        "A new first paragraph.\n\n" + body,
        body[: len(body) // 2],
        body,
    ):
        articles.encoder.calls.clear()
        articles.edit(1, edited)
        assert articles.fill().written == 1
        articles.check()
        after = articles.parts()
        encoded = [text for call in articles.encoder.calls for text in call]
        stayed = {key for key in after if key in before}
        assert all(after[key] == before[key] for key in stayed)
        assert len(encoded) == len({value for key, value in after.items() if key not in before})
        if edited != body:
            assert len(encoded) <= 3
            assert len(stayed) >= len(after) - 3
        before = after


def test_equal_parts_of_one_text_are_encoded_once_and_all_stored(articles: Articles) -> None:
    articles.insert("The same sentence of eight words stands here.\n\n" * 10)
    articles.fill()
    articles.check()
    assert len(articles.parts()) == 10
    assert sum(map(len, articles.encoder.calls)) == 1
    keys = list(articles.parts())
    articles.edit(1, "The same sentence of eight words stands here.\n\n" * 7)
    articles.fill()
    articles.check()
    assert list(articles.parts()) == keys[:7]


def test_texts_that_are_cleared_or_gone_leave_no_parts(articles: Articles) -> None:
    articles.insert(prose(5), prose(6), prose(7))
    articles.fill()
    articles.edit(1, None)
    articles.edit(2, "")
    execute(
        articles.engine, "UPDATE article SET title = NULL WHERE id < 3", "DELETE FROM article WHERE id = 3"
    )
    articles.encoder.calls.clear()
    assert articles.fill().written == 2
    assert articles.encoder.calls == []
    assert rows(articles.engine, "SELECT count(*) FROM article_parts") == [(0,)]
    assert rows(articles.engine, "SELECT id, parts_digest FROM article ORDER BY 1") == [(1, None), (2, None)]
    assert articles.pending() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 10},
        {"format": "markdown"},
        {"context": None},
        {"encoder": Picky(max_tokens=12, name="other")},
    ],
)
def test_another_splitting_or_encoder_makes_every_row_pending(
    articles: Articles, options: dict[str, Any]
) -> None:
    articles.insert(prose(10), prose(2))
    articles.fill()
    execute(articles.engine, "DROP INDEX ix_article_parts_pending")
    changed = Articles(articles.engine, **options)
    changed.create_pending_index()
    assert changed.pending() == 2
    keys = set(articles.parts())
    changed.encoder.calls.clear()
    assert changed.fill().written == 2
    changed.check()
    if options == {"format": "markdown"}:  # which cuts this text in the same places
        assert set(changed.parts()) == keys
        assert changed.encoder.calls == []


def test_without_texts_offsets_alone_are_stored_and_a_change_encodes_nothing(engine: Engine) -> None:
    articles = Articles(engine, text=False)
    articles.insert(prose(10))
    articles.fill()
    assert {text for text, _ in articles.parts().values()} == {None}
    keys = list(articles.parts())
    for keeps in (True, False):
        execute(engine, "DROP INDEX ix_article_parts_pending")
        articles = Articles(engine, text=keeps)
        articles.create_pending_index()
        assert articles.fill().written == 1
        assert list(articles.parts()) == keys
        assert articles.encoder.calls == []
        if keeps:
            articles.check()
        else:
            assert {text for text, _ in articles.parts().values()} == {None}


def test_a_worker_without_models_fills_the_same(articles: Articles, monkeypatch: pytest.MonkeyPatch) -> None:
    articles.insert(prose(20))
    monkeypatch.setattr("pgembed.filling.registry.registered_encoder", lambda entry: articles.encoder)
    with articles.engine.begin() as connection:
        (target,) = registered_targets(connection)
    assert isinstance(target, Target), target
    assert target.name == "public.article.parts"
    assert target.embedding.declaration.recipe == articles.bound.declaration.recipe
    assert Cycle(articles.engine, target, FAST).run(once=True).written == 1
    articles.check()
    assert articles.pending() == 0


def test_composite_keys_schemas_and_halfvec(engine: Engine) -> None:
    encoder = Picky(max_tokens=12)

    class Base(DeclarativeBase):
        pass

    class Entry(Base):
        __tablename__ = "Entry"
        __table_args__ = ({"schema": "Library"},)
        tenant: Mapped[str] = mapped_column(Text, primary_key=True)
        place: Mapped[int] = mapped_column("Nr", primary_key=True)
        note: Mapped[str] = mapped_column("content", Text)
        pieces: Mapped[list[Part]] = embedding_parts("note", encoder=encoder, type="halfvec", fill="worker")

    execute(engine, 'CREATE SCHEMA "Library"')
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Entry(tenant=f"a\n\"{i}'%", place=i, note=prose(i)) for i in range(1, 5)])
        session.commit()
        assert backfill(engine, Entry.pieces, settings=FAST).written == 4
        for entry in session.scalars(select(Entry)):
            assert "".join(part.text or "" for part in entry.pieces) == entry.note
            assert [part.number for part in entry.pieces] == list(range(len(entry.pieces)))
            vectors = encoder.encode_documents([part.text or "" for part in entry.pieces])
            assert np.allclose(vectors, [part.embedding for part in entry.pieces], atol=1e-3)
        first = session.scalars(select(Entry)).first()
        session.delete(first)
        session.commit()
        assert session.scalar(text('SELECT count(DISTINCT "Entry_Nr") FROM "Library"."Entry_pieces"')) == 3


def test_a_poison_part_fails_its_text_visibly_and_no_other(articles: Articles) -> None:
    articles.insert(prose(30), prose(30).replace("subject 9", "poison 9"), prose(8, "section"))
    counts = articles.fill()
    assert (counts.written, counts.failed) == (2, 1)
    assert articles.parts(2) == {}
    articles.check()
    ((column, key, error),) = rows(articles.engine, "SELECT column_name, key, error FROM pgembed.failure")
    assert (column, key) == ("parts", "[2]")
    assert "cannot encode these 1" in error
    assert rows(articles.engine, "SELECT fresh, pending, failed FROM pgembed.status") == [(2, 1, 1)]
    articles.encoder.calls.clear()
    assert articles.fill().claimed == 0  # not due again
    articles.edit(2, prose(30))
    assert articles.fill().written == 1
    articles.check()
    assert rows(articles.engine, "SELECT * FROM pgembed.failure") == []


def test_a_text_that_cannot_be_split_fails_alone(engine: Engine) -> None:
    class Lines:
        name, version = "lines", 1

        def __call__(self, source: str) -> Iterator[tuple[int, int]]:
            if "secret" in source:
                raise RuntimeError("no splitter for secrets")
            yield 0, len(source)

    articles = Articles(engine, splitter=Lines())
    articles.insert("some text", "a secret text", "more text")
    counts = articles.fill()
    assert (counts.written, counts.failed) == (2, 1)
    articles.check()
    assert rows(engine, "SELECT key, error FROM pgembed.failure") == [
        ("[2]", "RuntimeError: no splitter for secrets")
    ]


def between(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], *, times: int = 1) -> list[int]:
    """Act between the encoding and the first writes."""
    done: list[int] = []
    original = PartsWriting.write

    def write(self: PartsWriting, encoded: Any) -> None:
        if len(done) < times:
            done.append(1)
            act()
        original(self, encoded)

    monkeypatch.setattr(PartsWriting, "write", write)
    return done


def test_a_text_edited_while_it_is_encoded_is_not_overwritten(
    articles: Articles, monkeypatch: pytest.MonkeyPatch
) -> None:
    articles.insert(prose(10), prose(4))
    acted = between(monkeypatch, lambda: articles.edit(1, prose(10, "sentence")))
    assert Cycle(articles.engine, articles.target, FAST).run(once=True).left == 1
    assert acted
    articles.check()
    articles.fill()
    articles.check()
    assert articles.pending() == 0
    assert all("sentence" in text for text, _ in articles.parts().values())


def test_a_text_deleted_or_cleared_while_it_is_encoded(
    articles: Articles, monkeypatch: pytest.MonkeyPatch
) -> None:
    articles.insert(prose(10), prose(4), prose(6))

    def act() -> None:
        execute(
            articles.engine,
            "DELETE FROM article WHERE id = 1",
            "UPDATE article SET body = NULL, title = NULL WHERE id = 2",
        )

    between(monkeypatch, act)
    articles.fill()
    articles.check()
    articles.fill()
    assert articles.pending() == 0
    assert articles.parts(1) == articles.parts(2) == {}
    assert rows(articles.engine, "SELECT DISTINCT article_id FROM article_parts") == [(3,)]


def test_parts_lost_while_a_text_is_encoded_are_made_again(
    articles: Articles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session has filled and unfilled the row: what was to stay is gone."""
    body = prose(20)
    articles.insert(body, prose(3))
    articles.fill()
    articles.edit(1, body + "\n\nOne more.")

    def act() -> None:
        with articles.engine.begin() as connection:
            connection.execute(delete(articles.bound.parts).where(articles.bound.parts.c.article_id == 1))

    between(monkeypatch, act)
    assert articles.fill().left == 1
    assert articles.fill().written == 1
    articles.check()
    assert articles.pending() == 0
    assert rows(articles.engine, "SELECT * FROM pgembed.failure") == []


def test_rows_locked_by_others_wait_for_nobody(articles: Articles, impatient: None) -> None:
    articles.insert(prose(10), prose(4))
    with articles.engine.begin() as connection:
        connection.execute(text("SELECT FROM article WHERE id = 1 FOR UPDATE"))
        counts = articles.fill()
        assert counts.written == 1
        assert articles.parts(1) == {}
    articles.check()
    assert articles.pending() == 1
    articles.fill()
    articles.check()
    assert articles.pending() == 0


def test_users_writes_do_not_wait_while_new_parts_are_inserted(
    articles: Articles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edits and deletes of the rows whose parts are on their way; those are then not written."""
    articles.insert(prose(10), prose(4), prose(6))
    put = PartsWriting._put
    done: list[str] = []

    def slow(self: PartsWriting, connection: Any, new: Any) -> list[int]:
        inserted = put(self, connection, new)
        if not done:
            done.append("acted")
            execute(
                articles.engine,
                "SET lock_timeout = '2s'",
                "UPDATE article SET body = 'other' WHERE id = 1",
                "DELETE FROM article WHERE id = 2",
            )
        return inserted

    monkeypatch.setattr(PartsWriting, "_put", slow)
    counts = articles.fill()
    assert done
    assert counts.left == 2
    articles.check()
    articles.fill()
    articles.check()
    assert articles.pending() == 0
    assert [len(articles.parts(number)) for number in (1, 2)] == [1, 0]


def test_two_workers_share_the_texts(articles: Articles) -> None:
    articles.insert(*(prose(3, f"word{i}") for i in range(60)))
    cycles = [Cycle(articles.engine, articles.target, FAST) for _ in range(3)]
    threads = [threading.Thread(target=cycle.run, kwargs={"once": True}) for cycle in cycles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    articles.check()
    assert articles.pending() == 0
    encoded = [text for call in articles.encoder.calls for text in call]
    assert len(encoded) == len(set(encoded))
    assert sum(cycle.counts.written for cycle in cycles) == 60


def test_a_process_killed_in_between_leaves_nothing_half_written(
    articles: Articles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each statement of the write: the transaction is rolled back as a lost connection rolls it back."""
    body = prose(20)
    articles.insert(body)
    articles.fill()
    before = articles.parts()
    for method in ("_put", "_put_elsewhere", "_triggered"):
        articles.edit(1, "First.\n\n" + body)
        with monkeypatch.context() as patch:

            def die(*_: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(PartsWriting, method, die)
            with pytest.raises(KeyboardInterrupt):
                articles.fill()
        assert articles.parts() == before
        assert articles.pending() == 1
        execute(articles.engine, "DELETE FROM pgembed.lease")
    articles.fill()
    articles.check()
    assert articles.pending() == 0


def test_the_worker_and_status_and_estimates_know_parts(articles: Articles) -> None:
    articles.insert(prose(20), prose(5), None)
    found = estimate(articles.engine, articles.model.parts)
    assert found.rows == 3
    # The parts are timed, not the texts.
    assert len({text for call in articles.encoder.calls for text in call}) > 20
    assert found.rows_per_second is not None
    assert found.rows_per_second > 0
    assert Worker(articles.engine, [articles.bound], settings=FAST).run(once=True)
    articles.check()
    (status,) = rows(
        articles.engine,
        "SELECT column_name, total, fresh, pending, failed, index, problem, parts FROM pgembed.status",
    )
    count = len(articles.parts(1)) + len(articles.parts(2))
    assert status == ("parts", 3, 3, 0, 0, "none", None, count)
    execute(articles.engine, "DROP TABLE article_parts")
    assert rows(articles.engine, "SELECT problem FROM pgembed.status") == [
        ("there is no table article_parts",)
    ]


def test_the_claim_reads_only_the_pending_index(articles: Articles) -> None:
    articles.insert(*(f"text {i}" for i in range(3000)))
    articles.fill()
    execute(articles.engine, "UPDATE article SET body = 'y' WHERE id % 1000 = 0")
    with articles.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("VACUUM ANALYZE article"))
        condition = str(articles.bound.pending().compile(connection, compile_kwargs={"literal_binds": True}))
        plan = "\n".join(
            connection.scalars(text(f"EXPLAIN SELECT id FROM article WHERE {condition} ORDER BY id"))
        )
    assert "using ix_article_parts_pending" in plan


def test_parts_of_a_core_table(engine: Engine) -> None:
    encoder = Picky(max_tokens=12)
    notes = Table("note", MetaData(), Column("id", Integer, primary_key=True), Column("body", Text))
    bound = add_parts(notes, "parts", "body", encoder=encoder, fill="worker")
    notes.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(notes), [{"body": prose(5)}, {"body": prose(3, "subject")}])
    assert backfill(engine, bound).written == 2
    assert pending(engine, bound) == 0
    query = encoder.encode_documents([bound.declaration.cut((prose(3, "subject"),))[1].encoded])[0]
    with engine.connect() as connection:
        (nearest,) = connection.execute(semantic_search(bound.vector, query, limit=1))
    assert (nearest.note_id, nearest.number) == (2, 1)
    with pytest.raises(
        DeclarationError, match="the source 'text' is not a column of the table; there are id, b"
    ):
        add_parts(notes, "others", "text", encoder=encoder)


def test_commands_on_indexes_know_the_vectors_of_parts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    articles = Articles(engine, metric="l2", index=HNSW(m=8))
    module = types.ModuleType("models_with_parts")
    module.Base = articles.base  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with engine.connect() as connection:
        assert index_on(connection, "article_parts", "embedding", new=True).metric.name == "l2"
        found = declared_on(connection, "public.article_parts", "embedding", "models_with_parts:Base")
    assert (found.metric.name, found.parameters["m"]) == ("l2", 8)


def test_searches_in_sql_know_the_metric_of_parts(engine: Engine) -> None:
    articles = Articles(engine, metric="l2", context=None)
    articles.insert("some text", "another text of other words")
    articles.fill()
    vector = "[" + ",".join(["2"] * 8) + "]"
    found = rows(
        engine, f"SELECT key, distance FROM pgembed.search('article_parts', 'embedding', '{vector}')"
    )
    by_hand = rows(engine, f"SELECT embedding <-> '{vector}' FROM article_parts ORDER BY 1")
    assert [distance for _, distance in found] == [distance for (distance,) in by_hand]


def test_the_documented_role_can_do_the_job(articles: Articles, admin: Engine) -> None:
    role = f"embedder_{os.getpid()}"
    guide = (Path(__file__).parents[3] / "docs" / "filling.md").read_text()
    (script,) = re.findall(r"```sql\n(CREATE ROLE.*?)```", guide, re.DOTALL)
    (of_parts,) = re.findall(r"```sql\n(GRANT [^`]*article_parts[^`]*)```", guide)
    general = "\n".join(line for line in script.splitlines() if "ON article" not in line)
    for statement in f"{general}{of_parts}".replace("embedder", role).split(";"):
        if statement.partition("--")[0].strip() or "\n" in statement.strip():
            execute(articles.engine, statement)
    engine = create_engine(articles.engine.url, connect_args={"options": f"-c role={role}"})
    try:
        articles.insert(prose(10), "poison")
        assert Worker(engine, [articles.bound], settings=FAST).run(once=True) is False
        articles.edit(2, prose(5))
        assert Worker(engine, [articles.bound], settings=FAST).run(once=True)
        articles.check()
        assert articles.pending() == 0
        assert rows(engine, "SELECT parts > 10, problem FROM pgembed.status") == [(True, None)]
    finally:
        engine.dispose()
        execute(articles.engine, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


class Quick(HashEncoder):
    """Vectors of the lengths of texts."""

    def encode_documents(self, texts: Any) -> Any:
        self.calls.append(tuple(map(len, texts)))  # type: ignore[arg-type]
        return np.array([[len(text), *range(1, self.dimensions)] for text in texts], dtype=np.float32)


def test_a_text_of_5_mb_goes_through_in_bounded_memory(engine: Engine) -> None:
    articles = Articles(engine, Quick(256, max_tokens=200), context=None)  # type: ignore[arg-type]
    articles.insert("".join(f"Paragraph {i} " + "of long words " * 60 + "ends.\n\n" for i in range(6000)))
    tracemalloc.start()
    try:
        assert articles.fill().written == 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20
    found = rows(engine, "SELECT count(*) > 4000, sum(length(text)) > 5000000 FROM article_parts")
    assert found == [(True, True)]
    assert max(map(len, articles.encoder.calls)) <= 4096
