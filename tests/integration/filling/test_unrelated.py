"""Updates that leave the text as it is: they cause no encoding, and nothing becomes pending."""

from __future__ import annotations

from sqlalchemy import Engine, select, text, update
from sqlalchemy.orm import Session

from pgembed.filling.backfill import backfill, pending
from pgembed.filling.cycle import Cycle

from .conftest import FAST, Articles

#: 100,000 updates, each pass over the rows a transaction, so that Postgres may tidy up between them.
_NO_OPS = """
DO $$ BEGIN
  FOR i IN 1 .. 50 LOOP
    UPDATE article SET title = 'title ' || id;
    COMMIT;
    UPDATE article SET touched = i;
    COMMIT;
  END LOOP;
  PERFORM pg_stat_force_next_flush();
END $$
"""


def _filled(articles: Articles, rows: int) -> None:
    articles.insert(*(f"title {i}" for i in range(1, rows + 1)))
    backfill(articles.engine, articles.model.embedding)
    articles.encoder.calls.clear()


def _autocommit(engine: Engine, statement: str) -> None:
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(statement)


def test_100_000_updates_that_change_no_text_leave_the_pending_index_empty(articles: Articles) -> None:
    engine = articles.engine
    _filled(articles, 1000)
    _autocommit(engine, "REINDEX INDEX ix_article_embedding_pending")
    # Room for one more version beside each row, and none: with and without HOT.
    for room in (50, 100):
        _autocommit(engine, f"ALTER TABLE article SET (fillfactor = {room})")
        _autocommit(engine, "VACUUM FULL article")
        before = _figures(engine)
        _autocommit(engine, _NO_OPS)
        after = _figures(engine)
        assert after["updates"] - before["updates"] >= 100_000
        assert after["octets"] == before["octets"] == 8192  # the metapage: not one entry, dead or alive
        assert pending(engine, articles.model.embedding) == 0
    assert backfill(engine, articles.model.embedding).claimed == 0
    assert articles.encoder.calls == []


def _figures(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        row = connection.execute(
            text(
                "SELECT pg_stat_get_tuples_updated('article'::regclass) AS updates, "
                "pg_relation_size('ix_article_embedding_pending') AS octets"
            )
        )
        return dict(row.mappings().one())


def test_neither_orm_nor_sql_updates_of_other_columns_encode_anything(articles: Articles) -> None:
    _filled(articles, 20)
    engine, model = articles.engine, articles.model
    worker = Cycle(engine, articles.target, FAST)
    with Session(engine) as session:
        for article in session.scalars(select(model)):
            article.touched = 7
            article.title = f"title {article.id}"  # what it is already
        session.commit()
        session.execute(update(model).values(touched=8))
        session.execute(update(model), [{"id": i, "touched": 9} for i in range(1, 21)])
        session.bulk_update_mappings(model, [{"id": 1, "touched": 10}])
        session.execute(text("UPDATE article SET touched = 11, title = title || ''"))
        session.commit()
    assert articles.pending() == set()
    assert worker.run(once=True).claimed == 0
    assert articles.encoder.calls == []
    articles.check()
