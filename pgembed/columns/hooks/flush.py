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

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
from sqlalchemy import Connection, event, inspect, select, tuple_
from sqlalchemy.orm import InstanceState, Mapper, Session, SessionTransaction, UOWTransaction, attributes
from sqlalchemy.orm.base import NO_VALUE, PASSIVE_NO_INITIALIZE
from sqlalchemy.sql.elements import ColumnElement

from pgembed.columns.hooks.mapped import (
    UNKNOWN,
    MappedEmbedding,
    MappedSources,
    given_text,
    mapped_embeddings,
    text_of,
)
from pgembed.columns.hooks.outcome import ABSENT, Change, Filling, encode, settle
from pgembed.columns.values import as_array

#: The last look at each embedding of each object of the running flush.
_seen: WeakKeyDictionary[Session, dict[tuple[InstanceState[Any], str], Look]] = WeakKeyDictionary()
#: The vectors and digests that this module put into objects, by attribute. After a failed flush they are
#: still there, and such a digest says nothing about a vector that was assigned since.
_ours: WeakKeyDictionary[InstanceState[Any], dict[str, tuple[Any, Any]]] = WeakKeyDictionary()
#: The connections that a flush is writing through; and those of each session.
flushing: WeakSet[Connection] = WeakSet()
_connections: WeakKeyDictionary[Session, list[Connection]] = WeakKeyDictionary()

#: Keys in one SELECT; drivers send 65,535 parameters at most.
_LOADED_AT_ONCE = 1000


@dataclass(frozen=True)
class Look:
    """What the attributes of one embedding of one object held when they were looked at."""

    sources: tuple[Any, ...]
    vector: Any
    digest: Any

    def same(self, other: Look | None) -> bool:
        """Whether nothing has been assigned since."""
        return (
            other is not None
            and self.sources == other.sources
            and self.vector is other.vector
            and self.digest is other.digest
        )


@event.listens_for(Session, "before_flush")
def _before_flush(session: Session, _context: UOWTransaction, _instances: Any) -> None:
    _seen[session] = {}
    _fill(session, [*session.new, *session.dirty])


@event.listens_for(Session, "after_flush")
def _after_flush(session: Session, _context: UOWTransaction) -> None:
    _written(session)
    for state, key in _seen.pop(session, {}):
        _ours.pop(state, None)
        if isinstance(vector := state.dict.get(key), np.ndarray | list | tuple):
            state.dict[key] = as_array(vector)  # as if loaded; a change in place would not be seen
        for mapped in mapped_embeddings(state.mapper):
            if mapped.links and mapped.vector == key:
                _linked(state, mapped)


def _linked(state: InstanceState[Any], mapped: MappedEmbedding) -> None:
    """Forget what the guard has written instead: a linked row has no vector. Its link came back with the
    INSERT, unless one was assigned."""
    held = state.dict
    unknown = [link for link in mapped.links if link not in held or link in state.committed_state]
    if unknown:
        state._expire_attributes(held, [*unknown, mapped.vector])
    elif any(held[link] is not None for link in mapped.links):
        held[mapped.vector] = None


@event.listens_for(Session, "after_soft_rollback")
def _after_rollback(session: Session, _transaction: SessionTransaction) -> None:
    """A flush that failed rolls back a transaction, a savepoint perhaps, whose connection goes on."""
    _written(session)


def _written(session: Session) -> None:
    for connection in _connections.pop(session, ()):
        flushing.discard(connection)


@event.listens_for(Mapper, "before_insert")
@event.listens_for(Mapper, "before_update")
def _guard(mapper: Mapper[Any], connection: Connection, target: Any) -> None:
    embeddings = mapped_embeddings(mapper)
    if not embeddings:
        return
    state = inspect(target)
    session = state.session
    if session is None:  # expunged while its flush runs; SQLAlchemy will say so
        return
    if connection not in flushing:
        flushing.add(connection)
        _connections.setdefault(session, []).append(connection)
    seen = _seen.get(session, {})
    if not all(_look(state, mapped).same(seen.get((state, mapped.vector))) for mapped in embeddings):
        _fill(session, [*session.new, *session.dirty])


def _fill(session: Session, objects: Iterable[Any]) -> None:
    """Encode what is stale among ``objects`` and write vectors and digests into them."""
    seen = _seen.setdefault(session, {})
    states = [
        (state, embeddings)
        for state in map(inspect, objects)
        if (embeddings := mapped_embeddings(state.mapper))
    ]
    load_expired_sources(session, states)
    looked = [
        (state, mapped)
        for state, embeddings in states
        for mapped in embeddings
        if not _look(state, mapped).same(seen.get((state, mapped.vector)))
    ]
    encode([filling for state, mapped in looked for filling in _examine(state, mapped)])
    for state, mapped in looked:
        seen[state, mapped.vector] = _look(state, mapped)


def _look(state: InstanceState[Any], mapped: MappedEmbedding) -> Look:
    held = state.dict
    return Look(
        tuple(held.get(source, NO_VALUE) for source in mapped.sources),
        held.get(mapped.vector),
        held.get(mapped.digest),
    )


def _examine(state: InstanceState[Any], mapped: MappedEmbedding) -> list[Filling]:
    """Settle one embedding of one object."""
    change: Change = "same"
    if state.key is None:
        change = "new"
    elif any(changed(state, source) for source in mapped.sources):
        change = "changed"
    vector = state.dict.get(mapped.vector) if changed(state, mapped.vector) else None
    if change == "same" and vector is None:
        return []
    texts, digest = list(texts_of(state, mapped)), _made_from(state, mapped, vector)
    return settle(mapped, change, texts, vector, digest, partial(_write, state, mapped))


def _made_from(state: InstanceState[Any], mapped: MappedEmbedding, vector: Any) -> Any:
    """The digest that was put beside a vector, to say what it was made from."""
    if not changed(state, mapped.digest):
        return ABSENT
    digest = state.dict.get(mapped.digest)
    our_vector, our_digest = _ours.get(state, {}).get(mapped.vector, (None, None))
    return ABSENT if digest is not None and digest is our_digest and vector is not our_vector else digest


def changed(state: InstanceState[Any], key: str) -> bool:
    """Whether an attribute has a value that is to be written; loads nothing."""
    history = attributes.get_history(state.obj(), key, PASSIVE_NO_INITIALIZE)
    return bool(history.added) or bool(history.deleted)


def texts_of(state: InstanceState[Any], mapped: MappedSources) -> Iterator[Any]:
    """The texts of the sources as the row will hold them, as far as they are known."""
    for key, column in zip(mapped.sources, mapped.embedding.sources, strict=True):
        if state.key is None:
            yield text_of(state.dict.get(key), column)
        elif changed(state, key):
            yield given_text(state.dict.get(key, UNKNOWN), column)
        else:
            yield state.dict.get(key, UNKNOWN)


def load_expired_sources(
    session: Session, states: Sequence[tuple[InstanceState[Any], Sequence[MappedSources]]]
) -> None:
    """Load expired sources of objects with a changed source, in one SELECT for many of a class.

    After a commit every attribute is expired, and reading one would load it anyway. Attributes that were
    never loaded (deferred ones) are left alone.
    """
    by_mapper: dict[Mapper[Any], list[InstanceState[Any]]] = {}
    keys: dict[Mapper[Any], set[str]] = {}
    for state, embeddings in states:
        if state.key is not None and any(
            any(source in state.expired_attributes and source not in state.dict for source in mapped.sources)
            and any(changed(state, source) for source in mapped.sources)
            for mapped in embeddings
        ):
            by_mapper.setdefault(state.mapper, []).append(state)
            keys.setdefault(state.mapper, set()).update(source for m in embeddings for source in m.sources)
    for mapper, expired in by_mapper.items():
        for start in range(0, len(expired), _LOADED_AT_ONCE):
            some = expired[start : start + _LOADED_AT_ONCE]
            found = {state.key[1]: state for state in some if state.key is not None}
            _load(session, mapper, sorted(keys[mapper]), found)


def _load(
    session: Session,
    mapper: Mapper[Any],
    keys: Sequence[str],
    states: dict[tuple[Any, ...], InstanceState[Any]],
) -> None:
    primary = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    entity = mapper.class_
    query = select(*(getattr(entity, key) for key in (*primary, *keys)))
    identity: ColumnElement[Any] = tuple_(*(getattr(entity, key) for key in primary))
    rows = session.execute(query.where(identity.in_(list(states))), execution_options={"autoflush": False})
    for row in rows:
        # Postgres gives back some keys in another form, CHAR with blanks: then the texts stay unknown.
        state = states.get(tuple(row[: len(primary)]))
        for key, value in zip(keys, row[len(primary) :], strict=True):
            if state is not None and key not in state.dict:
                attributes.set_committed_value(state.obj(), key, value)


def _write(state: InstanceState[Any], mapped: MappedEmbedding, values: dict[str, Any]) -> None:
    for key, value in values.items():
        attributes.set_attribute(state.obj(), key, value)
    if values.get(mapped.vector) is not None:
        _ours.setdefault(state, {})[mapped.vector] = (values[mapped.vector], values[mapped.digest])
