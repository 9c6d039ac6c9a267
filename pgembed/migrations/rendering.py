"""The text of migrations, which import neither models nor encoders."""

from __future__ import annotations

import textwrap
from pprint import pformat
from typing import Any

from alembic.autogenerate.api import AutogenContext
from pgvector.sqlalchemy import BIT
from sqlalchemy.types import TypeEngine, UserDefinedType

from pgembed.columns.binding import ByGuard
from pgembed.columns.types import shape_of
from pgembed.exc import DeclarationError

_WIDTH = 96


def render_types(context: AutogenContext) -> None:
    """Render vector types of this run as pgvector's ``VECTOR(n)``, with its import; links without default.

    It goes before the ``render_item`` of ``context.configure()``, which renders everything else.
    """
    theirs = context.opts.get("render_item")
    if getattr(theirs, "renders_vectors", False):
        return

    def render_item(kind: str, item: Any, context: AutogenContext) -> Any:
        if kind == "type" and isinstance(item, UserDefinedType | BIT):
            rendered = vector_type(item, context)
            if rendered is not None:
                return rendered
        if isinstance(item, ByGuard):  # not DDL: a flush fetches what the guard has assigned
            return None
        return theirs(kind, item, context) if theirs else False

    render_item.renders_vectors = True  # type: ignore[attr-defined]
    context.opts["render_item"] = render_item


def vector_type(type_: TypeEngine[Any], context: AutogenContext) -> Code | None:
    """A vector type as text; ``None`` for any other type."""
    try:
        storage, dimensions = shape_of(type_)
    except DeclarationError:
        return None
    name = storage.upper()
    context.imports.add(f"from pgvector.sqlalchemy import {name}")
    return Code(f"{name}({'' if dimensions is None else dimensions})")


class Code(str):
    """An argument that is written as it is."""

    __slots__ = ()
    __repr__ = str.__str__


def call(context: AutogenContext, function: str, positional: list[Any], **options: Any) -> str:
    """A call of an operation, on one line or one line per argument; options of ``None`` are left out."""
    arguments = [_value(value) for value in positional]
    arguments += [f"{name}={_value(value)}" for name, value in options.items() if value is not None]
    name = f"{context.opts.get('alembic_module_prefix') or ''}{function}"
    one = f"{name}({', '.join(arguments)})"
    if len(one) <= _WIDTH and "\n" not in one:
        return one
    return "\n".join([f"{name}(", *(textwrap.indent(f"{each},", "    ") for each in arguments), ")"])


def comment(text: str) -> list[str]:
    """A text as lines of comment."""
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2)]


def _value(value: Any) -> str:
    text = pformat(value, width=_WIDTH - 10, sort_dicts=False)
    if "\n" not in text or not isinstance(value, dict | str):
        return text
    if isinstance(value, str):  # in parentheses, one piece per line
        pieces = [piece.strip() for piece in text.removeprefix("(").removesuffix(")").splitlines()]
        return "\n".join(["(", *(f"    {piece}" for piece in pieces), ")"])
    items = [f"    {name!r}: {_value(each)}," for name, each in value.items()]
    return "\n".join(["{", *(textwrap.indent(item, "    ").removeprefix("    ") for item in items), "}"])
