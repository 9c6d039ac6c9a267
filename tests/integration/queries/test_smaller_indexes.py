"""Searches through indexes that do not hold whole vectors, or not all rows, or no vectors but bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pgvector
import pytest
from pgvector.sqlalchemy import BIT, HALFVEC, SPARSEVEC, VECTOR
from sqlalchemy import (
    URL,
    Boolean,
    Column,
    Connection,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    cast,
    create_engine,
    insert,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column, registry
from sqlalchemy.schema import CreateIndex

from pgembed import (
    HNSW,
    IVFFlat,
    duplicate_groups,
    hybrid_search,
    knn_classify,
    near_duplicates,
    semantic_search,
)
from pgembed.exc import DimensionMismatchError, QueryError, VectorValueError
from pgembed.indexes import (
    ACCESS_METHODS,
    AccessMethod,
    Parameter,
    Search,
    VectorIndex,
    create,
    explain,
    indexes_on,
    is_built,
    plan,
)
from pgembed.queries.core.eligibility import is_implied
from tests.integration.indexes.conftest import clustered
from tests.integration.queries.conftest import plan_of

ROWS = 4500
DIMENSIONS = 64
VECTORS = clustered(ROWS, DIMENSIONS)
VECTORS[2000:2005] = VECTORS[:5] + np.float32(0.001)
QUERY = VECTORS[17] + np.float32(0.05)


@pytest.fixture(scope="module")
def engine(module_url: URL) -> Iterator[Engine]:
    engine = create_engine(module_url)
    table = make("item")
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(
            insert(table),
            [
                {
                    "id": key,
                    "section": ("help", "news", "code")[key % 3],
                    "label": f"label {key % 4}",
                    "hidden": key % 50 != 0,
                    "v": None if key % 1000 == 999 else vector,
                }
                for key, vector in enumerate(VECTORS)
            ],
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE item"))
    yield engine
    engine.dispose()


def make(name: str, *indexes: Any, type_: Any = None) -> Table:
    return Table(
        name,
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("section", Text),
        Column("label", Text),
        Column("hidden", Boolean),
        Column("v", type_ or VECTOR(DIMENSIONS)),
        *indexes,
    )


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A connection whose work is undone."""
    with engine.connect() as connection:
        yield connection
        connection.rollback()


def built(connection: Connection, *indexes: Index) -> Table:
    """The table with these indexes declared and built."""
    table = make("item", *indexes)
    for index in table.indexes:
        connection.execute(CreateIndex(index))
    return table


def distances(
    metric: str, query: Any = QUERY, keep: Callable[[int], bool] = lambda _: True
) -> dict[int, float]:
    """Distances by brute force."""
    vectors, query = VECTORS.astype(float), QUERY.astype(float)
    of: dict[str, Callable[[], Any]] = {
        "l2": lambda: np.linalg.norm(vectors - query, axis=1),
        "l1": lambda: np.abs(vectors - query).sum(axis=1),
        "inner_product": lambda: -(vectors @ query),
        "cosine": lambda: 1 - vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query),
    }
    found = of[metric]()
    return {key: float(found[key]) for key in range(ROWS) if key % 1000 != 999 and keep(key)}


def nearest(metric: str, limit: int, keep: Callable[[int], bool] = lambda _: True) -> list[int]:
    found = distances(metric, keep=keep)
    return sorted(found, key=found.__getitem__)[:limit]


def share(found: list[int], true: list[int]) -> float:
    assert len(found) == len(true) == len(set(found))
    return len(set(found) & set(true)) / len(true)


QUANTIZED = [
    *(
        ({"quantize": "half"}, method, metric, 0.95)
        for method, metric in [
            ("hnsw", "cosine"),
            ("hnsw", "l2"),
            ("hnsw", "inner_product"),
            ("hnsw", "l1"),
            ("ivfflat", "cosine"),
        ]
    ),
    ({"quantize": "bit"}, "hnsw", "cosine", 0.6),
    ({"quantize": "bit"}, "hnsw", "l1", 0.6),
    ({"quantize": "bit"}, "ivfflat", "cosine", 0.5),
    ({"dimensions": 48}, "hnsw", "l2", 0.7),
    ({"dimensions": 48, "quantize": "half"}, "hnsw", "l2", 0.7),
    ({"dimensions": 60, "quantize": "bit"}, "hnsw", "cosine", 0.6),
]


@pytest.mark.parametrize(("options", "method", "metric", "least"), QUANTIZED)
def test_quantized_indexes_are_used_and_distances_are_those_of_the_whole_vectors(
    connection: Connection, options: dict[str, Any], method: str, metric: str, least: float
) -> None:
    table = built(connection, VectorIndex("v", using=method, metric=metric, **options))
    (index,) = table.indexes
    found = connection.execute(semantic_search(table.c.v, QUERY, limit=20)).all()
    truth = distances(metric)
    for row in found:
        assert row.distance == pytest.approx(truth[row.id], rel=1e-5, abs=1e-5)
    assert [row.distance for row in found] == sorted(row.distance for row in found)
    assert share([row.id for row in found], nearest(metric, 20)) >= least
    plan = plan_of(connection, semantic_search(table.c.v, QUERY, limit=20))
    assert f"Index Scan using {index.name}" in plan
    assert plan.count("never executed") >= 1


def test_more_candidates_find_more(connection: Connection) -> None:
    table = built(connection, HNSW("v", quantize="bit", oversample=1))
    shares = []
    for ef_search in (None, 100, 1000):
        found = connection.execute(semantic_search(table.c.v, QUERY, limit=20, ef_search=ef_search)).all()
        shares.append(share([row.id for row in found], nearest("cosine", 20)))
    assert shares[0] < shares[1] < shares[2] > 0.9


@pytest.mark.parametrize("quantize", ["half", "bit"])
def test_never_too_few_and_all_conditions_inside(connection: Connection, quantize: Any) -> None:
    table = built(connection, HNSW("v", quantize=quantize))
    rare = semantic_search(table.c.v, QUERY, limit=50, where=~table.c.hidden)
    keys = [row.id for row in connection.execute(rare)]
    assert share(keys, nearest("cosine", 50, lambda key: key % 50 == 0)) > 0.5
    everything = semantic_search(table.c.v, QUERY, limit=2 * ROWS)
    assert [row.id for row in connection.execute(everything)] == nearest("cosine", ROWS)
    second = semantic_search(table.c.v, QUERY, limit=10, offset=10)
    both = semantic_search(table.c.v, QUERY, limit=20)
    assert [row.id for row in connection.execute(both)][10:] == [row.id for row in connection.execute(second)]
    farthest = sorted(distances("cosine").values())[4]
    near = connection.execute(semantic_search(table.c.v, QUERY, limit=20, max_distance=farthest + 1e-9)).all()
    assert 0 < len(near) <= 5
    assert all(row.distance <= farthest + 1e-6 for row in near)
    exact = connection.execute(semantic_search(table.c.v, QUERY, limit=20, mode="exact"))
    assert [row.id for row in exact] == nearest("cosine", 20)


@pytest.mark.parametrize("quantize", ["half", "bit"])
@pytest.mark.parametrize("state", ["not built", "invalid", "of fewer dimensions"])
def test_searches_are_exact_without_the_index(connection: Connection, quantize: Any, state: str) -> None:
    """A scan of the table in the order of bits would be neither fast nor right."""
    table = make("item", HNSW("v", quantize=quantize))
    if state == "invalid":
        connection.execute(CreateIndex(next(iter(table.indexes))))
        connection.execute(text("UPDATE pg_index SET indisvalid = false WHERE indrelid = 'item'::regclass"))
    elif state == "of fewer dimensions":
        built(connection, HNSW("v", quantize=quantize, dimensions=32))
    found = connection.execute(semantic_search(table.c.v, QUERY, limit=100))
    assert [row.id for row in found] == nearest("cosine", 100)


def test_the_other_helpers_use_quantized_indexes(connection: Connection) -> None:
    table = built(connection, HNSW("v", quantize="bit"))
    used = "Index Scan using ix_item_v_hnsw_bit"
    # Before a search has raised ef_search for the rest of the transaction, and with it what a scan costs.
    neighbours = explain(connection, near_duplicates(table.c.v, min_score=0.999, k=2))
    assert neighbours.used == ("ix_item_v_hnsw_bit",)
    votes = knn_classify(table.c.v, QUERY, label=table.c.label, k=15)
    assert used in plan_of(connection, votes)
    assert sum(row.votes for row in connection.execute(votes)) == 15
    assert sum(row.share for row in connection.execute(votes)) == pytest.approx(1)
    hybrid = hybrid_search(table.c.v, QUERY, text=table.c.label, terms="label", limit=5)
    connection.execute(text("SET LOCAL enable_sort = off"))
    assert used in plan_of(connection, hybrid)
    few = table.c.id % 2000 < 100
    pairs = near_duplicates(table.c.v, min_score=0.999, where=few, mode="approximate")
    assert {tuple(row)[:2] for row in connection.execute(pairs)} == {(key, key + 2000) for key in range(5)}
    groups = duplicate_groups(table.c.v, min_score=0.999, where=few, mode="approximate")
    assert {row.key for row in connection.execute(groups)} == {*range(5), *range(2000, 2005)}


def test_near_duplicates_compares_all_without_the_index(connection: Connection) -> None:
    table = make("item", HNSW("v", quantize="bit"))
    some = table.c.id < 300
    plan = plan_of(connection, near_duplicates(table.c.v, min_score=0.999, where=some))
    assert "Index Scan using ix_item_v_hnsw_bit" not in plan


def test_mapped_classes_aliases_and_bound_queries(connection: Connection) -> None:
    table = built(connection, HNSW("v", quantize="bit"))

    class Item:
        pass

    registry().map_imperatively(Item, table)
    session = Session(connection)
    used = "Index Scan using ix_item_v_hnsw_bit"
    other = aliased(Item)
    item = session.get(Item, 17)
    for column, query in [(Item.v, item), (other.v, item), (other.v, bindparam("q"))]:  # type: ignore[attr-defined]
        statement = semantic_search(column, query, limit=5)
        parameters = {"q": QUERY} if query is not item else {}
        assert used in plan_of(connection, statement, parameters)
        assert len(session.execute(statement, parameters).all()) == 5
    assert session.execute(semantic_search(Item.v, item, limit=1)).one()[0].id != 17  # type: ignore[attr-defined]


def test_a_plain_index_on_an_expression_is_used(connection: Connection) -> None:
    table = make("item")
    Index(
        "plain_half",
        cast(table.c.v, HALFVEC(DIMENSIONS)).label("half"),
        postgresql_using="hnsw",
        postgresql_ops={"half": "halfvec_l2_ops"},
    )
    connection.execute(CreateIndex(next(iter(table.indexes))))
    statement = semantic_search(table.c.v, QUERY, limit=10)
    assert "Index Scan using plain_half" in plan_of(connection, statement)
    assert [row.id for row in connection.execute(statement)] == nearest("l2", 10)


# --- partial indexes ---------------------------------------------------------------------------------------


def help_only(key: int) -> bool:
    return key % 3 == 0


@pytest.mark.parametrize("quantize", [None, "half"])
@pytest.mark.parametrize("where", ["section = 'help'", "expression"])
def test_partial_indexes(connection: Connection, quantize: Any, where: str) -> None:
    table = make("item")
    condition = table.c.section == "help"
    index = HNSW(
        table.c.v, quantize=quantize, name="part", where=condition if where == "expression" else where
    )
    connection.execute(CreateIndex(index))
    used = "Index Scan using part"

    for query in (table, table.alias()):
        implied = query.c.section == "help"
        for conditions in (implied, [implied, query.c.hidden], implied & query.c.hidden):
            statement = semantic_search(query.c.v, QUERY, limit=10, where=conditions)
            assert used in plan_of(connection, statement)
            keep = help_only if conditions is implied else lambda key: help_only(key) and key % 50 != 0
            assert (
                share([row.id for row in connection.execute(statement)], nearest("cosine", 10, keep)) >= 0.9
            )

    for conditions, keep in [
        (None, lambda _: True),
        (table.c.section == "news", lambda key: key % 3 == 1),
        ((table.c.section == "help") | table.c.hidden, lambda key: help_only(key) or key % 50 != 0),
        (table.c.section != "help", lambda key: not help_only(key)),
    ]:
        statement = semantic_search(table.c.v, QUERY, limit=30, where=conditions)
        assert used not in plan_of(connection, statement)
        assert [row.id for row in connection.execute(statement)] == nearest("cosine", 30, keep)


def test_partial_indexes_under_a_generic_plan(engine: Engine) -> None:
    table = make("item", HNSW("v", name="part", where="section = 'help'"))
    with engine.connect() as connection:
        connection.execute(CreateIndex(next(iter(table.indexes))))
        connection.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.prepare_threshold = 0
        statement = semantic_search(table.c.v, QUERY, limit=10, where=table.c.section == "help")
        assert "Index Scan using part" in plan_of(connection, statement)
        connection.rollback()


def test_postgres_proves_more_of_an_index_on_whole_vectors(connection: Connection) -> None:
    table = built(connection, HNSW("v", name="part", where="id > 1000"))
    statement = semantic_search(table.c.v, QUERY, limit=10, where=table.c.id > 1500)
    assert "Index Scan using part" in plan_of(connection, statement)


def test_near_duplicates_of_the_rows_of_a_partial_index(connection: Connection) -> None:
    table = built(connection, HNSW("v", name="part", where="hidden"))
    pairs = near_duplicates(table.c.v, min_score=0.999, where=table.c.hidden)
    assert "Index Scan using part" in plan_of(connection, pairs)
    with pytest.raises(QueryError, match="and these rows"):
        near_duplicates(table.c.v, min_score=0.999, ef_search=100)


def test_a_partial_index_does_not_hide_one_of_all_rows(connection: Connection) -> None:
    table = built(connection, HNSW("v", name="a_part", where="hidden"), HNSW("v", name="b_all"))
    assert "Index Scan using b_all" in plan_of(connection, semantic_search(table.c.v, QUERY, limit=10))


# --- metrics, types and access methods ---------------------------------------------------------------------


def test_bits_and_sparse_vectors(connection: Connection) -> None:
    bits = make("bits", HNSW("v", metric="jaccard"), HNSW("v", name="hamming"), type_=BIT(DIMENSIONS))
    sparse = make("sparse", HNSW("v", metric="l1"), type_=SPARSEVEC(DIMENSIONS))
    some = list(enumerate(VECTORS[:2000]))
    rows = [{"id": key, "v": "".join("01"[int(x > 0)] for x in vector)} for key, vector in some]
    for table, values in [
        (bits, rows),
        (
            sparse,
            [{"id": key, "v": np.where(vector > 1, vector, 0)} for key, vector in some],
        ),
    ]:
        for index in set(table.indexes):
            table.indexes.discard(index)
            table.create(connection, checkfirst=True)
            table.indexes.add(index)
        connection.execute(insert(table), values)
        for index in table.indexes:
            connection.execute(CreateIndex(index))
        connection.exec_driver_sql(f"ANALYZE {table.name}")
    ones = np.array([[x > 0 for x in vector] for vector in VECTORS[:2000]])
    asked = ones[17]
    expected = {
        "hamming": (ones != asked).sum(axis=1).astype(float),
        "jaccard": 1 - (ones & asked).sum(axis=1) / (ones | asked).sum(axis=1),
    }
    for metric, name in (("hamming", "hamming"), ("jaccard", "ix_bits_v_hnsw")):
        statement = semantic_search(bits.c.v, rows[17]["v"], limit=10, metric=metric)
        assert f"Index Scan using {name}" in plan_of(connection, statement)
        found = connection.execute(statement).all()
        assert found[0].id == 17
        assert [row.distance for row in found] == pytest.approx(sorted(expected[metric])[:10])
        assert found[0].score == 1
        assert all(0 <= row.score <= 1 for row in found)
    asked = np.where(VECTORS[17] > 1, VECTORS[17], 0)
    statement = semantic_search(sparse.c.v, asked, limit=5)
    assert "Index Scan using ix_sparse_v_hnsw" in plan_of(connection, statement)
    assert connection.execute(statement).first()[:1] == (17,)  # type: ignore[index]
    pairs = connection.execute(near_duplicates(bits.c.v, min_score=1, metric="jaccard")).all()
    assert all(row.score == 1 for row in pairs)


@pytest.mark.parametrize("kind", [BIT, postgresql.BIT])
def test_bits_are_asked_for_in_any_form_and_their_number(connection: Connection, kind: Any) -> None:
    table = make("few", type_=kind(10))
    table.create(connection)
    ones = np.arange(10) % 3 == 0
    asked = "".join("01"[int(one)] for one in ones)
    connection.execute(insert(table), [{"id": 1, "v": asked}, {"id": 2, "v": "0" * 10}])
    for query in (asked, ones, ones.astype(int).tolist(), pgvector.Bit(asked)):
        found = connection.execute(semantic_search(table.c.v, query)).all()
        assert [(row.id, row.distance) for row in found] == [(1, 0), (2, 4)]
    statement = semantic_search(table.c.v, bindparam("q"))
    assert connection.execute(statement, {"q": ones}).first()[:1] == (1,)  # type: ignore[index]
    for wrong in (asked[:9], asked + "0", ones[:8], b"\xff"):
        with pytest.raises(DimensionMismatchError):
            semantic_search(table.c.v, wrong)
        with pytest.raises(DimensionMismatchError):
            connection.execute(statement, {"q": wrong})
    for nonsense in ("12" * 5, [0.5] * 10, [2] * 10, 3):
        with pytest.raises(VectorValueError, match="not bits"):
            semantic_search(table.c.v, nonsense)


def test_lists_that_were_counted_are_searched_by_their_number(connection: Connection) -> None:
    index = IVFFlat("v", lists="auto")
    table = make("item", index)
    connection.execute(CreateIndex(index.with_parameters({"lists": 64})))
    assert connection.execute(semantic_search(table.c.v, QUERY, limit=5)).all()
    assert connection.scalar(text("SHOW ivfflat.probes")) == "8"


def test_another_access_method_is_one_entry(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph under another name: pgvector's own handler, as an access method with an operator class."""
    monkeypatch.setitem(
        ACCESS_METHODS,
        "graph",
        AccessMethod(
            name="graph",
            dimensions={"vector": 2000},
            metrics={"vector": ("cosine",)},
            parameters={"m": Parameter(16, 2, 100)},
            search=Search("ef_search", "hnsw.ef_search", 1, 1000, lambda rows, _: max(77, rows)),
        ),
    )
    table = make("item", VectorIndex("v", using="graph", parameters={"m": 8}))
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE ACCESS METHOD graph TYPE INDEX HANDLER hnswhandler")
        connection.exec_driver_sql(
            "CREATE OPERATOR CLASS vector_cosine_ops FOR TYPE vector USING graph AS "
            "OPERATOR 1 <=> (vector, vector) FOR ORDER BY float_ops, "
            "FUNCTION 1 vector_negative_inner_product(vector, vector), FUNCTION 2 vector_norm(vector)"
        )
        assert not is_built(connection, table.c.v)
        create(connection, table.c.v)
        assert is_built(connection, table.c.v)
        statement = semantic_search(table.c.v, QUERY, limit=10)
        assert "Index Scan using ix_item_v_graph" in plan_of(connection, statement)
        assert share([row.id for row in connection.execute(statement)], nearest("cosine", 10)) >= 0.9
        assert connection.scalar(text("SHOW hnsw.ef_search")) == "77"
        with pytest.raises(QueryError, match=r"probes= is not for ix_item_v_graph.*use ef_search="):
            semantic_search(table.c.v, QUERY, probes=3)
        connection.rollback()


def test_only_conditions_that_are_known_imply_a_partial_index() -> None:
    table = make("item", HNSW("v", where="section =\n 'a b'", name="ab"))

    def chosen(condition: Any) -> bool:
        return is_implied(indexes_on(table.c.v)[0], [condition])

    assert chosen(table.c.section == "a b")
    assert not chosen(table.c.section == "a  b")
    # The value comes with the execution, or may be replaced there. (No warning of a NULL either.)
    assert not chosen(table.c.section == bindparam("section"))
    assert not chosen(table.c.section == bindparam("section", "a b"))


def test_a_predicate_of_alternatives_stays_beside_the_other_conditions(connection: Connection) -> None:
    table = built(connection, HNSW("v", where="section = 'help' OR label = 'label 3'"))
    chosen = (table.c.section == "help") | (table.c.label == "label 3")
    search = semantic_search(table.c.v, QUERY, limit=10, where=[chosen, ~table.c.hidden])
    assert not any(row.hidden for row in connection.execute(search))
    alias = table.alias()
    chosen = (alias.c.section == "help") | (alias.c.label == "label 3")
    search = semantic_search(alias.c.v, QUERY, limit=10, where=[chosen, ~alias.c.hidden])
    assert "OR label = 'label 3')" in str(search)
    assert not any(row.hidden for row in connection.execute(search))
    held = [key for key in range(ROWS) if (key % 3 == 0 or key % 4 == 3) and key % 1000 != 999]
    assert sum(plan(connection, *table.indexes, sample=0).parts) == len(held)


class Inherited(DeclarativeBase):
    pass


class Document(Inherited):
    __tablename__ = "document"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    section: Mapped[str | None]
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "document"}


class Letter(Document):
    __tablename__ = "letter"
    id: Mapped[int] = mapped_column(ForeignKey("document.id"), primary_key=True)
    own_section: Mapped[str] = mapped_column("section")
    v: Mapped[Any] = mapped_column(VECTOR(2))
    __table_args__ = (HNSW("v", metric="l2", where="section = 'b'"),)
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "letter"}


@pytest.mark.parametrize("entity", [Letter, aliased(Letter), aliased(Letter, flat=True)])
def test_a_partial_index_on_a_joined_table(connection: Connection, entity: Any) -> None:
    Inherited.metadata.create_all(connection)
    with Session(connection, join_transaction_mode="create_savepoint") as session:
        session.add_all(
            Letter(id=key, section="abc"[key % 3], own_section="ab"[key % 2], v=[key, 0])
            for key in range(1, 40)
        )
        session.commit()
        own = semantic_search(entity.v, [0.0, 0.0], limit=3, where=[entity.id > 2, entity.own_section == "b"])
        assert [letter.id for letter, *_ in session.execute(own)] == [3, 5, 7]
        # The other table has a column of that name, too.
        other = semantic_search(entity.v, [0.0, 0.0], limit=3, where=[entity.id > 2, entity.section == "b"])
        assert [letter.id for letter, *_ in session.execute(other)] == [4, 7, 10]
