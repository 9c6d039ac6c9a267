"""The flush hook of parts: those of all new and changed objects of a flush in one encoder batch.

Before the flush, the texts of the objects that will be written are split, what is not stored already is
encoded, and the digest becomes part of the object's own INSERT or UPDATE. After it, when keys are known and
the rows are locked by that statement, the parts are written. Texts that only the database knows leave the
digest alone, and the row pending, as statements do that no flush sees.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

import numpy as np
from sqlalchemy import (
    Connection,
    Integer,
    and_,
    bindparam,
    cast,
    column,
    delete,
    event,
    insert,
    inspect,
    select,
    update,
    values,
)
from sqlalchemy.orm import InstanceState, Mapper, Session, UOWTransaction, attributes
from sqlalchemy.orm.base import NO_VALUE

from pgembed.columns import Array, TextEncoder, answered
from pgembed.columns.digest import NO_DIGEST
from pgembed.columns.hooks.flush import changed, load_expired_sources, texts_of
from pgembed.columns.hooks.mapped import MappedSources, mapped_attributes
from pgembed.encoders.threads import encoder_errors, off_event_loop
from pgembed.parts.late import encode
from pgembed.parts.part import Cut, Stored, matched
from pgembed.parts.parts_table import PartsTable, parts_of

logger = logging.getLogger(__name__)

#: Rows looked up, and parts written, in one statement; drivers send 65,535 parameters at most.
_AT_ONCE = 1000


@dataclass(frozen=True)
class MappedParts(MappedSources):
    """Parts and the attributes of a mapper that they have to do with.

    :ivar key: the relationship.
    :ivar primary: the primary key of their table.
    """

    embedding: PartsTable
    key: str
    primary: tuple[str, ...]


@dataclass(eq=False)
class _Text:
    """The text of one object, split: what is written after the flush."""

    state: InstanceState[Any]
    mapped: MappedParts
    cuts: Sequence[Cut]
    digest: UUID | None
    vectors: dict[UUID, Array] = field(default_factory=dict)

    @property
    def primary(self) -> tuple[Any, ...]:
        """The key of the row; attributes of an object that is stored may be expired."""
        mapper, stored = self.state.mapper, self.state.key[1] if self.state.key is not None else ()
        keys = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        known = dict(zip(keys, stored, strict=False)) | self.state.dict
        return tuple(known[key] for key in self.mapped.primary)


#: What each mapper's class has parts of.
_known: WeakKeyDictionary[Mapper[Any], tuple[MappedParts, ...]] = WeakKeyDictionary()
#: The texts of the running flush, and the sources that each object's attributes held when it was looked at.
_split: WeakKeyDictionary[Session, dict[tuple[InstanceState[Any], str], _Text]] = WeakKeyDictionary()
_seen: WeakKeyDictionary[Session, dict[tuple[InstanceState[Any], str], tuple[Any, ...]]] = WeakKeyDictionary()
#: Objects whose loaded parts are no longer those of the database.
_outdated: WeakKeyDictionary[Session, list[tuple[Any, str]]] = WeakKeyDictionary()


def mapped_parts(mapper: Mapper[Any]) -> tuple[MappedParts, ...]:
    """The parts of a mapped class, its parents' included."""
    found = _known.get(mapper)
    if found is None:
        found = _known[mapper] = tuple(_find(mapper))
    return found


def _find(mapper: Mapper[Any]) -> Iterator[MappedParts]:
    for prop in mapper.relationships:
        bound = parts_of(prop.class_attribute)
        if bound is not None:
            primary = (mapper.get_property_by_column(key).key for key in bound.table.primary_key.columns)
            yield MappedParts(*mapped_attributes(mapper, bound), prop.key, tuple(primary))


@event.listens_for(Session, "before_flush")
def _before_flush(session: Session, _context: UOWTransaction, _instances: Any) -> None:
    _split[session], _seen[session] = {}, {}
    _look(session)


@event.listens_for(Mapper, "before_insert")
@event.listens_for(Mapper, "before_update")
def _guard(mapper: Mapper[Any], _connection: Connection, target: Any) -> None:
    """Listeners of a single session run after this one, and may add or change objects."""
    state = inspect(target)
    for mapped in mapped_parts(mapper):
        session = state.session
        if session is not None and _seen.get(session, {}).get((state, mapped.key)) != _held(state, mapped):
            _look(session)


def _held(state: InstanceState[Any], mapped: MappedParts) -> tuple[Any, ...]:
    return tuple(state.dict.get(source, NO_VALUE) for source in mapped.sources)


def _look(session: Session) -> None:
    """Split and encode the texts that will be written, and put their digests into the objects."""
    states = [
        (state, found)
        for state in map(inspect, [*session.new, *session.dirty])
        if (found := mapped_parts(state.mapper))
    ]
    if not states:
        return
    load_expired_sources(session, states)
    seen, texts = _seen.setdefault(session, {}), []
    for state, found in states:
        for mapped in found:
            if seen.get((state, mapped.key)) == _held(state, mapped):
                continue
            seen[state, mapped.key] = _held(state, mapped)
            _split.setdefault(session, {}).pop((state, mapped.key), None)
            if (text := _text(state, mapped)) is not None:
                texts.append(text)
    for text in _encoded(session, texts):
        attributes.set_attribute(text.state.obj(), text.mapped.digest, text.digest)
        _split[session][text.state, text.mapped.key] = text


def _text(state: InstanceState[Any], mapped: MappedParts) -> _Text | None:
    if state.key is not None and not any(changed(state, source) for source in mapped.sources):
        return None
    texts = list(texts_of(state, mapped))
    declaration = mapped.embedding.declaration
    if not all(text is None or isinstance(text, str) for text in texts):
        return None
    if not texts[0]:  # its parts go, whoever fills
        return _Text(state, mapped, (), declaration.digest(texts))
    if declaration.fill != "flush":
        return None
    try:
        cuts = off_event_loop(declaration.cut, texts)
    except Exception as error:
        if declaration.on_error == "raise":
            raise
        logger.warning("a row of %s stays pending: its text cannot be split: %s", mapped.embedding, error)
        return None
    return _Text(state, mapped, cuts, declaration.digest(texts))


def _encoded(session: Session, texts: Sequence[_Text]) -> Iterator[_Text]:
    """The texts whose parts are all stored or encoded, one batch for each encoder.

    :raises Exception: whatever an encoder raises, unless all its declarations say ``on_error="pending"``.
    """
    stored = _stored(session, [text for text in texts if text.state.key is not None])
    by_encoder: dict[TextEncoder, list[_Text]] = {}
    for text in texts:
        by_encoder.setdefault(text.mapped.embedding.declaration.encoder, []).append(text)
    for encoder, group in by_encoder.items():
        missing = [(text, cut) for text in group for cut in matched(text.cuts, stored.get(text, ()))[1]]
        wanted = list({cut.digest: cut.encoded for _, cut in missing}.items())
        if wanted:
            vectors = _vectors(encoder, group, [encoded for _, encoded in wanted])
            if vectors is None:
                continue
            made = {digest: vector for (digest, _), vector in zip(wanted, vectors, strict=True)}
            for text, cut in missing:
                text.vectors[cut.digest] = made[cut.digest]
        yield from group


def _vectors(encoder: TextEncoder, group: Sequence[_Text], texts: list[str]) -> Array | None:
    declared = dict.fromkeys(text.mapped.embedding for text in group)
    try:
        answer = off_event_loop(encoder_errors(encoder.name)(encode), encoder, texts)
        return answered(encoder, answer, len(texts), column=", ".join(map(str, declared)))
    except Exception as error:
        if any(bound.declaration.on_error == "raise" for bound in declared):
            raise
        logger.warning("%d rows stay pending: encoder %r failed: %s", len(group), encoder.name, error)
        return None


@event.listens_for(Session, "after_flush")
def _after_flush(session: Session, _context: UOWTransaction) -> None:
    _seen.pop(session, None)
    texts = [text for text in _split.pop(session, {}).values() if text.state.obj() in session]
    stored = _stored(session, texts)
    by_table: dict[PartsTable, list[tuple[_Text, list[tuple[Cut, Stored]], list[Cut], list[int]]]] = {}
    for text in texts:
        found = matched(text.cuts, stored.get(text, ()))
        by_table.setdefault(text.mapped.embedding, []).append((text, *found))
    for bound, rows in by_table.items():
        connection = session.connection(bind_arguments={"mapper": rows[0][0].state.mapper})
        _write(connection, bound, rows)
    _outdated[session] = [(text.state.obj(), text.mapped.key) for text in texts]


@event.listens_for(Session, "after_flush_postexec")
def _after_flush_postexec(session: Session, _context: UOWTransaction) -> None:
    for target, key in _outdated.pop(session, ()):
        if target in session and key in inspect(target).dict:
            session.expire(target, [key])


def _write(
    connection: Connection,
    bound: PartsTable,
    rows: Iterable[tuple[_Text, list[tuple[Cut, Stored]], list[Cut], list[int]]],
) -> None:
    """Insert, move and delete parts of rows that the flush has locked."""
    p, keeps = bound.parts, bound.declaration.keeps_text
    new: list[dict[str, Any]] = []
    moved: list[dict[str, Any]] = []
    gone: list[int] = []
    for text, kept, missing, old in rows:
        if any(cut.digest not in text.vectors for cut in missing):
            # Parts that were to stay went between the two looks. Their row stays pending, and loses no part.
            table, primary = bound.table, bound.table.primary_key.columns
            same = (column == value for column, value in zip(primary, text.primary, strict=True))
            connection.execute(update(table).where(*same).values({bound.digest: NO_DIGEST}))
            continue
        owner = dict(zip((column.key for column in bound.owner), text.primary, strict=True))
        new += [
            {
                **owner,
                **_placed(cut),
                "text": cut.text if keeps else None,
                "digest": cut.digest,
                "embedding": np.asarray(text.vectors[cut.digest]),
            }
            for cut in missing
        ]
        moved += [
            {"part": part.id, **_placed(cut), "text": cut.text if keeps else None}
            for cut, part in kept
            if (cut.number, cut.start, cut.end, keeps) != part[2:]
        ]
        gone += old
    for start in range(0, len(gone), _AT_ONCE):
        connection.execute(delete(p).where(p.c.id.in_(gone[start : start + _AT_ONCE])))
    if moved:
        connection.execute(update(p).where(p.c.id == bindparam("part")), moved)
    if new:
        connection.execute(insert(p), new)


def _placed(cut: Cut) -> dict[str, int]:
    return {"number": cut.number, "start": cut.start, "end": cut.end}


def _stored(session: Session, texts: Sequence[_Text]) -> dict[_Text, list[Stored]]:
    """The parts of rows in the database, in their order. They are found by number: Postgres gives some keys
    back in another form."""
    found: dict[_Text, list[Stored]] = {}
    by_table: dict[PartsTable, list[_Text]] = {}
    for text in texts:
        by_table.setdefault(text.mapped.embedding, []).append(text)
    for bound, all_of_table in by_table.items():
        p, owner = bound.parts, bound.owner
        keys = [column(f"key_{i}", each.type) for i, each in enumerate(owner)]
        for start in range(0, len(all_of_table), _AT_ONCE):
            some = all_of_table[start : start + _AT_ONCE]
            given = values(column("n", Integer), *keys, name="pgembed_given").data(
                [(n, *text.primary) for n, text in enumerate(some)]
            )
            same = (each == cast(given.c[f"key_{i}"], each.type) for i, each in enumerate(owner))
            columns = [p.c[name] for name in ("id", "digest", "number", "start", "end")]
            query = (
                select(cast(given.c.n, Integer), *columns, p.c.text.is_not(None))
                .join_from(given, p, and_(*same))
                .order_by(p.c.number, p.c.id)
            )
            connection = session.connection(bind_arguments={"mapper": some[0].state.mapper})
            for n, *part in connection.execute(query):
                found.setdefault(some[n], []).append(Stored(*part))
    return found
