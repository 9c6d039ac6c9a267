"""Splitters of one's own: their pieces are taken as they are, cut where they are too long, and checked."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from pgembed.exc import DeclarationError
from pgembed.parts import Skip, Splitting, split
from tests.unit.parts.counting import Words


class Given:
    """A splitter that gives what it was told."""

    name, version = "given", "1"

    def __init__(self, *spans: tuple[int, int] | Skip) -> None:
        self.spans = spans

    def __call__(self, source: str) -> Iterable[tuple[int, int] | Skip]:
        return iter(self.spans)


class Paragraphs:
    """Paragraphs, but for lines of signs."""

    name, version = "paragraphs", 1

    def __call__(self, source: str) -> Iterable[tuple[int, int] | Skip]:
        for found in re.finditer(r"\S.*?(?=\n\n|\Z)", source, re.DOTALL):
            yield Skip(*found.span()) if set(found[0]) == {"*"} else found.span()


def test_its_pieces() -> None:
    source = "One. Two.\n\n*****\n\nThree.\n\n# Top\n\nFour.\n"
    pieces = split(source, Words(40), splitter=Paragraphs(), format="markdown", context="{heading}")
    assert [source[piece.start : piece.end] for piece in pieces] == [
        "One. Two.",
        "Three.",
        "# Top",
        "Four.\n",
    ]
    assert [piece.heading for piece in pieces] == ["", "", "", "Top"]
    assert [piece.number for piece in pieces] == [0, 1, 2, 3]
    assert split("", Words(40), splitter=Paragraphs()) == []


def test_pieces_that_overlap() -> None:
    source = "one two three four"
    pieces = split(source, Words(40), splitter=Given((0, 8), (4, 13), (8, 18)))
    assert [source[piece.start : piece.end] for piece in pieces] == ["one two ", "two three", "three four"]


def test_pieces_beyond_the_limit_are_cut_along_the_format() -> None:
    long = "A sentence of words. " * 30 + "\n## Below\n" + "Another sentence of words. " * 3_000
    source = f"Short.\n\n{long}\n\nShort."
    pieces = split(source, Words(60), splitter=Paragraphs(), format="markdown", context="{heading}")
    assert max(piece.tokens for piece in pieces) <= 60
    texts = [source[piece.start : piece.end] for piece in pieces]
    assert texts[0] == texts[-1] == "Short."
    assert "".join(texts[1:-1]) == long
    assert all(text.lstrip("#").strip()[0].isupper() for text in texts)
    below = next(number for number, text in enumerate(texts) if text.startswith("## Below"))
    assert {piece.heading for piece in pieces[: below + 1]} == {""}
    assert {piece.heading for piece in pieces[below + 1 :]} == {"Below"}


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 5)], "left out 'words here' between 5 and 15"),
        ([(5, 15)], "left out 'some' between 0 and 5"),
        ([(0, 4), (10, 15)], "left out 'words' between 4 and 10"),
        ([], "left out 'some words here' between 0 and 15"),
        ([(0, 16)], r"gave \(0, 16\) after \(0, 0\); .* between 0 and 15"),
        ([(0, 10), (0, 5), (5, 15)], r"gave \(0, 5\) after \(0, 10\)"),
        ([(5, 15), (0, 5)], "left out 'some'"),
        ([(0, 10), (9, 9), (10, 15)], r"gave \(9, 9\) after"),
        ([(-1, 15)], r"gave \(-1, 15\)"),
        ([(0, 10), Skip(9, 15)], r"gave Skip\(start=9, end=15\) after"),
        ([Skip(0, 5), (4, 15)], r"gave \(4, 15\) after"),
    ],
)
def test_a_splitter_that_is_wrong(spans: list[tuple[int, int] | Skip], message: str) -> None:
    with pytest.raises(DeclarationError, match=f"the splitter 'given' {message}"):
        split("some words here", Words(40), splitter=Given(*spans))


def test_what_cannot_be_a_splitter() -> None:
    with pytest.raises(DeclarationError, match=r"found <function .* a callable with a name and a version"):
        Splitting(splitter=lambda source: [])  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match="overlap=5 has no effect with splitter="):
        Splitting(overlap=5, splitter=Paragraphs())
