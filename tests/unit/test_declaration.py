"""Embedding columns and indexes as schema objects; no database takes part."""

from __future__ import annotations

import enum
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import (
    CHAR,
    NCHAR,
    Column,
    Computed,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    func,
    select,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    column_property,
    configure_mappers,
    mapped_column,
    registry,
    synonym,
)
from sqlalchemy.schema import CreateIndex

from pgembed import HNSW, IVFFlat, Vector, embedding_column
from pgembed.columns import PendingIndex, bound, embeddings_of
from pgembed.exc import DeclarationError, MetricNotSupportedError
from pgembed.testing import HashEncoder

ENCODER = HashEncoder(3)


def ddl(index: Any) -> str:
    return " ".join(str(CreateIndex(index).compile(dialect=postgresql.dialect())).split())


def index_of(table: Table, kind: type) -> Any:
    (index,) = [index for index in table.indexes if isinstance(index, kind)]
    return index


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    embedding: Mapped[Vector | None] = embedding_column(
        "title", "body", encoder=ENCODER, index=HNSW(m=8, ef_construction=32)
    )
    title: Mapped[str]
    body: Mapped[str | None] = mapped_column("body_text", Text)


def test_the_column_brings_digest_and_indexes() -> None:
    table = Article.__table__
    assert isinstance(table, Table)
    assert list(table.c.keys()) == ["id", "embedding", "title", "body_text", "embedding_digest"]
    assert ddl(index_of(table, HNSW)) == (
        "CREATE INDEX ix_article_embedding_hnsw ON article USING hnsw (embedding vector_cosine_ops) "
        "WITH (m = 8, ef_construction = 32)"
    )
    recipe = embeddings_of(table)[0].declaration.recipe
    assert ddl(index_of(table, PendingIndex)) == (
        "CREATE INDEX ix_article_embedding_pending ON article (id) WHERE "
        "CASE WHEN (embedding IS NOT NULL) THEN coalesce(embedding_digest, "
        "'00000000-0000-0000-0000-000000000000'::uuid) END IS DISTINCT FROM "
        "CASE WHEN (coalesce(pg_catalog.octet_length(title), 0) + "
        "coalesce(pg_catalog.octet_length(body_text), 0) > 0) THEN "
        f"CAST(pg_catalog.md5(('{recipe}' || pg_catalog.md5(coalesce(title, ''))) || "
        "pg_catalog.md5(coalesce(body_text, ''))) AS UUID) END"
    )


def test_vector_and_digest_are_deferred() -> None:
    assert "embedding" not in str(select(Article))


def test_the_digest_changes_with_encoder_template_and_order() -> None:
    def digest(
        *sources: str, encoder: HashEncoder = ENCODER, template: str | None = None
    ) -> uuid.UUID | None:
        declared = embedding_column(*sources, encoder=encoder, template=template)
        return declared.column.info["pgembed"].digest(("x", "y"))  # type: ignore[no-any-return]

    digests = {
        digest("a", "b"),
        digest("a", "b", encoder=HashEncoder(3, name="other")),
        digest("a", "b", template="{a} {b}"),
        digest("a", "b", template="{b} {a}"),
    }
    assert len(digests) == 4
    assert digest("a", "b") == digest("c", "d")  # a rename of columns leaves vectors as they are


def test_a_core_table_has_it_all() -> None:
    table = Table(
        "core",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("words", Text),
        embedding_column(
            "words", encoder=ENCODER, name="vec", index=IVFFlat(lists=7), metric="ip", type="halfvec"
        ).column,
    )
    assert ddl(index_of(table, IVFFlat)).endswith(
        "ix_core_vec_ivfflat ON core USING ivfflat (vec halfvec_ip_ops) WITH (lists = 7)"
    )
    assert index_of(table, PendingIndex).columns.keys() == ["id"]


def test_mixins_and_copies_bind_to_their_own_table() -> None:
    class Mixin:
        words: Mapped[str | None]
        vec: Mapped[Vector | None] = embedding_column("words", encoder=ENCODER, index=HNSW())

    class LocalBase(DeclarativeBase):
        pass

    class A(Mixin, LocalBase):
        __tablename__ = "a"
        id: Mapped[int] = mapped_column(primary_key=True)

    class B(Mixin, LocalBase):
        __tablename__ = "b"
        __table_args__ = ({"schema": "elsewhere"},)
        id: Mapped[int] = mapped_column(primary_key=True)

    configure_mappers()
    for table in (A.__table__, B.__table__, Article.__table__):
        assert isinstance(table, Table)
        copy = table.to_metadata(MetaData())
        for each in (table, copy):
            (embedding,) = embeddings_of(each)
            assert {column.table for column in (embedding.vector, embedding.digest, *embedding.sources)} == {
                each
            }
            assert bound(embedding.vector) is embedding
            assert len(each.indexes) == 2
            assert index_of(each, HNSW).table is each


def test_dataclasses_need_no_vector_to_be_constructed() -> None:
    class DataBase(MappedAsDataclass, DeclarativeBase):
        pass

    class Note(DataBase):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        words: Mapped[str]
        vec: Mapped[Vector | None] = embedding_column("words", encoder=ENCODER, init=False)

    assert Note(words="x").words == "x"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": ()}, "names of its source attributes"),
        ({"sources": ("a", "a")}, "twice"),
        ({"encoder": "minilm"}, "not an encoder"),
        ({"fill": "later"}, "fill='later'"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"index": "hnsw"}, "not an index declaration"),
        ({"template": "{b}"}, "expected plain fields, one for each source: {a}"),
        ({"template": "{a:>10}"}, "plain"),
        ({"template": "{a"}, "template"),
        ({"template": b"{a}"}, r"template=b'\{a\}'; expected a str"),
        ({"template": "\0{a}"}, "a NUL character"),
        ({"template": "{a}\ud800"}, "half a surrogate pair"),
        ({"type": "half"}, 'type=\'half\'; expected "vector" or "halfvec"'),
        ({"index": HNSW}, r"not an index declaration; expected HNSW\(...\)"),
        ({"encoder": HashEncoder}, "not an encoder, it is a class; expected a pgembed.Encoder"),
        (
            {"encoder": SimpleNamespace(name="n", dimensions=3, encode_queries=len)},
            "it has no fingerprint and no encode_documents; expected .* pgembed.TextEncoder",
        ),
        ({"templat": "{x}"}, r"embedding_column has no argument templat=; did you mean template=\?"),
        ({"on_eror": "raise"}, r"did you mean on_error=\?"),
        ({"nullabel": True}, r"did you mean nullable=\?"),
        ({"zzz": 1}, "no argument zzz=; it has encoder, template, metric, .*and mapped_column's"),
        (
            {"metric": "l2", "index": HNSW(metric="cosine")},
            "declared for the metric cosine and the column for l2",
        ),
        (
            {"encoder": HashEncoder(2001), "index": HNSW()},
            'at most 2000 dimensions.*type="halfvec" or quantize="half" allows 4000',
        ),
    ],
)
def test_what_cannot_work_is_refused_at_declaration(arguments: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"sources": ("a",), "encoder": ENCODER, **arguments}
    with pytest.raises(DeclarationError, match=message):
        embedding_column(*options.pop("sources"), **options)


def test_arguments_of_mapped_column_and_of_dialects_are_passed_on() -> None:
    options: dict[str, Any] = {"comment": "of a", "sqlite_on_conflict_not_null": "FAIL", "sort_order": 3}
    column = embedding_column("a", encoder=ENCODER, **options).column
    assert (column.comment, column.dialect_options["sqlite"]["on_conflict_not_null"]) == ("of a", "FAIL")


def test_an_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(MetricNotSupportedError, match="cosine, l2, inner_product"):
        embedding_column("a", encoder=ENCODER, metric="hamming")


@pytest.mark.parametrize(
    "options", [{"m": 1}, {"m": 101}, {"ef_construction": 1001}, {"m": 40}, {"build": "now"}, {"m": 8.0}]
)
def test_what_pgvector_refuses_is_refused_at_declaration(options: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError):
        HNSW(**options)


class Colour(enum.Enum):
    RED = 1


class Plain(TypeDecorator[str]):
    """What SQLModel's strings are."""

    impl = String
    cache_ok = True


class Upper(Plain):
    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return value and value.upper()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Column("a", Integer), "not a text type"),
        (Column("a", EnumType(Colour)), "renamed"),
        (Column("a", CHAR(5)), "blanks"),
        (Column("a", NCHAR(5)), "blanks"),
        (Column("a", String, Computed("id::text")), "persisted=True"),  # virtual, on Postgres 18
        (Column("a", Upper), "changes texts"),
    ],
)
def test_sources_must_be_text(source: Column[Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        Table(
            "t",
            MetaData(),
            Column("id", Integer, primary_key=True),
            source,
            embedding_column("a", encoder=ENCODER, name="vec").column,
        )


def test_decorated_text_is_text() -> None:
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("a", Plain),
        embedding_column("a", encoder=ENCODER, name="vec").column,
    )
    assert embeddings_of(table)


def test_a_generated_column_serves_as_the_text_of_anything_else() -> None:
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("a", String, Computed("id::text", persisted=True)),
        embedding_column("a", encoder=ENCODER, name="vec").column,
    )
    assert embeddings_of(table)


def test_an_expression_as_a_source_is_refused_by_its_name() -> None:
    class Local(DeclarativeBase):
        pass

    with pytest.raises(
        DeclarationError, match=r"Loud\.vec: the source 'louder' is an SQL expression.*Computed"
    ):

        class Loud(Local):
            __tablename__ = "loud"
            id: Mapped[int] = mapped_column(primary_key=True)
            louder: Mapped[str] = column_property(func.upper("text"))
            vec: Mapped[Vector | None] = embedding_column("louder", encoder=ENCODER)


def test_a_source_that_is_not_there_and_one_of_a_parent_table_are_refused() -> None:
    class Local(DeclarativeBase):
        pass

    with pytest.raises(DeclarationError, match="'nowhere' is not a column attribute of Lost; there are id"):

        class Lost(Local):
            __tablename__ = "lost"
            id: Mapped[int] = mapped_column(primary_key=True)
            vec: Mapped[Vector | None] = embedding_column("nowhere", encoder=ENCODER)

    assert "lost" not in Local.metadata.tables

    class Found(Local):
        __tablename__ = "lost"
        id: Mapped[int] = mapped_column(primary_key=True)
        words: Mapped[str]
        vec: Mapped[Vector | None] = embedding_column("words", encoder=ENCODER)

    configure_mappers()
    Local.registry.dispose()


def _named(table: str, *columns: str) -> Table:
    return Table(
        table,
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("a", Text),
        *(embedding_column("a", encoder=ENCODER, name=column).column for column in columns),
    )


@pytest.mark.parametrize("name", ["v" * 57, "\u00e9" * 29])
def test_a_name_that_leaves_no_room_for_that_of_the_digest_is_refused(name: str) -> None:
    found = len(name.encode())
    with pytest.raises(DeclarationError, match=f'56 bytes at most, found {found}.*name="..."'):
        _named("t", name)


def test_names_of_indexes_are_shortened_by_bytes_and_stay_apart() -> None:
    names = {str(index.name) for index in _named("\u00e9" * 25, "\u00e9" * 10, "\u00e9" * 11).indexes}
    assert len(names) == 2
    assert all(len(name.encode()) <= 63 for name in names)
    (index,) = _named("t" * 50, "v").indexes
    assert index.name == f"ix_{'t' * 50}_v_pending"
    (index,) = _named("t" * 60, "v").indexes
    ddl = str(CreateIndex(index).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    assert f" {index.name} ON " in ddl
    assert len(str(index.name)) == 60


def test_texts_of_other_string_types_are_encoded_as_they_are_stored() -> None:
    class Word(str, enum.Enum):  # noqa: UP042 (StrEnum formats as its value)
        RED = "red"

    embedding = bound(
        Table(
            "t",
            MetaData(),
            Column("id", Integer, primary_key=True),
            Column("a", Text),
            embedding_column("a", encoder=ENCODER, name="vec", template="{a}!").column,
        ).c.vec
    )
    assert embedding is not None
    assert embedding.declaration.compose([Word.RED]) == "red!"
    assert embedding.declaration.compose([None]) == "!"


def _with(**attributes: Any) -> Any:
    """A model whose embedding column is called vec, with further attributes."""

    class Local(DeclarativeBase):
        pass

    columns = {
        "id": mapped_column(Integer, primary_key=True),
        "words": mapped_column(Text),
        "vec": embedding_column("words", encoder=ENCODER),
    }
    return type("Taken", (Local,), {"__tablename__": "taken", **columns, **attributes})


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"vec_digest": mapped_column(Text)},
            r"taken.vec_digest is declared as Text\(\), and it is the name",
        ),
        ({"vec_digest": mapped_column(Uuid, nullable=False)}, "NOT NULL"),
        ({"vec_digest": mapped_column(Uuid(as_uuid=False))}, "as_uuid=False"),
        ({"vec_digest": mapped_column(Uuid(native_uuid=False))}, r"Mapped\[uuid.UUID \| None\]"),
        ({"vec_digest": mapped_column("other", Text)}, "Taken.vec_digest is declared as something else"),
        ({"vec_digest": synonym("words")}, "Taken.vec_digest is declared as something else"),
        ({"vec_digest": property(lambda _: 1)}, "Taken.vec_digest is declared as something else"),
        (
            {"__table_args__": (Index("ix_taken_vec_pending", "words"),)},
            "an index called ix_taken_vec_pending, as",
        ),
    ],
)
def test_what_is_called_like_a_part_of_the_embedding_is_refused(
    attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeclarationError, match=message):
        _with(**attributes)


@pytest.mark.parametrize("kind", [Uuid(), postgresql.UUID(), postgresql.UUID(as_uuid=True)])
def test_a_digest_declared_by_the_user_is_the_digest(kind: Any) -> None:
    taken = _with(fingerprint=mapped_column("vec_digest", kind))
    (embedding,) = embeddings_of(taken.__table__)
    assert taken.fingerprint.expression.key == embedding.digest.key


def test_an_attribute_may_be_a_list_of_columns() -> None:
    words = Table(
        "words",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("words", Text),
        embedding_column("words", encoder=ENCODER, name="vec").column,
    )

    class Words:
        pass

    registry().map_imperatively(Words, words, properties={"words": [words.c.words]})
    assert isinstance(Words.vec_digest.expression.type, Uuid)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:Implicitly combining")
def test_a_column_of_the_parents_table_called_like_the_digest_is_refused() -> None:
    class Local(DeclarativeBase):
        pass

    class Parent(Local):
        __tablename__ = "parent"
        id: Mapped[int] = mapped_column(primary_key=True)
        vec_digest: Mapped[str]

    with pytest.raises(DeclarationError, match=r"child.vec_digest and parent.vec_digest are one attribute"):

        class Child(Parent):
            __tablename__ = "child"
            id: Mapped[int] = mapped_column(ForeignKey("parent.id"), primary_key=True)
            words: Mapped[str]
            vec: Mapped[Vector | None] = embedding_column("words", encoder=ENCODER)
