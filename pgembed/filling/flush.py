"""The flush hook: one encoder batch for all new and changed objects of a flush, before the INSERT.

``before_flush`` looks at every object that will be written. Where the texts of an embedding are known and
differ from what its vector was made from, the vector and the digest become part of the same INSERT or
UPDATE. Where they cannot be known (an SQL expression, a server default, a deferred attribute that is not
loaded) the digest is left alone, and the row is pending by the predicate: never falsely fresh.

Listeners of a single session run after this one, and may add or change objects. The mapper events
``before_insert`` and ``before_update`` are the guard: the first object whose embedding was not seen in its
present state makes the whole flush be looked at again, in one more batch.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, event, inspect, select, tuple_
from sqlalchemy.orm import InstanceState, Mapper, Session, UOWTransaction, attributes
from sqlalchemy.orm.base import NO_VALUE, PASSIVE_NO_INITIALIZE
from sqlalchemy.sql.elements import ColumnElement

from pgembed.columns import Array
from pgembed.filling.batch import Filling, Texts, encode
from pgembed.filling.mapped import UNKNOWN, MappedEmbedding, default_of, mapped_embeddings

#: What each embedding of each object of the running flush was last looked at with.
_seen: WeakKeyDictionary[Session, dict[tuple[InstanceState[Any], str], Any]] = WeakKeyDictionary()


@event.listens_for(Session, "before_flush")
def _before_flush(session: Session, _context: UOWTransaction, _instances: Any) -> None:
    _seen[session] = {}
    _fill(session, [*session.new, *session.dirty])


@event.listens_for(Session, "after_flush")
def _after_flush(session: Session, _context: UOWTransaction) -> None:
    _seen.pop(session, None)


@event.listens_for(Mapper, "before_insert")
@event.listens_for(Mapper, "before_update")
def _guard(mapper: Mapper[Any], _connection: Connection, target: Any) -> None:
    embeddings = mapped_embeddings(mapper)
    if not embeddings:
        return
    state = inspect(target)
    session = state.session
    seen = _seen.get(session, {})
    if any(seen.get((state, mapped.vector)) != _fingerprint_of(state, mapped) for mapped in embeddings):
        _fill(session, [*session.new, *session.dirty])


def _fill(session: Session, objects: Iterable[Any]) -> None:
    """Encode what is stale among ``objects`` and write vectors and digests into them."""
    seen = _seen.setdefault(session, {})
    states = [state for state in map(inspect, objects) if mapped_embeddings(state.mapper)]
    _load_expired_sources(session, states)
    wanted: list[Filling] = []
    for state in states:
        for mapped in mapped_embeddings(state.mapper):
            key, now = (state, mapped.vector), _fingerprint_of(state, mapped)
            if seen.get(key) != now:
                seen[key] = now
                filling = _examine(state, mapped)
                if filling is not None:
                    wanted.append(filling)
    encode(wanted)


def _fingerprint_of(state: InstanceState[Any], mapped: MappedEmbedding) -> Any:
    """What an embedding's sources hold in the object, cheap to compare; texts by identity of their object."""
    return tuple(state.dict.get(source, NO_VALUE) for source in mapped.sources)


def _examine(state: InstanceState[Any], mapped: MappedEmbedding) -> Filling | None:
    """Decide what one embedding of one object needs; settle at once what needs no encoder."""
    declaration = mapped.embedding.declaration
    new = state.key is None
    changed = new or any(_changed(state, source) for source in mapped.sources)
    own = _own_vector(state, mapped)
    if not changed and not own:
        return None
    texts = _texts(state, mapped)
    if texts is None:
        if not changed and not _changed(state, mapped.digest):
            # A vector for the text as it stands, which is not loaded: the row itself gives the digest.
            _set(state, mapped.digest, mapped.embedding.wanted())
        return None
    wanted = declaration.digest(texts)
    if wanted is None:
        _set(state, mapped.vector, None)
        _set(state, mapped.digest, None)
        return None
    if own:
        # A digest beside the vector says what it was made from: set by the user, by a listener's first look
        # in this flush, or by a flush that failed. A vector without one was brought for the text at hand,
        # unless an older text was there before.
        made_from = state.dict.get(mapped.digest) if _changed(state, mapped.digest) else None
        if made_from is None and (new or not changed):
            made_from = wanted
            _set(state, mapped.digest, wanted)
        if made_from == wanted:
            return None
    if declaration.fill != "flush":
        return None
    return Filling(declaration, texts, wanted, partial(_put, state, mapped))


def _own_vector(state: InstanceState[Any], mapped: MappedEmbedding) -> bool:
    """Whether the user put a vector into the object; ``None`` is no vector."""
    return _changed(state, mapped.vector) and state.dict.get(mapped.vector) is not None


def _changed(state: InstanceState[Any], key: str) -> bool:
    """Whether an attribute has a value that is to be written; loads nothing."""
    history = attributes.get_history(state.obj(), key, PASSIVE_NO_INITIALIZE)
    return bool(history.added) or bool(history.deleted)


def _texts(state: InstanceState[Any], mapped: MappedEmbedding) -> Texts | None:
    """The texts of the sources as the row will hold them, or ``None`` where they cannot be known."""
    texts: list[str | None] = []
    for key, column in zip(mapped.sources, mapped.embedding.sources, strict=True):
        if key in state.dict:
            value = state.dict[key]
        elif state.key is None:
            value = default_of(column)
        else:
            value = UNKNOWN
        if value is not None and not isinstance(value, str):
            return None
        texts.append(value)
    return tuple(texts)


def _load_expired_sources(session: Session, states: Sequence[InstanceState[Any]]) -> None:
    """Load expired sources of objects with a changed source, in one SELECT a class.

    After a commit every attribute is expired, and reading one would load it anyway. Attributes that were
    never loaded (deferred ones) are left alone.
    """
    by_mapper: dict[Mapper[Any], list[InstanceState[Any]]] = {}
    for state in states:
        if state.key is not None and any(
            any(source in state.expired_attributes and source not in state.dict for source in mapped.sources)
            and any(_changed(state, source) for source in mapped.sources)
            for mapped in mapped_embeddings(state.mapper)
        ):
            by_mapper.setdefault(state.mapper, []).append(state)
    for mapper, expired in by_mapper.items():
        _load(session, mapper, {state.key[1]: state for state in expired if state.key is not None})


def _load(session: Session, mapper: Mapper[Any], states: dict[tuple[Any, ...], InstanceState[Any]]) -> None:
    keys = sorted({source for mapped in mapped_embeddings(mapper) for source in mapped.sources})
    primary = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    entity = mapper.class_
    query = select(*(getattr(entity, key) for key in (*primary, *keys)))
    identity: ColumnElement[Any] = tuple_(*(getattr(entity, key) for key in primary))
    rows = session.execute(query.where(identity.in_(list(states))), execution_options={"autoflush": False})
    for row in rows:
        state = states[tuple(row[: len(primary)])]
        for key, value in zip(keys, row[len(primary) :], strict=True):
            if key not in state.dict:
                attributes.set_committed_value(state.obj(), key, value)


def _put(state: InstanceState[Any], mapped: MappedEmbedding, vector: Array, digest: uuid.UUID) -> None:
    _set(state, mapped.vector, vector)
    _set(state, mapped.digest, digest)


def _set(state: InstanceState[Any], key: str, value: Any) -> None:
    attributes.set_attribute(state.obj(), key, value)
