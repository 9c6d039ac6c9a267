"""What is searched by its parts: an entity with a relationship to a class that has a vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Select, inspect, literal_column, select
from sqlalchemy.orm import ColumnProperty, RelationshipDirection, RelationshipProperty
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import FromClause, Join

from pgembed.columns.types import shape_of
from pgembed.exc import DeclarationError, QueryError


@dataclass(frozen=True)
class Owner:
    """The entity that parts belong to.

    :ivar attribute: the relationship to them, such as ``Article.parts``.
    :ivar entity: the mapped class, or an alias of it.
    :ivar parts: the class of the parts, or an alias of it.
    :ivar vector: its vector, a mapped attribute.
    :ivar same: SQL: a part belongs to a row of the entity.
    :ivar keys: the columns of a part that say whose it is.
    """

    attribute: Any
    entity: Any
    parts: Any
    vector: Any
    same: ColumnElement[bool]
    keys: tuple[ColumnElement[Any], ...]

    @property
    def is_subclass(self) -> bool:
        """Whether some parts may belong to rows of another class of the hierarchy."""
        mapper = inspect(self.entity).mapper
        return mapper is not self.attribute.property.parent or mapper.single

    @property
    def selectable(self) -> FromClause:
        found: FromClause = inspect(self.entity).selectable
        return found

    @property
    def froms(self) -> frozenset[FromClause]:
        """The selectable, and the tables that it joins, as those of a class and its base."""
        found, waiting = set(), [self.selectable]
        while waiting:
            each = waiting.pop()
            found.add(each)
            waiting += [each.left, each.right] if isinstance(each, Join) else []
        return frozenset(found)

    def having(
        self, conditions: Sequence[ColumnElement[bool]], asked: Sequence[FromClause] = ()
    ) -> ColumnElement[bool]:
        """SQL, over a part: its owner fulfils conditions.

        :param asked: what the conditions refer to beside the two.
        """
        inner: Select[Any] = select(literal_column("1")).select_from(self.entity)
        return inner.where(self.same, *conditions).correlate(self.parts, *asked).exists()

    def value(self, expression: Any) -> ColumnElement[Any]:
        """SQL, over a part: the value of an expression over its owner."""
        inner: Select[Any] = select(expression).select_from(self.entity).where(self.same)
        return inner.correlate(self.parts).scalar_subquery()


def is_relationship(attribute: Any) -> bool:
    """Whether it is a relationship of a mapped class, or of an alias of one."""
    return isinstance(getattr(attribute, "property", None), RelationshipProperty)


def owner_of(attribute: Any) -> Owner | None:
    """The owner of what a relationship leads to; ``None`` for what is no relationship.

    :raises QueryError: it does not lead to parts: a row of theirs belongs to several, or has no vector, or
        several.
    """
    if not is_relationship(attribute):
        return None
    prop = attribute.property
    if prop.direction is not RelationshipDirection.ONETOMANY:
        raise QueryError(
            f"{attribute} is a relationship to what other rows may refer to as well; expected one to many, "
            "as that of an article to its parts"
        )
    related = attribute.comparator.entity
    vectors = [each for each in related.mapper.column_attrs if _is_vector(each)]
    if len(vectors) != 1:
        named = ", ".join(each.key for each in vectors) or "none"
        raise QueryError(
            f"{attribute} leads to {related.mapper.class_.__name__}, whose vectors are: {named}; expected "
            "one. Search a column, with per= the key of what it belongs to"
        )
    parts = related.entity

    def mapped(column: Column[Any]) -> Any:
        return getattr(parts, related.mapper.get_property_by_column(column).key)

    return Owner(
        attribute,
        attribute.parent.entity,
        parts,
        getattr(parts, vectors[0].key),
        attribute.comparator.__clause_element__(),
        tuple(mapped(remote) for _, remote in prop.local_remote_pairs),
    )


def _is_vector(prop: ColumnProperty[Any]) -> bool:
    try:
        shape_of(prop.columns[0].type)
    except DeclarationError:
        return False
    return True
