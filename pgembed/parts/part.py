"""``embedding_parts``, and what its arguments may be."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.orm import Mapped, Relationship, relationship

from pgembed.columns import Array, Embedding, TextEncoder
from pgembed.columns import digest as digests
from pgembed.columns.declaration import check_arguments
from pgembed.columns.embedding import Fill, IndexDeclaration, OnError
from pgembed.columns.names import octets
from pgembed.columns.registration import LONGEST_HOW
from pgembed.columns.types import VectorType
from pgembed.columns.values import Storage
from pgembed.encoders import Encoder
from pgembed.exc import DeclarationError, MetricNotSupportedError
from pgembed.metrics import metric as metric_named
from pgembed.metrics import metrics_of
from pgembed.parts.formats import Format
from pgembed.parts.late import LATE, Within
from pgembed.parts.late import check as check_late
from pgembed.parts.splitters import Splitter
from pgembed.parts.splitting import Piece, Splitting, TokenCounter

#: The key in ``relationship.info`` for the declaration.
PARTS = "pgembed.parts"
#: The key for the class of the parts, once it is mapped.
ENTITY = "pgembed.parts.class"
_WITHOUT_TEXTS = " without texts"


class Part:
    """One part of a text, a row of the table that :func:`embedding_parts` makes.

    The class of each declaration derives from it; ``Article.parts.property.entity.class_`` is that of
    ``Article.parts``. Parts are written by pgembed alone.

    :ivar id: its key, which it keeps as long as its text stays what it is.
    :ivar number: its place among the parts of the text, from 0.
    :ivar start: of its first character in the source.
    :ivar end: after its last character: it is ``source[start:end]``.
    :ivar text: that text; ``None`` with ``text=False``.
    :ivar digest: of the text that its vector was made from.
    :ivar embedding: its vector, loaded on access.
    """

    if TYPE_CHECKING:
        id: Mapped[int]
        number: Mapped[int]
        start: Mapped[int]
        end: Mapped[int]
        text: Mapped[str | None]
        digest: Mapped[uuid.UUID]
        embedding: Mapped[Array | None]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.number}: {self.start} to {self.end}>"


class Cut(NamedTuple):
    """A part that is to be made.

    :ivar encoded: what the encoder reads.
    :ivar digest: of that, and of the encoder: parts of one digest have the same text and vector.
    """

    number: int
    start: int
    end: int
    text: str
    encoded: str
    digest: uuid.UUID


class Stored(NamedTuple):
    """A part in the database."""

    id: int
    digest: uuid.UUID
    number: int
    start: int
    end: int
    has_text: bool


def matched(
    cuts: Sequence[Cut], stored: Iterable[Stored]
) -> tuple[list[tuple[Cut, Stored]], list[Cut], list[int]]:
    """The parts that stay, those to make, and the keys of those that go; equal ones in their order."""
    there: defaultdict[uuid.UUID, deque[Stored]] = defaultdict(deque)
    for part in stored:
        there[part.digest].append(part)
    kept: list[tuple[Cut, Stored]] = []
    missing: list[Cut] = []
    for cut in cuts:
        if there[cut.digest]:
            kept.append((cut, there[cut.digest].popleft()))
        else:
            missing.append(cut)
    return kept, missing, [part.id for parts in there.values() for part in parts]


@dataclass(frozen=True, eq=False)
class PartsDeclaration(Embedding):
    """The arguments of :func:`embedding_parts`, checked.

    ``sources`` are the text that is split and, behind it, those that the context names.
    """

    splitting: Splitting = field(default_factory=Splitting)
    keeps_text: bool = True
    late: bool = False

    @property
    def how(self) -> str:
        """All that decides the rows of a text's parts, but for the texts and the encoder."""
        return (
            self.splitting.recipe + (LATE if self.late else "") + ("" if self.keeps_text else _WITHOUT_TEXTS)
        )

    @cached_property
    def recipe(self) -> str:
        return digests.recipe(f"{self.fingerprint} {self.how}", None)

    def cut(self, texts: Sequence[str | None]) -> list[Cut]:
        """The parts of a text.

        :param texts: those of the sources.
        :raises TextError: one of them is not valid Unicode.
        :raises DeclarationError: the context leaves no room for a part, or a splitter leaves something out.
        """
        encoder: Any = self.encoder
        text = texts[0] or ""
        values = dict(zip(self.sources[1:], texts[1:], strict=True))
        pieces = self.splitting.pieces(text, encoder, values)
        whole = str(digests.digest(self._recipe_of_part, [text])) if self.late else ""
        return [self._cut(text, whole, piece) for piece in pieces]

    def _cut(self, text: str, whole: str, piece: Piece) -> Cut:
        if self.late:
            encoded: str = Within.of(text, piece.start, piece.end)
            made_from = digests.digest(self._recipe_of_part, [whole, f"{piece.start} {piece.end}"])
        else:
            encoded = piece.encoded(text)
            # Of both, so that parts of one digest have the same text as well.
            made_from = digests.digest(self._recipe_of_part, [piece.context, text[piece.start : piece.end]])
        assert made_from is not None, "no part is empty"
        return Cut(piece.number, piece.start, piece.end, text[piece.start : piece.end], encoded, made_from)

    @cached_property
    def _recipe_of_part(self) -> str:
        return digests.recipe(self.fingerprint + (LATE if self.late else ""), None)


def embedding_parts(
    *sources: str,
    encoder: TextEncoder,
    context: str | None = None,
    format: str | Format = "text",
    max_tokens: int | None = None,
    overlap: int = 0,
    splitter: Splitter | None = None,
    pooling: str | None = None,
    text: bool = True,
    metric: str = "cosine",
    index: IndexDeclaration | None = None,
    fill: Fill = "flush",
    on_error: OnError = "raise",
    type: Storage = "vector",
    **options: Any,
) -> Relationship[Any]:
    """The parts of a long text, each with its vector, in a table of their own that fills itself.

    The attribute *p* of a table ``article (id, title, body)`` is a relationship to the table ``article_p``,
    in the order of the text, and comes with the digest ``p_digest uuid``, which says of what text the parts
    were made, and the partial index ``ix_article_p_pending`` of the rows whose parts are not those of their
    text. Emitted by ``create_all``::

        parts_digest UUID
        CREATE INDEX ix_article_parts_pending ON article (id) WHERE parts_digest IS DISTINCT FROM
          CASE WHEN coalesce(octet_length(body), 0) + coalesce(octet_length(title), 0) > 0
               THEN CAST(md5('<recipe>' || md5(coalesce(body, '')) || md5(coalesce(title, ''))) AS UUID) END
        CREATE TABLE article_parts (
          id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
          article_id INTEGER NOT NULL REFERENCES article (id) ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE,
          number INTEGER NOT NULL, start INTEGER NOT NULL, "end" INTEGER NOT NULL, text TEXT,
          digest UUID NOT NULL, embedding VECTOR(384))
        CREATE INDEX ix_article_parts_article_id ON article_parts (article_id)

    :param sources: the name of the attribute that holds the text, in the same table.
    :param encoder: as for :func:`~pgembed.embedding_column`; it also counts tokens, as a
        :class:`pgembed.Encoder` does.
    :param context: what is put before each part before it is encoded: the name of an attribute that holds
        text, on a line of its own, or a template such as ``"{title}: {heading}\\n"``, where ``{heading}`` are
        the headings that the part stands below.
    :param format: ``"text"``, ``"markdown"``, ``"html"``, ``"code"``, or a
        :class:`~pgembed.parts.Format` of your own.
    :param max_tokens: of a part, with prompt and context; by default the encoder's limit.
    :param overlap: tokens of what stands before a part that it repeats, at most.
    :param splitter: a :class:`~pgembed.parts.Splitter` of your own.
    :param pooling: ``"late"``: the encoder reads the whole text, and the vector of a part is the mean of its
        tokens; see :meth:`pgembed.Encoder.encode_spans`.
    :param text: store the text of each part beside its offsets.
    :param metric: as for :func:`~pgembed.embedding_column`, and so ``fill``, ``on_error`` and ``type``.
    :param index: ``HNSW(...)``, on the vectors of the parts.
    :param options: further arguments of :func:`sqlalchemy.orm.relationship`, such as ``lazy=`` or
        ``init=False`` for dataclasses.
    :raises DeclarationError: for whatever cannot work, at declaration or when the class is mapped.
    :raises MetricNotSupportedError: no such metric, or none that the index can serve.
    """
    for name in ("argument", "secondary", "viewonly", "cascade", "order_by", "primaryjoin", "uselist"):
        if name in options:
            raise DeclarationError(f"embedding_parts has no argument {name}=, which it knows by itself")
    declaration = declared(
        sources,
        encoder=encoder,
        context=context,
        format=format,
        max_tokens=max_tokens,
        overlap=overlap,
        splitter=splitter,
        pooling=pooling,
        text=text,
        metric=metric,
        index=index,
        fill=fill,
        on_error=on_error,
        type=type,
    )
    attribute: Relationship[Any] = relationship(
        lambda: _entity(attribute),
        viewonly=True,
        # Not "merge", which is the rest of the default: parts that are gone would be inserted again.
        cascade="refresh-expire, expunge",
        order_by=lambda: _entity(attribute).number,
        info={**options.pop("info", {}), PARTS: declaration},
        **options,
    )
    return attribute


def declared(
    sources: Sequence[str],
    *,
    encoder: TextEncoder,
    context: str | None = None,
    format: str | Format = "text",
    max_tokens: int | None = None,
    overlap: int = 0,
    splitter: Splitter | None = None,
    pooling: str | None = None,
    text: bool = True,
    metric: str = "cosine",
    index: IndexDeclaration | None = None,
    fill: Fill = "flush",
    on_error: OnError = "raise",
    type: Storage = "vector",
) -> PartsDeclaration:
    """The arguments of :func:`embedding_parts`, checked."""
    if len(sources) != 1 or not isinstance(sources[0], str):
        raise DeclarationError(
            f'embedding_parts splits one text, as in embedding_parts("body", encoder=...); found '
            f"{sources!r}. A generated column, Computed(..., persisted=True), can hold several texts as one"
        )
    if context is not None and (not isinstance(context, str) or not context):
        raise DeclarationError(f'context={context!r}; expected an attribute or a template, as "{{title}}: "')
    if context is not None and not {"{", "}"} & set(context):
        context = f"{{{context}}}\n"
    splitting = Splitting(format, max_tokens, overlap, context or "", splitter)
    fields = tuple(sorted(splitting.fields))
    if sources[0] in fields:
        raise DeclarationError(f"context={context!r} would put the whole text before each of its parts")
    check_arguments((*sources, *fields), encoder, None, index, fill, on_error, type)
    # An Encoder opens its files for that, which this machine may not have.
    if not isinstance(encoder, Encoder) and not isinstance(encoder, TokenCounter):
        raise DeclarationError(
            f"encoder={encoder!r} has no max_tokens and count_tokens, which splitting needs; expected a "
            "pgembed.Encoder, or an encoder of your own with both"
        )
    if max_tokens is not None and (not isinstance(max_tokens, int) or max_tokens < 1):
        raise DeclarationError(f"max_tokens={max_tokens!r}; expected a positive whole number")
    if not isinstance(overlap, int) or overlap < 0:
        raise DeclarationError(f"overlap={overlap!r}; expected a whole number of tokens, 0 or more")
    if pooling not in (None, "late"):
        raise DeclarationError(f"pooling={pooling!r}; expected 'late', or none for parts read by themselves")
    if pooling is not None:
        check_late(encoder, context)
    declaration = PartsDeclaration(
        sources=(*sources, *fields),
        encoder=encoder,
        template=None,
        metric=metric_named(metric),
        storage=type,
        index=index,
        fill=fill,
        on_error=on_error,
        deferred=True,
        splitting=splitting,
        keeps_text=text,
        late=pooling == "late",
    )
    if octets(declaration.how) > LONGEST_HOW:
        raise DeclarationError(
            f"how parts are made has {octets(declaration.how)} bytes, expected {LONGEST_HOW} at most: "
            "shorten the context"
        )
    if declaration.metric.name not in metrics_of(type):
        raise MetricNotSupportedError(declaration.metric.name, metrics_of(type), by=f"a {type} column")
    if index is not None:
        index.check(VectorType(encoder.dimensions, type), declaration.metric)
    return declaration


def declared_as(how: str, sources: Sequence[str], **options: Any) -> PartsDeclaration:
    """A declaration that makes parts as another one does; see :attr:`PartsDeclaration.how`.

    :param options: the other arguments of :func:`embedding_parts`.
    :raises DeclarationError: that one has a format or a splitter, or another version of one, than here.
    """
    try:
        (_, named, max_tokens, overlap, context), end = json.JSONDecoder().raw_decode(how)
        ((known, _),) = named
        declaration = declared(
            sources[:1],
            context=context or None,
            format=known,
            max_tokens=max_tokens,
            overlap=overlap,
            pooling="late" if how[end:].startswith(LATE) else None,
            text=not how.endswith(_WITHOUT_TEXTS),
            **options,
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise DeclarationError("settings or a splitter that this pgembed does not know") from error
    if declaration.how != how or declaration.sources != tuple(sources):
        raise DeclarationError(f"this pgembed makes them as {declaration.how}")
    return declaration


def _entity(attribute: Relationship[Any]) -> type[Part]:
    found: type[Part] | None = attribute.info.get(ENTITY)
    if found is None:
        raise DeclarationError(
            "embedding_parts(...) was added to a class that was mapped already: write it into the class"
        )
    return found
