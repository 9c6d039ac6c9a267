"""Templates: texts that are composed of other texts, as ``"{title}: {body}"``."""

from __future__ import annotations

import string
from collections.abc import Mapping

from pgembed.exc import DeclarationError


def fields_of(template: str, *, name: str = "template") -> set[str]:
    """The names in a template's braces.

    :param name: of the argument, for messages.
    :raises DeclarationError: it is not a template, or one of its fields is more than a name.
    """
    if not isinstance(template, str):
        raise DeclarationError(f"{name}={template!r}; expected a str")
    if "\0" in template or any("\ud800" <= each <= "\udfff" for each in template):
        raise DeclarationError(
            f"{name} {template!r} holds a NUL character or half a surrogate pair, which Postgres cannot store"
        )
    try:
        fields = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise DeclarationError(f"{name} {template!r}: {error}") from None
    names = {str(field) for _, field, _, _ in fields}
    plain = all(each and not each.isdigit() and not {".", "["} & set(each) for each in names)
    if not plain or any(spec or conversion for _, _, spec, conversion in fields):
        raise DeclarationError(
            f"{name} {template!r} has the fields {sorted(names)}; expected plain fields, names and no more "
            "(write a literal brace twice)"
        )
    return names


def rendered(template: str, values: Mapping[str, str | None]) -> str:
    """The template with its fields filled in, ``None`` as the empty text."""
    # Plain strings: an enum's member, for one, is formatted as its name and stored as its value.
    return template.format(**{key: "" if text is None else str.__str__(text) for key, text in values.items()})
