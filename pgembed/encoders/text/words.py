"""Words to ids by looking them up: the tokenizer of plain word vectors such as GloVe.

The rules are those of ``WhitespaceTokenizer`` in sentence-transformers: a word is tried as it is, then
without punctuation around it, then in lower case; stop words and unknown words are left out.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

from pgembed.encoders.settings import Settings
from pgembed.encoders.text.tokenizer import Tokens
from pgembed.exc import EncoderFilesError

WORDS_FILE = "whitespacetokenizer_config.json"


class WordTokenizer:
    """A vocabulary of words.

    :param path: JSON with ``vocab``, ``stop_words`` and ``do_lower_case``.
    :param max_tokens: words of a text beyond which it is cut.
    :raises EncoderFilesError: the file is missing or says something else.
    """

    def __init__(self, path: Path, *, max_tokens: int) -> None:
        try:
            config = Settings.read(path)
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
