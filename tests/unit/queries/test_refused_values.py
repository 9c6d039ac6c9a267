"""Values that would give wrong rows, or an error of the driver: each is refused by name when it is given."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from pgvector.sqlalchemy import SPARSEVEC
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column, relationship

from pgembed import (
    HNSW,
    IVFFlat,
    Vector,
    duplicate_groups,
    embedding_column,
    hybrid_search,
    keep_list,
    knn_classify,
    mine_pairs,
    near_duplicates,
    recommend,
    search_many,
    semantic_search,
)
from pgembed.columns import VectorType
from pgembed.exc import DeclarationError, DimensionMismatchError, PgembedError, QueryError, VectorValueError
from pgembed.testing import HashEncoder


class Base(DeclarativeBase):
    pass


class Owner(Base):
    __tablename__ = "owner"
    id: Mapped[int] = mapped_column(primary_key=True)
    country: Mapped[str]
    vector: Mapped[Vector | None] = mapped_column(VectorType(2))


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    hidden: Mapped[bool]
    facts: Mapped[Any] = mapped_column(JSON)
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("owner.id"))
    owner: Mapped[Owner | None] = relationship()
    vector: Mapped[Vector | None] = embedding_column("title", encoder=HashEncoder(2), index=HNSW())
    lists: Mapped[Vector | None] = mapped_column(VectorType(2))
    __table_args__ = (IVFFlat("lists"),)


Item.double = column_property(func.concat(Item.title, Item.title))

HELPERS: dict[str, Callable[..., Any]] = {
    "semantic_search": lambda query="text", **options: semantic_search(Item.vector, query, **options),
    "hybrid_search": lambda query="text", text=Item.title, **options: hybrid_search(
        Item.vector, query, text=text, **options
    ),
    "knn_classify": lambda query="text", label=Item.title, **options: knn_classify(
        Item.vector, query, label=label, **options
    ),
    "near_duplicates": lambda min_score=0.9, **options: near_duplicates(
        Item.vector, min_score=min_score, **options
    ),
    "duplicate_groups": lambda min_score=0.9, **options: duplicate_groups(
        Item.vector, min_score=min_score, **options
    ),
}
HELPERS |= {
    "search_many": lambda queries=("text",), **options: search_many(Item.vector, queries, **options),
    "recommend": lambda positive=("text",), **options: recommend(Item.vector, positive, **options),
}
HELPERS |= {
    "mine_pairs": lambda **options: mine_pairs(Item.vector, **options),
    "keep_list": lambda min_score=0.9, **options: keep_list(Item.vector, min_score=min_score, **options),
}
PAGES = ["semantic_search", "hybrid_search", "search_many", "recommend"]
SEARCHES = ["semantic_search", "hybrid_search", "knn_classify"]
SCORED = ["near_duplicates", "duplicate_groups", "keep_list"]
PAIRS = [*SCORED, "mine_pairs"]
NOT_WHOLE = [True, 1.5, "5", "", None, float("nan"), float("inf"), 2**40, 2**31, 2**70, -1, [1], b"1", 1j]
NOT_REAL = [
    True,
    2**2000,
    "0.5",
    float("nan"),
    np.float32("nan"),
    Decimal("NaN"),
    [0.5],
    np.ones(2),
    1j,
    object(),
]
NAMES = ["", "fast", None, True, 1, ["auto"], np.array(["auto", "exact"]), b"auto"]
NO_LABELS = [Item.facts, Item.facts["a"], cast(Item.title, JSON)]
NO_CONDITIONS = [func.now(), literal(1), select(1), cast(Item.id, Text)]
BAD: list[tuple[list[str], str, list[Any]]] = [
    (PAGES, "limit", [0, *NOT_WHOLE]),
    (PAGES, "offset", NOT_WHOLE),
    (["knn_classify"], "k", [0, *NOT_WHOLE]),
    (["near_duplicates"], "max_score", [float("inf"), -1.01, 1.01, *NOT_REAL]),
    (["mine_pairs"], "limit", [0, *NOT_WHOLE]),
    (["keep_list"], "keep", ["title", 5, Item.owner, Owner.country, [Item.title, "x"]]),
    (["keep_list", "duplicate_groups"], "pairs", ["pair", 5, select(Item.id), Item]),
    (PAIRS, "k", [0, 1001, *NOT_WHOLE]),
    (SEARCHES + PAIRS, "ef_search", [0, 1001, *(bad for bad in NOT_WHOLE if bad is not None)]),
    (SEARCHES + PAIRS, "probes", [0, 32769, *(bad for bad in NOT_WHOLE if bad is not None)]),
    (["semantic_search", "knn_classify", "search_many", "recommend"], "max_distance", NOT_REAL),
    (SCORED, "min_score", [None, float("inf"), -1.01, 1.01, *NOT_REAL]),
    ([*SEARCHES, *PAIRS, *PAGES[2:]], "mode", NAMES),
    ([*SEARCHES, *PAIRS, *PAGES[2:]], "stale", NAMES),
    (["knn_classify"], "weights", NAMES),
    (
        SEARCHES + PAIRS,
        "where",
        ["title", "", 5, object(), Item.title, Item, [None], [Item.hidden, "x"], *NO_CONDITIONS],
    ),
    (
        ["semantic_search", "hybrid_search"],
        "base",
        ["x", 5, Item, text("SELECT 1"), Item.id, select(Item).subquery(), select(Item).with_for_update()],
    ),
    (["knn_classify"], "label", ["title", None, 5, Item, Item.owner, Owner.country, *NO_LABELS]),
    (["hybrid_search"], "text", ["title", 5, Item, [], ["title"], Item.owner, Owner.country, Item.id]),
    (["hybrid_search"], "terms", ["\ud800", 5, b"x", ["x"]]),
    (SEARCHES + PAIRS, "metric", ["", "fast", True, 1, ["l2"], b"l2"]),
    (
        ["hybrid_search"],
        "config",
        ["", "no name", "a.b.c", "x'; --", '"', "1st", 5, "eng\0lish", "\ud800", b"english"],
    ),
    (["hybrid_search"], "candidates", [0, 5, *(bad for bad in NOT_WHOLE if bad is not None)]),
    (["hybrid_search"], "fusion", NAMES),
    (["hybrid_search"], "k", [-1, float("inf"), None, *NOT_REAL]),
    (["hybrid_search"], "weights", [None, 1, (1,), (1, 2, 3), "ab", *((1, bad) for bad in [-1, *NOT_REAL])]),
]


@pytest.mark.parametrize(
    ("helper", "name", "value"),
    [
        pytest.param(helper, name, value, id=f"{helper}-{name}-{number}")
        for helpers, name, values in BAD
        for helper, (number, value) in itertools.product(helpers, enumerate(values))
    ],
)
def test_the_argument_is_named(helper: str, name: str, value: Any) -> None:
    with pytest.raises(PgembedError) as refused:
        HELPERS[helper](**{name: value})
    message = str(refused.value)
    assert name in message or "surrogate" in message
    assert "needed" not in message


@pytest.mark.parametrize("helper", SEARCHES)
@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ([1.0], DimensionMismatchError, "has 1 dimensions"),
        ([1.0, 2.0, 3.0], DimensionMismatchError, "has 3 dimensions"),
        ([float("nan"), 1], VectorValueError, "NaN"),
        ([float("inf"), 1], VectorValueError, "infinity"),
        ([[1.0, 2.0]], VectorValueError, "one axis"),
        (["a", "b"], VectorValueError, "a list of texts; expected one: search_many"),
        (5, VectorValueError, r"the query is 5; expected .* session.get\(Article, 5\)"),
        ([0, 0], QueryError, "zeros"),
        (b"\xff\xfe", VectorValueError, "text form"),
        (object(), VectorValueError, "object"),
        (Owner.vector, QueryError, "one query vector.*search_many"),
        (select(Owner.vector).where(Owner.id == Item.owner_id).correlate(Item), QueryError, "correlated"),
        (
            select(Owner.vector).where(Owner.id == Item.owner_id).correlate_except(Owner).scalar_subquery(),
            QueryError,
            "correlated.*search_many",
        ),
        (select(Owner.country).limit(1), QueryError, r"of the type String\(\); expected a vector"),
        (func.random(type_=Float), QueryError, r"of the type Float\(\); expected a vector"),
        (select(Owner.vector, Owner.id).limit(1), QueryError, "a subquery of 2 columns"),
        ("half \ud83d of a pair", PgembedError, "lone surrogate"),
        ("", QueryError, "the text is ''"),
    ],
)
def test_queries(helper: str, query: Any, error: type[Exception], message: str) -> None:
    options = {"terms": "x"} if helper == "hybrid_search" and not isinstance(query, str) else {}
    with pytest.raises(error, match=message):
        HELPERS[helper](query=query, **options)


SPARSE = Table("s", MetaData(), Column("id", Integer, primary_key=True), Column("v", SPARSEVEC(4)))


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ([1.0, 2.0], DimensionMismatchError, "has 2 dimensions"),
        ("{1:2}/5", DimensionMismatchError, "has 5 dimensions"),
        ("{1:2,5:3}/4", VectorValueError, "outside of 1 to 4"),
        ("{0:2}/4", VectorValueError, "outside of 1 to 4"),
        ([1.0, float("nan"), 0, 0], VectorValueError, "NaN"),
        ("a text", VectorValueError, "not a sparse vector"),
        (5, VectorValueError, "not a sparse vector"),
        (["a", "b", "c", "d"], VectorValueError, "not a sparse vector"),
        ([0, 0, 0, 0], QueryError, "zeros"),
    ],
)
def test_sparse_queries(query: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        semantic_search(SPARSE.c.v, query)
    process = semantic_search(SPARSE.c.v, bindparam("q")).compile(dialect=postgresql.dialect())
    with pytest.raises(error, match=message):
        process._bind_processors["q"](query)
    semantic_search(SPARSE.c.v, [0, 0, 0, 0], metric="l2")


def test_a_text_with_nul_has_a_vector_and_its_words_are_apart() -> None:
    semantic_search(Item.vector, "a\0b")
    hybrid_search(Item.vector, "a\0b", text=Item.title)
    hybrid_search(Item.vector, "a", text=Item.title, terms="a\0b")
    statement = hybrid_search(Item.vector, bindparam("q"), text=Item.title, terms=bindparam("terms"))
    process = statement.compile(dialect=postgresql.dialect())._bind_processors["terms"]
    assert process("words " * 10_000) == ("words " * 10_000)[:2_000]
    assert process("a\0b") == "a b"
    with pytest.raises(QueryError, match="terms=5"):
        process(5)


@pytest.mark.parametrize(
    ("helper", "options"),
    [
        ("semantic_search", {"limit": np.int64(5), "offset": np.uint8(2), "ef_search": np.int32(50)}),
        ("semantic_search", {"max_distance": np.float32(0.5)}),
        ("semantic_search", {"max_distance": Decimal("0.5")}),
        ("semantic_search", {"where": [Item.hidden, True, column("hidden"), text("title = 'x'")]}),
        ("semantic_search", {"where": Item.title.op("~")("x")}),
        ("semantic_search", {"where": column("hidden", Boolean)}),
        ("hybrid_search", {"candidates": np.int64(50), "k": np.float64(3), "weights": np.ones(2)}),
        ("knn_classify", {"k": np.int64(3), "label": Item.double}),
        ("knn_classify", {"label": Item.facts["a"].as_string(), "where": func.starts_with(Item.title, "x")}),
        (
            "knn_classify",
            {"label": cast(Item.facts, postgresql.JSONB), "where": bindparam("condition", type_=Boolean)},
        ),
        ("semantic_search", {"query": select(func.avg(Owner.vector))}),
        ("semantic_search", {"query": func.public.embed("text")}),
        ("semantic_search", {"query": literal_column("'[1,2]'::vector")}),
        (
            "knn_classify",
            {"label": select(Owner.country).where(Owner.id == Item.owner_id).scalar_subquery()},
        ),
        ("near_duplicates", {"k": np.int16(3), "min_score": np.float32(0.5)}),
        ("duplicate_groups", {"min_score": 1}),
    ],
)
def test_numbers_and_expressions_of_all_kinds_are_taken(helper: str, options: Any) -> None:
    compiled = HELPERS[helper](**options).compile(dialect=postgresql.dialect())
    assert not any(isinstance(value, np.generic) for value in compiled.params.values())


@pytest.mark.parametrize("config", ["simple", "English", "public.mine", '"my own"', 'a."b""c"', "größe_1$"])
def test_names_of_configurations(config: str) -> None:
    hybrid_search(Item.vector, "text", text=Item.title, config=config)


def test_what_is_no_vector_column_is_named() -> None:
    with pytest.raises(DeclarationError, match=r"item\.title cannot be searched: .* String"):
        semantic_search(Item.title, "text")


def test_what_a_relationship_or_another_table_is_replaced_by() -> None:
    for label in (Item.owner, Owner.country):
        with pytest.raises(QueryError, match=r"select\(.*\.where\(.*\.scalar_subquery\(\)"):
            knn_classify(Item.vector, "text", label=label)


def test_a_column_property_is_no_vector() -> None:
    with pytest.raises(QueryError, match=r"Item\.double is not a column attribute"):
        semantic_search(Item.double, "text")


def test_the_type_of_a_text_that_is_not_a_string_is_named() -> None:
    with pytest.raises(QueryError, match=r"text=Item\.id is of the type Integer\(\)"):
        hybrid_search(Item.vector, "text", text=Item.id)
    with pytest.raises(QueryError, match=r"text= holds several columns"):
        hybrid_search(Item.vector, "text", text=[Item.title, column("words", postgresql.TSVECTOR)])
