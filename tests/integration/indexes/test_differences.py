"""Whether an index exists as declared: everything that asks gets the same answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Index, Integer, MetaData, Table, select, text
from typer.testing import CliRunner

from pgembed import HNSW, IVFFlat
from pgembed.cli.main import app
from pgembed.columns.types import VectorType
from pgembed.indexes import IndexBuildError, create, indexed
from pgembed.indexes.differences import IndexForm, differences, matching
from pgembed.indexes.readiness import is_ready
from pgembed.indexes.standing import find, standing
from pgembed.migrations.compare.indexes import definition_of, same
from pgembed.migrations.reflection import indexes_of


def plain(opclass: str) -> Index:
    """An index that pgembed has no class for."""
    return Index("ann", "v", postgresql_using="hnsw", postgresql_ops={"v": opclass})


WHOLE = "hnsw (v vector_cosine_ops)"
BITS = "hnsw ((binary_quantize(v)::bit(8)) bit_{}_ops)"
#: What exists, what is declared and what the command line would say, what differs of the form and of the
#: parameters, and whether searches may use what exists.
CASES: list[tuple[str, Callable[[], Index], list[str] | None, tuple[str, ...], dict[str, int], bool]] = [
    (WHOLE, lambda: HNSW("v", name="ann"), [], (), {}, True),
    (f"{WHOLE} WITH (m = 16)", lambda: HNSW("v", name="ann"), [], (), {}, True),
    (WHOLE, lambda: HNSW("v", name="ann", m=16), ["--m", "16"], (), {}, True),
    (f"{WHOLE} WITH (m = 8)", lambda: HNSW("v", name="ann", m=9), ["--m", "9"], (), {"m": 9}, True),
    (f"{WHOLE} WITH (m = 8)", lambda: HNSW("v", name="ann"), None, (), {"m": 16}, True),
    (WHOLE, lambda: plain("vector_cosine_ops"), None, (), {}, True),
    (WHOLE, lambda: plain("vector_l2_ops"), None, ("metric",), {}, False),
    (WHOLE, lambda: HNSW("v", name="ann", metric="l2"), ["--metric", "l2"], ("metric",), {}, False),
    (
        "ivfflat (v vector_cosine_ops) WITH (lists = 4)",
        lambda: HNSW("v", name="ann"),
        ["--method", "hnsw"],
        ("access method",),
        {},
        True,
    ),
    (
        "ivfflat (v vector_cosine_ops) WITH (lists = 4)",
        lambda: IVFFlat("v", name="ann", lists="auto"),
        ["--method", "ivfflat"],
        (),
        {},
        True,
    ),
    (
        "hnsw ((v::halfvec(8)) halfvec_cosine_ops)",
        lambda: HNSW("v", name="ann", quantize="half"),
        ["--quantize", "half"],
        (),
        {},
        True,
    ),
    (
        "hnsw ((v::halfvec(8)) halfvec_cosine_ops)",
        lambda: HNSW("v", name="ann"),
        [],
        ("expression",),
        {},
        False,
    ),
    (
        "hnsw ((subvector(v, 3, 4)::vector(4)) vector_cosine_ops)",
        lambda: HNSW("v", name="ann", dimensions=4),
        ["--dimensions", "4"],
        ("expression",),
        {},
        True,  # it is told from the declared one by its length alone; it is not used then
    ),
    (
        "hnsw ((subvector(v, 1, 4)::vector(4)) vector_cosine_ops)",
        lambda: HNSW("v", name="ann", dimensions=4),
        ["--dimensions", "4"],
        (),
        {},
        True,
    ),
    (
        "hnsw ((subvector(v, 1, 4)::vector(4)) vector_cosine_ops)",
        lambda: HNSW("v", name="ann", dimensions=5),
        ["--dimensions", "5"],
        ("expression",),
        {},
        False,
    ),
    (
        "hnsw ((binary_quantize(subvector(v, 3, 4))::bit(4)) bit_hamming_ops)",
        lambda: HNSW("v", name="ann", quantize="bit"),
        ["--quantize", "bit"],
        ("expression",),
        {},
        False,
    ),
    (
        BITS.format("hamming"),
        lambda: HNSW("v", name="ann", quantize="bit"),
        ["--quantize", "bit"],
        (),
        {},
        True,
    ),
    (
        BITS.format("jaccard"),
        lambda: HNSW("v", name="ann", quantize="bit"),
        ["--quantize", "bit", "--metric", "l2"],
        ("metric",),
        {},
        False,
    ),
    (f"{WHOLE} WHERE id > 5", lambda: HNSW("v", name="ann"), [], ("predicate",), {}, False),
    (
        WHOLE,
        lambda: HNSW("v", name="ann", where="id > 5"),
        ["--where", "id > 5"],
        ("predicate",),
        {},
        True,
    ),
    (
        f"{WHOLE} WHERE ((id > 5))",
        lambda: HNSW("v", name="ann", where="id > 5"),
        ["--where", "id > 5"],
        (),
        {},
        True,
    ),
]


@pytest.mark.parametrize(("definition", "declared", "options", "form", "parameters", "ready"), CASES)
def test_all_get_the_same_answer(
    engine: Engine,
    definition: str,
    declared: Callable[[], Index],
    options: list[str] | None,
    form: tuple[str, ...],
    parameters: dict[str, Any],
    ready: bool,
) -> None:
    index = declared()
    table = Table(
        "Item", MetaData(), Column("id", Integer, primary_key=True), Column("v", VectorType(8)), index
    )
    with engine.begin() as connection:
        connection.execute(text('CREATE TABLE "Item" (id int PRIMARY KEY, v vector(8))'))
        connection.execute(text("""INSERT INTO "Item" VALUES (9, '[1,2,3,4,5,6,7,8]')"""))
        connection.execute(text(f'CREATE INDEX ann ON "Item" USING {definition}'))
    with engine.connect() as connection:
        found = find(connection, index)
        assert found is not None
        different = differences(found, index)
        assert different.form == form
        assert dict(different.parameters or {}) == parameters
        assert bool(different) == bool(form or parameters)

        if different:
            with pytest.raises(IndexBuildError, match="it exists"):
                create(connection, index)
        else:
            assert create(connection, index) is index

        (existing,) = indexes_of(connection, table, set()).values()
        wanted = definition_of(index, None)
        assert wanted is not None
        assert same(connection, table, existing, wanted) == (not different)

        holds = indexed(index)
        assert holds is not None
        assert connection.scalar(select(is_ready(holds))) == ready
    if options is not None:
        url = engine.url.render_as_string(hide_password=False)
        command = ["index", "create", '"Item"', "v", "--index", "ann", *options, "--url", url]
        result = CliRunner().invoke(app, command)
        assert (result.exit_code == 0) == (not different), result.output
        if different and result.exit_code == 1:
            assert isinstance(result.exception, IndexBuildError)
    with engine.connect() as connection:
        after = find(connection, index)
        assert after is not None
        assert after.oid == found.oid


@pytest.mark.parametrize(("operators", "found"), [("hamming", ["ann"]), ("jaccard", [])])
def test_bits_are_candidates_for_any_metric(engine: Engine, operators: str, found: list[str]) -> None:
    table = Table("Item", MetaData(), Column("id", Integer, primary_key=True), Column("v", VectorType(8)))
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(text(f'CREATE INDEX ann ON "Item" USING {BITS.format(operators)}'))
        there = standing(connection, '"Item"')
    for metric in ("cosine", "l2"):
        assert [index.name for index, _ in matching(there, table.c.v, metric=metric)] == found
    ((_, form),) = matching(there, table.c.v, name="ann")
    assert form == IndexForm("bit")
    assert matching(there, table.c.v, form=IndexForm()) == []
    assert matching(there, table.c.v, method="ivfflat") == matching(there, table.c.v, name="other") == []
