"""Functions and operators of hers on the ``search_path``, whose types fit better than those of Postgres do.

Postgres prefers what fits the types exactly to what comes first on the path: ``md5(varchar)`` of anybody who
may create functions in a schema on it goes before ``pg_catalog.md5(text)``.
"""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Column, MetaData, Table, text
from sqlalchemy.types import Enum, Integer, String, Text, Uuid
from typer.testing import CliRunner

from pgembed import embedding_column
from pgembed.cli.main import app as command
from pgembed.columns import embeddings_of
from pgembed.filling import Worker
from pgembed.filling.cycle import Settings
from pgembed.testing import HashEncoder

from .conftest import Mallory

_FUNCTIONS = {
    "md5(varchar)": "text",
    "octet_length(varchar)": "integer",
    "unnest(text[])": "SETOF text",
    "jsonb_build_array(varchar)": "jsonb",
    "string_to_array(varchar, varchar)": "text[]",
    "has_column_privilege(oid, varchar, varchar)": "boolean",
    "set_config(varchar, varchar, boolean)": "text",
    "current_setting(varchar)": "text",
    "to_regclass(varchar)": "regclass",
    "quote_ident(name)": "text",
    "power(numeric, integer)": "float8",
    "pg_advisory_xact_lock(smallint)": "void",
}
_OPERATORS = (
    ("=", "varchar, varchar"),
    ("=", "regclass, oid"),
    ("=", "oid, regclass"),
    ("=", "oid, bigint"),
    ("=", "oid, integer"),
    ("=", "name, varchar"),
    ("=", "varchar, name"),
    ("=", "varchar, text"),
    ("=", "text, varchar"),
    ("=", "mood, mood"),
    (">", "varchar, varchar"),
    (">", "mood, mood"),
    ("&", "smallint, integer"),
    ("||", "varchar, text"),
)
_KEYS = {
    "varchar": (String(20), "a", "b", "c"),
    "text": (Text(), "a", "b", "c"),
    "integer": (Integer(), 1, 2, 3),
    "uuid": (Uuid(as_uuid=False), *(f"00000000-0000-0000-0000-00000000000{n}" for n in "123")),
    "enum": (Enum("a", "b", "c", name="mood", create_type=False), "a", "b", "c"),
}


class Choosy(HashEncoder):
    """Fails on one text, so that its row is set aside."""

    def encode_documents(self, texts: Any) -> np.ndarray[Any, Any]:
        if any("poison" in one for one in texts):
            raise ValueError("poison")
        return super().encode_documents(texts)


def _shadow(mallory: Mallory) -> None:
    """Whatever of hers is called, it says so and fails."""
    caught = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hers was called'; END $$"
    for signature, returned in _FUNCTIONS.items():
        mallory.execute(f"CREATE FUNCTION public.{signature} RETURNS {returned} {caught}")
    for place, (sign, types) in enumerate(_OPERATORS):
        left, right = types.split(", ")
        returned = {"&": "integer", "||": "text"}.get(sign, "boolean")
        mallory.execute(
            f"CREATE FUNCTION public.operator_{place}({types}) RETURNS {returned} {caught}",
            f"CREATE OPERATOR public.{sign} "
            f"(LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.operator_{place})",
        )


@pytest.mark.parametrize("key", _KEYS)
def test_hers_are_never_called(
    mallory: Mallory, key: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    type_, *keys = _KEYS[key]
    embedding = embedding_column("title", encoder=Choosy(3), name="embedding")
    columns: Any = (Column("id", type_, primary_key=True), Column("title", String(50)), embedding.column)
    table = Table("good", MetaData(), *columns)
    with mallory.owner.begin() as connection:
        connection.exec_driver_sql(f"GRANT CREATE ON SCHEMA public TO {mallory.name}")
        connection.exec_driver_sql("CREATE TYPE mood AS ENUM ('a', 'b', 'c')")
        table.metadata.create_all(connection)
        connection.execute(
            text(f"INSERT INTO good VALUES (CAST(:key AS {_name(key)}), :title)"),
            [{"key": key, "title": title} for key, title in zip(keys, ("x", "y", "poison"), strict=True)],
        )
    _shadow(mallory)

    with caplog.at_level(logging.ERROR, logger="pgembed"):
        for _ in range(2):  # what failed is looked up, and counted
            assert not Worker(
                mallory.owner, embeddings_of(table), settings=Settings(poll=0.02, patience=5, batch_rows=1)
            ).run(once=True)
    assert "hers was called" not in caplog.text
    monkeypatch.setitem(sys.modules, "models_of_good", module := ModuleType("models_of_good"))
    module.__dict__["good"] = table
    url = mallory.owner.url.render_as_string(hide_password=False)
    for arguments in (
        ["status", "--json"],
        ["index", "check"],
        ["failures", "list"],
        ["failures", "retry", "good", "embedding"],
        ["backfill", "good", "embedding", "--models", "models_of_good:good"],
        ["init"],
    ):
        done = CliRunner().invoke(command, [*arguments, "--url", url])
        assert "hers was called" not in f"{done.output} {done.exception}", arguments
    with mallory.owner.connect() as connection:
        status = connection.execute(text("SELECT total, fresh, pending, failed FROM pgembed.status")).one()
        assert tuple(status) == (3, 2, 1, 1)


def _name(key: str) -> str:
    return {"enum": "mood"}.get(key, key)
