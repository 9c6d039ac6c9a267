"""``pgembed reembed``: what a change of encoder takes, how far it is, and the gate before the switch."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import MetaData, insert, text
from typer.testing import CliRunner

from pgembed import HNSW
from pgembed.cli.main import app
from pgembed.columns import embeddings_of
from pgembed.exc import DeclarationError
from pgembed.filling import backfill
from pgembed.indexes import create
from pgembed.indexes.build_plan import server_of
from pgembed.reembedding.change import changes
from pgembed.reembedding.costs import plan_reembedding
from pgembed.testing import HashEncoder
from tests.migrations.conftest import Migrations
from tests.migrations.models import article

OLD, NEW = HashEncoder(4, "old"), HashEncoder(24, "new")
ROWS = 2000
#: What ``--models`` names.
BEFORE = article(encoder=OLD, index=HNSW())
AFTER = article(encoder=NEW, index=HNSW(), name="embedding_2", replaces="embedding")
MIXED = article(encoder=NEW, index=HNSW())
MODELS = ("--models", f"{__name__}:AFTER")


@pytest.fixture
def underway(migrations: Migrations) -> Migrations:
    """The new column is there, and nothing is in it."""
    BEFORE.create_all(migrations.engine)
    with migrations.engine.begin() as connection:
        words = [{"title": f"word{i} word{i % 7} word{i % 31}"} for i in range(ROWS)]
        connection.execute(insert(BEFORE.tables["article"]), words)
    fill(migrations, BEFORE)
    with migrations.engine.begin() as connection:
        create(connection, BEFORE.tables["article"].c.embedding)
    migrations.generate_series(AFTER)
    migrations.upgrade("0001")
    return migrations


def fill(migrations: Migrations, metadata: MetaData) -> None:
    backfill(migrations.engine, embeddings_of(metadata.tables["article"])[0])


def run(migrations: Migrations, *arguments: str, code: int = 0) -> str:
    url = migrations.engine.url.render_as_string(hide_password=False)
    result = CliRunner().invoke(app, ["reembed", *arguments, "--url", url])
    assert result.exit_code == code, result.output
    return result.stdout


def only(migrations: Migrations, **options: Any) -> Any:
    with migrations.engine.begin() as connection:
        (change,) = changes(connection, embeddings_of(AFTER.tables["article"]), **options)
    return change


def test_what_it_takes(underway: Migrations) -> None:
    with underway.engine.begin() as connection:
        connection.execute(text("INSERT INTO article (title) VALUES (NULL)"))
        other = HashEncoder(100, "third")
        found = plan_reembedding(connection, "article", "embedding", other)
        of_server = 64 if server_of(connection) < 16 else 0
        with pytest.raises(DeclarationError, match="has that encoder already"):
            plan_reembedding(connection, "article", "embedding", OLD)
    assert (found.rows, found.new, found.dimensions) == (ROWS, "embedding_3", 100)
    assert found.column_size == ROWS * 408
    assert found.index_memory == ROWS * (408 + 32 * 16 + 195 + of_server)
    assert found.rows_per_second is not None
    assert found.rows_per_second > 0
    assert found.seconds == pytest.approx(ROWS / found.rows_per_second)


def test_status_says_what_to_do_next(underway: Migrations) -> None:
    change = only(underway)
    assert (change.filled, change.index, change.old_index) == (0, "none", "hnsw")
    assert "pgembed backfill 'article' embedding_2" in change.next_step
    assert "2,000 of 2,000 rows are pending" in run(underway, "status")
    run(underway, "status", *MODELS, "--gate", "0.95", code=1)

    fill(underway, AFTER)
    change = only(underway)
    assert (change.filled, change.next_step) == (1, "build its index: alembic upgrade head")
    underway.upgrade()
    found = json.loads(run(underway, "status", "--json"))
    assert [(one["ready"], one["index"], one["recall"]) for one in found] == [(True, "hnsw", None)]
    assert found[0]["next_step"].startswith('release the application with name="embedding_2"')
    assert (found[0]["old_encoder"], found[0]["new_encoder"]) == ("old", "new")

    with underway.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE pg_index SET indisvalid = false WHERE indexrelid = "
                "'ix_article_embedding_2_hnsw'::regclass"
            )
        )
    assert only(underway).index == "invalid"


def test_the_gate(underway: Migrations) -> None:
    fill(underway, AFTER)
    underway.upgrade()

    passed = json.loads(run(underway, "status", *MODELS, "--gate", "0.9", "--queries", "50", "--json"))
    assert passed[0]["recall"]["recall"] >= 0.9
    assert passed[0]["recall"]["index"] == "ix_article_embedding_2_hnsw"
    assert "  recall  " in run(underway, "status", *MODELS, "--gate", "0.9", "--queries", "50")
    assert only(underway, min_recall=0.9, queries=50).obstacles == ()

    assert not passed[0]["exact"]

    # Without models, the registry's encoder has no weights here: what was not tried is not ready.
    assert "cannot be asked from here" in run(underway, "status", "--gate", "0.9", code=1)


def test_the_gate_says_that_few_rows_are_scanned(underway: Migrations) -> None:
    """The index exists, and the planner does not use it: there is no recall, and no reason to wait."""
    with underway.engine.begin() as connection:
        connection.execute(text("TRUNCATE article"))
        connection.execute(insert(BEFORE.tables["article"]), [{"title": f"word{i}"} for i in range(20)])
    fill(underway, AFTER)
    underway.upgrade()
    with underway.engine.begin() as connection:
        connection.execute(text("ANALYZE article"))
    shown = run(underway, "status", *MODELS, "--gate", "0.95")
    assert "index   hnsw" in shown
    assert "recall  exact: the rows are few or have no index, and are scanned" in shown
    assert "recall" not in run(underway, "status", *MODELS)
    (found,) = json.loads(run(underway, "status", *MODELS, "--gate", "0.95", "--json"))
    assert (found["exact"], found["recall"], found["ready"]) == (True, None, True)


@pytest.mark.parametrize("rows", [0, 1])
def test_the_gate_opens_for_a_row_without_neighbours(underway: Migrations, rows: int) -> None:
    with underway.engine.begin() as connection:
        connection.execute(text("DELETE FROM article WHERE id > :rows"), {"rows": rows})
    fill(underway, AFTER)
    underway.upgrade()
    (found,) = json.loads(run(underway, "status", *MODELS, "--gate", "0.95", "--json"))
    assert (found["recall"], found["ready"]) == (None, True)


def test_the_gate_opens_for_rows_of_blanks(underway: Migrations) -> None:
    """A text for the encoder, and none that can be searched for."""
    with underway.engine.begin() as connection:
        connection.execute(text("DELETE FROM article WHERE id > 20"))
        connection.execute(text("UPDATE article SET title = ' '"))
    fill(underway, BEFORE)
    fill(underway, AFTER)
    underway.upgrade()
    assert only(underway, min_recall=0.9, queries=2).obstacles == ()


def test_a_quantized_index_is_planned_and_measured_without_models(underway: Migrations) -> None:
    fill(underway, AFTER)
    with underway.engine.begin() as connection:
        for column, dimensions, name in (("embedding", 4, "old"), ("embedding_2", 24, "new")):
            connection.execute(
                text(
                    f"CREATE INDEX {name} ON article USING hnsw "
                    f"((binary_quantize({column})::bit({dimensions})) bit_hamming_ops) WHERE id <= 1500"
                )
            )
        connection.execute(text("DROP INDEX ix_article_embedding_hnsw"))
        found = plan_reembedding(connection, "article", "embedding", HashEncoder(80, "third"))
        of_server = 64 if server_of(connection) < 16 else 0
        assert found.index_memory == 1500 * (18 + 32 * 16 + 195 + of_server)
        (change,) = changes(connection, min_recall=0.1, queries=20)
    assert (change.index, change.old_index) == ("hnsw", "hnsw")
    assert not any("not known" in obstacle for obstacle in change.obstacles)


def test_the_gate_is_closed_to_an_index_that_finds_too_little(
    underway: Migrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(underway, AFTER)
    underway.upgrade()
    # Most rows have left the index, as after a build with the wrong predicate.
    with underway.engine.begin() as connection:
        connection.execute(text("DROP INDEX ix_article_embedding_2_hnsw"))
        connection.execute(
            text(
                "CREATE INDEX ix_article_embedding_2_hnsw ON article USING hnsw "
                "(embedding_2 vector_cosine_ops) WITH (m = 2, ef_construction = 4)"
            )
        )
    change = only(underway, min_recall=1.0, queries=100)
    assert change.recall.recall < 1
    assert "expected at least 1.0" in change.next_step


def test_the_gate_is_closed_to_vectors_of_another_space(underway: Migrations) -> None:
    fill(underway, AFTER)
    underway.upgrade()
    wrong = HashEncoder(24, "wrong").encode_documents(["something"])[0]
    table = AFTER.tables["article"]
    with underway.engine.begin() as connection:
        connection.execute(table.update().values(embedding_2=wrong))

    change = only(underway, min_recall=0.5, queries=20)

    assert "16 of 16 vectors are not those that new makes of their texts" in change.next_step


def test_the_gate_is_closed_to_models_that_mix_column_and_encoder(underway: Migrations) -> None:
    """The old column with the new encoder: every search would compare the two spaces."""
    fill(underway, AFTER)
    underway.upgrade()
    mixed = ("--models", f"{__name__}:MIXED")

    shown = run(underway, "status", *mixed, "--gate", "0", code=1)

    assert (
        'next    the models do not have embedding_2 as the database has it: write name="embedding_2"' in shown
    )


def test_after_the_old_column_is_gone(underway: Migrations) -> None:
    fill(underway, AFTER)
    underway.upgrade()
    with underway.engine.begin() as connection:
        connection.execute(text("ALTER TABLE article DROP COLUMN embedding"))
    assert only(underway).next_step == "take replaces='embedding' away: that column is gone"


def test_nothing_to_report(migrations: Migrations) -> None:
    assert "no column of this database" in run(migrations, "status")
    # Without models, a change that is still to be migrated looks the same: the gate is closed.
    assert run(migrations, "status", "--json", "--gate", "1", code=1).strip() == "[]"
    BEFORE.create_all(migrations.engine)
    released = ("--models", f"{__name__}:BEFORE")
    assert run(migrations, "status", "--json", "--gate", "1", *released).strip() == "[]"
