"""The statistics of words: who refreshes them, what status says, and what cannot go wrong."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import Engine, create_engine, text
from typer.testing import CliRunner

from pgembed import Words
from pgembed.cli.main import app
from pgembed.exc import DeclarationError, NotInstalledError, NotTrustedError
from pgembed.filling import Worker, backfill, frequencies, refresh_words
from pgembed.filling.frequencies import Refresher, refresh_target
from pgembed.filling.targets import Target, registered_targets, target_of
from pgembed.testing import HashEncoder
from tests.tables import execute, model, rows

COUNTED = "SELECT lexeme, rows FROM article_embedding_words ORDER BY lexeme"
STATUS = "SELECT words FROM pgembed.status"


@pytest.fixture
def article(engine):
    article = model(HashEncoder(8), words=Words())
    article.metadata.create_all(engine)
    values = "SELECT n, 'cat ' || n % 2 FROM generate_series(1, 10) AS n"
    execute(engine, f"INSERT INTO article (id, title) {values}")
    return article


def target(engine: Engine) -> Target:
    with engine.begin() as connection:
        (found,) = registered_targets(connection)
    assert isinstance(found, Target)
    return found


def test_status_says_how_old_they_are(engine, article):
    assert rows(engine, STATUS) == [("never refreshed",)]
    assert backfill(engine, article.embedding).written == 10
    (found,) = rows(engine, STATUS)
    assert (
        found
        == rows(
            engine,
            "SELECT to_char(refreshed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24\\:MI\\:SS \"UTC\"') "
            "FROM article_embedding_words WHERE lexeme = ''",
        )[0]
    )
    execute(engine, "DROP TABLE article_embedding_words")
    assert rows(engine, STATUS) == [("there is no table article_embedding_words",)]


def test_backfill_worker_and_command_refresh_them(engine, url, article):
    expected = [("", 10), ("0", 5), ("1", 5), ("cat", 10)]
    backfill(engine, article.embedding)
    assert rows(engine, COUNTED) == expected
    execute(engine, "DELETE FROM article_embedding_words")
    with engine.begin() as connection:
        embedding = target_of(connection, article.embedding).embedding
    assert Worker(engine, [embedding]).run(once=True)
    assert rows(engine, COUNTED) == expected
    execute(engine, "DELETE FROM article_embedding_words")
    done = CliRunner().invoke(app, ["words", "refresh", "--url", url.render_as_string(hide_password=False)])
    assert (done.exit_code, done.stdout) == (0, "public.article.embedding: 3 words in 10 rows\n")
    assert rows(engine, COUNTED) == expected
    shown = CliRunner().invoke(app, ["status", "--url", url.render_as_string(hide_password=False)])
    assert "words as of" in " ".join(shown.stdout.split())


def test_a_worker_leaves_alone_what_is_young_or_has_not_changed(engine, article):
    found, writes, hour = target(engine), {}, timedelta(hours=1)
    assert refresh_target(engine, found, age=hour, writes=writes) is not None  # there were none
    assert refresh_target(engine, found, age=hour, writes=writes) is None
    execute(engine, "UPDATE article_embedding_words SET refreshed_at = refreshed_at - interval '2 h'")
    writes.clear()
    assert refresh_target(engine, found, age=hour, writes=writes) is not None
    execute(engine, "UPDATE article_embedding_words SET refreshed_at = refreshed_at - interval '2 h'")
    seen = frequencies._STATISTICS
    with engine.connect() as connection:
        asked = {"relation": found.relation, "statistics": "article_embedding_words"}
        writes[found.relation] = connection.execute(seen, asked).one().writes
    assert refresh_target(engine, found, age=hour, writes=writes) is None


def test_two_at_once_wait_for_each_other_and_readers_for_none(engine, article):
    with engine.connect() as first, engine.connect() as reader:
        refresh_words(first, article.embedding)
        second = threading.Thread(target=refresh_target, args=(engine, target(engine)))
        second.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'ShareRowExclusiveLock'"
        while not rows(engine, waiting)[0][0]:
            assert second.is_alive()
        assert reader.execute(text(COUNTED)).all() == []
        first.commit()
        second.join()
    assert len(rows(engine, COUNTED)) == 4


def test_large_tables_are_sampled(engine, article, monkeypatch):
    values = "SELECT n, 'common word ' || n % 10 FROM generate_series(11, 20000) AS n"
    execute(engine, f"INSERT INTO article (id, title) {values}")
    monkeypatch.setattr(frequencies, "SAMPLED_ROWS", 8000)
    with engine.begin() as connection:
        found = refresh_words(connection, article.embedding)
    counted = dict(tuple(row) for row in rows(engine, COUNTED))
    assert found.rows == counted[""] == 20_000
    assert found.mean_length == pytest.approx(3, rel=0.3)
    assert counted["common"] == pytest.approx(20_000, rel=0.3)
    assert counted["7"] == pytest.approx(2_000, rel=0.4)


def test_what_cannot_be_refreshed_is_logged_once_and_stops_nobody(engine, article, caplog):
    found = target(engine)
    execute(engine, "DROP TABLE article_embedding_words")
    with pytest.raises(NotInstalledError, match="there is no table article_embedding_words beside it"):
        refresh_target(engine, found)
    refresher = Refresher(engine)
    refresher.refresh([found, found])
    assert caplog.text.count("event=words") == 1
    assert backfill(engine, article.embedding).written == 10
    plain = model(HashEncoder(8), table="plain")
    with engine.connect() as connection, pytest.raises(DeclarationError, match="not declared with words="):
        refresh_words(connection, plain.embedding)


def test_a_table_of_statistics_of_a_stranger_is_left_alone(engine, article):
    """A trigger on it would run with the rights of the worker."""
    execute(
        engine,
        "CREATE ROLE words_stranger",
        "GRANT CREATE ON SCHEMA public TO words_stranger",
        "ALTER TABLE article_embedding_words OWNER TO words_stranger",
    )
    try:
        with pytest.raises(NotTrustedError, match="words_stranger"):
            refresh_target(engine, target(engine))
        assert "words_stranger" in rows(engine, STATUS)[0][0]
    finally:
        execute(engine, "DROP OWNED BY words_stranger", "DROP ROLE words_stranger")


def test_names_of_any_kind(url):
    engine = create_engine(url).execution_options(schema_translate_map={None: 'a "b" %s'})
    article = model(HashEncoder(8), table="select", source="from", vector="w h%e", words=Words(name='or"d:%'))
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "a ""b"" %%s"')
    article.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(article.__table__.insert(), [{"id": 1, "from": "cat"}, {"id": 2, "from": "cats"}])
        assert refresh_words(connection, getattr(article, "w h%e")).words == 1
    found = refresh_target(engine, target(engine))
    assert found is not None
    assert found.rows == 2
    engine.dispose()
