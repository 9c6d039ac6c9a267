"""Sentences, words and characters of many scripts."""

# ruff: noqa: RUF001
from __future__ import annotations

from itertools import pairwise

import pytest

from pgembed.parts import sentences
from pgembed.parts.sentences import breaks_character, words


@pytest.mark.parametrize(
    "marked",
    [
        "One. |Two! |Three? |Four",
        'He said "Stop." |She (too.) |Nobody else.',
        "Wrapped by\nhand. |It goes\non.",
        "Really?! |Yes... |No",
        "今日は晴れ。|明日は雨。|「そうか。」|終わり",
        "你好吗？|我很好！|再见",
        "यह एक वाक्य है। |दूसरा वाक्य॥ |तीसरा",
        "هل هذا سؤال؟ |نعم. |جملة ثالثة",
        "یہ جملہ ہے۔ |دوسرا",
        "Սա նախադասություն է։ |Երկրորդ",
        "„Ja.“ |Dann ging sie.",
        "ይህ ነው። |ሌላ",
        "Это предложение. |Это второе.",
        "It costs 3.50 or 4.  |Next.",
        "See pgembed.parts and www.example.com for it. |Next",
        "The U.S. economy grew. |And fell.",
        "Dr. Smith and Mr. Jones, e.g. Tom. |They met J. Doe. |End",
        "Prof. Müller sprach u.a. mit Nr. 5. |Ende",
        "It went etc. and so on. |New",
        "Yes., he said. |New",
    ],
)
def test_sentences(marked: str) -> None:
    text = marked.replace("|", "")
    places = [0, *sentences(text, 0, len(text)), len(text)]
    assert "|".join(text[start:end] for start, end in pairwise(places)) == marked


def test_sentences_of_a_span() -> None:
    text = "Before. A. One. Two. After."
    start, end = text.index("One"), text.index("After")
    assert list(sentences(text, start, end)) == [text.index("Two")]


def test_words_and_long_runs() -> None:
    text = " one two\n three"
    assert [text[place:] for place in words(text, 0, len(text))] == ["two\n three", "three"]
    run = "x" * 1000
    places = [0, *words(run, 0, 1000), 1000]
    assert max(b - a for a, b in pairwise(places)) <= 64
    assert max(b - a for a, b in pairwise([0, *words(" " * 500, 0, 500), 500])) <= 64


def test_places_in_a_run_move_with_its_characters() -> None:
    letters = "".join(chr(0x4E00 + (i * i * 7 + i * 13) % 9000) for i in range(2000))
    before = {letters[place:] for place in words(letters, 0, 2000)}
    after = "一二三" + letters
    moved = {after[place:] for place in words(after, 0, len(after))}
    assert len(before) > 50
    assert len(before - moved) <= 3


@pytest.mark.parametrize(
    "characters",
    [
        ["e\u0301", "a\u0308\u0323", "x"],
        ["👩\u200d👩\u200d👧\u200d👦", "👍🏽", "❤\ufe0f", "!"],
        ["🇫🇷", "🇩🇪", "🇯🇵"],
        ["각", "\u1100\u1161\u11a8", "가\u11a8", "나"],
        ["नि", "क", "กี", "z"],
        ["\r\n", "a", "\n"],
        ["🏴\U000e0067\U000e0062\U000e007f", "b"],
    ],
)
def test_characters(characters: list[str]) -> None:
    text = "".join(characters)
    ends = {sum(map(len, characters[:count])) for count in range(1, len(characters))}
    assert {place for place in range(1, len(text)) if not breaks_character(text, place)} == ends
