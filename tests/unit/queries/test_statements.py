"""What statements are before they meet a server: their cache keys, their refusals, their errors."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    Column,
    Index,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    bindparam,
    func,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import aliased

from pgembed import HNSW, IVFFlat
from pgembed.exc import (
    DeclarationError,
    DimensionMismatchError,
    LateClauseError,
    MetricNotSupportedError,
    QueryError,
    VectorValueError,
)
from pgembed.queries import (
    duplicate_groups,
    hybrid_search,
    keep_list,
    knn_classify,
    mine_pairs,
    near_duplicates,
    rethreshold,
    semantic_search,
)
from pgembed.queries.core.parameters import QueryText
from pgembed.queries.core.subject import resolve
from pgembed.testing import HashEncoder
from tests.tables import library, model

ENCODER = HashEncoder(8)


_, Author, Article = library(ENCODER, "title", index=HNSW())
Note = model(HashEncoder(8, name="other"), table="note", source="text")
PLAIN = Table(
    "plain",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("kind", String),
    Column("v", VECTOR(3)),
)


def sql(statement):
    return str(statement.compile(dialect=postgresql.dialect()))


def cache_key(statement):
    return statement._generate_cache_key()


@pytest.fixture(autouse=True)
def _nothing_is_encoded():
    before = len(ENCODER.calls)
    yield
    assert len(ENCODER.calls) == before


# --- caching -----------------------------------------------------------------------------------------------


def test_texts_vectors_and_limits_share_one_cache_key():
    keys = [
        cache_key(semantic_search(Article.embedding, "one text", limit=3)),
        cache_key(semantic_search(Article.embedding, "another text", limit=30)),
        cache_key(semantic_search(Article.embedding, np.ones(8), limit=30)),
    ]
    assert keys[0] == keys[1] == keys[2] is not None


def test_encoders_do_not_share_a_cache_key():
    type_of = {cls: semantic_search(cls.embedding, "text") for cls in (Article, Note)}
    kinds = [
        next(bind.type for bind in cache_key(statement).bindparams if isinstance(bind.value, QueryText))
        for statement in type_of.values()
    ]
    assert kinds[0]._static_cache_key != kinds[1]._static_cache_key


@pytest.mark.parametrize(
    "statement",
    [
        knn_classify(Article.embedding, "a", label=Article.title),
        near_duplicates(Article.embedding, min_score=0.9),
        duplicate_groups(Article.embedding, min_score=0.9, inner=True),
        mine_pairs(Article.embedding),
        keep_list(Article.embedding, min_score=0.9, keep=Article.title.desc()),
        semantic_search(Article.embedding, bindparam("q"), mode="exact"),
    ],
)
def test_all_statements_can_be_cached(statement):
    assert cache_key(statement) is not None


def test_a_text_can_be_pickled_before_and_after_it_was_encoded():
    text = QueryText("hello")
    assert pickle.loads(pickle.dumps(text)).text == "hello"


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "arguments", "instead"),
    [
        ("where", (Article.title == "x",), "where="),
        ("filter", (Article.title == "x",), "where="),
        ("filter_by", (), "where="),
        ("limit", (5,), "limit="),
        ("offset", (5,), "offset="),
        ("fetch", (5,), "limit="),
        ("slice", (0, 5), "limit="),
        ("order_by", (Article.title,), "subquery"),
        ("group_by", (Article.title,), "subquery"),
        ("having", (Article.title == "x",), "subquery"),
        ("distinct", (), "subquery"),
    ],
)
def test_clauses_that_would_act_after_the_limit_are_refused(method, arguments, instead):
    statement = semantic_search(Article.embedding, "text")
    for refusing in (statement, statement.add_columns(Article.title), statement.join(Article.author)):
        with pytest.raises(LateClauseError, match=instead) as caught:
            getattr(refusing, method)(*arguments)
        assert caught.value.clause == method
        assert "semantic_search" in str(caught.value) or instead == "subquery"


def test_votes_may_be_cut_but_not_filtered():
    statement = knn_classify(Article.embedding, "text", label=Article.title)
    assert "LIMIT" in sql(statement.limit(1)).rsplit("ORDER BY", 1)[1]
    with pytest.raises(LateClauseError, match="knn_classify"):
        statement.where(Article.id > 3)


def test_what_a_statement_cannot_do_is_refused_by_name():
    votes = knn_classify(Article.embedding, "text", label=Article.title)
    pairs = near_duplicates(Article.embedding, min_score=0.9)
    groups = duplicate_groups(Article.embedding, min_score=0.9)
    kept, mined = keep_list(Article.embedding, min_score=0.9), mine_pairs(Article.embedding)
    known = rethreshold(pairs, min_score=0.95, searched_with=0.9)
    for statement in (votes, pairs, groups, kept, mined, known):
        with pytest.raises(LateClauseError, match=statement.helper) as caught:
            statement.with_for_update()
        assert caught.value.clause == "with_for_update"
    for statement in (pairs, groups, kept, mined, known):
        for method in ("where", "filter", "group_by", "having"):
            with pytest.raises(LateClauseError, match=rf"{method}.*{statement.helper}"):
                getattr(statement, method)(Article.id > 3)
        with pytest.raises(LateClauseError, match="filter_by"):
            statement.filter_by(id=3)
        last = list(statement.selected_columns)[-1]
        sorted_anew = statement.order_by(None).order_by(last).distinct().limit(5)
        assert "LIMIT" in sql(sorted_anew).rsplit("ORDER BY", 1)[1]
    search = semantic_search(Article.embedding, "text")
    for statement in (search, votes, pairs, groups):
        for aggregate in (func.count(), func.max(Article.id).label("last")):
            with pytest.raises(LateClauseError, match="subquery"):
                statement.with_only_columns(aggregate)
            with pytest.raises(LateClauseError, match="subquery"):
                statement.add_columns(aggregate)


def test_a_base_is_left_as_it_was():
    base = select(Article.id)
    semantic_search(Article.embedding, "text", base=base)
    assert type(base) is Select
    assert "distance" not in sql(base.where(Article.id > 3))


@pytest.mark.parametrize(
    ("base", "clause"),
    [
        (select(Article).where(Article.id > 3), "WHERE"),
        (select(Article).limit(3), "LIMIT"),
        (select(Article).offset(3), "OFFSET"),
        (select(Article).fetch(3), "LIMIT"),
        (select(Article).order_by(Article.id), "ORDER BY"),
        (select(Article.title).group_by(Article.title), "GROUP BY"),
        (select(func.count(Article.id)).having(func.count() > 3), "HAVING"),
        (select(Article).distinct(), "DISTINCT"),
    ],
)
def test_a_base_with_clauses_of_its_own_is_refused(base, clause):
    with pytest.raises(QueryError, match=f"has a {clause} of its own"):
        semantic_search(Article.embedding, "text", base=base)


def test_a_base_without_the_entity_is_refused():
    for base in (select(Author), select(aliased(Article)), select(1)):
        with pytest.raises(QueryError, match="does not select from"):
            semantic_search(Article.embedding, "text", base=base)
    semantic_search(Article.embedding, "text", base=select(Author.name).join(Article.author))
    semantic_search(Article.embedding, "text", base=select(Author.name).select_from(Article).join(Author))


@pytest.mark.parametrize(
    "where",
    [
        Author.name == "Ada",
        [Article.id > 3, Author.name == "Ada"],
        Article.author_id == Author.id,
        aliased(Article).id > 3,
    ],
)
def test_conditions_on_other_tables_are_refused_with_advice(where):
    for build in (
        lambda: semantic_search(Article.embedding, "text", where=where),
        lambda: knn_classify(Article.embedding, "text", label=Article.title, where=where),
        lambda: near_duplicates(Article.embedding, min_score=0.9, where=where),
        lambda: duplicate_groups(Article.embedding, min_score=0.9, where=where),
    ):
        with pytest.raises(QueryError, match="EXISTS"):
            build()


def test_a_label_of_another_table_is_refused():
    with pytest.raises(QueryError, match="label= refers to author"):
        knn_classify(Article.embedding, "text", label=Author.name)


# --- what is searched --------------------------------------------------------------------------------------


def test_what_cannot_be_searched():
    with pytest.raises(QueryError, match="not a column"):
        semantic_search("embedding", "text")
    with pytest.raises(QueryError, match="a relationship to what other rows may refer to"):
        semantic_search(Article.author, "text")
    with pytest.raises(QueryError, match="not a column"):
        semantic_search(func.avg(Article.embedding), "text")
    with pytest.raises(DeclarationError, match="vector"):
        semantic_search(Article.title, "text")
    keyless = Table("keyless", MetaData(), Column("v", VECTOR(3)))
    with pytest.raises(QueryError, match="primary key"):
        semantic_search(keyless.c.v, [1, 2, 3])
    with pytest.raises(MetricNotSupportedError):
        semantic_search(PLAIN.c.v, [1, 2, 3], metric="hamming")


def test_what_cannot_be_searched_for():
    column = Article.embedding
    with pytest.raises(DimensionMismatchError):
        semantic_search(column, [1.0, 2.0])
    with pytest.raises(VectorValueError):
        semantic_search(column, ["a"] * 8)
    with pytest.raises(VectorValueError):
        semantic_search(column, [float("nan")] * 8)
    with pytest.raises(QueryError, match="zeros"):
        semantic_search(column, np.zeros(8))
    with pytest.raises(QueryError, match="None"):
        semantic_search(column, None)
    with pytest.raises(QueryError, match="flush"):
        semantic_search(column, Article(title="new"))
    with pytest.raises(QueryError, match="of the class Note"):
        semantic_search(column, Note(text="new"))
    with pytest.raises(QueryError, match="scalar_subquery"):
        semantic_search(column, Note.embedding)
    with pytest.raises(QueryError, match="needs an encoder"):
        semantic_search(PLAIN.c.v, "text")
    semantic_search(PLAIN.c.v, [0, 0, 0], metric="l2")


def test_a_text_bound_to_a_column_without_encoder_is_refused_when_it_is_bound():
    statement = semantic_search(PLAIN.c.v, bindparam("q"))
    compiled = statement.compile(dialect=postgresql.dialect())
    process = compiled._bind_processors["q"]
    with pytest.raises(QueryError, match="needs an encoder"):
        process("text")
    with pytest.raises(DimensionMismatchError):
        process([1, 2])


def test_a_bound_parameter_keeps_its_default():
    compiled = semantic_search(PLAIN.c.v, bindparam("q", [1, 2, 3])).compile(dialect=postgresql.dialect())
    assert compiled.params["q"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 0}, "limit=0"),
        ({"limit": 2.5}, "limit=2.5"),
        ({"limit": True}, "limit=True"),
        ({"offset": -1}, "offset=-1"),
        ({"mode": "fast"}, "mode='fast'"),
        ({"stale": "maybe"}, "stale='maybe'"),
        ({"max_distance": "far"}, "max_distance"),
        ({"ef_search": 0}, "1 to 1000"),
        ({"ef_search": 1001}, "1 to 1000"),
        ({"ef_search": "40; DROP TABLE article"}, "1 to 1000"),
        ({"probes": 10}, "use ef_search="),
        ({"probes": 0}, "1 to 32768"),
        ({"probes": 1, "ef_search": 1}, "one of them"),
        ({"ef_search": 100, "mode": "exact"}, "no effect"),
        ({"ef_search": 100, "metric": "l2"}, "no effect"),
    ],
)
def test_arguments_that_cannot_work(arguments, message):
    with pytest.raises(QueryError, match=message):
        semantic_search(Article.embedding, "text", **arguments)


def test_arguments_of_the_other_helpers():
    with pytest.raises(QueryError, match="weights"):
        knn_classify(Article.embedding, "text", label=Article.title, weights="votes")
    with pytest.raises(QueryError, match=r"^k=0; expected"):
        knn_classify(Article.embedding, "text", label=Article.title, k=0)
    with pytest.raises(QueryError, match="k=0"):
        near_duplicates(Article.embedding, min_score=0.9, k=0)
    with pytest.raises(QueryError, match="mode"):
        duplicate_groups(Article.embedding, min_score=0.9, mode="fast")
    with pytest.raises(QueryError, match="no effect"):
        near_duplicates(PLAIN.c.v, min_score=0.9, ef_search=100)
    with pytest.raises(QueryError, match="digest"):
        near_duplicates(PLAIN.c.v, min_score=0.9, stale="exclude")


@pytest.mark.parametrize(
    ("metric", "good", "bad"),
    [
        ("cosine", [-1, 0, 0.9, 1], [1.01, -1.01, float("nan"), "0.9", True, None]),
        ("l2", [0.01, 1], [0, -0.5, 1.1, float("inf")]),
        ("inner_product", [-5, 0, 100], [float("inf"), float("nan")]),
    ],
)
def test_scores_are_checked_against_the_metric(metric, good, bad):
    for score in good:
        near_duplicates(PLAIN.c.v, min_score=score, metric=metric)
    for score in bad:
        with pytest.raises(QueryError, match="min_score"):
            duplicate_groups(PLAIN.c.v, min_score=score, metric=metric)


# --- index and metric --------------------------------------------------------------------------------------


def test_the_metric_and_the_index_are_found_by_declaration():
    def table(*indexes):
        return Table(
            "t", MetaData(), Column("id", Integer, primary_key=True), Column("v", VECTOR(3)), *indexes
        )

    plain_index = Index(
        "ix", "v", postgresql_using="hnsw", postgresql_with={"m": 16}, postgresql_ops={"v": "vector_l2_ops"}
    )
    assert resolve(table(plain_index).c.v).metric.name == "l2"
    inner = table(HNSW("v", metric="inner_product"))
    assert resolve(inner.c.v).metric.name == "inner_product"
    assert not resolve(inner.c.v, "cosine").indexes
    both = table(HNSW("v", metric="l2", name="a"), HNSW("v", metric="cosine", name="b"))
    assert [each.index.name for each in resolve(both.c.v, "cosine").indexes] == ["b"]
    assert [each.index.name for each in resolve(both.c.v, "l2").indexes] == ["a"]
    assert resolve(table().c.v).metric.name == "cosine"
    alias = inner.alias()
    assert resolve(alias.c.v).indexes
    assert resolve(aliased(Article).embedding).indexes


def test_ivfflat_asks_for_the_square_root_of_its_lists():
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("v", VECTOR(3)),
        IVFFlat("v", lists=50),
    )
    compiled = semantic_search(table.c.v, [1, 2, 3]).compile(dialect=postgresql.dialect())
    values = str(compiled.params)
    assert "ivfflat.probes" in values
    assert "relaxed_order" in values
    assert compiled.params["greatest_1"] == 8
    compiled = semantic_search(table.c.v, [1, 2, 3], probes=20).compile(dialect=postgresql.dialect())
    assert "20" in compiled.params.values()
    with pytest.raises(QueryError, match="use probes="):
        semantic_search(table.c.v, [1, 2, 3], ef_search=20)


def test_an_undeclared_index_can_be_asked_for():
    assert "set_config" not in sql(semantic_search(PLAIN.c.v, [1, 2, 3]))
    assert "hnsw.ef_search" in str(
        semantic_search(PLAIN.c.v, [1, 2, 3], mode="approximate").compile().params.values()
    )
    assert "ivfflat.probes" in str(
        semantic_search(PLAIN.c.v, [1, 2, 3], mode="approximate", probes=3).compile().params.values()
    )


# --- hybrid ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", ["", " \n\u3000"])
@pytest.mark.parametrize(
    ("helper", "options"),
    [
        (semantic_search, {}),
        (hybrid_search, {"text": Article.title}),
        (knn_classify, {"label": Article.title}),
    ],
)
def test_a_blank_text_is_no_question(helper, options, blank):
    with pytest.raises(QueryError, match="expected one that says what to search for"):
        helper(Article.embedding, blank, **options)


def test_hybrid_searches_can_be_cached_and_are_sealed():
    first, second = (
        hybrid_search(Article.embedding, query, text=Article.title) for query in ("one", "another")
    )
    assert cache_key(first) == cache_key(second) is not None
    with pytest.raises(LateClauseError, match="hybrid_search"):
        first.where(Article.id > 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": []}, "text= is empty"),
        ({"text": "title"}, "not a column"),
        ({"text": Article.id}, "text types"),
        ({"text": Author.name}, "text= refers to author"),
        ({"query": np.ones(8)}, "terms="),
        ({"query": bindparam("q")}, "terms=bindparam"),
        ({"candidates": 5}, "candidates=5"),
        ({"k": -1}, "k=-1"),
        ({"weights": (1,)}, "weights"),
        ({"limit": 0}, "limit=0"),
        ({"where": Author.name == "x"}, "EXISTS"),
        ({"base": select(Article).limit(3)}, "LIMIT"),
    ],
)
def test_hybrid_arguments_that_cannot_work(arguments, message):
    arguments = {"query": "text", "text": Article.title, **arguments}
    with pytest.raises(QueryError, match=message):
        hybrid_search(Article.embedding, arguments.pop("query"), **arguments)
