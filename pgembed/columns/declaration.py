"""``embedding_column``, and what its arguments may be."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from sqlalchemy import event
from sqlalchemy.dialects import registry
from sqlalchemy.exc import NoSuchModuleError
from sqlalchemy.orm import MappedColumn, mapped_column
from sqlalchemy.types import TypeEngine

from pgembed.columns.binding import attached
from pgembed.columns.composition import fields_of
from pgembed.columns.embedding import INFO, Embedding, Fill, IndexDeclaration, OnDuplicate, OnError
from pgembed.columns.text_encoder import TextEncoder
from pgembed.columns.types import VectorType
from pgembed.columns.values import Storage
from pgembed.columns.words import Words
from pgembed.constants import MAX_DIMENSIONS
from pgembed.exc import DeclarationError, MetricNotSupportedError
from pgembed.metrics import metric as metric_named
from pgembed.metrics import metrics_of


def embedding_column(
    *sources: str,
    encoder: TextEncoder,
    template: str | None = None,
    metric: str = "cosine",
    index: IndexDeclaration | None = None,
    fill: Fill = "flush",
    on_error: OnError = "raise",
    type: Storage = "vector",
    deferred: bool = True,
    name: str | None = None,
    replaces: str | None = None,
    words: Words | None = None,
    unique_within: float | None = None,
    unique_per: Iterable[str] = (),
    on_duplicate: OnDuplicate = "raise",
    duplicate_of: str | Iterable[str] = (),
    **options: Any,
) -> MappedColumn[Any]:
    """A column that holds the vector of the texts in other columns, and fills itself.

    The column *c* comes with its digest ``<c>_digest uuid``, which says what text the vector was made from,
    and the partial index ``ix_<table>_<c>_pending`` of the rows whose vector is not that of their text.
    Emitted by ``create_all`` for a table ``article (id, title)``::

        embedding VECTOR(384),
        embedding_digest UUID
        CREATE INDEX ix_article_embedding_pending ON article (id) WHERE
          CASE WHEN embedding IS NOT NULL THEN coalesce(embedding_digest, '0000...'::uuid) END
          IS DISTINCT FROM
          CASE WHEN coalesce(octet_length(title), 0) > 0
               THEN CAST(md5('<recipe>' || md5(coalesce(title, ''))) AS UUID) END

    Where all sources are NULL or empty, vector and digest are NULL.

    :param sources: names of attributes (of columns, in a Core ``Table``) that hold text, in the same table.
    :param encoder: what turns texts into vectors: a :class:`pgembed.Encoder`, or a :class:`TextEncoder` of
        your own.
    :param template: the text to encode, as ``"{title}: {body}"``; without it, the texts that are not empty,
        one per line.
    :param metric: ``"cosine"``, ``"l2"``, ``"inner_product"`` or ``"l1"``; what queries and ``index`` use.
    :param index: ``HNSW(...)``, built after the load (see :class:`pgembed.HNSW`).
    :param fill: ``"flush"`` encodes in the flush that writes the row; ``"worker"`` leaves the row pending.
    :param on_error: what a failing encoder does to the flush: ``"raise"``, or leave rows ``"pending"``.
    :param type: ``"vector"`` (4 bytes per dimension) or ``"halfvec"`` (2 bytes).
    :param deferred: do not load vector and digest together with the entity.
    :param name: the column's name, if it is not the attribute's.
    :param replaces: the name of the column that this one is going to replace, while the table has both.
        Migrations keep that one, and drop it when ``replaces`` is removed.
    :param words: ``Words(...)`` has the texts searched by their words as well (see
        :func:`pgembed.keyword_search`): a generated column ``<c>_words tsvector`` with a GIN index, and a
        table of statistics, ``<table>_<c>_words``.
    :param unique_within: a score; a trigger, which ``create_all`` makes, refuses a vector that has this score
        or more with that of another row: :class:`~pgembed.exc.DuplicateMeaningError` is raised.
    :param unique_per: names of columns, as the database has them, such as ``["tenant_id"]``: only rows that
        agree in all of them are compared.
    :param on_duplicate: what happens to a row whose vector is kept out: ``"raise"`` refuses the row;
        ``"return"`` stores it without a vector, linked to the row that is there.
    :param duplicate_of: with ``"return"``, the name of the column that gets the other row's key, as the
        database has it, or one name for each column of the primary key.
    :param options: further arguments of :func:`sqlalchemy.orm.mapped_column`, such as ``init=False`` for
        dataclasses. In a Core ``Table``, write ``embedding_column(..., name="embedding").column``.
    :raises DeclarationError: at declaration, for whatever cannot work.
    :raises MetricNotSupportedError: no such metric, or none that the index can serve.
    """
    check_arguments(sources, encoder, template, index, fill, on_error, type)
    _check_options(embedding_column, options)
    if words is not None and not isinstance(words, Words):
        raise DeclarationError(f'words={words!r}; expected Words(...), such as Words("title", "body")')
    per = names_of("unique_per", unique_per)
    links = check_unique(metric, unique_within, per, on_duplicate, duplicate_of)
    declaration = Embedding(
        sources=sources,
        encoder=encoder,
        template=template,
        metric=metric_named(metric),
        storage=type,
        index=index,
        fill=fill,
        on_error=on_error,
        deferred=deferred,
        replaces=replaces,
        words=words,
        unique_within=unique_within,
        unique_per=per,
        duplicate_of=links,
    )
    column_type: TypeEngine[Any] = VectorType(encoder.dimensions, type)
    if declaration.metric.name not in metrics_of(type):
        raise MetricNotSupportedError(declaration.metric.name, metrics_of(type), by=f"a {type} column")
    if index is not None:
        index.check(column_type, declaration.metric)
    column = mapped_column(
        *([name, column_type] if name else [column_type]),
        nullable=options.pop("nullable", True),
        deferred=deferred,
        info={INFO: declaration, **options.pop("info", {})},
        **options,
    )
    event.listen(column.column, "after_parent_attach", attached, propagate=True)
    return column


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
    :raises DeclarationError: an argument has a wrong value.
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


def names_of(argument: str, given: Iterable[str]) -> tuple[str, ...]:
    """
    :raises DeclarationError: it is no list of different names.
    """
    names = () if isinstance(given, str) else tuple(given)
    if isinstance(given, str) or len(set(names)) < len(names) or not all(isinstance(n, str) for n in names):
        raise DeclarationError(f'{argument}={given!r}; expected different names of columns, ["tenant_id"]')
    return names


def check_unique(
    metric: str, score: object, per: tuple[str, ...], on_duplicate: str, duplicate_of: str | Iterable[str]
) -> tuple[str, ...]:
    """
    :returns: ``duplicate_of`` as a tuple.
    :raises DeclarationError: the arguments of a guard do not fit together, or see :func:`check_score`.
    """
    links = names_of("duplicate_of", [duplicate_of] if isinstance(duplicate_of, str) else duplicate_of)
    if on_duplicate not in ("raise", "return"):
        raise DeclarationError(f'on_duplicate={on_duplicate!r}; expected "raise" or "return"')
    if score is None and (per or links or on_duplicate == "return"):
        given = "unique_per=" if per else "on_duplicate="
        raise DeclarationError(f"{given} is for unique_within=, which is not there: add a score")
    if score is not None:
        check_score(metric, score)
    if bool(links) != (on_duplicate == "return"):
        raise DeclarationError(
            f"on_duplicate={on_duplicate!r} with duplicate_of={duplicate_of!r}; expected "
            'on_duplicate="return" and the column of the other row\'s key: duplicate_of="duplicate_of_id"'
        )
    if {*links} & {*per}:
        raise DeclarationError(f"duplicate_of={duplicate_of!r} names a column of unique_per={list(per)}")
    return links


def check_score(metric: str, score: object) -> None:
    """
    :raises DeclarationError: it is no score that two rows can have in this metric, or one that all have.
    :raises MetricNotSupportedError: no such metric, or one that compares no vectors.
    """
    compared = metric_named(metric)
    if compared.name not in metrics_of("vector"):
        raise MetricNotSupportedError(compared.name, metrics_of("vector"), by="unique_within=")
    number = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
    if not number or not compared.is_score(score):  # type: ignore[arg-type]
        raise DeclarationError(
            f"unique_within={score!r}; expected a score of the metric {compared.name}: {compared.scores}"
        )
    if not compared.is_score(math.nextafter(score, -math.inf)):  # type: ignore[arg-type]
        raise DeclarationError(
            f"unique_within={score!r} is the lowest score of the metric {compared.name}, so that no two rows "
            "could be there; expected a higher one, such as 0.95"
        )


def _check_template(template: str, sources: tuple[str, ...]) -> None:
    used = fields_of(template)
    if used != set(sources):
        wanted = ", ".join(f"{{{source}}}" for source in sources)
        raise DeclarationError(
            f"template {template!r} has the fields {sorted(used)}; expected plain fields, "
            f"one for each source: {wanted} (write a literal brace twice)"
        )


def _check_options(function: Callable[..., Any], options: Iterable[str]) -> None:
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
