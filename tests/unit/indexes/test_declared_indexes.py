"""Index declarations: the DDL that they are, their names, and what they say of themselves."""

from __future__ import annotations

from typing import Any

import pytest
from pgvector.sqlalchemy import BIT, HALFVEC, SPARSEVEC, VECTOR
from sqlalchemy import Column, Index, Integer, MetaData, Table, Text, cast, create_mock_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import CreateIndex

from pgembed import HNSW, IVFFlat, Vector, embedding_column
from pgembed.exc import DeclarationError, MetricNotSupportedError
from pgembed.indexes import VectorIndex, indexed, indexes_on
from pgembed.testing import HashEncoder

HASH = HashEncoder(8)


def table_with(*items: Any, type_: Any = None, naming_convention: Any = None) -> Table:
    metadata = MetaData(naming_convention=naming_convention)
    columns = (
        Column("id", Integer, primary_key=True),
        Column("section", Text),
        Column("v", type_ or VECTOR(8)),
    )
    return Table("item", metadata, *columns, *items)


def ddl(index: Index) -> str:
    return " ".join(str(CreateIndex(index).compile(dialect=postgresql.dialect())).split())


@pytest.mark.parametrize(
    ("index", "type_", "sql"),
    [
        (HNSW("v", metric="l1"), VECTOR(8), "ix_item_v_hnsw ON item USING hnsw (v vector_l1_ops)"),
        (HNSW("v"), BIT(8), "ix_item_v_hnsw ON item USING hnsw (v bit_hamming_ops)"),
        (HNSW("v"), postgresql.BIT(8), "ix_item_v_hnsw ON item USING hnsw (v bit_hamming_ops)"),
        (HNSW("v", metric="jaccard"), BIT(8), "ix_item_v_hnsw ON item USING hnsw (v bit_jaccard_ops)"),
        (HNSW("v"), SPARSEVEC(8), "ix_item_v_hnsw ON item USING hnsw (v sparsevec_cosine_ops)"),
        (HNSW("v", metric="ip"), HALFVEC(8), "ix_item_v_hnsw ON item USING hnsw (v halfvec_ip_ops)"),
        (
            HNSW("v", quantize="half"),
            VECTOR(8),
            "ix_item_v_hnsw_half ON item USING hnsw ((CAST(v AS HALFVEC(8))) halfvec_cosine_ops)",
        ),
        (
            HNSW("v", quantize="bit", metric="l1"),
            VECTOR(8),
            "ix_item_v_hnsw_bit ON item USING hnsw ((CAST(binary_quantize(v) AS BIT(8))) bit_hamming_ops)",
        ),
        (
            HNSW("v", dimensions=4),
            HALFVEC(8),
            "ix_item_v_hnsw_4 ON item USING hnsw "
            "((CAST(subvector(v, 1, 4) AS HALFVEC(4))) halfvec_cosine_ops)",
        ),
        (
            HNSW("v", dimensions=4, quantize="bit"),
            VECTOR(8),
            "ix_item_v_hnsw_4_bit ON item USING hnsw "
            "((CAST(binary_quantize(subvector(v, 1, 4)) AS BIT(4))) bit_hamming_ops)",
        ),
        (
            HNSW("v", dimensions=4),
            VECTOR(),
            "ix_item_v_hnsw_4 ON item USING hnsw ((CAST(subvector(v, 1, 4) AS VECTOR(4))) vector_cosine_ops)",
        ),
    ],
)
def test_what_is_created(index: HNSW, type_: Any, sql: str) -> None:
    table_with(index, type_=type_)
    assert ddl(index) == f"CREATE INDEX {sql} WITH (m = 16, ef_construction = 64)"


def test_partial_indexes_of_text_and_of_expressions() -> None:
    table = table_with(HNSW("v", where="section = 'help'", name="help"))
    assert ddl(next(iter(table.indexes))).endswith("WHERE section = 'help'")
    table = table_with()
    index = HNSW(table.c.v, where=table.c.section == "news")
    assert ddl(index).endswith("WHERE section = 'news'")


def test_in_a_class_the_condition_is_over_its_attributes(Base: Any) -> None:
    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        section: Mapped[str] = mapped_column()
        vec: Mapped[Vector | None] = embedding_column(
            "section", encoder=HASH, index=HNSW(quantize="half", where="section = 'help'"), metric="l2"
        )
        __table_args__ = (HNSW("vec", quantize="bit", where=section == "news"),)

    found = {str(index.name): ddl(index) for index in Article.__table__.indexes}  # type: ignore[attr-defined]
    assert (
        "halfvec_l2_ops) WITH (m = 16, ef_construction = 64) WHERE section = 'help'"
        in (found["ix_article_vec_hnsw_half"])
    )
    assert found["ix_article_vec_hnsw_bit"].endswith("WHERE section = 'news'")
    bits = next(each for each in indexes_on(Article.__table__.c.vec) if each.storage == "bit")
    assert bits.index.metric.name == "l2"  # type: ignore[attr-defined]


def test_names_follow_the_convention_of_the_metadata() -> None:
    convention = {"ix": "idx_%(table_name)s_%(column_0_name)s"}
    for index in (HNSW("v"), HNSW("v", quantize="half")):
        table_with(index, naming_convention=convention)
        assert str(index.name) == "idx_item_v"
    named = HNSW("v", name="mine")
    table_with(named, naming_convention=convention)
    assert named.name == "mine"
    with pytest.raises(DeclarationError, match="two vector indexes called idx_item_v: name them"):
        table_with(HNSW("v"), HNSW("v", quantize="half"), naming_convention=convention)


def test_what_an_index_says_of_itself() -> None:
    table = table_with(
        HNSW("v"),
        HNSW("v", quantize="half"),
        HNSW("v", quantize="bit", oversample=20),
        HNSW("v", dimensions=4, where="section = 'help'"),
    )
    found = indexes_on(table.c.v)
    whole, half, bit, part = found
    facts = [(each.storage, each.dimensions, each.value_size, each.oversample) for each in found]
    assert facts == [("vector", 8, 40, 1), ("halfvec", 8, 24, 2), ("bit", 8, 9, 20), ("vector", 4, 24, 4)]
    assert [each.whole for each in found] == [True, False, False, False]
    assert whole.expression is table.c.v
    assert str(part.where) == "(section = 'help')"
    assert whole.where is None
    assert (whole.candidates(10, 80), half.candidates(10), bit.candidates(10), bit.candidates(10, 500)) == (
        10,
        20,
        200,
        500,
    )


def test_indexes_that_are_declared_without_pgembed_are_understood() -> None:
    table = table_with()
    half = Index(
        "half",
        cast(table.c.v, HALFVEC(8)).label("h"),
        postgresql_using="hnsw",
        postgresql_ops={"h": "halfvec_l2_ops"},
    )
    Index("two", table.c.v, table.c.id, postgresql_using="hnsw")
    Index("plain", table.c.section)
    Index("lists", table.c.v, postgresql_using="ivfflat")
    found = indexed(half)
    assert found is not None
    assert (found.storage, found.dimensions, found.metric and found.metric.name) == ("halfvec", 8, "l2")
    assert [str(each.index.name) for each in indexes_on(table.c.v)] == ["lists", "half"]
    assert indexes_on(table.c.v)[0].metric.name == "l2"  # type: ignore[union-attr]


def test_copies_of_a_table_have_the_same_indexes() -> None:
    table = table_with(HNSW("v", quantize="half"), HNSW("v", dimensions=4))
    copied = table.to_metadata(MetaData())
    assert sorted(ddl(index) for index in copied.indexes) == sorted(ddl(index) for index in table.indexes)
    assert [each.storage for each in indexes_on(copied.c.v)] == ["halfvec", "vector"]


def test_copies_of_indexes_are_vector_indexes() -> None:
    """Deferred as the original, of its metric, over columns of the copy; also of a copy of a copy."""
    table = table_with(HNSW("v", metric="l2", name="near"))
    IVFFlat(table.c.v, lists="auto", where=table.c.section == "help")
    copied = table
    for name in ("first", "second"):
        copied = copied.to_metadata(MetaData(), name=name)
    hnsw, lists = sorted(copied.indexes, key=lambda index: str(index.name), reverse=True)
    assert isinstance(hnsw, HNSW)
    assert isinstance(lists, IVFFlat)
    assert (hnsw.name, hnsw.metric.name, hnsw.build) == ("near", "l2", "deferred")
    assert (lists.name, lists.parameters) == ("ix_second_v_ivfflat", {"lists": "auto"})
    assert ddl(lists).endswith("WHERE section = 'help'")
    assert all(column.table is copied for column in (*hnsw.columns, *lists.columns))
    assert len(table.indexes) == 2
    script: list[str] = []
    engine = create_mock_engine("postgresql://", lambda ddl, *_, **__: script.append(str(ddl)))
    copied.metadata.create_all(engine, checkfirst=False)
    assert "CREATE TABLE second" in "".join(script)
    assert "INDEX" not in "".join(script)


def test_an_embedding_column_declares_its_index_once_on_a_copy() -> None:
    where = Column("section", Text)
    column = embedding_column("section", encoder=HASH, index=HNSW(where=where == "help"), name="v").column
    key = Column("id", Integer, primary_key=True)
    table = Table("item", MetaData(), key, where, column, HNSW("v", quantize="half"))
    for copied in (table, table.to_metadata(MetaData(), name="other"), table.to_metadata(MetaData())):
        names = {str(index.name) for index in copied.indexes}
        assert names == {f"ix_{copied.name}_v_{kind}" for kind in ("pending", "hnsw", "hnsw_half")}
        assert len(copied.indexes) == 3


def test_lists_are_found_when_the_index_is_built() -> None:
    index = IVFFlat("v", lists="auto")
    table = table_with(index)
    assert ddl(index) == "CREATE INDEX ix_item_v_ivfflat ON item USING ivfflat (v vector_cosine_ops)"
    assert [index.parameters_for(rows) for rows in (0, 40_000, 4_000_000)] == [
        {"lists": 1},
        {"lists": 40},
        {"lists": 2000},
    ]
    built = index.with_parameters(index.parameters_for(40_000))
    assert ddl(built).endswith("WITH (lists = 40)")
    assert table.indexes == {index}
    assert "WITH" not in ddl(index)


@pytest.mark.parametrize(
    ("declare", "error", "message"),
    [
        (lambda: table_with(HNSW("v", quantize="quarter")), DeclarationError, 'expected "half" or "bit"'),  # type: ignore[arg-type]
        (
            lambda: table_with(HNSW("v", quantize="half"), type_=HALFVEC(8)),
            DeclarationError,
            "halves a vector",
        ),
        (lambda: table_with(HNSW("v", quantize="bit"), type_=BIT(8)), DeclarationError, "signs of a vector"),
        (lambda: table_with(HNSW("v", dimensions=9)), DeclarationError, "has 8"),
        (lambda: table_with(HNSW("v", dimensions=4), type_=SPARSEVEC(8)), DeclarationError, "a part of a"),
        (lambda: table_with(HNSW("v", oversample=3)), DeclarationError, "whole vectors need none"),
        (lambda: table_with(HNSW("v", quantize="bit", oversample=0)), DeclarationError, "1 to 100"),
        (lambda: table_with(HNSW("v", metric="hamming")), MetricNotSupportedError, "a vector column"),
        (lambda: table_with(IVFFlat("v", metric="l1")), MetricNotSupportedError, "IVFFlat on vector"),
        (lambda: table_with(IVFFlat("v"), type_=SPARSEVEC(8)), DeclarationError, "does not index sparsevec"),
        (lambda: table_with(HNSW("v", quantize="half"), type_=VECTOR()), DeclarationError, "fixed number"),
        (
            lambda: table_with(HNSW()),
            DeclarationError,
            r"HNSW\(\) of item names no column.*as in HNSW",
        ),
        (lambda: IVFFlat("v", lists="many"), DeclarationError, '1 to 32768, or "auto"'),  # type: ignore[arg-type]
        (lambda: HNSW("v", m="auto"), DeclarationError, "takes 2 to 100"),  # type: ignore[arg-type]
        (lambda: VectorIndex("v", using="btree"), DeclarationError, "no access method 'btree'"),
        (lambda: VectorIndex("v", using="hnsw", parameters={"lists": 3}), DeclarationError, "no parameter"),
    ],
)
def test_what_is_refused(declare: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        declare()


def test_an_embedding_column_has_a_metric_of_its_type() -> None:
    with pytest.raises(MetricNotSupportedError, match="cosine, l2, inner_product, l1"):
        embedding_column("title", encoder=HASH, metric="hamming")
