"""``op.create_meaning_guard`` and ``op.drop_meaning_guard``, online and offline."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from pgembed.exc import DeclarationError, DuplicateMeaningError, MetricNotSupportedError
from pgembed.testing import HashEncoder
from tests.migrations.conftest import Migrations
from tests.migrations.models import article

CREATE = "op.create_meaning_guard('article', 'embedding', {score})"
ADD = text("INSERT INTO article (embedding) VALUES ('[1,2,3,4]'), ('[1,2,3,4]')")


def test_up_and_down(migrations: Migrations) -> None:
    article(encoder=HashEncoder(4)).create_all(migrations.engine)
    migrations.write(CREATE.format(score=0.95), "op.drop_meaning_guard('article', 'embedding')")
    assert (
        "CREATE TRIGGER pgembed_guard_embedding AFTER INSERT OR UPDATE OF embedding ON article FOR EACH ROW "
        "WHEN (NEW.embedding IS NOT NULL) EXECUTE FUNCTION pgembed.guard_meaning('0.95', 'cosine');"
    ) in migrations.offline()
    migrations.upgrade()
    with migrations.engine.connect() as connection, pytest.raises(DuplicateMeaningError):
        connection.execute(ADD)
    migrations.downgrade("base")
    with migrations.engine.connect() as connection:
        connection.execute(ADD)


def test_what_is_no_score(migrations: Migrations) -> None:
    article(encoder=HashEncoder(4)).create_all(migrations.engine)
    migrations.write(CREATE.format(score=2))
    with pytest.raises(DeclarationError, match="unique_within=2"):
        migrations.upgrade()


def test_a_metric_of_bits(migrations: Migrations) -> None:
    migrations.write("op.create_meaning_guard('article', 'embedding', 0.9, metric='hamming')")
    with pytest.raises(MetricNotSupportedError, match="hamming"):
        migrations.upgrade()
