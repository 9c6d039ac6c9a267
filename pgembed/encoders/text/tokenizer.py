"""Texts to token ids: by a model's ``tokenizer.json``, or by looking up words.

There is no padding, and texts are cut where the spec says, not where ``tokenizer.json`` does.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pgembed.encoders import forks
from pgembed.encoders.files import JsonObject, check_file
from pgembed.exc import EncoderFilesError, EncoderOptionError

TOKENIZER_FILE = "tokenizer.json"
WORDS_FILE = "whitespacetokenizer_config.json"

# Texts for one call of the tokenizer: enough for its threads, few enough that its bulky results stay small,
# of which only arrays of ids are kept.
_CHUNK = 1024
# Of a text with more characters than this for each token of the limit, only the beginning is tokenised; if
# that turns out to be less than _MARGIN tokens over the limit, the whole text is.
_CHARACTERS = 32
_MARGIN = 16
# Characters that are tokenised at once where the places of tokens are needed: a token takes a hundred bytes.
_BLOCK = 1 << 18
_SPLITTING = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "ByteLevel", "Metaspace")


@dataclass(frozen=True)
class Tokens:
    """The token ids of texts, end to end.

    :ivar ids: int32, all texts' ids one after the other.
    :ivar offsets: int64, ``len(texts) + 1`` of them; text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.
    :ivar cut: how many texts were longer than the limit.
    :ivar segments: int64, for each id the text of a pair that it belongs to, where a model is told that.
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    cut: int
    segments: npt.NDArray[np.int64] | None = None

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], *, limit: int) -> Tokens:
        """From the ids of each text, cut at ``limit``."""
        pieces = [np.array(ids[:limit], dtype=np.int32) for ids in texts]
        return cls.joined(pieces, sum(len(ids) > limit for ids in texts))

    @classmethod
    def joined(cls, pieces: Sequence[npt.NDArray[np.int32]], cut: int) -> Tokens:
        """From one array of ids per text."""
        offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
        np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
        return cls(np.concatenate(pieces) if pieces else np.empty(0, np.int32), offsets, cut)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Placed:
    """The tokens of a text and where they stand in it.

    :ivar ids: int32, without special tokens.
    :ivar ends: int64, for each the number of the character after its last.
    :ivar before: the special tokens before them.
    :ivar after: those behind.
    """

    ids: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]
    before: npt.NDArray[np.int32]
    after: npt.NDArray[np.int32]


class AnyTokenizer(Protocol):
    """What the runtime needs of a tokenizer."""

    @property
    def highest_id(self) -> int:
        """The largest token id that it can give."""
        ...

    def leading(self, prompt: str) -> int:
        """How many tokens of a text that begins with ``prompt`` are those of the prompt."""
        ...

    def decode(self, arrays: Sequence[Sequence[int]]) -> list[str]:
        """The texts that arrays of its ids mean."""
        ...

    def __call__(self, texts: Sequence[Any], /) -> Tokens:
        """Tokenise ``texts``, or pairs of texts."""
        ...


def open_tokenizer(
    folder: Path,
    *,
    max_tokens: int,
    special_tokens: bool = True,
    lowercase: bool = False,
    words: bool = False,
) -> AnyTokenizer:
    """Open the tokenizer in ``folder``.

    :param words: whether it is a list of words.
    :raises EncoderFilesError: it is missing or damaged.
    """
    if words:
        return WordTokenizer(folder / WORDS_FILE, max_tokens=max_tokens)
    return Tokenizer(
        folder / TOKENIZER_FILE, max_tokens=max_tokens, special_tokens=special_tokens, lowercase=lowercase
    )


class Tokenizer:
    """A ``tokenizer.json`` without its own padding and limit; the side on which it cuts is kept.

    :param path: the file.
    :param max_tokens: where texts are cut, special tokens included.
    :param special_tokens: whether to add them.
    :param lowercase: whether to lowercase texts first.
    :param pairs: whether texts are halves of pairs, which special tokens are put around later; the limit is
        that of a pair.
    :ivar max_tokens: where texts are cut, without the special tokens of a pair.
    :ivar at_end: whether they are cut at their end.
    :ivar pair: the encoding of a pair of texts.
    :raises EncoderFilesError: the file is missing or not a tokenizer.
    :raises EncoderOptionError: the special tokens alone exceed the limit.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_tokens: int,
        special_tokens: bool = True,
        lowercase: bool = False,
        pairs: bool = False,
    ) -> None:
        import tokenizers

        needed = "the model's tokenizer.json"
        if not path.exists():
            raise EncoderFilesError(path, "no file", needed=needed)
        check_file(path, needed=needed)
        self._path = path
        with self._named_errors():
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        if lowercase:
            steps = [tokenizers.normalizers.Lowercase(), self._tokenizer.normalizer]
            present = [step for step in steps if step is not None]
            self._tokenizer.normalizer = tokenizers.normalizers.Sequence(present)
        self._tokenizer.no_padding()
        least = self._tokenizer.num_special_tokens_to_add(pairs) if special_tokens else 0
        if max_tokens < least:
            raise EncoderOptionError("max_tokens", max_tokens, needed=f"{least} or more, for special tokens")
        side = (self._tokenizer.truncation or {}).get("direction", "right")
        if pairs:
            self._tokenizer.no_truncation()
            self.pair = self._tokenizer.encode("a", "a")
            max_tokens, special_tokens = max_tokens - least, False
        self._tokenizer.enable_truncation(max_tokens, direction=side)
        self.max_tokens = max_tokens
        self.at_end = side == "right"
        beginning_counts = side == "right" and _splits_at_blanks(self._tokenizer)
        self._beginning = _CHARACTERS * max_tokens if beginning_counts else None
        self._special_tokens = special_tokens

    @property
    def highest_id(self) -> int:
        """The largest token id that the tokenizer can give."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenise ``texts``, on several threads (in a forked child, on one)."""
        pieces, cut = self.separately(texts)
        return Tokens.joined(pieces, sum(cut))

    def separately(self, texts: Sequence[str]) -> tuple[list[npt.NDArray[np.int32]], list[bool]]:
        """The ids of each text, and whether it was longer than the limit."""
        pieces: list[npt.NDArray[np.int32]] = []
        cut: list[bool] = []
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            beginnings = [self._begin(text) for text in chunk]
            for text, beginning, encoding in zip(chunk, beginnings, self._encode(beginnings), strict=True):
                if len(beginning) < len(text) and _overflow(encoding) < _MARGIN:
                    (encoding,) = self._encode([text])
                pieces.append(np.array(encoding.ids, dtype=np.int32))
                cut.append(len(pieces[-1]) >= self.max_tokens and bool(encoding.overflowing))
        return pieces, cut

    def length(self, text: str) -> int:
        """How many tokens the whole text has, special tokens included."""
        (encoding,) = self._encode([text])
        return len(encoding) + _overflow(encoding)

    def placed(self, texts: Sequence[str]) -> Iterator[Placed]:
        """The tokens of each whole text with their places, of a tokenizer that does not cut.

        Long texts are tokenised in blocks that begin with a blank, since tokens with their places are bulky.
        """
        special = self._special_tokens
        around = self._tokenizer.encode("a", add_special_tokens=special)
        whole = np.array(around.ids, dtype=np.int32)
        inner = np.flatnonzero(np.array(around.special_tokens_mask) == 0)
        before, after = (whole[: inner[0]], whole[inner[-1] + 1 :]) if len(inner) else (whole, whole[:0])
        for text in texts:
            ids, ends, start = [whole[:0]], [np.empty(0, dtype=np.int64)], 0
            while start < len(text):
                blank = max(text.rfind(character, start + 1, start + _BLOCK) for character in " \n")
                end = len(text) if len(text) - start <= _BLOCK else blank if blank > 0 else start + _BLOCK
                with self._named_errors():
                    encoding = self._tokenizer.encode(text[start:end], add_special_tokens=False)
                ids.append(np.array(encoding.ids, dtype=np.int32))
                ends.append(start + np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[:, 1])
                start = end
            yield Placed(np.concatenate(ids), np.concatenate(ends), before, after)

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        with self._named_errors():
            if forks.inherited("tokenizers"):
                # Its threads were left behind. By itself it would go on without them, except in a process
                # with TOKENIZERS_PARALLELISM=true in its environment, which would wait for them forever.
                return [
                    self._tokenizer.encode(text, add_special_tokens=self._special_tokens) for text in texts
                ]
            encodings: list[Any] = self._tokenizer.encode_batch_fast(
                texts, add_special_tokens=self._special_tokens
            )
        return encodings

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Name the errors of the package: a bare Exception, or a panic, which is a BaseException."""
        try:
            yield
        except BaseException as error:
            if type(error) is not Exception and type(error).__module__ != "pyo3_runtime":
                raise
            found = f"a damaged tokenizer ({error})"
            raise EncoderFilesError(self._path, found, needed="the model's tokenizer.json") from error

    def _begin(self, text: str) -> str:
        """As much of a long text as should be enough to reach the limit, up to a blank.

        If a single word is longer than that, its beginning is taken, and as much again of what follows it:
        some models make one token of a long word.
        """
        most = self._beginning
        if most is None or len(text) <= most:
            return text
        blank = max(text.rfind(character, 0, most) for character in " \n")
        if blank > 0:
            return text[:blank]
        ends = [end for character in " \n" if (end := text.find(character, most)) >= 0]
        rest = min(ends, default=len(text))
        return text[:most] + text[rest : rest + most]

    def decode(self, arrays: Sequence[Sequence[int]]) -> list[str]:
        """The texts that arrays of ids mean, without special tokens."""
        texts: list[str] = self._tokenizer.decode_batch(arrays, skip_special_tokens=True)
        return texts

    def leading(self, prompt: str) -> int:
        """How many tokens of a text that begins with ``prompt`` are those of the prompt."""
        encoding = self._tokenizer.encode(prompt, add_special_tokens=self._special_tokens)
        ends_special = bool(encoding.special_tokens_mask) and bool(encoding.special_tokens_mask[-1])
        return len(encoding.ids) - ends_special


def _overflow(encoding: Any) -> int:
    """How many tokens were cut off."""
    return sum(map(len, encoding.overflowing))


def _splits_at_blanks(tokenizer: Any) -> bool:
    """Whether what follows a blank does not change the tokens before it."""
    if tokenizer.pre_tokenizer is None:
        return False
    state = json.loads(tokenizer.pre_tokenizer.__getstate__())
    steps = state.get("pretokenizers", [state])
    return any(
        step["type"] in _SPLITTING and step.get("use_regex", True) and step.get("split", True)
        for step in steps
    )


class WordTokenizer:
    """A vocabulary of words: the tokenizer of plain word vectors such as GloVe.

    The rules are those of ``WhitespaceTokenizer`` in sentence-transformers: a word is tried as it is, then
    without punctuation around it, then in lower case; stop words and unknown words are left out.

    :param path: JSON with ``vocab``, ``stop_words`` and ``do_lower_case``.
    :param max_tokens: where texts are cut, in words.
    :raises EncoderFilesError: the file is missing or damaged.
    """

    def __init__(self, path: Path, *, max_tokens: int) -> None:
        try:
            config = JsonObject.read(path)
            self._ids = {word: index for index, word in enumerate(config.texts("vocab"))}
            self._stop_words = frozenset(config.texts("stop_words", []))
            self._lowercase = config.flag("do_lower_case", False)
        except EncoderFilesError as error:
            needed = f"{error.needed}, as a word tokenizer has it"
            raise EncoderFilesError(path, f"no vocabulary ({error.found})", needed=needed) from error
        self._max_tokens = max_tokens

    @property
    def highest_id(self) -> int:
        """The largest id of a word."""
        return len(self._ids) - 1

    def decode(self, arrays: Sequence[Sequence[int]]) -> list[str]:
        """The words of arrays of ids, with blanks between them."""
        words = list(self._ids)
        return [" ".join(words[index] for index in ids) for ids in arrays]

    def leading(self, prompt: str) -> int:
        """How many words of a text that begins with ``prompt`` are those of the prompt."""
        return len(self._words(prompt))

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Look up the words of ``texts``."""
        return Tokens.of([self._words(text) for text in texts], limit=self._max_tokens)

    def _words(self, text: str) -> list[int]:
        ids = []
        for word in (text.lower() if self._lowercase else text).split():
            for form in (word, word.strip(string.punctuation), word.strip(string.punctuation).lower()):
                if form in self._stop_words:
                    break
                if form in self._ids:
                    ids.append(self._ids[form])
                    break
        return ids
