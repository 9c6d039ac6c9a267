"""What the arguments of ``embedding_column`` may be."""

from __future__ import annotations

import inspect
import string
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from sqlalchemy.dialects import registry
from sqlalchemy.exc import NoSuchModuleError
from sqlalchemy.orm import mapped_column

from pgembed.columns.embedding import IndexDeclaration, TextEncoder
from pgembed.constants import MAX_DIMENSIONS
from pgembed.exc import DeclarationError


def check_arguments(
    sources: tuple[str, ...],
    encoder: TextEncoder,
    template: str | None,
    index: IndexDeclaration | None,
    fill: str,
    on_error: str,
    storage: str,
) -> None:
    """
    :raises DeclarationError: one of them has a value that it cannot have.
    """
    if not sources or not all(isinstance(source, str) for source in sources):
        raise DeclarationError(
            f"embedding_column needs the names of its source attributes, as in "
            f'embedding_column("title", "body", encoder=...); found {sources!r}'
        )
    if len(set(sources)) < len(sources):
        raise DeclarationError(f"embedding_column names a source twice: {sources!r}")
    if isinstance(encoder, type) or not isinstance(encoder, TextEncoder):
        parts = ("name", "dimensions", "fingerprint", "encode_documents", "encode_queries")
        missing = [part for part in parts if not hasattr(encoder, part)]
        found = "it is a class" if isinstance(encoder, type) else f"it has no {' and no '.join(missing)}"
        raise DeclarationError(
            f"encoder={encoder!r} is not an encoder, {found}; expected a pgembed.Encoder, or an object "
            "of your own with the attributes of pgembed.TextEncoder"
        )
    if index is not None and (isinstance(index, type) or not hasattr(index, "bound_to")):
        raise DeclarationError(
            f"index={index!r} is not an index declaration; expected HNSW(...) or IVFFlat(...)"
        )
    if fill not in ("flush", "worker"):
        raise DeclarationError(f'fill={fill!r}; expected "flush" or "worker"')
    if on_error not in ("raise", "pending"):
        raise DeclarationError(f'on_error={on_error!r}; expected "raise" or "pending"')
    if storage not in MAX_DIMENSIONS:
        raise DeclarationError(f'type={storage!r}; expected "vector" or "halfvec"')
    if template is not None:
        _check_template(template, sources)


def _check_template(template: str, sources: tuple[str, ...]) -> None:
    if not isinstance(template, str):
        raise DeclarationError(f"template={template!r}; expected a str")
    if "\0" in template or any("\ud800" <= each <= "\udfff" for each in template):
        raise DeclarationError(
            f"template {template!r} holds a NUL character or half a surrogate pair, which the comment that "
            "registers the column cannot hold"
        )
    try:
        fields = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise DeclarationError(f"template {template!r}: {error}") from None
    used = {name for _, name, _, _ in fields}
    if used != set(sources) or any(spec or conversion for _, _, spec, conversion in fields):
        wanted = ", ".join(f"{{{source}}}" for source in sources)
        raise DeclarationError(
            f"template {template!r} has the fields {sorted(map(str, used))}; expected plain fields, "
            f"one for each source: {wanted} (write a literal brace twice)"
        )


def check_options(function: Callable[..., Any], options: Iterable[str]) -> None:
    """Refuse what neither ``function`` nor ``mapped_column`` takes, nor a dialect of SQLAlchemy.

    :raises DeclarationError: an unknown argument; the message names the nearest known one.
    """
    own, passed = _keywords(function), _keywords(mapped_column)
    for name in options:
        if name not in passed and not _is_of_a_dialect(name):
            near = get_close_matches(name, dict.fromkeys(own + passed), n=1)
            hint = f"did you mean {near[0]}=?" if near else f"it has {', '.join(own)}, and mapped_column's"
            raise DeclarationError(f"{function.__name__} has no argument {name}=; {hint}")


def _keywords(function: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, each in inspect.signature(function).parameters.items() if each.kind in kinds]


def _is_of_a_dialect(name: str) -> bool:
    """Whether it starts with the name of a dialect, as ``postgresql_storage`` does."""
    dialect, _, rest = name.partition("_")
    try:
        return bool(rest and registry.load(dialect))
    except NoSuchModuleError:
        return False
