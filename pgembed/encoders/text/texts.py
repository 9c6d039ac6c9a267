"""Texts on their way in: checked, cut into pieces, equal ones encoded once; and types for their vectors."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from pgembed.exc import TextError

Kind = Literal["document", "query"]
Pair = tuple[str, str]
Text = str | Pair  # what a backend computes a row of numbers for
Vectors = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]
Encode = Callable[[list[str]], tuple[Vectors, Counts]]
Indices = npt.NDArray[np.intp]

AnyText = TypeVar("AnyText", str, Pair)

_ROWS = 4096  # moved at once


class Encoded(NamedTuple):
    """Vectors of texts.

    :ivar vectors: float32 of shape (texts, dimensions).
    :ivar counts: tokens of each text, as many as were computed with; 0 where only a server knows.
    :ivar cut: how many texts were longer than the limit.
    """

    vectors: Vectors
    counts: Counts
    cut: int


def checked(texts: Iterable[str]) -> list[str]:
    """``texts`` as a list of encodable strings.

    Empty strings and NUL characters are fine: tokenizers know what to do with them.

    :raises TextError: a text is not a string, or holds half a surrogate pair; with the position of the first.
    """
    if isinstance(texts, (str, bytes)):
        raise TextError(
            f"a single {type(texts).__name__} was given where a list of texts is needed: put it into a list"
        )
    listed = list(texts)
    for position, text in enumerate(listed):
        _check_text(text, position)
    return listed


def checked_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """``pairs`` as a list of pairs of encodable strings.

    :raises TextError: one is not a pair, or one of its texts is not a text; with the position of the first.
    """
    if isinstance(pairs, (str, bytes)):
        raise TextError(f"a single {type(pairs).__name__} was given where a list of pairs is needed")
    listed: list[Pair] = []
    for position, pair in enumerate(pairs):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            found = f"{type(pair).__name__} of {len(pair)}" if hasattr(pair, "__len__") else repr(type(pair))
            raise TextError(f"found {found}, expected a pair of texts (query, text)", position=position)
        for text in pair:
            _check_text(text, position)
        listed.append((pair[0], pair[1]))
    return listed


def _check_text(text: Any, position: int) -> None:
    """:raises TextError: it is not an encodable string."""
    if not isinstance(text, str):
        raise TextError(f"found {type(text).__name__}, expected str", position=position)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(
                f"found a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), "
                "which is not text: decode the bytes with errors='replace' instead of 'surrogateescape'",
                position=position,
            ) from None


def checked_ids(arrays: Iterable[Sequence[int]], highest: int) -> list[list[int]]:
    """Token ids, a list for each text.

    :param highest: the largest id that there is.
    :raises TextError: a text is not a list of ids; with the position of the first.
    """
    checked: list[list[int]] = []
    for position, ids in enumerate(arrays):
        if not isinstance(ids, (list, tuple)):
            found = f"found {type(ids).__name__}, expected a list of token ids as the others are"
            raise TextError(found, position=position)
        if not ids:
            raise TextError("found no token ids in the list, expected at least one", position=position)
        for token in ids:
            if type(token) is not int:
                found = f"found {type(token).__name__} among the token ids, expected integers"
                raise TextError(found, position=position)
            if not 0 <= token <= highest:
                shown = str(token)[:20] if abs(token) < 10**20 else "a very large number"
                found = f"found the token id {shown}, expected 0 to {highest}"
                raise TextError(found, position=position)
        checked.append(list(ids))
    return checked


def pieces(sizes: Sequence[int], *, count: int, room: float) -> Iterator[tuple[int, int]]:
    """Where to cut a list: each piece has ``count`` items at most, of sizes that sum up to ``room`` at most.

    An item larger than ``room`` makes a piece.
    """
    start, total = 0, 0.0
    for index, size in enumerate(sizes):
        total += size
        if index > start and (index - start == count or total > room):
            yield start, index
            start, total = index, size
    yield start, len(sizes)


def distinct(texts: Sequence[AnyText]) -> tuple[list[AnyText], Indices]:
    """The different texts in order of appearance, and for each text the index of its equal among them."""
    seen: dict[AnyText, int] = {}
    inverse = np.fromiter(
        (seen.setdefault(text, len(seen)) for text in texts), dtype=np.intp, count=len(texts)
    )
    return list(seen), inverse


def repeated(vectors: Vectors, inverse: Indices) -> Vectors:
    """``vectors[inverse]`` for the indices of :func:`distinct`, in place.

    The first of equal texts comes no later than the others, so rows can be filled from the last to the first,
    and there are never two copies of a large result.
    """
    vectors.resize((len(inverse), vectors.shape[1]), refcheck=False)
    for end in range(len(inverse), 0, -_ROWS):
        start = max(end - _ROWS, 0)
        vectors[start:end] = vectors[inverse[start:end]]
    return vectors


class RecentVectors:
    """A small cache of vectors by text; the least recently used are dropped.

    :param size: the number of texts.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[Vectors, int]] = OrderedDict()

    def through(self, texts: list[str], encode: Encode, dimensions: int) -> tuple[Vectors, Counts]:
        """Vectors of ``texts`` and their numbers of tokens; only the unknown ones go to ``encode``.

        :returns: float32 of shape (texts, dimensions) and int64 of shape (texts), for the caller to keep.
        """
        if not self._size:
            return encode(texts)
        vectors = np.empty((len(texts), dimensions), dtype=np.float32)
        counts = np.empty(len(texts), dtype=np.int64)
        missing = []
        with self._lock:
            for index, text in enumerate(texts):
                known = self._known.get(text)
                if known is None:
                    missing.append(index)
                else:
                    self._known.move_to_end(text)
                    vectors[index], counts[index] = known
        if missing:
            vectors[missing], counts[missing] = encode([texts[index] for index in missing])
            with self._lock:
                for index in missing[-self._size :]:
                    self._known[texts[index]] = vectors[index].copy(), int(counts[index])
                while len(self._known) > self._size:
                    self._known.popitem(last=False)
        return vectors, counts
