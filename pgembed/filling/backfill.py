"""Filling what is pending now, as fast as the encoder goes: ``backfill``, and what it would take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine

from pgembed.columns import TextEncoder
from pgembed.columns.conditions import condition
from pgembed.filling import parts
from pgembed.filling.cycle import Cycle, Settings
from pgembed.filling.flow import Counts
from pgembed.filling.frequencies import Refresher
from pgembed.filling.statements import Statements
from pgembed.filling.targets import Target, target_of
from pgembed.filling.transactions import Transactions, warn_superuser
from pgembed.parts import PartsDeclaration


@dataclass(frozen=True)
class Estimate:
    """What a backfill would take.

    :ivar rows: rows that are pending, up to the limit.
    :ivar rows_per_second: as the encoder did with a sample of their texts, up to the throttle; ``None`` if
        nothing is pending.
    """

    rows: int
    rows_per_second: float | None

    @property
    def seconds(self) -> float | None:
        """How long it would take."""
        return None if self.rows_per_second is None else self.rows / self.rows_per_second


def backfill(
    engine: Engine,
    column: Any,
    *,
    where: ColumnElement[bool] | str | None = None,
    limit: int | None = None,
    throttle: float | None = None,
    settings: Settings | None = None,
    on_progress: Callable[[Counts], None] | None = None,
) -> Counts:
    """Fill the pending rows of a column, and return when none is left that can be filled.

    Interrupted and run again, it goes on with what is still pending. It runs beside workers and other
    backfills, which share the rows; users go on reading and writing. An ANN index in place makes it several
    times slower: build it afterwards. See :mod:`pgembed.filling.statements` for the SQL.

    :param engine: any synchronous engine; three connections of its pool are used at most.
    :param column: a mapped attribute, a column, or a :class:`~pgembed.filling.targets.Target`.
    :param where: which rows, as a condition over the table's columns, or as SQL.
    :param limit: how many rows at most.
    :param throttle: rows per second at most.
    :param on_progress: called with the counts so far, from other threads as well.
    :returns: how many rows were written, left for later, and set aside with an error.
    :raises DeclarationError: it is not an embedding column, or ``where`` is more than a condition.
    :raises NotInstalledError: the database does not have it, or has it with another encoder or template.
    :raises NotTrustedError: the owner of its table is not trusted.
    :raises RegistrationError: its registration cannot be read, or its pending index is of other rows.
    :raises EncoderNotFoundError: the encoder's weights are not on this machine.
    :raises BrokenEncoderError: the encoder fails with any text.
    """
    Transactions(engine, patience=0).run(warn_superuser)
    target = _target(engine, column)
    cycle = Cycle(
        engine,
        target,
        settings,
        where=_conditions(where),
        limit=limit,
        throttle=throttle,
        on_progress=on_progress,
    )
    counts = cycle.run(once=True)
    Refresher(engine).refresh([target])
    return counts


def pending(
    engine: Engine, column: Any, *, where: ColumnElement[bool] | str | None = None, claimed: bool = True
) -> int:
    """How many rows of a column are pending; counted exactly, in the index that holds just them.

    :param claimed: whether to count rows that a worker has claimed; without them, after a backfill, these are
        the rows that could not be filled.
    """
    target = _target(engine, column)
    statement = Statements(target).pending_count(_conditions(where), claimed=claimed)
    return int(Transactions(engine, patience=0, target=target).run(lambda c: c.scalar(statement)) or 0)


def estimate(
    engine: Engine,
    column: Any,
    *,
    where: ColumnElement[bool] | str | None = None,
    limit: int | None = None,
    throttle: float | None = None,
    sample: int = 256,
) -> Estimate:
    """What :func:`backfill` would take: pending rows are counted, a sample of them encoded, none written.

    :param sample: how many rows to encode; they are the first in the order of the keys.
    :raises EncoderNotFoundError: the encoder's weights are not on this machine.
    """
    target = _target(engine, column)
    conditions = _conditions(where)
    statements = Statements(target)
    transactions = Transactions(engine, patience=0, target=target)
    rows = pending(engine, target, where=where)
    rows = rows if limit is None else min(rows, limit)
    claim = statements.claim(where=conditions)
    octets = parts.OCTETS if target.parts is not None else Settings().batch_octets
    bound = {"rows": sample, "octets": octets, "after": None}
    found = transactions.run(lambda connection: connection.execute(claim, bound).all())
    declaration = target.embedding.declaration
    sampled = [texts for _, wanted, _, _, *texts in found if wanted is not None]
    if isinstance(declaration, PartsDeclaration):
        texts = [cut.encoded for texts in sampled for cut in declaration.cut(texts)]
    else:
        texts = list(map(declaration.compose, sampled))
    if not texts:
        return Estimate(rows, None)
    speed = texts_per_second(target.encoder, texts) * len(sampled) / len(texts)
    return Estimate(rows, speed if throttle is None else min(speed, throttle))


def texts_per_second(encoder: TextEncoder, texts: list[str]) -> float:
    """The speed of an encoder with these texts, one or more."""
    encoder.encode_documents(texts[:1])  # opens the weights, which does not count
    started = time.perf_counter()
    encoder.encode_documents(texts)
    return len(texts) / max(time.perf_counter() - started, 1e-6)


def _target(engine: Engine, column: Any) -> Target:
    if isinstance(column, Target):
        return column
    return Transactions(engine, patience=0).run(lambda connection: target_of(connection, column))


def _conditions(where: ColumnElement[bool] | str | None) -> list[ColumnElement[bool]]:
    return [] if where is None else [condition(where)]
