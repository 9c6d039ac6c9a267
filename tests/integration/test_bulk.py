"""ORM statements that bypass the flush: what is known is encoded in one batch, the rest is pending."""

from __future__ import annotations

import enum
import logging
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, bindparam, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pgembed import Encoder
from pgembed.exc import TextError
from pgembed.testing import HashEncoder
from tests.integration.models import Models


@pytest.fixture
def models(engine: Engine, hash_encoder: HashEncoder) -> Models:
    models = Models(encoder=hash_encoder)
    models.base.metadata.create_all(engine)
    return models


def test_a_bulk_insert_is_one_batch(session: Session, models: Models) -> None:
    rows = [{"title": f"t{i}", **({"body": "b"} if i % 2 else {})} for i in range(100)]
    session.execute(insert(models.article), rows)
    assert [len(call) for call in models.encoder.calls] == [100]
    assert "embedding" not in rows[0]  # the caller's rows are left alone
    models.check(session)


def test_returning_gives_entities_with_vectors(session: Session, models: Models) -> None:
    articles = session.scalars(
        insert(models.article).returning(models.article), [{"title": "a"}, {"title": "b"}]
    ).all()
    assert [article.title for article in articles] == ["a", "b"]
    assert len(models.encoder.calls) == 1
    models.check(session)


@pytest.mark.parametrize("form", ["single", "values", "values_list", "legacy_update"])
def test_every_way_to_give_values(session: Session, models: Models, form: str) -> None:
    article = models.article
    if form == "single":
        session.execute(insert(article), {"title": "one"})
    elif form == "values":
        session.execute(insert(article).values(title="one", body="two"))
    elif form == "values_list":
        session.execute(insert(article).values([{"title": "one"}, {"title": "two"}]))
    else:
        session.add(article(title="one", body="x"))
        session.commit()
        session.query(article).update({article.title: "changed", article.body: "y"})
    models.check(session)


def test_values_with_unknown_texts_leave_those_rows_pending(session: Session, models: Models) -> None:
    session.execute(insert(models.article).values(title=func.upper("sql")))
    session.execute(insert(models.article).values([{"title": "plain"}, {"title": func.upper("sql2")}]))
    assert models.encoder.calls == [("plain",)]
    assert models.pending(session) == 2
    session.execute(
        insert(models.article).from_select(["title", "views"], select(literal("chosen"), literal(0)))
    )
    assert models.pending(session) == 3


@pytest.mark.parametrize("synchronize", ["auto", "evaluate", "fetch", False])
def test_an_update_of_all_sources_is_encoded_once(session: Session, models: Models, synchronize: Any) -> None:
    session.add_all(models.article(title=f"t{i}", body="b") for i in range(3))
    session.commit()
    loaded = session.scalars(select(models.article)).all()
    models.encoder.calls.clear()
    session.execute(
        update(models.article).where(models.article.id <= 1).values(title="same", body="other"),
        execution_options={"synchronize_session": synchronize},
    )
    assert models.encoder.calls == [("same\nother",)]
    session.commit()
    models.check(session)
    assert loaded[0].title == "same"


def test_an_update_of_one_source_among_two_is_pending(session: Session, models: Models) -> None:
    session.add_all(models.article(title=f"t{i}", body="b") for i in range(3))
    session.commit()
    models.encoder.calls.clear()
    session.execute(update(models.article).values(body="other"))
    assert models.encoder.calls == []
    assert models.pending(session) == 3
    session.execute(update(models.article).values(views=5))
    assert models.encoder.calls == []


def test_a_bulk_update_by_key_is_one_batch(session: Session, models: Models) -> None:
    session.add_all(models.article(title=f"t{i}", body="b") for i in range(3))
    session.commit()
    models.encoder.calls.clear()
    session.execute(
        update(models.article),
        [{"id": i, "title": f"new {i}", "body": "" if i == 2 else None} for i in (1, 2)],
    )
    assert [len(call) for call in models.encoder.calls] == [2]
    models.check(session)
    session.execute(update(models.article), [{"id": 1, "title": "partial"}])
    assert models.pending(session) == 1


def test_an_update_with_parameters_for_its_condition_still_works(session: Session, models: Models) -> None:
    session.add(models.article(title="a"))
    session.commit()
    session.connection()
    statement = (
        update(models.article)
        .where(models.article.title == bindparam("old"))
        .values(title="b", body=None)
        .execution_options(synchronize_session=False)
    )
    session.execute(statement, {"old": "a"})
    models.check(session)
    assert session.scalar(select(models.article.title)) == "b"


def test_an_upsert_takes_the_vector_along_with_its_sources(session: Session, models: Models) -> None:
    session.add(models.article(title="there", body="old"))
    session.commit()
    statement = upsert(models.article)
    whole = statement.on_conflict_do_update(
        index_elements=["title"],
        set_={"title": statement.excluded.title, "body": statement.excluded.body},
    )
    session.execute(whole, [{"title": "there", "body": "new"}, {"title": "fresh", "body": "x"}])
    models.check(session)
    partly = statement.on_conflict_do_update(index_elements=["title"], set_={"body": statement.excluded.body})
    session.execute(partly, [{"title": "there", "body": "newer"}])
    assert models.pending(session) == 1  # the stored title could be any
    session.execute(statement.on_conflict_do_nothing(), [{"title": "there", "body": "ignored"}])
    assert models.pending(session) == 1


def test_vectors_of_ones_own(session: Session, models: Models) -> None:
    own = np.arange(8, dtype=np.float32)
    session.execute(insert(models.article), [{"title": "mine", "embedding": own}])
    assert models.encoder.calls == []
    assert models.pending(session) == 0
    session.execute(update(models.article).values(embedding=own + 1))
    session.commit()
    assert models.pending(session) == 0
    assert np.array_equal(session.scalars(select(models.article.embedding)).one(), own + 1)
    session.execute(update(models.article), [{"id": 1, "embedding": own + 2}])
    session.commit()
    assert models.pending(session) == 0
    session.execute(
        update(models.article).ordered_values((models.article.title, "x"), (models.article.body, "y"))
    )
    assert models.pending(session) == 1
    session.execute(update(models.article).values(embedding=own, title="t", body="b"))
    models.check(session)


@pytest.mark.parametrize("road", ["insert", "values", "legacy"])
def test_a_loaded_vector_claims_no_text(session: Session, models: Models, road: str) -> None:
    session.add(models.article(title="first"))
    session.commit()
    loaded = session.scalars(select(models.article.embedding)).one()
    row = {"title": "second", "embedding": loaded}
    if road == "insert":
        session.execute(insert(models.article), [row])
    elif road == "values":
        session.execute(insert(models.article).values(row))
    else:
        session.bulk_insert_mappings(models.article, [row])  # type: ignore[arg-type]
    models.check(session)
    session.execute(update(models.article).where(models.article.id == 2).values(embedding=loaded))
    assert models.pending(session) == 1
    session.execute(update(models.article), [{"id": 1, "title": "changed", "body": "b"}])
    session.execute(update(models.article), [{"id": 1, "embedding": loaded}])
    assert models.pending(session) == 2


def test_a_flush_that_failed_hides_no_later_bulk_insert(session: Session, models: Models) -> None:
    session.add(models.article(title="taken"))
    session.flush()
    savepoint = session.begin_nested()
    session.add(models.article(title="taken"))
    with pytest.raises(IntegrityError):
        session.flush()
    savepoint.rollback()
    session.bulk_insert_mappings(models.article, [{"title": "after"}])  # type: ignore[arg-type]
    models.check(session)


def test_legacy_bulk_inserts_are_one_batch(session: Session, models: Models) -> None:
    mappings = [{"title": f"t{i}", "body": "b"} for i in range(100)]
    session.bulk_insert_mappings(models.article, mappings)  # type: ignore[arg-type]
    assert [len(call) for call in models.encoder.calls] == [100]
    assert mappings[0] == {"title": "t0", "body": "b"}
    session.bulk_save_objects([models.article(title="one"), models.article(title="two", body="x")])
    session.bulk_save_objects([models.article(title="three")], return_defaults=True)
    models.check(session)
    assert session.scalar(select(func.count(models.article.id))) == 103


def test_legacy_bulk_updates_are_filled_where_all_texts_are_given(session: Session, models: Models) -> None:
    session.add_all(models.article(title=f"t{i}", body="b") for i in range(3))
    session.commit()
    models.encoder.calls.clear()
    both = [{"id": i, "title": f"new {i}", "body": None} for i in (1, 2)]
    session.bulk_update_mappings(models.article, both)  # type: ignore[arg-type]
    assert models.encoder.calls == [("new 1", "new 2")]
    session.bulk_update_mappings(models.article, [{"id": 3, "views": 5}])  # type: ignore[arg-type]
    session.bulk_update_mappings(models.article, [{"id": 3, "title": "", "body": ""}])  # type: ignore[arg-type]
    session.commit()
    models.check(session)
    assert len(models.encoder.calls) == 1
    session.bulk_update_mappings(models.article, [{"id": 1, "title": "partial"}])  # type: ignore[arg-type]
    assert models.pending(session) == 1
    loaded = session.get_one(models.article, 2)
    session.expunge(loaded)
    loaded.title = "by object"
    session.bulk_save_objects([loaded])
    assert models.pending(session) == 2


def test_legacy_bulk_methods_take_vectors_of_ones_own(session: Session, models: Models) -> None:
    own = np.arange(8, dtype=np.float32)
    session.bulk_insert_mappings(models.article, [{"title": "mine", "embedding": own}])  # type: ignore[arg-type]
    assert models.encoder.calls == []
    assert models.pending(session) == 0
    assert np.array_equal(session.scalars(select(models.article.embedding)).one(), own)


def test_core_statements_leave_rows_pending(session: Session, models: Models) -> None:
    session.execute(models.article.__table__.insert(), [{"title": "c"}])
    session.connection().execute(models.article.__table__.insert(), [{"title": "d"}])
    assert models.encoder.calls == []
    assert models.pending(session) == 2


def test_an_encoder_that_fails_is_asked_once(engine: Engine) -> None:
    class Broken(HashEncoder):
        def encode_documents(self, texts: Any) -> Any:
            self.calls.append(tuple(texts))
            raise RuntimeError

    encoder = Broken(8)
    models = Models(encoder=encoder, on_error="pending")
    models.base.metadata.create_all(engine)
    with Session(engine) as session:
        article = models.article(title="a", body="b")
        for write in (
            lambda: session.add(article),
            lambda: (setattr(article, "title", "b"), setattr(article, "body", "c")),
            lambda: session.execute(insert(models.article), [{"title": "x"}, {"title": "y"}]),
            lambda: session.execute(update(models.article), [{"id": 1, "title": "z", "body": "z"}]),
            lambda: session.bulk_insert_mappings(models.article, [{"title": "m"}, {"title": "n"}]),
        ):
            encoder.calls.clear()
            write()
            session.commit()
            assert len(encoder.calls) == 1
        assert models.pending(session) == 5


def test_worker_columns_are_left_to_the_worker(engine: Engine, hash_encoder: HashEncoder) -> None:
    models = Models(encoder=hash_encoder, fill="worker")
    models.base.metadata.create_all(engine)
    with Session(engine) as session:
        session.execute(insert(models.article), [{"title": "a"}])
        assert hash_encoder.calls == []
        assert models.pending(session) == 1
        own = np.arange(8, dtype=np.float32)
        session.execute(insert(models.article), [{"title": "mine", "embedding": own}])
        session.bulk_insert_mappings(models.article, [{"title": "mine 2", "embedding": own}])  # type: ignore[arg-type]
        session.execute(update(models.article).where(models.article.id == 1).values(embedding=own))
        assert models.pending(session) == 0
        session.execute(update(models.article), [{"id": 1, "title": "b", "body": "c", "embedding": own}])
        assert models.pending(session) == 1


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize("value", [5, True, 1.5, Decimal(1), b"x", Colour.RED, ["a"]], ids=repr)
def test_sources_take_texts_alone(session: Session, models: Models, value: Any) -> None:
    """Drivers would store '5', of which the digest knows nothing."""
    article = models.article(title="a", body="b")
    session.add(article)
    session.commit()
    rows: Any = [{"title": value}]
    changed: Any = [{"id": 1, "title": value, "body": "b"}]
    for write in (
        lambda: (session.add(models.article(title=value)), session.flush()),
        lambda: (setattr(article, "body", value), session.flush()),
        lambda: session.execute(insert(models.article), rows),
        lambda: session.execute(insert(models.article).values(title=value)),
        lambda: session.execute(update(models.article), changed),
        lambda: session.execute(update(models.article).values(title=value, body="b")),
        lambda: session.bulk_insert_mappings(models.article, rows),
        lambda: session.bulk_update_mappings(models.article, changed),
    ):
        with pytest.raises(TextError, match=f"takes str, got {type(value).__name__}"):
            write()
        session.rollback()
    models.check(session)


class Shade(str, enum.Enum):  # noqa: UP042
    RED = "red"


class Loud(str):
    """A text that shows itself as another one."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()

    def encode(self, *_: Any) -> bytes:
        return b"LOUD"


def test_kinds_of_texts_are_stored_and_encoded_as_the_text_that_they_are(engine: Engine) -> None:
    models = Models(encoder=HashEncoder(8), template="{title}: {body}")
    models.base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(models.article(title=Shade.RED, body=Loud("quiet")))
        session.execute(insert(models.article), [{"title": Loud("title"), "body": Shade.RED}])
        session.commit()
        assert session.execute(select(models.article.title, models.article.body)).all() == [
            ("red", "quiet"),
            ("title", "red"),
        ]
        models.check(session)


@pytest.mark.parametrize("how", ["flush", "statement", "update"])
def test_a_text_that_is_cut_is_said_once_a_column(
    engine: Engine, minilm_folder: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    long = "a text of many more words than eight tokens hold"

    def write(session: Session, article: Any, title: str) -> None:
        if how == "flush":
            session.add(article(title=title))
        elif how == "statement":
            session.execute(insert(article), [{"title": title}])
        else:
            session.execute(insert(article.__table__).values(title=f"old {title}", views=0))
            changed = update(article).values(title=title, body=None)
            session.execute(changed.where(article.title == f"old {title}"))
        session.flush()

    with (
        Encoder(minilm_folder, max_tokens=8) as encoder,
        Session(engine) as session,
        caplog.at_level(logging.WARNING, logger="pgembed"),
    ):
        models = Models(encoder=encoder)
        models.base.metadata.create_all(session.connection())
        write(session, models.article, "short")
        assert caplog.messages == []
        for number in range(2):
            write(session, models.article, f"{long} {number}")
        (said,) = caplog.messages
        assert said.startswith("texts of article.embedding are cut at the 8 tokens of encoder")
        assert "docs/long_texts.md" in said
        write(session, Models(encoder=encoder).article, f"{long}, in another column")
        assert len(caplog.messages) == 2


@pytest.mark.parametrize("fill", ["flush", "worker"])
@pytest.mark.parametrize("new", [True, False])
def test_a_flush_and_a_statement_write_the_same(
    engine: Engine, hash_encoder: HashEncoder, fill: str, new: bool
) -> None:
    """Whatever texts, vectors and digests a new or a changed row is given."""
    models = Models(encoder=hash_encoder, fill=fill)
    models.base.metadata.create_all(engine)
    article, declaration = models.article, models.embedding.declaration
    own, loaded = np.full(8, 0.5, np.float32), np.full(8, 0.25, np.float32)
    loaded.flags.writeable = False
    written = set()
    with Session(engine) as session:
        for title, vector, stamp in product(
            ("text", ""), (None, own, loaded), ("absent", "null", "matching", "other")
        ):
            digests = {"matching": (title, None), "other": ("another", None)}
            row: dict[str, Any] = {"title": title, "body": None}
            if vector is not None:
                row["embedding"] = vector
            if stamp != "absent":
                row["embedding_digest"] = declaration.digest(digests[stamp]) if stamp in digests else None
            results = []
            for flush in (True, False):
                if not new:
                    session.add(old := article(title="old", body="old"))
                    session.flush()
                if new and flush:
                    session.add(article(**row))
                elif new:
                    session.execute(insert(article), [row])
                elif flush:
                    for key, value in row.items():
                        setattr(old, key, value)
                else:
                    session.execute(update(article).values(row))
                session.flush()
                columns = (article.embedding, article.embedding_digest, models.embedding.pending())
                (found,) = session.execute(select(*columns)).all()
                results.append((None if found[0] is None else found[0].tobytes(), *found[1:]))
                session.rollback()
            assert results[0] == results[1], (title, vector, stamp)
            written.add(results[0])
    assert len(written) > 3
