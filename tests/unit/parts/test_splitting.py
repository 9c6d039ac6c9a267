"""Pieces of long texts: within the limit, without gaps, and the same after an edit elsewhere."""

from __future__ import annotations

import random
import re
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgembed import Encoder
from pgembed.exc import DeclarationError, EncoderOptionError, TextError
from pgembed.parts import FORMATS, Piece, Rank, split, tree
from pgembed.parts.sentences import breaks_character, sentences
from pgembed.parts.tree import hashed
from tests.unit.parts.counting import Words

VOCABULARY = [
    f"{a}{b}{c}" for a in ("mor", "tel", "sun", "ka") for b in "aeiou" for c in ("n", "ra", "dis", "l")
]


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(VOCABULARY, k=rng.randrange(5, 32))).capitalize() + "."


def document(rng: random.Random, characters: int) -> list[str]:
    """Sentences, each with the blanks that follow it: paragraphs of one to eight."""
    made: list[str] = []
    while characters > 0:
        paragraph = [sentence(rng) for _ in range(rng.randrange(1, 9))]
        made += [f"{each} " for each in paragraph[:-1]] + [f"{paragraph[-1]}\n\n"]
        characters -= sum(map(len, paragraph))
    return made


def texts(pieces: list[Piece], source: str) -> list[str]:
    return [source[piece.start : piece.end] for piece in pieces]


def check(
    source: str, encoder: Words | Encoder, limit: int, context: str = "", **options: object
) -> list[Piece]:
    """The pieces, within the limit by the encoder's count, without gaps, in whole characters."""
    pieces = split(source, encoder, context=context, **options)  # type: ignore[arg-type]
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    counts = [
        int(count) for count in encoder.count_tokens([context + each for each in texts(pieces, source)])
    ]
    assert [piece.tokens for piece in pieces] == counts
    assert max(counts, default=0) <= limit
    assert [piece.start for piece in pieces[:1]] + [piece.end for piece in pieces[-1:]] in (
        [],
        [0, len(source)],
    )
    if not options.get("overlap"):
        assert "".join(texts(pieces, source)) == source
    for one, other in pairwise(pieces):
        assert one.start <= other.start <= one.end < other.end
    return pieces


UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
STRANGE = st.lists(
    st.one_of(
        UNICODE.map(lambda text: text[:9]),
        st.sampled_from(
            ["\u0301", "\u200d", "👩\u200d👧", "🇫🇷", "한", "\u1100\u1161", "\r\n", "\n\n", ". ", "。", "   "]
        ),
    ),
    max_size=60,
).map("".join)


@given(
    source=st.one_of(UNICODE, STRANGE),
    limit=st.integers(16, 60),
    overlap=st.integers(0, 4),
    format=st.sampled_from(sorted(FORMATS)),
)
def test_any_text(source: str, limit: int, overlap: int, format: str) -> None:
    pieces = check(source, Words(100), limit, max_tokens=limit, overlap=overlap, format=format)
    assert not any(breaks_character(source, piece.end) for piece in pieces[:-1])


@given(source=STRANGE, limit=st.integers(12, 40))
def test_any_text_by_a_real_tokenizer(minilm: Encoder, source: str, limit: int) -> None:
    check(source, minilm, limit, max_tokens=limit, context="Title: ")


def test_nothing_and_blanks() -> None:
    assert split("", Words(20)) == []
    assert split(" \n\n\t\u3000 ", Words(20)) == [Piece(0, 0, 6, 2)]
    assert split("short", Words(20)) == [Piece(0, 0, 5, 3)]


def test_long_runs(minilm: Encoder) -> None:
    """Of letters, ideographs, blanks, emoji, marks on a letter, and of one line again and again."""
    for source in (
        "abcdefghij" * 5_000,
        "\u65e5\u672c\u8a9e\u6587\u7ae0" * 2_000,
        " " * 200_000,
        "👩\u200d👩\u200d👧\u200d👦🇫🇷👍🏽" * 1_000,
        "e\u0301" * 5_000,
        "a" + "\u0301" * 5_000,
        "One line again.\n" * 1_000,
    ):
        pieces = check(source, minilm, 256)
        assert not any(breaks_character(source, piece.end) for piece in pieces[:-1])


def test_half_a_surrogate_pair() -> None:
    with pytest.raises(TextError, match=r"lone surrogate \(U\+D800"):
        split("a \ud800 b", Words(20))


def test_limits_that_leave_no_room(minilm: Encoder) -> None:
    with pytest.raises(
        DeclarationError, match="expected max_tokens of 20 or fewer, the limit of the encoder, got 21"
    ):
        split("text", Words(20), max_tokens=21)
    with pytest.raises(
        DeclarationError, match=r"20 tokens, less 15 for prompt, context .* leave 5 for a piece"
    ):
        split("text", Words(20), context="word " * 13)
    for overlap in (-1, 10):
        with pytest.raises(DeclarationError, match=f"and {overlap} of overlap"):
            split("text", Words(20), overlap=overlap)
    with pytest.raises(
        DeclarationError, match="expected a format, one of text, markdown, html, code, got 'rtf'"
    ):
        split("text", Words(20), format="rtf")
    with pytest.raises(EncoderOptionError, match="one that counts tokens: a server does not"):
        split("text", Encoder.remote("http://127.0.0.1:1", fingerprint="0" * 32, dimensions=3))


def test_prompt_and_context_count(minilm_folder: object) -> None:
    source = "".join(document(random.Random(1), 20_000))
    with Encoder(str(minilm_folder), document_prompt="passage: ", max_tokens=100) as encoder:
        check(source, encoder, 100)
        check(source, encoder, 100, context="A title of several words\n\n")
        assert encoder.count_tokens(["", "word"]).tolist() == [
            4,
            5,
        ]  # passage, a colon and two special tokens


def test_counts_are_not_cut(minilm: Encoder) -> None:
    counted = minilm.count_tokens(["word " * 1000, "", "x" * 100_000])
    assert counted.tolist() == [1002, 2, 3]


def test_overlap() -> None:
    source = "".join(document(random.Random(2), 20_000))
    plain = check(source, Words(80), 80, max_tokens=60)
    pieces = check(source, Words(80), 80, overlap=20)
    assert [piece.end for piece in pieces] == [piece.end for piece in plain]
    begins = {0, *sentences(source, 0, len(source)), *(found.end() for found in re.finditer("\n\n", source))}
    words = 0
    for piece, other in zip(pieces, plain, strict=True):
        repeated = len(source[piece.start : other.start].split())
        assert piece.number == 0 or 0 < repeated + source[piece.start : other.start].count(".") <= 20
        words += piece.start not in begins
    assert 0 < words < 0.7 * len(pieces)  # where the sentence before is longer than that, its last words


def edited(made: list[str], kind: str, rng: random.Random) -> str:
    """A document with one sentence changed."""
    made = list(made)
    place = rng.randrange(50, len(made) - 50)
    body, blanks = made[place].rstrip(), made[place][len(made[place].rstrip()) :]
    if kind == "word":
        changed = body.split(" ")
        changed[rng.randrange(1, len(changed))] = "another"
        made[place] = " ".join(changed).rstrip(".") + "." + blanks
    elif kind == "longer":
        made[place] = f"{body[:-1]} {' '.join(rng.choices(VOCABULARY, k=rng.randrange(1, 20)))}.{blanks}"
    elif kind == "inserted":
        made.insert(place, f"{sentence(rng)} ")
    elif kind == "deleted":
        made[place] = blanks if "\n" in blanks else ""
    else:
        made[place] = sentence(rng) + blanks
    return "".join(made)


def fixed(source: str, limit: int) -> list[str]:
    """Pieces of as many words as fit, from the beginning on."""
    found = source.split()
    return [" ".join(found[start : start + limit]) for start in range(0, len(found), limit)]


def test_an_edit_changes_the_pieces_around_it() -> None:
    rng = random.Random(3)
    made = document(rng, 200_000)
    source = "".join(made)
    encoder = Words(256)
    old = texts(split(source, encoder), source)
    tokens = [count - 2 for count in encoder.count_tokens(old)]
    assert sum(tokens) / len(old) > 0.5 * 254
    old_fixed = set(fixed(source, 200))
    known: set[str] = set(old)
    total: Counter[int] = Counter()
    moved = 0
    for kind in ("word", "longer", "inserted", "deleted", "replaced") * 12:
        new = edited(made, kind, rng)
        changed = sum(each not in known for each in texts(split(new, encoder), new))
        total[changed] += 1
        moved += sum(each not in old_fixed for each in fixed(new, 200))
    assert max(total) <= 4
    assert sum(count for changed, count in total.items() if changed > 2) <= 0.03 * total.total()
    assert sum(changed * count for changed, count in total.items()) < 1.3 * total.total()
    assert moved > 50 * total.total()


def test_a_longer_beginning_moves_no_piece_behind_it() -> None:
    made = document(random.Random(4), 50_000)
    source = "".join(made)
    new = "A sentence before all others. " * 3 + source
    old = texts(split(source, Words(100)), source)
    assert len(set(texts(split(new, Words(100)), new)) - set(old)) <= 2


def test_work_grows_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "".join(document(random.Random(5), 200_000))
    encoder = Words(256)
    check(source, encoder, 256)
    assert encoder.characters < 3.1 * len(source)  # twice, and once more by the check
    # Where hashes rise from the first line to the last, the tree would be as deep as there are pieces.
    searched = 0
    highest = tree._highest

    def counted(priorities: npt.NDArray[np.float64], left: int, right: int) -> int:
        nonlocal searched
        searched += right - left
        return highest(priorities, left, right)

    monkeypatch.setattr(tree, "_highest", counted)
    lines = sorted((f"{number}\n\n" for number in range(40_000)), key=lambda line: hashed([line])[0])
    check("".join(lines), Words(256), 256)
    assert searched < 200 * len(lines)


def test_memory(minilm: Encoder) -> None:
    source = "".join(document(random.Random(7), 200_000))
    minilm.count_tokens(["open"])
    tracemalloc.start()
    split(source, minilm)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * len(source)


class Verses:
    """A format of one's own: lines, and those after an empty line first."""

    name = "verses"
    version = 1

    def __call__(self, source: str) -> Iterator[tuple[int, int]]:
        for found in re.finditer("\n+", source):
            yield found.end(), 1000 if len(found[0]) > 1 else Rank.LINE


def test_a_format_of_ones_own() -> None:
    source = "\n\n".join(
        "\n".join(f"line {line} of verse {verse}" for line in range(4)) for verse in range(9)
    )
    pieces = check(source, Words(60), 60, format=Verses())
    assert all(source[: piece.end].endswith("\n\n") for piece in pieces[:-1])
    assert len(pieces) > 3


@pytest.mark.parametrize("places", [[5, 3], [-1], [99]])
def test_a_format_that_is_wrong(places: list[int]) -> None:
    class Wrong:
        name, version = "wrong", 1

        def __call__(self, source: str) -> list[tuple[int, int]]:
            return [(place, 1) for place in places]

    with pytest.raises(DeclarationError, match=f"the format 'wrong' gave the position {places[-1]} after"):
        split("some words here", Words(20), format=Wrong())


def test_pieces_stay_as_they_are() -> None:
    """Whoever changes where texts are cut makes stored vectors stale: the version of the formats says so."""
    source = "".join(document(random.Random(8), 3_000))
    found = [piece.end for piece in split(source, Words(100))]
    assert (FORMATS["text"].version, found) == (
        1,
        [443, 833, 959, 1539, 1699, 2246, 2371, 2675, 3227, 3409],
    )
