"""Vectors of spans of a text, of tokens that have read all of it ("late chunking").

The transformer reads the whole text, and the vectors of each span's tokens are averaged: Günther et al.,
"Late Chunking: Contextual Chunk Embeddings Using Long-Context Embedding Models" (2024). A text beyond the
limit is read in overlapping windows, and each token's vector is taken from the window that has more on both
sides of it (as in their "long late chunking").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pgembed.encoders.spec import EncoderSpec
from pgembed.encoders.text.texts import Indices, Vectors
from pgembed.encoders.text.tokenizer import Placed, Tokenizer, Tokens
from pgembed.exc import EncoderOptionError, TextError

#: Another one when the vectors of spans change: part of what decides them, beside the encoder's fingerprint.
VERSION = 1

# Windows have this part of their tokens in common with the one before, or more.
_SHARED = 4

Spans = Sequence[tuple[int, int]]
TokenVectors = Callable[[Tokens], Iterator[tuple[Indices, Vectors]]]
_Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Window:
    """A part of a text's tokens, as it is read.

    :ivar text: the number of the text.
    :ivar ids: with special tokens and prompt.
    :ivar shift: of a token among all of the text to its place in the window.
    :ivar first: of the tokens whose vectors are taken from here.
    :ivar end: after the last one.
    """

    text: int
    ids: npt.NDArray[np.int32]
    shift: int
    first: int
    end: int


def check_spec(spec: EncoderSpec) -> None:
    """
    :raises EncoderOptionError: an encoder of that kind has no vectors of spans.
    """
    if spec.architecture in ("static", "words"):
        needed = "a transformer: averages of word vectors do not depend on what stands beside them"
        raise EncoderOptionError("encoder", spec.name, needed=needed)
    if spec.pooling != ("mean",) or spec.steps not in ((), ("normalize",)):
        found = " and ".join(spec.pooling + spec.steps)
        needed = "mean, with nothing but normalize after it: the vector of a span is the mean of its tokens"
        raise EncoderOptionError("pooling", found, needed=needed)
    if not spec.token_vectors:
        needed = "one whose graph gives the vectors of tokens: export the model again (`pgembed export`)"
        raise EncoderOptionError("encoder", spec.name, needed=needed)


def checked_spans(texts: Sequence[str], spans: Iterable[Iterable[tuple[int, int]]]) -> list[Spans]:
    """The spans of each text as a list.

    :raises TextError: there are not as many lists as texts, or a span is not inside of its text.
    """
    listed: list[Spans] = [[(int(start), int(end)) for start, end in each] for each in spans]
    if len(listed) != len(texts):
        raise TextError(f"found spans of {len(listed)} texts, expected a list for each of the {len(texts)}")
    for position, (text, each) in enumerate(zip(texts, listed, strict=True)):
        for start, end in each:
            if not 0 <= start < end <= len(text):
                found = f"found the span ({start}, {end}) of a text of {len(text)} characters"
                raise TextError(f"{found}, expected 0 <= start < end <= {len(text)}", position=position)
    return listed


def encode(
    texts: Sequence[str],
    spans: Sequence[Spans],
    spec: EncoderSpec,
    tokenizer: Tokenizer,
    token_vectors: TokenVectors,
) -> list[Vectors]:
    """The vectors of the spans of each text; windows without spans are not read.

    :param spans: inside of the texts, in any order; they may overlap.
    :param tokenizer: one that does not cut.
    :param token_vectors: reads texts, batch by batch.
    :raises EncoderOptionError: prompt and special tokens leave no room.
    """
    prompt = spec.document_prompt
    skipped = tokenizer.leading(prompt) if prompt and not spec.include_prompt else 0
    ranges: list[tuple[_Numbers, _Numbers]] = []
    windows: list[_Window] = []
    for number, placed in enumerate(tokenizer.placed([prompt + text for text in texts])):
        places = _Places(placed, len(prompt), len(texts[number]))
        firsts, ends = places.of(spans[number], skipped)
        ranges.append((firsts, ends))
        windows += (
            window
            for window in places.windows(number, spec.max_tokens)
            if ((firsts < window.end) & (ends > window.first)).any()
        )
    sums = [np.zeros((len(each), spec.width)) for each in spans]
    for batch, vectors in token_vectors(Tokens.joined([window.ids for window in windows], 0)):
        for index, row in zip(batch, vectors, strict=True):
            window = windows[index]
            firsts, ends = ranges[window.text]
            for span in np.flatnonzero((firsts < window.end) & (ends > window.first)).tolist():
                first = max(firsts[span], window.first) - window.shift
                end = min(ends[span], window.end) - window.shift
                sums[window.text][span] += row[first:end].sum(axis=0)
    return [
        _kept(total / np.maximum(ends - firsts, 1)[:, None], spec)
        for total, (firsts, ends) in zip(sums, ranges, strict=True)
    ]


def _kept(means: npt.NDArray[np.float64], spec: EncoderSpec) -> Vectors:
    """The first dimensions, normalised where those of the model are."""
    kept = means[:, : spec.dimensions]
    if spec.normalize:
        kept = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)
    return kept.astype(np.float32)


class _Places:
    """The tokens of a text with its prompt, numbered from 0, special ones included.

    :param placed: what the tokenizer says.
    :param prompt: characters of the prompt.
    :param length: characters of the text.
    """

    def __init__(self, placed: Placed, prompt: int, length: int) -> None:
        ends = np.maximum.accumulate(placed.ends)
        of_prompt = int(np.searchsorted(ends, prompt, side="right")) if prompt else 0
        self._before = np.concatenate([placed.before, placed.ids[:of_prompt]])
        self._ids = placed.ids[of_prompt:]
        self._ends = ends[of_prompt:] - prompt
        self._after = placed.after
        self._length = length

    def of(self, spans: Spans, skipped: int) -> tuple[_Numbers, _Numbers]:
        """The first token of each span and the one after its last: those whose last character it has.

        A span within a token has that one, and one of a text without any has them all. Special tokens and
        those of the prompt are of the spans at the two ends of the text, but the first ``skipped`` of none.
        """
        starts, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
        count = len(self._ids)
        total = len(self._before) + count + len(self._after)
        first = np.searchsorted(self._ends, starts, side="right")
        end = np.searchsorted(self._ends, ends, side="right")
        first = np.where(first < end, first, np.minimum(first, max(count - 1, 0)))
        end = np.maximum(end, np.minimum(first + 1, count))
        first = np.where(starts == 0, 0, first + len(self._before))
        end = np.where(ends == self._length, total, end + len(self._before))
        empty = first >= end
        return np.maximum(np.where(empty, 0, first), skipped), np.where(empty, total, end)

    def windows(self, text: int, limit: int) -> Iterator[_Window]:
        """What is read of the text, each with special tokens and prompt."""
        count, around = len(self._ids), len(self._before) + len(self._after)
        room = limit - around
        if room < 1:
            needed = f"more than {around}, the tokens of the prompt and the special ones"
            raise EncoderOptionError("max_tokens", limit, needed=needed)
        step = room - room // _SHARED
        last = max(-(-(count - room) // step), 0)
        starts = [number * (count - room) // last for number in range(last + 1)] if last else [0]
        # In the middle of what two windows have in common.
        borders = [len(self._before) + (start + room + other) // 2 for start, other in pairwise(starts)]
        for start, (first, end) in zip(starts, pairwise([0, *borders, around + count]), strict=True):
            ids = np.concatenate([self._before, self._ids[start : start + room], self._after])
            yield _Window(text, ids, start, first, end)
