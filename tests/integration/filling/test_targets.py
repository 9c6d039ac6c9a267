"""Columns found in models and in the database: the same SQL, the same rows, whatever keys and names are."""

from __future__ import annotations

import json
import re
import sys
import threading
import types
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Engine,
    Enum,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    Text,
    create_engine,
    func,
    insert,
    select,
    text,
)
from sqlalchemy import Column as C
from sqlalchemy.dialects.postgresql import ARRAY, INET, UUID
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, mapped_column

from pgembed import Vector, embedding_column
from pgembed.columns import embeddings_of
from pgembed.exc import DeclarationError, NotInstalledError
from pgembed.filling import failures
from pgembed.filling.cycle import Cycle
from pgembed.filling.named_models import embeddings_in
from pgembed.filling.targets import Refused, Target, model_targets, registered_targets, target_of
from pgembed.testing import HashEncoder

from .conftest import FAST, Articles

ZONE = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)

KEYS: dict[str, tuple[list[C[Any]], Any]] = {
    "bigint": ([C("id", BigInteger, primary_key=True)], lambda i: {"id": 2**62 + i}),
    "uuid": ([C("id", UUID, primary_key=True)], lambda i: {"id": uuid.UUID(int=i * 7**40)}),
    "text": ([C("Key \" '%s", Text, primary_key=True)], lambda i: {"Key \" '%s": f'ä"\\ \n\t{i} :x %s'}),
    "composite": (
        [C("b", Text, primary_key=True), C("a", Integer, primary_key=True)],
        lambda i: {"b": "xyz"[i % 3], "a": i},
    ),
    "times": (
        [C("at", DateTime(timezone=True), primary_key=True), C("day", Date, primary_key=True)],
        lambda i: {"at": ZONE + timedelta(minutes=i), "day": ZONE.date()},
    ),
    "others": (
        [
            C("n", Numeric(12, 4), primary_key=True),
            C("e", Enum("Low", "high", name="Odd enum %s"), primary_key=True),
            C("b", Boolean, primary_key=True),
            C("net", INET, primary_key=True),
            C("raw", LargeBinary, primary_key=True),
        ],
        lambda i: {
            "n": Decimal(i) / 16,
            "e": "high" if i % 2 else "Low",
            "b": True,
            "net": "10.0.0.1/24",
            "raw": b"\\\0",
        },
    ),
}


def targets(engine: Engine, table: Table) -> list[Target]:
    """The table's column, from the model and from the database."""
    with engine.begin() as connection:
        found = [target_of(connection, embeddings_of(table)[0]), *registered_targets(connection)]
    for target in found:
        assert isinstance(target, Target), target
        # The encoder that the registry names has no weights anywhere; this one has the same fingerprint.
    return [target for target in found if isinstance(target, Target)]


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("mode", [0, 1], ids=["models", "registry"])
def test_keys_of_all_types(engine: Engine, kind: str, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, row = KEYS[kind]
    encoder = HashEncoder(4)
    metadata = MetaData()
    table = Table(
        'Odd "table" %s',
        metadata,
        *(column._copy() for column in columns),
        C("words: 'x' %", Text),
        embedding_column("words: 'x' %", encoder=encoder, name="Vec %").column,
        schema="My schema",
    )
    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "My schema"'))
        metadata.create_all(connection)
        connection.execute(insert(table), [{**row(i), "words: 'x' %": f"w {i}"} for i in range(200)])
    target = targets(engine, table)[mode]
    monkeypatch.setattr(
        "pgembed.Encoder.encode_documents", lambda self, texts: encoder.encode_documents(texts)
    )
    monkeypatch.setattr("pgembed.Encoder.open", lambda self: None)
    counts = Cycle(engine, target, replace(FAST, batch_rows=16)).run(once=True)
    assert (counts.claimed, counts.written) == (200, 200)
    with engine.connect() as connection:
        rows = connection.execute(select(table)).mappings().all()
        assert connection.scalar(text("SELECT pending FROM pgembed.status")) == 0
    fresh = HashEncoder(4)
    for found in rows:
        assert found["Vec %"].tolist() == fresh.encode_documents([found["words: 'x' %"]])[0].tolist()


def test_workers_in_different_time_zones_agree_on_keys(engine: Engine, url: URL) -> None:
    metadata = MetaData()
    columns, row = KEYS["times"]
    encoder = HashEncoder(4)
    table = Table(
        "t",
        metadata,
        *(column._copy() for column in columns),
        C("w", Text),
        embedding_column("w", encoder=encoder, name="v").column,
    )
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(insert(table), [{**row(i), "w": f"w {i}"} for i in range(20)])
    target = targets(engine, table)[0]
    elsewhere = create_engine(url, connect_args={"options": "-c timezone=Asia/Kolkata"})
    first = Cycle(engine, target, FAST)
    assert len(first._leases.claim(10)) == 10
    assert Cycle(elsewhere, target, FAST).run(once=True).claimed == 10
    elsewhere.dispose()


def test_templates_with_names_of_attributes(engine: Engine, Base: Any) -> None:
    class Page(Base):
        __tablename__ = "page"
        number: Mapped[int] = mapped_column("No", primary_key=True)
        vec: Mapped[Vector | None] = embedding_column(
            "words", encoder=HashEncoder(4), name="Vec", template="{{passage}}: {words}", type="halfvec"
        )
        words: Mapped[str | None] = mapped_column("page text")

    Base.metadata.create_all(engine)
    model, registered = targets(engine, Page.__table__)  # type: ignore[arg-type]
    assert registered.embedding.declaration.recipe == model.embedding.declaration.recipe
    assert registered.embedding.declaration.compose(["x"]) == "{passage}: x"
    assert registered.embedding.declaration.storage == "halfvec"
    for name in ("pending", "wanted"):
        sql = [str(getattr(t.embedding, name)().compile(engine)) for t in (model, registered)]
        assert sql[0] == sql[1].replace("public.", "")


def test_tables_with_the_names_of_our_own(engine: Engine, impatient: None) -> None:
    """Aliases and tables of the SQL that fills."""
    metadata = MetaData()
    encoder = HashEncoder(4)
    tables = [
        Table(
            name,
            metadata,
            C("key", Integer, primary_key=True),
            C("error", Text),
            embedding_column("error", encoder=encoder, name="digest").column,
        )
        for name in ("l", "t", "v", "p", "q", "failure", "lease")
    ]
    with engine.begin() as connection:
        metadata.create_all(connection)
        for table in tables:
            connection.execute(insert(table), [{"key": i, "error": f"e {i}"} for i in range(5)])
        found = [target_of(connection, table.c.digest) for table in tables]

    def written() -> set[int]:
        with ThreadPoolExecutor(len(found)) as threads:
            cycles = threads.map(lambda target: Cycle(engine, target, FAST).run(once=True).written, found)
            return set(cycles)

    with engine.begin() as locking:
        for table in tables:
            locking.execute(select(table).where(table.c.key == 3).with_for_update())
        assert written() == {4}
    with engine.begin() as connection:
        for target in found:
            failures.record(connection, target, "[3]", None, "stays", pause=timedelta())
            failures.record(connection, target, "[4]", None, "is over", pause=timedelta())
    assert written() == {1}
    with engine.begin() as connection:
        assert not failures.listed(connection)


def test_partitioned_tables(engine: Engine) -> None:
    metadata = MetaData()
    encoder = HashEncoder(4)
    table = Table(
        "log",
        metadata,
        C("id", Integer, primary_key=True),
        C("kind", Text, primary_key=True),
        C("w", Text),
        embedding_column("w", encoder=encoder, name="v").column,
        postgresql_partition_by="LIST (kind)",
    )
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(text("CREATE TABLE log_a PARTITION OF log FOR VALUES IN ('a')"))
        connection.execute(text("CREATE TABLE log_b PARTITION OF log FOR VALUES IN ('b')"))
        connection.execute(insert(table), [{"id": i, "kind": "ab"[i % 2], "w": f"w {i}"} for i in range(100)])
    counts = Cycle(engine, targets(engine, table)[0], FAST).run(once=True)
    assert counts.written == 100
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).where(table.c.v.is_(None))) == 0


def test_a_model_that_the_database_does_not_know_yet_is_refused(articles: Articles) -> None:
    """Workers of two versions would undo each other's work for ever."""

    def refused(name: str, **options: Any) -> str:
        metadata = MetaData()
        table = Table(
            name,
            metadata,
            C("id", Integer, primary_key=True),
            C("title", Text),
            embedding_column("title", name="embedding", **options).column,
        )
        with articles.engine.begin() as connection:
            (found,) = model_targets(connection, embeddings_of(table))
            assert isinstance(found, Refused)
            with pytest.raises(NotInstalledError):
                target_of(connection, table.c.embedding)
        return str(found.error)

    assert "migrate the database" in refused("article", encoder=HashEncoder(8, "another"))
    assert "migrate the database" in refused("article", encoder=articles.encoder, template="q: {title}")
    assert "has no table nowhere" in refused("nowhere", encoder=articles.encoder)
    with articles.engine.begin() as connection:
        connection.execute(text("DROP INDEX ix_article_embedding_pending"))
    assert "no registered pending index" in refused("article", encoder=articles.encoder)


def test_one_column_that_cannot_be_opened_does_not_hide_the_others(engine: Engine) -> None:
    metadata = MetaData()
    for name, kind in (("bad", ARRAY(Integer)), ("good", Integer)):
        Table(
            name,
            metadata,
            C("id", kind, primary_key=True),
            C("w", Text),
            embedding_column("w", encoder=HashEncoder(4), name="v").column,
        )
    metadata.create_all(engine)
    with engine.begin() as connection:
        bad, good = registered_targets(connection)
        of_good = "SELECT obj_description('ix_good_v_pending'::regclass)"
        facts = json.loads(connection.exec_driver_sql(of_good).scalar_one())
        for options in ({"of a later version": 1}, {"max_tokens": "64"}, {"precision": "int4"}):
            comment = json.dumps(facts | {"options": options})
            connection.exec_driver_sql(f"COMMENT ON INDEX ix_good_v_pending IS '{comment}'")
            _, unknown = registered_targets(connection)
            assert isinstance(unknown, Refused)
            assert next(iter(options)) in str(unknown.error)
        connection.exec_driver_sql(f"COMMENT ON INDEX ix_good_v_pending IS '{json.dumps(facts)}'")
    assert isinstance(bad, Refused)
    assert "a primary key of the type integer[]" in str(bad.error)
    assert isinstance(good, Target)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE good RENAME COLUMN w TO words"))
        _, renamed = registered_targets(connection)
        connection.execute(text("ALTER TABLE good RENAME COLUMN words TO w"))
        connection.execute(text("ALTER TABLE good RENAME COLUMN id TO key"))
        (renamed_key,) = model_targets(connection, embeddings_of(metadata.tables["good"]))
        connection.execute(text("ALTER TABLE good DROP CONSTRAINT good_pkey"))
        _, without_key = registered_targets(connection)
    for found, said in (
        (renamed, "registered with the column w"),
        (renamed_key, "the table has no column id"),
        (without_key, "no primary key any more"),
    ):
        assert isinstance(found, Refused)
        assert said in str(found.error)


def test_tables_that_come_and_go_under_the_look(engine: Engine) -> None:
    """What is gone when it is read is refused, or an error of the database: workers look again after both."""
    metadata = MetaData()
    encoder = HashEncoder(4)
    for name in ("coming", "standing"):
        column = embedding_column("w", encoder=encoder, name="v").column
        Table(name, metadata, C("id", Integer, primary_key=True), C("w", Text), column)
    metadata.create_all(engine)
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            metadata.tables["coming"].drop(engine)
            metadata.tables["coming"].create(engine)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    seen = set()
    try:
        for _ in range(150):
            with suppress(DBAPIError), engine.begin() as connection:
                found = {str(one.name): one for one in registered_targets(connection)}
                assert isinstance(found["public.standing.v"], Target)
                seen.add(type(found.get("public.coming.v")))
    finally:
        stop.set()
        thread.join()
    assert seen & {Refused, type(None)}


def test_models_are_found_by_module_and_name(articles: Articles, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("some_models")
    module.__dict__.update(Base=articles.base, Article=articles.model, table=articles.model.__table__)
    module.__dict__.update(metadata=articles.base.metadata, empty=MetaData(), number=3)
    monkeypatch.setitem(sys.modules, "some_models", module)
    for name in ("Base", "Article", "table", "metadata"):
        assert embeddings_in(f"some_models:{name}") == [articles.embedding]
    for name in ("some_models", "some_models:", "some_models:nothing", "some_models:empty", "no_such:Base"):
        with pytest.raises(DeclarationError):
            embeddings_in(name)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f(:", r"SyntaxError: invalid syntax \({file}, line 1\)"),
        ("\nraise RuntimeError('a\\nb')", r"RuntimeError: a b \({file}, line 2\)"),
        ("\n\nimport no_such_module", r"ModuleNotFoundError: No module .*\({file}, line 3\)"),
        ("from pgembed import Encoder\nEncoder('./nothing')", r"EncoderNotFoundError: .*\({file}, line 2\)"),
    ],
)
def test_a_module_that_cannot_be_imported(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what is wrong with it, and where in the application's code."""
    file = tmp_path / "broken_models.py"
    file.write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DeclarationError, match=said.replace("{file}", re.escape(str(file)))) as raised:
        embeddings_in("broken_models:Base")
    assert "\n" not in str(raised.value)


def test_a_database_without_pgembed_says_so(empty_url: URL) -> None:
    engine = create_engine(empty_url)
    with engine.connect() as connection, pytest.raises(NotInstalledError, match="pgembed init"):
        registered_targets(connection)
    engine.dispose()


def test_what_is_no_embedding_column_is_refused(articles: Articles) -> None:
    with articles.engine.begin() as connection:
        assert target_of(connection, articles.model.embedding).name == "public.article.embedding"
        with pytest.raises(DeclarationError, match="not an embedding column"):
            target_of(connection, articles.model.title)
