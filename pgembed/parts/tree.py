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
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pgembed.exc import DeclarationError
from pgembed.parts.context import Context, CountTokens, Put
from pgembed.parts.formats import Format, Rank, places_of
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


class Span(NamedTuple):
    """A piece: where it starts and ends, its tokens with what is put before it."""

    start: int
    end: int
    tokens: int
    context: Put


class Tree:
    """The pieces of one text.

    :param source: the text.
    :param count: what counts the tokens of texts.
    :param limit: tokens of a piece, with all that is put before it.
    :param alone: tokens that the encoder adds to each text.
    :param overlap: tokens that a piece repeats, at most.
    :param context: what is put before each piece.
    :raises DeclarationError: the limits leave no room for a piece.
    """

    def __init__(
        self,
        source: str,
        count: CountTokens,
        limit: int,
        alone: int,
        overlap: int,
        format: Format,
        context: Context,
    ) -> None:
        self._source = source
        self._counted = count
        self._format = format
        self._context = context
        self._alone = alone
        self._limit = limit
        self._room = limit - overlap - context.most
        if overlap < 0 or self._room < max(_LEAST_ROOM, overlap):
            least = max(_LEAST_ROOM, overlap)
            raise DeclarationError(
                f"{limit} tokens, less {context.most} for prompt, context and special tokens and {overlap} "
                f"of overlap, leave {max(self._room, 0)} for a piece; expected {least} or more: allow more "
                "tokens, or shorten the context or the overlap"
            )
        self._overlap = overlap

    def spans(self, start: int, end: int) -> Iterator[Span]:
        """The pieces of ``source[start:end]``, in their order."""
        if start == end:
            return
        starts, ranks, sizes = self._atoms(start, end)
        ends = [*starts[1:].tolist(), end]
        heads = (
            self._source[start : min(start + 2 * _HASHED, end)]
            for start, end in zip(starts.tolist(), ends, strict=True)
        )
        cuts = self._cut(starts, sizes, ranks + hashed(heads))
        whole = [(int(starts[a]), ends[b - 1], a) for a, b in cuts]
        yield from self._fitting(
            [
                (self._before(starts, sizes, first) if self._overlap else own, own, end)
                for own, end, first in whole
            ]
        )

    # --- what is never cut, unless nothing else is left -----------------------------------------------

    def _atoms(
        self, start: int, end: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Start, rank and tokens of sentences and the like; of those that do not fit, of their words."""
        starts: list[int] = []
        ranks: list[int] = []
        sizes: list[int] = []
        places = places_of(self._format, self._source, start, end)
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

    def _inside(self, start: int, end: int) -> Iterator[int]:
        """Words, or pieces of long ones: where one would begin inside of a character, after that."""
        last = start
        for place in words(self._source, start, end):
            while place < end and breaks_character(self._source, place):
                place += 1
            if last < place < end:
                yield place
                last = place

    def _sizes(self, texts: Sequence[str]) -> list[int]:
        """Tokens of texts by themselves."""
        return [max(count - self._alone, 0) for count in self._counted(texts)]

    # --- where to cut -----------------------------------------------------------------------------------

    def _cut(
        self,
        starts: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        priorities: npt.NDArray[np.float64],
    ) -> Iterator[tuple[int, int]]:
        """The first atom of each piece and the one after its last.

        How much fits depends on the context of the first one: of headings elsewhere, nothing is known here.
        """
        before = np.concatenate([[0], np.cumsum(sizes)])
        waiting = [(0, len(sizes))]
        while waiting:
            first, last = waiting.pop()
            total = before[last] - before[first]
            room = self._room + self._context.spared(int(starts[first]))
            if total <= room or last - first == 1:
                yield first, last
                continue
            least = max(room // _LEAST, total // _LEAST_OF_LONG)
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

    def given(self, spans: Sequence[tuple[int, int]]) -> Iterator[Span]:
        """Spans that a splitter has found; those with too many tokens are cut as a text of their own."""
        longest = self._limit * _CHARACTERS
        for at in range(0, len(spans), _BLOCK):
            block = [(start, start, min(end, start + longest)) for start, end in spans[at : at + _BLOCK]]
            for span, (start, end) in zip(self._counted_spans(block), spans[at : at + _BLOCK], strict=True):
                if span.tokens <= self._limit and span.end == end:
                    yield span
                else:
                    yield from self.spans(start, end)

    def _fitting(self, spans: Sequence[tuple[int, int, int]]) -> Iterator[Span]:
        """Spans with their tokens, cut where they have too many: a text may have more tokens than those of
        its parts together.

        :param spans: where each starts with what it repeats, where by itself, and where it ends.
        """
        for at in range(0, len(spans), _BLOCK):
            block = spans[at : at + _BLOCK]
            for span, (start, own, end) in zip(self._counted_spans(block), block, strict=True):
                if span.tokens <= self._limit or end - start == 1:
                    yield span
                else:
                    middle = self._middle(start, end)
                    first = (start, own if own < middle else start, middle)
                    yield from self._fitting([first, (middle, max(own, middle), end)])

    def _counted_spans(self, spans: Sequence[tuple[int, int, int]]) -> list[Span]:
        contexts = [self._context.at(own) for _, own, _ in spans]
        counts = self._counted(
            [put.text + self._source[start:end] for put, (start, _, end) in zip(contexts, spans, strict=True)]
        )
        return [
            Span(start, end, count, put)
            for (start, _, end), count, put in zip(spans, counts, contexts, strict=True)
        ]

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
