"""How long texts are split: the settings, and the pieces that they give."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pgembed.columns.composition import fields_of
from pgembed.encoders.text.texts import checked
from pgembed.exc import DeclarationError
from pgembed.parts.context import HEADING, Context
from pgembed.parts.formats import FORMATS, Format
from pgembed.parts.splitters import Splitter, spans_of
from pgembed.parts.tree import Tree

#: Another one when texts are cut in another way, or other context is put before pieces, whatever the format.
SPLITTING_VERSION = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text.

    :ivar number: its place among the pieces, from 0.
    :ivar start: of its first character in the source.
    :ivar end: after its last character: it is ``source[start:end]``.
    :ivar tokens: as many as the encoder reads, with prompt, context and special tokens.
    :ivar heading: the headings that it stands below, as ``"Guide > Passwords"``, where the context asks for
        them.
    :ivar context: what is put before it when it is encoded.
    """

    number: int
    start: int
    end: int
    tokens: int
    heading: str = ""
    context: str = field(default="", repr=False)

    def encoded(self, source: str) -> str:
        """The text that is encoded: the context, and the part of ``source``."""
        return self.context + source[self.start : self.end]


@runtime_checkable
class TokenCounter(Protocol):
    """What splitting needs of an encoder; :class:`pgembed.Encoder` has it."""

    @property
    def max_tokens(self) -> int:
        """Tokens at which texts are cut."""
        ...

    def count_tokens(self, texts: Sequence[str], /) -> Iterable[int]:
        """Tokens of each text, with all that the encoder adds, uncut."""
        ...


@dataclass(frozen=True)
class Splitting:
    """How texts are split; the parameters are those of :func:`split`.

    :raises DeclarationError: at construction, for whatever cannot work with any encoder.
    """

    format: str | Format = "text"
    max_tokens: int | None = None
    overlap: int = 0
    context: str = ""
    splitter: Splitter | None = None

    def __post_init__(self) -> None:
        named = [self._format] if self.splitter is None else [self._format, self.splitter]
        for each in named:
            if not callable(each) or not getattr(each, "name", "") or not hasattr(each, "version"):
                raise DeclarationError(
                    f"found {each!r}; expected a format or a splitter: a callable with a name and a version"
                )
        if self.splitter is not None and self.overlap:
            raise DeclarationError(
                f"overlap={self.overlap} has no effect with splitter=: the splitter gives pieces that overlap"
            )
        fields_of(self.context, name="context")

    @property
    def fields(self) -> frozenset[str]:
        """The texts of the row that the context needs."""
        return frozenset(fields_of(self.context, name="context") - {HEADING})

    @property
    def recipe(self) -> str:
        """Everything that decides the texts of the pieces, but for the source, the texts of the row, and the
        encoder, whose fingerprint knows its tokenizer and limit."""
        named = [self._format] if self.splitter is None else [self._format, self.splitter]
        versions = [(each.name, each.version) for each in named]
        return json.dumps([SPLITTING_VERSION, versions, self.max_tokens, self.overlap, self.context])

    def pieces(
        self, text: str, encoder: TokenCounter, values: Mapping[str, str | None] | None = None
    ) -> list[Piece]:
        """The pieces of a text, in their order; see :func:`split`.

        :param values: the texts of :attr:`fields`.
        """
        (text,) = checked([text])
        values = values or {}
        missing = self.fields - values.keys()
        if missing:
            raise DeclarationError(
                f"context {self.context!r} has the fields {sorted(missing)}; expected a text for each in "
                f"values=, found {sorted(values)} ({{heading}} needs none; write a literal brace twice)"
            )
        checked([value for value in values.values() if value is not None])

        def count(texts: Sequence[str]) -> list[int]:
            return [int(tokens) for tokens in encoder.count_tokens(texts)]

        (alone,) = count([""])  # first: an encoder that cannot count says so
        limit = encoder.max_tokens if self.max_tokens is None else self.max_tokens
        if limit > encoder.max_tokens:
            raise DeclarationError(
                f"expected max_tokens of {encoder.max_tokens} or fewer, the limit of the encoder, got {limit}"
            )
        context = Context(self.context, values, text, self._format, count, limit)
        tree = Tree(text, count, limit, alone, self.overlap, self._format, context)
        if self.splitter is None:
            spans = tree.spans(0, len(text))
        else:
            spans = tree.given(list(spans_of(self.splitter, text)))
        return [
            Piece(number, span.start, span.end, span.tokens, *span.context)
            for number, span in enumerate(spans)
        ]

    @property
    def _format(self) -> Format:
        if not isinstance(self.format, str):
            return self.format
        if self.format not in FORMATS:
            raise DeclarationError(f"expected a format, one of {', '.join(FORMATS)}, got {self.format!r}")
        return FORMATS[self.format]


def split(
    text: str,
    encoder: TokenCounter,
    *,
    max_tokens: int | None = None,
    overlap: int = 0,
    format: str | Format = "text",
    context: str = "",
    values: Mapping[str, str | None] | None = None,
    splitter: Splitter | None = None,
) -> list[Piece]:
    """Pieces of ``text``, each within the limit of the encoder's own tokenizer.

    Without ``overlap``, each character is in one piece, blanks included: they belong to what stands before
    them. An empty text has no pieces. No piece ends inside of what readers see as one character, unless that
    alone is beyond the limit.

    :param encoder: whose tokens are counted; anything with ``max_tokens`` and ``count_tokens``.
    :param max_tokens: of a piece, with the encoder's prompt, the context and special tokens; by default, and
        at most, the encoder's limit.
    :param overlap: tokens of what stands before a piece that it repeats, at most: whole sentences, or else
        words.
    :param format: ``"text"``, ``"markdown"``, ``"html"``, ``"code"``, or a :class:`Format` of your own.
    :param context: a template that is put before each piece when it is encoded, and counted: ``{heading}``
        are the headings that the piece stands below, other fields come from ``values``. Of each of the two, a
        quarter of the tokens at most; what is longer is cut.
    :param values: the texts of the fields.
    :param splitter: a :class:`Splitter` of your own; the format is then that of headings, and of what is
        beyond the limit.
    :raises TextError: a text holds half a surrogate pair.
    :raises DeclarationError: an unknown format, a splitter that leaves something out, or limits that leave no
        room for a piece.
    """
    return Splitting(format, max_tokens, overlap, context, splitter).pieces(text, encoder, values)
