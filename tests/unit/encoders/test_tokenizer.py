"""Token ids: of long texts only the beginning is looked at, which must make no difference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from pgembed.encoders.text.tokenizer import TOKENIZER_FILE, WORDS_FILE, Tokenizer, WordTokenizer
from pgembed.exc import EncoderFilesError
from tests.unit.encoders.models import MODELS


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize(
    "text",
    [
        "one two  three\n four " * 900,
        "unbroken" * 3000,
        "unbroken" * 3000 + " " + "late words " * 500,
        "." * 20_000,
        "漢字" * 9000,
        "tab\t" * 9000,
        " " * 20_000 + "late words " * 50,
        "zebra, " + " " * 9000 + "reset. " * 400,
        "naïve Привет 你好 " * 1000,
        "short",
    ],
)
def test_beginning_is_enough(name: str, text: str) -> None:
    path = MODELS / name / TOKENIZER_FILE
    for limit in (16, 40):
        plain = tokenizers.Tokenizer.from_file(str(path))
        plain.no_padding()
        plain.enable_truncation(limit)
        tokens = Tokenizer(path, max_tokens=limit)([text, "a"])
        assert tokens.ids[: tokens.offsets[1]].tolist() == plain.encode(text).ids
        plain.no_truncation()
        assert tokens.cut == (len(plain.encode(text).ids) > limit)


def test_a_long_text_costs_no_more_than_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(MODELS / "bert" / TOKENIZER_FILE, max_tokens=16)
    seen: list[int] = []
    encode = tokenizer._encode
    monkeypatch.setattr(tokenizer, "_encode", lambda texts: (seen.extend(map(len, texts)), encode(texts))[1])
    for unit in ("many words ", "...", "漢字", "a-b", "tab\t"):
        assert tokenizer([unit * 100_000]).cut == 1
    assert sum(seen) < 5000


def test_words_without_any_known_one() -> None:
    tokens = WordTokenizer(MODELS / "words" / WORDS_FILE, max_tokens=4)(
        ["qqq www", "", "one two three four five"]
    )
    assert tokens.lengths.tolist() == [0, 0, 4]
    assert tokens.cut == 1
    assert np.array_equal(tokens.offsets, [0, 0, 0, 4])


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"words": []})])
def test_damaged_words(tmp_path: Path, content: str) -> None:
    (tmp_path / WORDS_FILE).write_text(content)
    with pytest.raises(EncoderFilesError, match="no vocabulary"):
        WordTokenizer(tmp_path / WORDS_FILE, max_tokens=4)
