"""Rows that cannot be filled: found without starving the others, remembered, forgotten when mended."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, text

from pgembed.exc import TextError
from pgembed.filling import failures
from pgembed.filling.bisection import BrokenEncoderError
from pgembed.filling.cycle import Cycle
from pgembed.filling.statements import Statements
from pgembed.testing import HashEncoder
from tests.tables import execute

from .conftest import FAST, Articles, Picky


def fill(articles: Articles, **options: Any) -> Any:
    return Cycle(articles.engine, articles.target, replace(FAST, **options)).run(once=True)


def listed(articles: Articles) -> list[failures.Failure]:
    with articles.engine.begin() as connection:
        return failures.listed(connection)


def test_one_bad_row_among_thousands_costs_only_itself(articles: Articles) -> None:
    articles.insert(*("poison" if i == 1777 else f"title {i}" for i in range(3000)))
    counts = fill(articles)
    assert (counts.written, counts.failed) == (2999, 1)
    assert articles.pending() == {1778}
    (failure,) = listed(articles)
    assert (failure.relation, failure.column_name, failure.key) == ("article", "embedding", "[1778]")
    assert (failure.error, failure.attempts) == ("RuntimeError: cannot encode these 1", 1)
    with articles.engine.begin() as connection:
        status = "SELECT fresh, pending, failed FROM pgembed.status"
        assert connection.execute(text(status)).one() == (2999, 1, 1)
    # It is not tried again before its time.
    articles.encoder.calls.clear()
    assert fill(articles).claimed == 0
    assert articles.encoder.calls == []

    execute(articles.engine, "UPDATE article SET title = 'mended' WHERE title = 'poison'")
    assert fill(articles).written == 1
    assert articles.pending() == set()
    assert listed(articles) == []
    articles.check()


def test_attempts_are_counted_by_text(articles: Articles) -> None:
    articles.insert("a")
    target = articles.target
    for text_, attempts in (("a", 1), ("a", 2), ("b", 1), (None, 1), (None, 2)):
        digest = articles.embedding.declaration.digest((text_,))
        with articles.engine.begin() as connection:
            failures.record(connection, target, "[1]", digest, "refused", pause=timedelta(seconds=1))
        (failure,) = listed(articles)
        assert failure.attempts == attempts
        assert (failure.first_failed_at == failure.last_failed_at) == (attempts == 1)


def test_a_failure_is_over_when_its_text_is(articles: Articles) -> None:
    """Before anybody has filled the row."""
    articles.insert("poison", "poison too")
    fill(articles)
    execute(articles.engine, "UPDATE article SET title = 'mended' WHERE id = 1")
    target = articles.target
    with articles.engine.begin() as connection:
        assert failures.sweep(connection, target, Statements(target)) == 1
    assert [failure.key for failure in listed(articles)] == ["[2]"]
    assert articles.pending() == {1, 2}


def test_the_good_rows_go_first(engine: Engine) -> None:
    """Many bad rows and a slow encoder: all good rows are filled in less calls than bisection takes."""
    articles = Articles(engine, Picky())
    titles = ["poison" if i < 32 else f"title {i}" for i in range(640)]
    articles.insert(*titles)
    counts = fill(articles, batch_rows=64)
    assert (counts.written, counts.failed) == (608, 32)
    # The nine windows without a bad row took a turn each between the suspects.
    good, calls = set(titles[64:]), articles.encoder.calls
    assert max(number for number, call in enumerate(calls) if good.intersection(call)) < len(calls) / 2


def test_the_same_text_is_tried_again_after_a_pause_that_doubles(articles: Articles) -> None:
    articles.insert("poison")
    pauses = []
    for attempt in range(1, 4):
        fill(articles)
        (failure,) = listed(articles)
        assert failure.attempts == attempt
        pauses.append((failure.next_attempt_at - failure.last_failed_at).total_seconds())
        with articles.engine.begin() as connection:
            assert failures.retry(connection, key="[2]") == 0
            assert failures.retry(connection, articles.target.relation, "embedding", "[1]") == 1
    assert [round(pause) for pause in pauses] == [60, 120, 240]
    execute(articles.engine, "UPDATE pgembed.failure SET attempts = 2000000")
    fill(articles)
    (failure,) = listed(articles)
    assert failure.next_attempt_at - failure.last_failed_at <= timedelta(days=1, seconds=1)


def test_a_row_that_is_due_again_is_tried_alone_and_filled_when_it_works(articles: Articles) -> None:
    articles.insert("poison", "b")
    fill(articles, retry=timedelta(hours=1))
    execute(articles.engine, "UPDATE pgembed.failure SET next_attempt_at = now()")
    articles.encoder.calls.clear()
    execute(articles.engine, "INSERT INTO article (title) VALUES ('c'), ('d')")
    fill(articles, retry=timedelta(minutes=1))
    calls = articles.encoder.calls
    assert ("poison",) in calls
    assert ("c", "d") in calls
    assert not any("poison" in call and len(call) > 1 for call in calls)
    with articles.engine.begin() as connection:
        failures.retry(connection)
    articles.encoder.encode_documents = HashEncoder(8).encode_documents  # type: ignore[method-assign]
    assert fill(articles).written == 1
    assert (listed(articles), articles.pending()) == ([], set())


def test_another_bad_text_starts_its_own_count(articles: Articles) -> None:
    articles.insert("poison")
    fill(articles, retry=timedelta(0))
    fill(articles, retry=timedelta(0))
    assert listed(articles)[0].attempts >= 2
    execute(articles.engine, "UPDATE article SET title = 'another poison'")
    fill(articles)
    assert listed(articles)[0].attempts == 1


def test_a_broken_encoder_blames_no_row(engine: Engine) -> None:
    articles = Articles(engine, Picky(lambda texts: True))
    articles.insert(*(f"title {i}" for i in range(100)))
    with pytest.raises(BrokenEncoderError, match="'hash' fails with any text: RuntimeError: cannot encode"):
        fill(articles)
    assert listed(articles) == []
    assert len(articles.encoder.calls) == 2
    with engine.connect() as connection:
        assert connection.execute(text("SELECT * FROM pgembed.lease")).all() == []


def test_a_text_error_names_its_row_without_bisection(engine: Engine) -> None:
    class Naming(HashEncoder):
        def encode_documents(self, texts: Any) -> Any:
            for position, title in enumerate(texts):
                if "poison" in title:
                    self.calls.append(tuple(texts))
                    raise TextError("cannot be encoded", position=position)
            return super().encode_documents(texts)

    articles = Articles(engine, Naming())
    articles.insert(*("poison" if i == 30 else f"title {i}" for i in range(64)))
    assert fill(articles).failed == 1
    assert [len(call) for call in articles.encoder.calls] == [64, 63]
    assert articles.pending() == {31}


def test_vectors_that_postgres_would_refuse_fail_alone(engine: Engine) -> None:
    class Undefined(HashEncoder):
        def encode_documents(self, texts: Any) -> Any:
            vectors = super().encode_documents(texts)
            vectors[[title == "nan" for title in texts], 2] = np.nan
            return vectors

    articles = Articles(engine, Undefined())
    articles.insert("a", "nan", "b")
    fill(articles)
    assert articles.pending() == {2}
    error = listed(articles)[0].error
    assert error.startswith("EncoderAnswerError: public.article.embedding: encoder 'hash' returned NaN or ")
    assert "infinity in vector 1 for 3 texts" in error
    articles.check()


def test_an_encoder_of_other_dimensions_is_the_columns_error(engine: Engine) -> None:
    class Wide(HashEncoder):
        def encode_documents(self, texts: Any) -> Any:
            return np.zeros((len(texts), 9), dtype=np.float32)

    articles = Articles(engine, Wide())
    articles.insert("a", "b")
    with pytest.raises(BrokenEncoderError, match=r"array of the shape \(1, 9\)"):
        fill(articles)


def test_a_row_that_the_database_refuses_fails_alone(articles: Articles) -> None:
    execute(
        articles.engine,
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW.title = 'title 5' THEN RAISE 'not this one'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER no BEFORE UPDATE ON article FOR EACH ROW EXECUTE FUNCTION no()",
    )
    articles.insert(*(f"title {i}" for i in range(100)))
    counts = fill(articles)
    assert (counts.written, counts.failed) == (99, 1)
    assert articles.pending() == {6}
    assert "not this one" in listed(articles)[0].error


def test_a_trigger_that_changes_the_text_in_every_update_is_found_out(articles: Articles) -> None:
    """Without that, its rows would be encoded for ever."""
    execute(
        articles.engine,
        "CREATE FUNCTION longer() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN NEW.title := NEW.title || '!'; RETURN NEW; END $$",
        "CREATE TRIGGER longer BEFORE UPDATE ON article FOR EACH ROW EXECUTE FUNCTION longer()",
    )
    articles.insert("a")
    fill(articles)
    assert "a trigger of the table changes its text" in listed(articles)[0].error
    assert articles.encoder.calls == [("a",)]
    assert fill(articles).claimed == 0


def test_a_trigger_that_changes_the_text_after_every_update_is_found_out(articles: Articles) -> None:
    execute(
        articles.engine,
        "CREATE FUNCTION longer() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN UPDATE article SET title = title || '!' WHERE id = NEW.id; RETURN NULL; END $$",
        "CREATE TRIGGER longer AFTER UPDATE OF embedding ON article FOR EACH ROW EXECUTE FUNCTION longer()",
    )
    articles.insert("a")
    fill(articles)
    assert "a trigger of the table changes its text" in listed(articles)[0].error
    assert articles.encoder.calls == [("a",)]
    assert fill(articles).claimed == 0


def test_a_trigger_that_swallows_updates_is_found_out(articles: Articles, impatient: None) -> None:
    execute(
        articles.engine,
        "CREATE FUNCTION archived() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RETURN CASE WHEN NEW.title <> 'archived' THEN NEW END; END $$",
        "CREATE TRIGGER archived BEFORE UPDATE ON article FOR EACH ROW EXECUTE FUNCTION archived()",
    )
    articles.insert("a", "archived", "b")
    counts = fill(articles)
    assert (counts.written, counts.failed) == (2, 1)
    assert "keeps its vector from being written" in listed(articles)[0].error
    assert fill(articles).claimed == 0


def test_failures_vanish_with_their_rows_their_texts_and_their_tables(articles: Articles) -> None:
    articles.insert("poison", "poison 2", "poison 3")
    fill(articles)
    assert len(listed(articles)) == 3
    execute(
        articles.engine, "DELETE FROM article WHERE id = 1", "UPDATE article SET title = NULL WHERE id = 2"
    )
    fill(articles)
    assert [failure.key for failure in listed(articles)] == ["[3]"]
    execute(articles.engine, "DROP TABLE article")
    with articles.engine.begin() as connection:
        failures.clean(connection)
        assert failures.listed(connection) == []


def test_a_failure_follows_its_table(articles: Articles) -> None:
    articles.insert("poison")
    fill(articles)
    execute(
        articles.engine,
        "CREATE SCHEMA other",
        "ALTER TABLE article SET SCHEMA other",
        "ALTER TABLE other.article RENAME TO renamed",
    )
    with articles.engine.begin() as connection:
        failures.clean(connection)
        assert failures.listed(connection)[0].relation == "other.renamed"
        status = "SELECT relation::text, failed FROM pgembed.status"
        assert connection.execute(text(status)).one() == ("other.renamed", 1)
