"""Operations as the text of a migration, which imports neither models nor encoders."""

from __future__ import annotations

import textwrap
from pprint import pformat
from typing import Any

from alembic.autogenerate.api import AutogenContext
from pgvector.sqlalchemy import BIT
from sqlalchemy.types import TypeEngine, UserDefinedType

from pgembed.columns.types import shape_of
from pgembed.exc import DeclarationError
from pgembed.migrations.definitions import (
    Definition,
    Facts,
    PendingIndexDefinition,
    VectorIndexDefinition,
)
from pgembed.migrations.operations.base import NextRevisionOp, NothingOp
from pgembed.migrations.operations.installation import InstallPgembedOp, UninstallPgembedOp
from pgembed.migrations.operations.pending_index import (
    CreatePendingIndexOp,
    DropPendingIndexOp,
    RegisterEmbeddingOp,
    ReplacePendingIndexOp,
)
from pgembed.migrations.operations.table_locks import LockTableOp, SetNotNullOp
from pgembed.migrations.operations.vector_column import AlterVectorColumnOp, AssertBackfilledOp
from pgembed.migrations.operations.vector_index import (
    CreateVectorIndexOp,
    DropVectorIndexOp,
    ReplaceVectorIndexOp,
)

_WIDTH = 96


def render_types(context: AutogenContext) -> None:
    """Have vector types of this run rendered as ``VECTOR(n)`` of pgvector, with the import that it needs.

    It goes before the ``render_item`` of ``context.configure()``, and leaves everything else to that.
    """
    theirs = context.opts.get("render_item")
    if getattr(theirs, "renders_vectors", False):
        return

    def render_item(kind: str, item: Any, context: AutogenContext) -> Any:
        if kind == "type" and isinstance(item, UserDefinedType | BIT):
            rendered = vector_type(item, context)
            if rendered is not None:
                return rendered
        return theirs(kind, item, context) if theirs else False

    render_item.renders_vectors = True  # type: ignore[attr-defined]
    context.opts["render_item"] = render_item


def vector_type(type_: TypeEngine[Any], context: AutogenContext) -> str | None:
    """A vector type as text; ``None`` for any other type."""
    try:
        storage, dimensions = shape_of(type_)
    except DeclarationError:
        return None
    name = storage.upper()
    context.imports.add(f"from pgvector.sqlalchemy import {name}")
    return f"{name}({'' if dimensions is None else dimensions})"


def install_pgembed(context: AutogenContext, operation: InstallPgembedOp) -> str:
    return _lines(context, "install_pgembed", [f"revision={operation.revision!r}"])


def uninstall_pgembed(context: AutogenContext, operation: UninstallPgembedOp) -> str:
    return _lines(context, "uninstall_pgembed", ["extension=True"] if operation.extension else [])


def nothing(_context: AutogenContext, operation: NothingOp) -> list[str]:
    return [*_comment(operation.comment), "pass"] if operation.comment else []


def next_revision(_context: AutogenContext, _operation: NextRevisionOp) -> list[str]:
    return []


def lock_table(context: AutogenContext, operation: LockTableOp) -> list[str]:
    call = _call(context, "lock_table", [operation.table_name], schema=operation.schema)
    return [*(line for paragraph in operation.reason for line in _comment(paragraph)), call]


def set_not_null(context: AutogenContext, operation: SetNotNullOp) -> str:
    names = [operation.table_name, operation.column_name]
    return _call(context, "set_not_null", names, schema=operation.schema)


def assert_backfilled(context: AutogenContext, operation: AssertBackfilledOp) -> list[str]:
    call = _call(
        context,
        "assert_backfilled",
        [operation.table_name, operation.column_name],
        allowed=operation.allowed or None,
        share=operation.share if operation.share < 1 else None,
        schema=operation.schema,
    )
    return [*_comment(operation.reason), call]


def create_vector_index(context: AutogenContext, operation: CreateVectorIndexOp) -> str:
    return _vector_index(context, "create_vector_index", operation.definition, operation.concurrently)


def replace_vector_index(context: AutogenContext, operation: ReplaceVectorIndexOp) -> str:
    return _vector_index(context, "replace_vector_index", operation.definition, operation.concurrently)


def drop_vector_index(context: AutogenContext, operation: DropVectorIndexOp) -> str:
    return _drop(context, "drop_vector_index", operation.definition, operation.concurrently)


def create_pending_index(context: AutogenContext, operation: CreatePendingIndexOp) -> str:
    return _pending_index(context, "create_pending_index", operation.definition, operation.concurrently)


def replace_pending_index(context: AutogenContext, operation: ReplacePendingIndexOp) -> list[str]:
    new, old = operation.definition, operation.existing
    call = _pending_index(context, "replace_pending_index", new, operation.concurrently)
    reason = _reason(new.table, None if old is None else old.registration, new.registration)
    return [*_comment(reason), call]


def drop_pending_index(context: AutogenContext, operation: DropPendingIndexOp) -> str:
    return _drop(context, "drop_pending_index", operation.definition, operation.concurrently)


def register_embedding(context: AutogenContext, operation: RegisterEmbeddingOp) -> str:
    return _call(
        context,
        "register_embedding",
        [operation.index_name, operation.registration],
        schema=operation.schema,
    )


def alter_vector_column(context: AutogenContext, operation: AlterVectorColumnOp) -> list[str]:
    arguments = [
        repr(operation.table_name),
        repr(operation.column_name),
        str(vector_type(operation.type_, context)),
        f"existing_type={vector_type(operation.existing_type, context)}",
    ]
    if operation.discard:
        arguments.append("discard=True")
    if operation.schema is not None:
        arguments.append(f"schema={operation.schema!r}")
    call = _lines(context, "alter_vector_column", arguments)
    if not operation.discard:
        return [call]
    return [
        *_comment(
            f"Vectors of other dimensions cannot be converted: those in {operation.table_name}."
            f"{operation.column_name} are set to NULL, and searches find nothing until their rows are filled "
            "again. The table is rewritten, and nobody reads it meanwhile."
        ),
        call,
    ]


def _reason(table: str, old: Facts | None, new: Facts | None) -> str:
    """Why a pending index is made anew, for whoever reviews the migration."""
    if old is None or new is None:
        return f"The pending index of {table} is made anew."
    name = f"{table}.{new['column']}"
    if old["fingerprint"] != new["fingerprint"]:
        change = (
            f"The encoder of {name} changes from {_encoder(old)} to {_encoder(new)}: every row is pending"
        )
        if old["dimensions"] != new["dimensions"]:
            return f"{change} until it is embedded again."
        return (
            f"{change} until it is embedded again, in place. Until then old vectors are compared with new "
            "queries; a second embedding column keeps the two apart."
        )
    if (old["template"], old["sources"]) != (new["template"], new["sources"]):
        return f"What {name} is made from changes: every row is pending until it is embedded again."
    return f"The pending index of {name} changes."


def _encoder(facts: Facts) -> str:
    return f"{facts['encoder']!r} ({facts['fingerprint'][:8]})"


def _pending_index(
    context: AutogenContext, function: str, definition: PendingIndexDefinition, concurrently: bool
) -> str:
    call = _call(
        context,
        function,
        [definition.name, definition.table, list(definition.columns)],
        where=definition.where,
        schema=definition.schema,
        concurrently=concurrently or None,
        registration=definition.registration,
    )
    if definition.registration is None:
        call = call.removesuffix(")") + "    registration=None,\n)"
    return call


def _vector_index(
    context: AutogenContext, function: str, definition: VectorIndexDefinition, concurrently: bool
) -> str:
    positional: list[Any] = [definition.name, definition.table]
    if definition.column is not None:
        positional.append(definition.column)
    return _call(
        context,
        function,
        positional,
        expression=definition.expression,
        using=definition.using,
        opclass=definition.opclass,
        parameters=dict(definition.parameters) or None,
        where=definition.where,
        schema=definition.schema,
        concurrently=concurrently or None,
    )


def _drop(context: AutogenContext, function: str, definition: Definition, concurrently: bool) -> str:
    names = [definition.name, definition.table]
    return _call(context, function, names, schema=definition.schema, concurrently=concurrently or None)


def _call(context: AutogenContext, function: str, positional: list[Any], **options: Any) -> str:
    """A call with every argument on a line of its own; options that are ``None`` are left out."""
    arguments = [_value(value) for value in positional]
    arguments += [f"{name}={_value(value)}" for name, value in options.items() if value is not None]
    return _lines(context, function, arguments)


def _lines(context: AutogenContext, function: str, arguments: list[str]) -> str:
    name = f"{context.opts.get('alembic_module_prefix') or ''}{function}"
    one = f"{name}({', '.join(arguments)})"
    if len(one) <= _WIDTH and "\n" not in one:
        return one
    return "\n".join([f"{name}(", *(textwrap.indent(f"{each},", "    ") for each in arguments), ")"])


def _value(value: Any) -> str:
    text = pformat(value, width=_WIDTH - 10, sort_dicts=False)
    if "\n" not in text or not isinstance(value, dict | str):
        return text
    if isinstance(value, str):  # in parentheses, a piece a line
        pieces = [piece.strip() for piece in text.removeprefix("(").removesuffix(")").splitlines()]
        return "\n".join(["(", *(f"    {piece}" for piece in pieces), ")"])
    items = [f"    {name!r}: {_value(each)}," for name, each in value.items()]
    return "\n".join(["{", *(textwrap.indent(item, "    ").removeprefix("    ") for item in items), "}"])


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2)]
