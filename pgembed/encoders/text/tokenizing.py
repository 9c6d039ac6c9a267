"""The tokenizer of an encoder's folder, of whichever kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pgembed.encoders.spec import EncoderSpec
from pgembed.encoders.text.tokenizer import TOKENIZER_FILE, Tokenizer, Tokens
from pgembed.encoders.text.words import WORDS_FILE, WordTokenizer


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
        """The texts that arrays of its ids stand for."""
        ...

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenise ``texts``."""
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


def tokenizer_of(folder: Path, spec: EncoderSpec) -> AnyTokenizer:
    """The tokenizer in ``folder`` with the limit and the habits that the spec states."""
    return open_tokenizer(
        folder,
        max_tokens=spec.max_tokens,
        special_tokens=spec.special_tokens,
        lowercase=spec.lowercase,
        words=WORDS_FILE in spec.files,
    )
