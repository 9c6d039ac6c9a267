"""Installing into databases that are new, shared, restricted or not fit for it."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgembed import HNSW, Vector, embedding_column, indexes
from pgembed.columns import extension
from pgembed.database import install
from pgembed.exc import (
    DatabaseEncodingError,
    DeclarationError,
    DigestUnavailableError,
    ExtensionError,
    MissingPrivilegeError,
    NotInstalledError,
    UnsupportedServerError,
)
from pgembed.testing import HashEncoder


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    embedding: Mapped[Vector | None] = embedding_column("title", encoder=HashEncoder(3), index=HNSW())


@pytest.fixture
def empty(empty_url: URL) -> Iterator[Engine]:
    engine = create_engine(empty_url)
    yield engine
    engine.dispose()


@pytest.fixture
def role(admin: Engine) -> Iterator[str]:
    """A role that may connect and nothing else."""
    name = f"pgembed_plain_{uuid.uuid4().hex[:8]}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'"))
    yield name
    with admin.connect() as connection:
        connection.execute(text(f"DROP ROLE {name}"))


@pytest.fixture
def plain(empty_url: URL, role: str) -> Iterator[Engine]:
    engine = create_engine(empty_url.set(username=role, password="secret"))
    yield engine
    engine.dispose()


def test_it_is_idempotent(empty: Engine) -> None:
    with empty.begin() as connection:
        assert install(connection)
    with empty.begin() as connection:
        assert not install(connection)
        assert connection.scalar(text("SELECT count(*) FROM pgembed.version")) == 1
        assert connection.execute(text("SELECT * FROM pgembed.status")).all() == []


#: Arguments that functions once had: with others beside them, a call would be ambiguous.
_PAIRS = "relation regclass, vector_column name, min_score float8"
_TAIL = "metric text DEFAULT NULL, k integer DEFAULT 10, exact boolean DEFAULT false"
_LIMITS = (
    "min_share float8 DEFAULT NULL, min_margin float8 DEFAULT NULL, max_distance float8 DEFAULT NULL, "
    "temperature float8 DEFAULT 0.05, metric text DEFAULT NULL"
)
FORMER = {
    "nearest": "regclass, name, vector, integer, text, boolean, name",
    "near_duplicates": f"{_PAIRS}, {_TAIL}",
    "duplicate_groups": f"{_PAIRS}, {_TAIL}",
    "keep_list": f"{_PAIRS}, keep name DEFAULT NULL, descending boolean DEFAULT false, {_TAIL}",
    "knn_classify_many": "relation regclass, vector_column name, label_column name, queries vector[], "
    "k integer DEFAULT 15, weights text DEFAULT 'distance', min_share float8 DEFAULT NULL, "
    "min_margin float8 DEFAULT NULL, max_distance float8 DEFAULT NULL, min_neighbours integer DEFAULT NULL, "
    "temperature float8 DEFAULT 0.05, metric text DEFAULT NULL, exact boolean DEFAULT false",
}


def test_functions_whose_columns_changed_are_created_again(empty: Engine) -> None:
    Base.metadata.create_all(empty)
    with empty.begin() as connection:
        install(connection)
        for statement in (
            "DROP FUNCTION pgembed.vector_column, pgembed.pairs_query, pgembed.ask_for",
            "CREATE FUNCTION pgembed.vector_column(relation regclass, vector_column name, "
            "wanted_metric text DEFAULT NULL, OUT metric text, OUT op text) LANGUAGE plpgsql AS 'BEGIN END'",
            "CREATE FUNCTION pgembed.pairs_query(relation regclass, vector_column name, min_score float8, "
            "wanted_metric text, k integer, exact boolean, OUT query text) LANGUAGE plpgsql AS 'BEGIN END'",
            "CREATE FUNCTION pgembed.ask_for(method text, lists integer, row_count integer) RETURNS jsonb "
            "LANGUAGE plpgsql AS 'BEGIN END'",
            *(
                f"CREATE FUNCTION pgembed.{name}({arguments}) RETURNS integer LANGUAGE sql AS 'SELECT 1'"
                for name, arguments in FORMER.items()
            ),
            "UPDATE pgembed.version SET checksum = 'earlier'",
            "INSERT INTO article (title, embedding) VALUES ('x', '[1,2,3]')",
        ):
            connection.execute(text(statement))
        assert install(connection)
        search = text("SELECT key FROM pgembed.search('article', 'embedding', '[1,2,3]')")
        assert connection.scalars(search).all() == [{"id": 1}]
        for call in (
            "duplicate_groups('article', 'embedding', 0.5)",
            "near_duplicates('article', 'embedding', 0.5)",
            "knn_classify_many('article', 'embedding', 'title', ARRAY[]::vector[])",
            "centroid_classify('article', 'embedding', 'title', ARRAY[]::vector[])",
        ):
            assert connection.execute(text(f"SELECT * FROM pgembed.{call}")).all() == []
        labels = text(
            "SELECT label FROM pgembed.zero_shot('article', 'embedding', '{a}', ARRAY['[1,2,3]'::vector])"
        )
        assert connection.scalars(labels).all() == ["a"]
        kept = text("SELECT key, is_kept FROM pgembed.keep_list('article', 'embedding', 0.5)")
        assert connection.execute(kept).all() == [({"id": 1}, True)]
        former = text("SELECT to_regprocedure('pgembed.ask_for(text, integer, integer)')")
        assert connection.scalar(former) is None


def test_a_rolled_back_installation_leaves_nothing(empty: Engine) -> None:
    with empty.connect() as connection:
        install(connection)
        connection.rollback()
        assert connection.scalar(text("SELECT to_regnamespace('pgembed')")) is None


def test_it_works_where_every_statement_is_committed(empty: Engine) -> None:
    with empty.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        Base.metadata.create_all(connection)
        assert install(connection)
        assert not install(connection)
        assert connection.scalar(text("SELECT count(*) FROM pgembed.status")) == 1


def test_a_server_that_refuses_md5_is_refused(empty: Engine) -> None:
    """As one in FIPS mode does; here by a function that is found first."""
    with empty.connect() as connection:
        connection.exec_driver_sql("CREATE SCHEMA fips")
        connection.exec_driver_sql(
            "CREATE FUNCTION fips.md5(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE 'could not compute MD5 hash: unsupported' USING ERRCODE = 'internal_error'; END $$"
        )
        connection.exec_driver_sql("SET LOCAL search_path = fips, pg_catalog, public")
        with pytest.raises(DigestUnavailableError, match="FIPS"):
            install(connection)


def test_concurrent_installations_wait_for_each_other(empty: Engine) -> None:
    barrier = Barrier(4)

    def installing(_: int) -> bool:
        with empty.begin() as connection:
            barrier.wait(60)
            done = install(connection)
            Base.metadata.create_all(connection)
        return done

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(installing, range(4))) == [False, False, False, True]


def test_create_all_alone_needs_only_the_extension(empty: Engine) -> None:
    Base.metadata.create_all(empty)
    Base.metadata.create_all(empty)
    with empty.begin() as connection:
        assert connection.scalar(text("SELECT to_regnamespace('pgembed')")) is None
        install(connection)
        row = connection.execute(text("SELECT * FROM pgembed.embedding_columns")).mappings().one()
    assert (row["relation"], row["column_name"], row["sources"]) == ("article", "embedding", ["title"])
    assert (row["encoder"], row["dimensions"], row["metric"], row["fill"]) == ("hash", 3, "cosine", "flush")
    assert row["fingerprint"] == HashEncoder(3).fingerprint


def damaged(connection: Connection) -> Iterator[str]:
    """Registrations that somebody has edited by hand: each would break a reader that takes it as it is."""
    comment = "SELECT obj_description(CAST('ix_article_embedding_pending' AS regclass), 'pg_class')"
    whole = json.loads(connection.exec_driver_sql(comment).scalar_one())
    for name in whole.keys() - {"pgembed", "template"}:
        yield json.dumps({key: value for key, value in whole.items() if key != name})
    for wrong in ({"sources": "title"}, {"dimensions": "many"}, {"fields": 3}, {"options": ["max_tokens"]}):
        yield json.dumps(whole | wrong)


def test_the_registration_lives_and_dies_with_the_table(empty: Engine) -> None:
    Base.metadata.create_all(empty)
    with empty.begin() as connection:
        install(connection)
        connection.execute(text("ALTER TABLE article RENAME TO essay"))
        query = text("SELECT relation::text FROM pgembed.embedding_columns")
        assert connection.scalars(query).all() == ["essay"]
        connection.execute(text("COMMENT ON TABLE essay IS '{\"pgembed\": broken'"))
        assert connection.scalars(query).all() == ["essay"]
        connection.execute(text("CREATE INDEX broken ON essay (id) WHERE id > 0"))
        for comment in ('{"pgembed": oops', '{"pgembed": 1}', '{"pgembed": [1]}', *damaged(connection)):
            connection.exec_driver_sql(f"COMMENT ON INDEX broken IS '{comment}'")
            assert connection.scalars(query).all() == ["essay"], comment
        connection.execute(text("ALTER TABLE essay RENAME COLUMN embedding TO vec"))
        assert "register the column" in connection.scalar(text("SELECT problem FROM pgembed.status"))
        connection.execute(text("DROP TABLE essay"))
        assert connection.scalars(query).all() == []


def test_indexes_are_built_after_the_load(empty: Engine) -> None:
    Base.metadata.create_all(empty)
    with empty.begin() as connection:
        install(connection)
        status = text("SELECT index FROM pgembed.status")
        assert not indexes.is_built(connection, Article.embedding)
        assert connection.scalar(status) == "none"
        indexes.create(connection, Article.embedding)
        indexes.create(connection, Article.embedding)
        assert indexes.is_built(connection, Article.embedding)
        assert connection.scalar(status) == "hnsw"
        method, options = connection.execute(
            text(
                "SELECT amname, reloptions FROM pg_class JOIN pg_am ON pg_am.oid = relam "
                "WHERE relname = 'ix_article_embedding_hnsw'"
            )
        ).one()
        assert (method, options) == ("hnsw", ["m=16", "ef_construction=64"])
        with pytest.raises(DeclarationError, match="no vector index is declared"):
            indexes.create(connection, Article.title)


def test_missing_privileges_are_named(plain: Engine, empty: Engine, role: str) -> None:
    with plain.begin() as connection, pytest.raises(MissingPrivilegeError) as extension:
        install(connection)
    assert (extension.value.role, extension.value.privilege) == (role, "CREATE")
    assert "CREATE EXTENSION vector" in str(extension.value)
    with plain.begin() as connection, pytest.raises(MissingPrivilegeError):
        Base.metadata.create_all(connection)
    with plain.begin() as connection, pytest.raises(ExtensionError, match="found nothing"):
        install(connection, extension=False)

    with empty.begin() as connection:
        connection.execute(text("CREATE EXTENSION vector"))
    with plain.begin() as connection, pytest.raises(MissingPrivilegeError, match="GRANT CREATE ON DATABASE"):
        install(connection)
    with empty.begin() as connection:
        install(connection)
    with plain.begin() as connection, pytest.raises(MissingPrivilegeError, match="schema 'pgembed'"):
        install(connection)
    with empty.begin() as connection:
        connection.execute(text(f"GRANT USAGE ON SCHEMA pgembed TO {role}"))
        connection.execute(text(f"GRANT SELECT ON pgembed.version TO {role}"))
    with plain.begin() as connection:
        assert not install(connection)  # up to date: nothing to do, so no more is needed
    with empty.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))


def test_an_encoding_other_than_utf8_is_refused(server: URL, admin: Engine) -> None:
    name = f"pgembed_latin_{uuid.uuid4().hex[:8]}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"))
    engine = create_engine(server.set(database=name))
    try:
        with engine.begin() as connection, pytest.raises(DatabaseEncodingError, match="LATIN1"):
            install(connection)
    finally:
        engine.dispose()
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name}"))


def test_old_servers_and_extensions_are_refused(empty: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server that runs the tests is new, so the requirement is raised above it."""
    with empty.begin() as connection:
        # The module, which the function of its name hides in the package.
        monkeypatch.setattr(import_module("pgembed.database.install"), "MIN_POSTGRES", 99)
        with pytest.raises(UnsupportedServerError, match="needs 99"):
            install(connection)
        monkeypatch.undo()
        monkeypatch.setattr(extension, "MIN_PGVECTOR", "99.1")
        with pytest.raises(ExtensionError, match=r"expected 99\.1 or newer.*ALTER EXTENSION vector UPDATE"):
            install(connection)


def test_a_newer_revision_in_the_database_is_refused(empty: Engine) -> None:
    with empty.begin() as connection:
        install(connection)
        connection.execute(text("UPDATE pgembed.version SET revision = revision + 1"))
        with pytest.raises(NotInstalledError, match="upgrade the package"):
            install(connection)


def test_an_extension_in_a_schema_of_its_own_works(empty: Engine) -> None:
    with empty.begin() as connection:
        connection.execute(text('CREATE SCHEMA "My ext"'))
        connection.execute(text('CREATE EXTENSION vector SCHEMA "My ext"'))
        assert install(connection)


def test_status_names_what_it_may_not_read(empty: Engine, plain: Engine, role: str) -> None:
    with empty.begin() as connection:
        install(connection)
        Base.metadata.create_all(connection)
        connection.execute(text(f"GRANT USAGE ON SCHEMA pgembed TO {role}"))
        connection.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA pgembed TO {role}"))
    with plain.begin() as connection:
        row = connection.execute(text("SELECT * FROM pgembed.status")).mappings().one()
        assert row["total"] is None
        assert "permission denied" in row["problem"]
    with empty.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))


def test_a_reader_needs_what_the_guide_grants(empty: Engine, plain: Engine, role: str) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "queries.md").read_text()
    with empty.begin() as connection:
        install(connection)
        Base.metadata.create_all(connection)
        connection.execute(text("INSERT INTO article (title, embedding) VALUES ('x', '[1,2,3]')"))
        connection.execute(text(f"GRANT SELECT ON article TO {role}"))
        for grant in re.findall(r"^GRANT .*;$", guide, re.MULTILINE):
            connection.exec_driver_sql(grant.replace("reader", role))
    with plain.begin() as connection:
        for search in (
            "search('article', 'embedding', '[1,2,3]')",
            "search_boosted('article', 'embedding', 'id', '[1,2,3]')",
            "search_per('article', 'embedding', 'title', '[1,2,3]')",
            "search_page('article', 'embedding', '[1,2,3]')",
        ):
            found = connection.execute(text(f"SELECT key FROM pgembed.{search}"))
            assert found.scalars().all() == [{"id": 1}]
        facets = text("SELECT * FROM pgembed.facets('article', 'embedding', 'title', '[1,2,3]')")
        assert connection.execute(facets).all() == [("x", 1)]
        counted = "SELECT pgembed.count_within('article', 'embedding', '[1,2,3]', pgembed.decay(1, 1, 1))"
        assert connection.scalar(text(counted)) == 1
    with empty.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
