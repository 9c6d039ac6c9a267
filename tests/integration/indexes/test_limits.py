"""What is accepted at declaration the server accepts, and what is refused it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pgvector.sqlalchemy import BIT, HALFVEC, SPARSEVEC, VECTOR
from sqlalchemy import Column, Engine, Index, Integer, MetaData, Table, Text, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex

from pgembed import HNSW, IVFFlat
from pgembed.exc import DeclarationError
from pgembed.indexes import ACCESS_METHODS, VectorIndex
from pgembed.metrics import BY_NAME

TYPES: dict[str, Any] = {"vector": VECTOR, "halfvec": HALFVEC, "sparsevec": SPARSEVEC, "bit": BIT}
PARAMETERS = {
    "hnsw": [
        *({"m": m, "ef_construction": 1000} for m in (1, 2, 100, 101)),
        *({"m": 2, "ef_construction": size} for size in (3, 4, 1000, 1001)),
        *({"m": m} for m in (32, 33)),
        *({"ef_construction": size} for size in (31, 32)),
    ],
    "ivfflat": [{"lists": lists} for lists in (0, 1, 32768, 32769)],
}


def combinations() -> Iterator[tuple[str, str, str, int | None]]:
    for method, facts in ACCESS_METHODS.items():
        for storage in TYPES:
            limit = facts.dimensions.get(storage, 2000)
            for metric in BY_NAME.values():
                yield from ((method, storage, metric.name, size) for size in (None, 1, limit, limit + 1))


def server_accepts(engine: Engine, index: Index, table: Table) -> bool:
    """Whether the server creates a table and an index, which then are gone again."""
    with engine.connect() as connection:
        try:
            connection.execute(text("DROP TABLE IF EXISTS tried"))
            # Without its indexes, those that are created with it.
            for other in set(table.indexes):
                table.indexes.discard(other)
            table.create(connection)
            connection.execute(CreateIndex(index))
        except DBAPIError:
            return False
        finally:
            connection.rollback()
    return True


def declared(build: Any) -> VectorIndex | None:
    try:
        index: VectorIndex = build()
    except DeclarationError:
        return None
    return index


def tried(type_: Any) -> Table:
    return Table("tried", MetaData(), Column("id", Integer, primary_key=True), Column("v", type_))


def test_types_metrics_and_dimensions(engine: Engine) -> None:
    outcomes = []
    for method, storage, metric, size in combinations():
        if storage == "sparsevec" and size is not None and size > 1_000_000_000:
            continue  # no column is that wide
        type_ = TYPES[storage](size)
        index = declared(lambda t=type_, m=method, d=metric: VectorIndex(tried(t).c.v, using=m, metric=d))
        plain = Index(
            "ix",
            (table := tried(type_)).c.v,
            postgresql_using=method,
            postgresql_ops={"v": BY_NAME[metric].opclass(storage)},
        )
        accepted = server_accepts(engine, plain, table)
        assert (index is not None) == accepted, (method, storage, metric, size)
        if index is not None:
            assert index.table is not None
            assert server_accepts(engine, index, index.table)
        outcomes.append(accepted)
    assert outcomes.count(True) > 25 < outcomes.count(False)


@pytest.mark.parametrize("method", PARAMETERS)
def test_parameters(engine: Engine, method: str) -> None:
    outcomes = []
    for parameters in PARAMETERS[method]:
        index = declared(
            lambda p=parameters: VectorIndex(tried(VECTOR(3)).c.v, using=method, parameters=p, metric="l2")
        )
        table = tried(VECTOR(3))
        plain = Index(
            "ix",
            table.c.v,
            postgresql_using=method,
            postgresql_with=parameters,
            postgresql_ops={"v": "vector_l2_ops"},
        )
        accepted = server_accepts(engine, plain, table)
        assert (index is not None) == accepted, parameters
        outcomes.append(accepted)
    assert {True, False} == set(outcomes)


@pytest.mark.parametrize(
    ("type_", "options", "accepted"),
    [
        (VECTOR(2001), {"quantize": "half"}, True),
        (VECTOR(4000), {"quantize": "half"}, True),
        (VECTOR(4001), {"quantize": "half"}, False),
        (VECTOR(16000), {"quantize": "bit"}, True),
        (HALFVEC(16000), {"quantize": "bit"}, True),
        (VECTOR(16000), {"dimensions": 2000}, True),
        (VECTOR(16000), {"dimensions": 2001}, False),
        (VECTOR(16000), {"dimensions": 4000, "quantize": "half"}, True),
        (VECTOR(16000), {"dimensions": 4001, "quantize": "half"}, False),
        (VECTOR(16000), {"dimensions": 4001, "quantize": "bit"}, True),
        (VECTOR(), {"dimensions": 256}, True),
        (VECTOR(8), {"where": "id > 3"}, True),
    ],
)
def test_expressions(engine: Engine, type_: Any, options: dict[str, Any], accepted: bool) -> None:
    for method in ACCESS_METHODS:
        index = declared(lambda m=method: VectorIndex(tried(type_).c.v, using=m, **options))
        assert (index is not None) == accepted
        if index is not None:
            assert index.table is not None
            assert server_accepts(engine, index, index.table)


def test_the_declarations_of_the_guide(engine: Engine) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "indexes.md").read_text(encoding="utf-8")
    block = re.findall(r"## Declare\n\n```python\n(.*?)```", guide, re.DOTALL)[0]
    lines = [line.partition("#") for line in block.splitlines()]
    for code, _, says in lines:
        table = Table("tried", MetaData(), *_columns())
        index = eval(code, {"HNSW": HNSW, "IVFFlat": IVFFlat}).bound_to(table.c.embedding, BY_NAME["cosine"])
        assert server_accepts(engine, index, table), code
        shown = re.search(r"\(.*\)(?=:)", says)
        if shown is not None:
            with engine.begin() as connection:
                table.create(connection)
                connection.execute(CreateIndex(index))
                stands = connection.scalar(
                    text(
                        "SELECT pg_get_indexdef(indexrelid, 1, true) FROM pg_index "
                        "WHERE indrelid = 'tried'::regclass AND NOT indisprimary"
                    )
                )
                assert re.sub(r"[()]", "", stands or "") == re.sub(r"[()]", "", shown[0])
                connection.rollback()
    assert len(lines) == 8


def _columns() -> list[Column[Any]]:
    return [
        Column("id", Integer, primary_key=True),
        Column("section", Text),
        Column("embedding", VECTOR(384)),
    ]
