"""Changes of encoder that are refused, since they would drop or mix vectors that are in use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Table

from pgembed.columns import EmbeddingColumn, embeddings_of
from pgembed.columns.types import shape_of
from pgembed.exc import DeclarationError
from pgembed.migrations.compare.indexes import TableIndexes
from pgembed.migrations.definitions import IndexDefinition, MigrationError, PendingIndexDefinition


def in_place(context: AutogenContext) -> bool:
    """Whether a changed encoder changes the vectors in place.

    ``alembic -x reembed=in_place``, or ``context.configure(..., pgembed_reembed="in_place")``.
    """
    assert context.migration_context is not None
    environment = context.migration_context.environment_context
    stated: Any = None
    if environment is not None:
        stated = environment.get_x_argument(as_dictionary=True).get("reembed")
    stated = stated or context.opts.get("pgembed_reembed") or "beside"
    if stated not in ("beside", "in_place"):
        raise MigrationError(f'reembed={stated!r}; expected "beside" or "in_place"')
    return bool(stated == "in_place")


def registrations(existing: Mapping[str, IndexDefinition]) -> dict[str, PendingIndexDefinition]:
    """The pending indexes of a table that register a column, by the column."""
    return {
        definition.registration["column"]: definition
        for definition in existing.values()
        if isinstance(definition, PendingIndexDefinition) and definition.registration is not None
    }


def check_replaced(
    embedding: EmbeddingColumn, table: Table, registered: Mapping[str, PendingIndexDefinition]
) -> None:
    """``replaces=`` names a vector column, as long as the new column does not exist.

    Otherwise the named column would be dropped at the end, and the intended one at once.

    :raises MigrationError: it names another column, or none.
    """
    replaces, name = embedding.declaration.replaces, str(embedding.vector.name)
    if replaces is None or replaces in registered or (replaces not in table.c and name in table.c):
        return
    vectors = [column.name for column in table.c if _is_vector(table, column.name)]
    if replaces not in vectors:
        raise MigrationError(
            f"{embedding}: replaces={replaces!r} is not a vector column of the table in the database; there "
            f"{'are ' + ', '.join(map(repr, vectors)) if vectors else 'are none'}"
        )


def check_one_at_a_time(
    embedding: EmbeddingColumn, old: str, table: Table, registered: Mapping[str, PendingIndexDefinition]
) -> None:
    """A column is not replaced before its own change is finished: applications may use either column.

    :raises MigrationError: its change is not finished.
    """
    definition = registered.get(old)
    first = ((definition.registration if definition else None) or {}).get("replaces")
    if first is not None and first in table.c:
        raise MigrationError(
            f"{embedding}: the change from {first!r} to {old!r} is not finished. When every application uses "
            f"{old!r}, finish it first: its declaration without replaces=, alembic revision --autogenerate, "
            f"alembic upgrade head. When they use {first!r}, give {old!r} up: declare {first!r} as it was, "
            f'or a third column with replaces="{first}"'
        )


def check_same_encoder(
    embedding: EmbeddingColumn, table: Table, registered: Mapping[str, PendingIndexDefinition]
) -> None:
    """A column that is replacing another keeps its encoder: it may be in use already.

    :raises MigrationError: its encoder changes.
    """
    name, replaces = str(embedding.vector.name), embedding.declaration.replaces
    definition = registered.get(name)
    facts = (definition.registration if definition else None) or {}
    if replaces is None or replaces not in table.c or not facts:
        return
    if facts["fingerprint"] != embedding.declaration.encoder.fingerprint:
        raise MigrationError(
            f"{embedding} is about to take the place of {replaces!r} with the encoder {facts['encoder']!r}, "
            f"and old vectors would be compared with new queries if its encoder changed. If no application "
            f'uses it, give the column another name (replaces="{replaces}" stays); else finish that change '
            "first, or run: alembic -x reembed=in_place revision --autogenerate"
        )


def check_undeclared(embedding: EmbeddingColumn, new: str, model: Table) -> None:
    """A model that declares the new column does not change the encoder of the old one.

    :raises MigrationError: it does both.
    """
    if new in model.c:
        raise MigrationError(
            f"{embedding} has the encoder of {new!r}, which takes its place: declare {new!r} alone, with "
            f"replaces={str(embedding.vector.name)!r}, or this one with the encoder that it had"
        )


def check_distinct(found: Iterable[tuple[EmbeddingColumn, str]]) -> None:
    """At most one column replaces another, and none while its own encoder changes.

    :raises MigrationError: two columns replace the same one.
    """
    taken: dict[str, EmbeddingColumn] = {}
    for embedding, old in found:
        if old in taken:
            raise MigrationError(
                f"{taken[old]} and {embedding} both take the place of {old!r}: a column that is replaced "
                "keeps its encoder, and one column takes its place"
            )
        taken[old] = embedding


def check_renamed(model: Table, indexes: TableIndexes) -> None:
    """An encoder does not change in the revision that renames a table, and with it the pending index.

    :raises MigrationError: it does, and vectors would change in place.
    """
    registered = registrations(indexes.existing)
    for embedding in embeddings_of(model):
        definition = registered.get(str(embedding.vector.name))
        facts = (definition.registration if definition else None) or {}
        if (
            definition is not None
            and definition.name in indexes.dropped
            and definition.name not in indexes.declared
            and facts["fingerprint"] != embedding.declaration.encoder.fingerprint
        ):
            raise MigrationError(
                f"{embedding}: its pending index is {definition.name!r}, that of another table name. "
                f"Autogenerate and run a revision with the encoder as it was ({facts['encoder']!r}) first, "
                "then change the encoder"
            )


def _is_vector(table: Table, name: str) -> bool:
    try:
        return shape_of(table.c[name].type)[0] != "bit"
    except DeclarationError:
        return False
