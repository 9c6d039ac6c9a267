"""Embedding columns whose sources or key are not there: refused before any row could wait for ever."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import (
    CHAR,
    Column,
    Computed,
    Integer,
    MetaData,
    Table,
    Text,
    Uuid,
    create_engine,
    create_mock_engine,
    insert,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine.mock import MockConnection
from sqlalchemy.orm import Mapped, declarative_base, mapped_column, registry
from sqlalchemy.pool import NullPool

from pgembed import embedding_column, semantic_search
from pgembed.columns import bound, embeddings_of
from pgembed.columns.hooks.mapped import mapped_embeddings
from pgembed.exc import DeclarationError, QueryError
from pgembed.filling.named_models import embeddings_in
from pgembed.testing import HashEncoder

ENCODER = HashEncoder(3)


def vector(*sources: str) -> Column[Any]:
    return embedding_column(*(sources or ("title",)), encoder=ENCODER, name="embedding").column


def core(*columns: Any, metadata: MetaData | None = None, **options: Any) -> Table:
    return Table("page", metadata or MetaData(), *columns, **options)


def key() -> Column[int]:
    return Column("id", Integer, primary_key=True)


def misspelt() -> Table:
    return core(key(), Column("title", Text), vector("titel"))


def copied() -> Table:
    return misspelt().to_metadata(MetaData())


def keyless() -> Table:
    return core(Column("title", Text), vector())


def extended() -> Table:
    metadata = MetaData()
    core(key(), Column("title", Text), metadata=metadata)
    return core(vector("titel"), metadata=metadata, extend_existing=True)


def appended() -> Table:
    table = core(key(), Column("title", Text))
    table.append_column(vector("titel"))
    return table


def one_of_two() -> Table:
    second = embedding_column("title", encoder=ENCODER, name="other").column
    return core(key(), Column("title", Text), second, vector("titel"))


MODULE_TABLE = misspelt()
mock: MockConnection = create_mock_engine("postgresql+psycopg://", lambda *_, **__: None)  # type: ignore[assignment]


def write(statement: Any) -> None:
    """What is refused is not compiled, so that any engine will do."""
    with create_engine("sqlite://", poolclass=NullPool).connect() as connection:
        connection.execute(statement)


USES = {
    "insert": lambda table: write(insert(table).values(title="a")),
    "update": lambda table: write(update(table).values(title="a")),
    "create_all": lambda table: table.metadata.create_all(mock, checkfirst=False),
    "create": lambda table: table.create(mock, checkfirst=False),
    "embeddings_of": embeddings_of,
    "bound": lambda table: bound(table.c.embedding),
    "search": lambda table: semantic_search(table.c.embedding, [1.0, 0, 0]),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("make", [misspelt, copied, keyless, extended, appended, one_of_two])
def test_the_first_use_of_the_table_is_an_error(make: Any, use: str) -> None:
    reason = (
        "no primary key" if make is keyless else "'titel' is not a column of the table; did you mean 'title'"
    )
    with pytest.raises((DeclarationError, QueryError), match=f"page.*{reason}"):
        USES[use](make())


def test_models_by_name_are_refused() -> None:
    with pytest.raises(DeclarationError, match="'titel' is not a column"):
        embeddings_in(f"{__name__}:MODULE_TABLE")


@pytest.mark.parametrize("make", ["append_column", "extend_existing", "source later", "key later"])
def test_what_is_complete_when_it_is_used_is_bound(make: str) -> None:
    metadata = MetaData()
    if make == "append_column":
        table = core(key(), Column("title", Text), metadata=metadata)
        table.append_column(vector())
    elif make == "extend_existing":
        core(key(), Column("title", Text), metadata=metadata)
        table = core(vector(), metadata=metadata, extend_existing=True)
    elif make == "source later":
        table = core(key(), vector(), metadata=metadata)
        table.append_column(Column("title", Text))
    else:
        table = core(Column("title", Text), vector(), metadata=metadata)
        table.append_column(key())
    (embedding,) = embeddings_of(table)
    assert embedding.sources == (table.c.title,)
    assert "embedding_digest" in table.c
    assert [index.name for index in table.indexes] == ["ix_page_embedding_pending"]
    (copy,) = embeddings_of(table.to_metadata(MetaData()))
    assert copy.sources[0].table is copy.table


def test_sources_of_imperative_mappings_are_attributes() -> None:
    table = core(key(), Column("title_text", Text), vector())
    page = type("Page", (), {})
    registry().map_imperatively(page, table, properties={"title": table.c.title_text})
    (embedding,) = embeddings_of(table)
    assert embedding.sources == (table.c.title_text,)
    with pytest.raises(
        DeclarationError, match=r"Other.embedding: the source 'titel' is not a column attribute"
    ):
        registry().map_imperatively(type("Other", (), {}), misspelt())


def test_a_column_added_to_a_class_later_is_filled_like_any_other(Base: Any) -> None:
    class Page(Base):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True)
        words: Mapped[str] = mapped_column("title_text")

    Page.embedding = embedding_column("words", encoder=ENCODER)  # type: ignore[attr-defined]
    (mapped,) = mapped_embeddings(Page.__mapper__)
    assert (mapped.vector, mapped.digest, mapped.sources) == ("embedding", "embedding_digest", ("words",))
    assert bound(Page.__table__.c.embedding) is mapped.embedding


@pytest.mark.parametrize(
    "column",
    [
        Column("embedding_digest", Text),
        Column("embedding_digest", CHAR(32)),
        Column("embedding_digest", Uuid(native_uuid=False)),
        Column("embedding_digest", postgresql.UUID(as_uuid=False)),
        Column("embedding_digest", Uuid(), nullable=False),
        Column("embedding_digest", Uuid(), Computed("gen_random_uuid()", persisted=True)),
        Column("other", Uuid(), key="embedding_digest"),
    ],
)
def test_another_column_of_the_digests_name_is_refused(column: Column[Any]) -> None:
    with pytest.raises(DeclarationError, match="the name of the digest of embedding"):
        core(key(), Column("title", Text), column, vector())


@pytest.mark.parametrize(
    "column", [Column("embedding_digest", Uuid()), Column("embedding_digest", Uuid(), key="d")]
)
def test_a_digest_of_ones_own_serves(column: Column[Any]) -> None:
    table = core(key(), Column("title", Text), column, vector())
    (embedding,) = embeddings_of(table)
    assert embedding.digest is column
    assert [column.name for column in table.c].count("embedding_digest") == 1


@pytest.mark.parametrize("attribute", ["property", "method"])
def test_attributes_of_the_digests_name_are_left_alone(attribute: str) -> None:
    def members(**others: Any) -> dict[str, Any]:
        made = {
            "property": property(lambda self: 1),
            "method": lambda self: 1,
        }
        return {
            "__tablename__": "page",
            "id": mapped_column(Integer, primary_key=True),
            "title": mapped_column(Text),
            "embedding": embedding_column("title", encoder=ENCODER),
            "embedding_digest": made[attribute],
            **others,
        }

    base: Any = declarative_base()
    with pytest.raises(DeclarationError, match=r"Page.embedding_digest is declared as something else"):
        type("Page", (base,), members())
    page: Any = type("Page", (base,), members(own=mapped_column("embedding_digest", Uuid(), nullable=True)))
    assert mapped_embeddings(page.__mapper__)[0].digest == "own"
