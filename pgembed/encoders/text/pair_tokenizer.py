"""Pairs of texts to token ids: each text by itself, cut together, with the special tokens around them.

Of a pair that is too long the longer text is cut first, down to the length of the other, and then both: the
strategy ``longest_first`` of the package ``tokenizers``, which ``transformers`` uses. It is written here
because that package makes all combinations of what it cuts off, millions for two long texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgembed.encoders.spec import EncoderSpec
from pgembed.encoders.text.texts import Pair, distinct
from pgembed.encoders.text.tokenizer import (
    TOKENIZER_FILE,
    WORDS_FILE,
    AnyTokenizer,
    Tokenizer,
    Tokens,
    open_tokenizer,
)
from pgembed.exc import EncoderFilesError

Ids = npt.NDArray[np.int32]
_NO_LIMIT = 2**31 - 1


def tokenizer_of(folder: Path, spec: EncoderSpec, *, whole: bool = False) -> AnyTokenizer:
    """The tokenizer in ``folder`` with the options of the spec, and its limit unless texts stay ``whole``."""
    limit = _NO_LIMIT if whole else spec.max_tokens
    if spec.labels:
        return PairTokenizer(
            folder / TOKENIZER_FILE,
            max_tokens=limit,
            lowercase=spec.lowercase,
            segments=spec.segments,
        )
    return open_tokenizer(
        folder,
        max_tokens=limit,
        special_tokens=spec.special_tokens,
        lowercase=spec.lowercase,
        words=WORDS_FILE in spec.files,
    )


class PairTokenizer:
    """A ``tokenizer.json`` for pairs of texts.

    :param path: the file.
    :param max_tokens: where pairs are cut, special tokens included.
    :param lowercase: whether to lowercase texts first.
    :param segments: whether the tokens of the two texts are told apart.
    :raises EncoderFilesError: the file is missing, or not a tokenizer of pairs.
    :raises EncoderOptionError: the special tokens alone exceed the limit.
    """

    def __init__(
        self, path: Path, *, max_tokens: int, lowercase: bool = False, segments: bool = False
    ) -> None:
        self._single = Tokenizer(path, max_tokens=max_tokens, lowercase=lowercase, pairs=True)
        self._around, self._segments = _template(self._single.pair, path)
        self._tells = segments

    def __call__(self, pairs: Sequence[Pair]) -> Tokens:
        """Tokenise ``pairs``; a text that is in several of them once."""
        if not pairs:
            return Tokens.joined([], 0)
        texts, places = distinct(list(chain.from_iterable(pairs)))
        ids, cut = self._single.separately(texts)
        lengths = np.array([len(each) for each in ids], dtype=np.int64)[places].reshape(-1, 2)
        kept = self._kept(lengths, pairs)
        before, between, after = self._around
        pieces: list[Ids] = []
        for index, (left, right) in enumerate(kept.tolist()):
            first, second = ids[places[2 * index]], ids[places[2 * index + 1]]
            pieces += (before, self._cut(first, left), between, self._cut(second, right), after)
        sizes = np.ones((len(pairs), len(self._segments)), dtype=np.int64)
        sizes[:, [len(before), len(before) + 1 + len(between)]] = kept
        offsets = np.concatenate([[0], np.cumsum(sizes.sum(axis=1))])
        half_cut = np.array(cut)[places].reshape(-1, 2).any(axis=1)
        too_long = half_cut | (lengths.sum(axis=1) > self._single.max_tokens)
        segments = np.repeat(np.tile(self._segments, len(pairs)), sizes.ravel()) if self._tells else None
        return Tokens(np.concatenate(pieces), offsets, int(too_long.sum()), segments)

    def _kept(self, lengths: npt.NDArray[np.int64], pairs: Sequence[Pair]) -> npt.NDArray[np.int64]:
        """How many tokens are kept of either text, which has ``lengths``, or more if that is all the room."""
        room = self._single.max_tokens
        shorter = lengths.min(axis=1)
        kept: npt.NDArray[np.int64] = np.minimum(lengths, np.maximum(room - shorter, shorter)[:, None])
        for index in np.flatnonzero(2 * shorter > room).tolist():
            left, right = lengths[index].tolist()
            if left == right == room and room % 2:  # either may be longer than that
                left, right = (self._single.length(text) for text in pairs[index])
            kept[index] = room // 2
            kept[index, 0 if left > right else 1] += room % 2
        return kept

    def _cut(self, ids: Ids, count: int) -> Ids:
        return ids[:count] if self._single.at_end else ids[len(ids) - count :]

    @property
    def highest_id(self) -> int:
        """The largest token id that the tokenizer can give."""
        return self._single.highest_id

    def leading(self, prompt: str) -> int:
        """How many tokens of a text that begins with ``prompt`` are those of the prompt."""
        return self._single.leading(prompt)

    def decode(self, arrays: Sequence[Sequence[int]]) -> list[str]:
        """The texts that arrays of its ids mean."""
        return self._single.decode(arrays)


def _template(pair: Any, path: Path) -> tuple[list[Ids], npt.NDArray[np.int64]]:
    """The special tokens before, between and after the texts of a pair; the segments of them and the texts.

    :raises EncoderFilesError: the tokenizer does something else with pairs.
    """
    texts = np.array([-1 if text is None else text for text in pair.sequence_ids])
    first, second = np.flatnonzero(texts == 0), np.flatnonzero(texts == 1)
    whole = [len(places) and places[-1] - places[0] == len(places) - 1 for places in (first, second)]
    if not all(whole) or first[0] > second[0]:
        found = f"pairs that are put together as {' '.join(pair.tokens)[:80]!r}"
        raise EncoderFilesError(path, found, needed="two texts, one after the other")
    ids, segments = np.array(pair.ids, dtype=np.int32), np.array(pair.type_ids)
    parts = slice(first[0]), slice(first[-1] + 1, second[0]), slice(second[-1] + 1, None)
    once = np.ones(len(ids), dtype=bool)
    once[first[1:]] = once[second[1:]] = False
    return [ids[part] for part in parts], segments[once]
