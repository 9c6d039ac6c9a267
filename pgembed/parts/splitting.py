"""A long text to pieces that an encoder reads whole.

Where a text is cut depends on what stands there, not on how far from the beginning that is: the whole text is
cut at its best place, and both sides again, until each fits. The best place is the one of the highest
:class:`Rank`; among equal ones a hash of the words that follow decides. So an edit changes the piece it is
in, and pieces elsewhere keep their texts. (The tree of the cuts is a treap: Seidel and Aragon, "Randomized
Search Trees", 1996.)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pgembed.encoders.text.texts import checked
from pgembed.exc import DeclarationError
from pgembed.parts.formats import FORMATS, Format, Rank
from pgembed.parts.sentences import breaks_character, words

# No piece is smaller than this part of the limit where another place is left to cut at; of a very long text,
# none of the two sides is smaller than that part of it, so that the tree is not deep whatever the hashes are.
_LEAST = 8
_LEAST_OF_LONG = 128
# Characters of a token, at most: what is longer than the limit by this is cut without counting its tokens.
_CHARACTERS = 16
_HASHED = 20
_BLOCK = 1024  # texts that are tokenised together
_LEAST_ROOM = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text.

    :ivar number: its place among the pieces, from 0.
    :ivar start: of its first character in the source.
    :ivar end: after its last character: it is ``source[start:end]``.
    :ivar tokens: as many as the encoder reads, with prompt, context and special tokens.
    """

    number: int
    start: int
    end: int
    tokens: int


class TokenCounter(Protocol):
    """What splitting needs of an encoder; :class:`pgembed.Encoder` has it."""

    @property
    def max_tokens(self) -> int:
        """Tokens at which texts are cut."""
        ...

    def count_tokens(self, texts: Sequence[str], /) -> Iterable[int]:
        """Tokens of each text, with all that the encoder adds, uncut."""
        ...


def split(
    text: str,
    encoder: TokenCounter,
    *,
    max_tokens: int | None = None,
    overlap: int = 0,
    format: str | Format = "text",
    context: str = "",
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
    :param context: put before each piece when it is encoded, and counted.
    :raises TextError: the text holds half a surrogate pair.
    :raises DeclarationError: an unknown format, or limits that leave no room for a piece.
    """
    (text,) = checked([text])
    return _Splitting(text, encoder, max_tokens, overlap, _format(format), context).pieces()


def _format(given: str | Format) -> Format:
    if not isinstance(given, str):
        return given
    if given not in FORMATS:
        raise DeclarationError(f"expected a format, one of {', '.join(FORMATS)}, got {given!r}")
    return FORMATS[given]


class _Splitting:
    def __init__(
        self,
        source: str,
        encoder: TokenCounter,
        max_tokens: int | None,
        overlap: int,
        format: Format,
        context: str,
    ) -> None:
        self._source = source
        self._encoder = encoder
        self._format = format
        self._context = context
        self._alone, added = self._counted(["", context])
        self._limit = encoder.max_tokens if max_tokens is None else max_tokens
        if self._limit > encoder.max_tokens:
            raise DeclarationError(
                f"expected max_tokens of {encoder.max_tokens} or fewer, the limit of the encoder, got "
                f"{max_tokens}"
            )
        self._room = self._limit - added - overlap
        if overlap < 0 or self._room < max(_LEAST_ROOM, overlap):
            raise DeclarationError(
                f"{self._limit} tokens, less {added} for prompt, context and special tokens and {overlap} of "
                f"overlap, leave {max(self._room, 0)} for a piece; expected {max(_LEAST_ROOM, overlap)} or "
                "more: allow more tokens, or shorten the context or the overlap"
            )
        self._overlap = overlap

    def pieces(self) -> list[Piece]:
        """The pieces, in their order."""
        if not self._source:
            return []
        starts, ranks, sizes = self._atoms()
        ends = [*starts[1:].tolist(), len(self._source)]
        heads = (
            self._source[start : min(start + 2 * _HASHED, end)]
            for start, end in zip(starts.tolist(), ends, strict=True)
        )
        spans = [(starts[a], ends[b - 1], a) for a, b in self._cut(sizes, ranks + hashed(heads))]
        whole = [(int(start), end) for start, end, _ in spans]
        if self._overlap:
            found = [self._before(starts, sizes, first) for _, _, first in spans]
            whole = [(before, end) for before, (_, end) in zip(found, whole, strict=True)]
        return [
            Piece(number, start, end, tokens)
            for number, (start, end, tokens) in enumerate(self._fitting(whole))
        ]

    # --- what is never cut, unless nothing else is left -----------------------------------------------

    def _atoms(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Start, rank and tokens of sentences and the like; of those that do not fit, of their words."""
        starts: list[int] = []
        ranks: list[int] = []
        sizes: list[int] = []
        places = self._places()
        while block := list(islice(places, _BLOCK)):
            longest = self._room * _CHARACTERS
            short = [self._source[s:e] if e - s <= longest else "" for s, e, _ in block]
            for (start, end, rank), size in zip(block, self._sizes(short), strict=True):
                if size <= self._room and end - start <= longest:
                    starts.append(start)
                    ranks.append(rank)
                    sizes.append(size)
                    continue
                inner = [start, *self._inside(start, end), end]
                starts += inner[:-1]
                lines = (self._source[place - 1] in "\n\r" for place in inner[1:-1])
                ranks += [rank, *(Rank.LINE if line else Rank.WORD for line in lines)]
                for at in range(0, len(inner) - 1, _BLOCK):
                    sizes += self._sizes(
                        [self._source[s:e] for s, e in pairwise(inner[at : at + _BLOCK + 1])]
                    )
        return np.array(starts), np.array(ranks, dtype=np.int32), np.array(sizes)

    def _places(self) -> Iterator[tuple[int, int, int]]:
        """Start, end and rank of what the format finds."""
        start, rank = 0, int(Rank.LINE)
        for place, found in self._format(self._source):
            if not start <= place <= len(self._source):
                raise DeclarationError(
                    f"the format {self._format.name!r} gave the position {place} after {start}; expected "
                    f"ascending ones between 0 and {len(self._source)}"
                )
            if place == start:
                rank = max(rank, int(found))
            if place in (start, len(self._source)):
                continue
            if breaks_character(self._source, place):
                continue
            yield start, place, rank
            start, rank = place, int(found)
        yield start, len(self._source), rank

    def _inside(self, start: int, end: int) -> Iterator[int]:
        """Words, or pieces of long ones: where one would begin inside of a character, after that."""
        last = start
        for place in words(self._source, start, end):
            while place < end and breaks_character(self._source, place):
                place += 1
            if last < place < end:
                yield place
                last = place

    def _counted(self, texts: Sequence[str]) -> list[int]:
        return [int(count) for count in self._encoder.count_tokens(texts)]

    def _sizes(self, texts: Sequence[str]) -> list[int]:
        """Tokens of texts by themselves."""
        return [max(count - self._alone, 0) for count in self._counted(texts)]

    # --- where to cut -----------------------------------------------------------------------------------

    def _cut(
        self, sizes: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]
    ) -> Iterator[tuple[int, int]]:
        """The first atom of each piece and the one after its last."""
        before = np.concatenate([[0], np.cumsum(sizes)])
        waiting = [(0, len(sizes))]
        while waiting:
            first, last = waiting.pop()
            total = before[last] - before[first]
            if total <= self._room or last - first == 1:
                yield first, last
                continue
            least = max(self._room // _LEAST, total // _LEAST_OF_LONG)
            left = max(first + 1, int(np.searchsorted(before, before[first] + least)))
            right = min(last, int(np.searchsorted(before, before[last] - least, side="right")))
            if left >= right:
                left, right = first + 1, last
            place = _highest(priorities, left, right)
            waiting += [(place, last), (first, place)]

    def _before(self, starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], first: int) -> int:
        """Where a piece begins that repeats what fits of the atoms before ``first``."""
        left, atom = self._overlap, first
        while atom > 0 and sizes[atom - 1] <= left:
            atom -= 1
            left -= int(sizes[atom])
        if atom < first or first == 0:
            return int(starts[atom])
        inner = [int(starts[first - 1]), *self._inside(int(starts[first - 1]), int(starts[first]))]
        ends = [*inner[1:], int(starts[first])]
        start = int(starts[first])
        for place, size in zip(
            reversed(inner),
            reversed(self._sizes([self._source[s:e] for s, e in zip(inner, ends, strict=True)])),
            strict=True,
        ):
            left -= size
            if left < 0:
                break
            start = place
        return start

    # --- what the tokenizer says of it -----------------------------------------------------------------

    def _fitting(self, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
        """Spans with their tokens; the tokens of a text may be more than those of its parts together."""
        for at in range(0, len(spans), _BLOCK):
            block = spans[at : at + _BLOCK]
            counts = self._counted([self._context + self._source[start:end] for start, end in block])
            for (start, end), count in zip(block, counts, strict=True):
                if count <= self._limit or end - start == 1:
                    yield start, end, count
                else:
                    middle = self._middle(start, end)
                    yield from self._fitting([(start, middle), (middle, end)])

    def _middle(self, start: int, end: int) -> int:
        """Of the places in a span the one nearest to its middle: a word's, a character's, or any."""
        middle = (start + end) // 2
        inner = list(self._inside(start, end))
        if inner:
            return min(inner, key=lambda place: abs(place - middle))
        for distance in range(end - start - 1):
            place = middle + (-distance // 2 if distance % 2 else distance // 2)
            if start < place < end and not breaks_character(self._source, place):
                return place
        return middle


def hashed(heads: Iterable[str]) -> npt.NDArray[np.float64]:
    """Numbers of at least 0 and less than 1, made of the first words of texts."""
    checksums = [zlib.crc32(head.strip()[:_HASHED].encode()) for head in heads]
    hashes = np.array(checksums, dtype=np.uint32) * np.uint32(0x9E3779B1)  # so that like texts are far apart
    return np.asarray((hashes ^ (hashes >> np.uint32(16))) / 2.0**32)


def _highest(priorities: npt.NDArray[np.float64], left: int, right: int) -> int:
    """The index of the highest in ``[left, right)``; of equal ones, as repeated texts have them, the one
    nearest to the middle."""
    middle = (left + right) // 2
    after = middle + int(priorities[middle:right].argmax())
    if middle == left:
        return after
    before = middle - 1 - int(priorities[left:middle][::-1].argmax())
    if priorities[before] == priorities[after]:
        return before if middle - before <= after - middle else after
    return before if priorities[before] > priorities[after] else after
