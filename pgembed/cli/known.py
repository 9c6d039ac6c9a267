"""Tables, indexes and encoders of the database, by the names that commands take."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import typer
from sqlalchemy import Connection, MetaData, Table, text
from sqlalchemy.exc import SAWarning

from pgembed.cli.options import columns_of, open_encoder
from pgembed.columns import Array, EmbeddingColumn
from pgembed.columns.trust import require_trust
from pgembed.database.install import is_installed
from pgembed.encoders import Encoder
from pgembed.exc import NotInstalledError, NotTrustedError, RegistrationError
from pgembed.filling.registry import encoder_options, entries, parts_of, problems, registered_encoder
from pgembed.indexes import VectorIndex, indexes_on
from pgembed.indexes.differences import IndexForm, declaration, described, differences, matching
from pgembed.indexes.standing import StandingIndex, standing
from pgembed.metrics import metric as metric_named
from pgembed.parts import PartsTable


def oid_of(connection: Connection, table: str) -> int | None:
    """The oid of a table, by its name as SQL writes it; ``None`` where there is none."""
    found: int | None = connection.scalar(
        text("SELECT CAST(pg_catalog.to_regclass(:table) AS oid)"), {"table": table}
    )
    return found


def registered(connection: Connection, table: str, column: str) -> dict[str, Any] | None:
    """What the registry says of an embedding column, or of the parts whose vectors it holds; ``None`` for any
    other.

    :raises NotTrustedError: the table's owner is not trusted.
    :raises RegistrationError: its registration cannot be read.
    """
    if not is_installed(connection):
        return None
    relation = oid_of(connection, table)
    if relation is not None and (problem := problems(connection).get((relation, column))):
        raise problem
    for entry in entries(connection):
        if (entry["relation"], entry["column_name"]) == (relation, column):
            return entry
        if entry["parts"] is not None and column == "embedding":
            with suppress(NotInstalledError, NotTrustedError):
                parts = parts_of(connection, entry)
                if parts is not None and parts[0] == relation:
                    return entry
    return None


def require_trusted(connection: Connection, table: str) -> None:
    """
    :param table: as SQL writes it.
    :raises NotTrustedError: its owner is not trusted.
    """
    require_trust(connection, oid_of(connection, table), table)


def table_with(connection: Connection, table: str, column: str, *others: str) -> tuple[Table, dict[str, Any]]:
    """The table, and what the registry says of its column, which is nothing where it is not registered.

    :param others: further columns that it must have.
    :raises NotInstalledError: there is no such table or column.
    :raises NotTrustedError: its owner is not trusted.
    """
    require_trusted(connection, table)
    reflected = table_of(connection, table)
    for name in (column, *others):
        if name not in reflected.c:
            raise NotInstalledError(f"{table} has no column {name}")
    return reflected, registered(connection, table, column) or {}


def encoded(
    connection: Connection, table: str, column: str, texts: Sequence[str], encoder: str | None
) -> Array:
    """Texts as queries of a column.

    :param encoder: name or folder of the encoder; by default the one that the column is filled with.
    :raises typer.BadParameter: the column is filled with none.
    """
    entry = registered(connection, table, column)
    if entry is None and encoder is None:
        raise typer.BadParameter(
            f"{table}.{column} is not an embedding column of this database: pass --encoder",
            param_hint="--texts",
        )
    with encoder_of(entry, encoder) as opened:
        return opened.encode_queries(texts)


def encoder_of(entry: dict[str, Any] | None, name_or_folder: str | None) -> Encoder:
    """The encoder that was named on the command line, with the column's options; else the column's.

    :param entry: of the registry, for the options; a registered name is never taken for a folder.
    """
    if name_or_folder is None:
        assert entry is not None
        return registered_encoder(entry)
    options = {} if entry is None else encoder_options(entry)
    return open_encoder(name_or_folder, **options)


def index_on(
    connection: Connection,
    table: str,
    column: str,
    *,
    name: str | None = None,
    new: bool = False,
    method: str | None = None,
    metric: str | None = None,
    form: IndexForm | None = None,
    parameters: Mapping[str, int | None] | None = None,
) -> VectorIndex:
    """The existing index on the column, or else a new one with these options.

    :param name: which one, of several.
    :param new: whether it may be missing; its metric is then the given one, or else that of the embedding
        column.
    :param form: left out, any index will do, preferably one on whole vectors of all rows.
    :raises NotInstalledError: there is no such table or column.
    :raises typer.BadParameter: there is no such index or access method.
    :raises DeclarationError: a parameter of the other access method.
    """
    require_trusted(connection, table)
    reflected = table_of(connection, table)
    if column not in reflected.c:
        raise NotInstalledError(f"{table} has no column {column}")
    stand = standing(connection, table)
    try:
        entry = registered(connection, table, column)
    except RegistrationError:  # an index needs none
        entry = None
    metric = metric_named(metric).name if metric else None  # "ip" is another name of inner_product
    default = entry["metric"] if entry else None
    there: StandingIndex | None = None
    on_column = reflected.c[column]
    wanted = metric or (default if new else None)
    found = matching(stand, on_column, name=name, method=method, metric=wanted, form=form)
    if found:
        there, form = found[0]
    elif name is not None and not new:
        raise typer.BadParameter(f"{table}.{column} has no vector index {name}", param_hint="--index")
    form = form or IndexForm()
    stated = {key: value for key, value in (parameters or {}).items() if value is not None}
    index = declaration(
        on_column,
        method or (there.access_method if there else "hnsw"),
        form,
        name=there.name if there else name,
        metric=metric or (there.metric if there and form.quantize != "bit" else default),
        parameters=(there.parameters if there else {}) | stated,
    )
    if index is None:
        raise typer.BadParameter(f"expected hnsw or ivfflat, got {method}", param_hint="--method")
    other = next((each for each in stand if each.name == index.name), None)
    left_over = other is None or not (other.valid or other.partitioned)  # and will be replaced
    if other is not None and not left_over and differences(other, index).form:
        raise typer.BadParameter(
            f"{index.name} is another index ({described(other)}): name this one", param_hint="--index"
        )
    return index


def declared_on(
    connection: Connection, table: str, column: str, models: str, *, name: str | None = None
) -> VectorIndex:
    """The index that models declare on the embedding column.

    :param models: ``module:name``.
    :param name: which one, of several.
    :raises typer.BadParameter: they declare none there, or several.
    """
    require_trusted(connection, table)
    preparer = connection.dialect.identifier_preparer
    asked = oid_of(connection, table)
    found = [
        each.index
        for embedding in columns_of(models) or ()
        if isinstance(embedding, EmbeddingColumn | PartsTable)
        and embedding.vector.name == column
        and asked is not None
        and oid_of(connection, preparer.format_table(embedding.vector.table)) == asked
        for each in indexes_on(embedding.vector)
        if isinstance(each.index, VectorIndex) and name in (None, each.index.name)
    ]
    if len(found) != 1:
        names = ", ".join(str(index.name) for index in found) or "none"
        raise typer.BadParameter(
            f"expected one vector index on {table}.{column}, the models declare {names}; where there are "
            "several, choose one with --index",
            param_hint="--models",
        )
    return found[0]


def reflect(connection: Connection, name: str, schema: str) -> Table:
    """A table as reflected. Columns of types that SQLAlchemy does not know get no type, and no warning."""
    import pgvector.sqlalchemy  # noqa: F401  (so that reflection knows the types)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Did not recognize type", SAWarning)
        return Table(name, MetaData(), schema=schema, autoload_with=connection, resolve_fks=False)


def table_of(connection: Connection, table: str) -> Table:
    """A table as reflected.

    :param table: as SQL writes it.
    :raises NotInstalledError: there is none.
    """
    place = connection.execute(
        text(
            "SELECT n.nspname, c.relname FROM pg_catalog.pg_class AS c "
            "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
            "WHERE c.oid = CAST(pg_catalog.to_regclass(:table) AS oid)"
        ),
        {"table": table},
    ).one_or_none()
    if place is None:
        raise NotInstalledError(f"the database has no table {table}")
    return reflect(connection, place.relname, place.nspname)
