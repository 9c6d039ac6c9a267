"""What formats find in a text, and that the better places are cut first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgembed.parts import FORMATS, Rank, split
from tests.unit.parts.counting import Words


def found(format: str, source: str) -> dict[str, int]:
    """The first words after each place, and its rank."""
    return {source[place:].split("\n")[0].strip()[:30]: rank for place, rank in FORMATS[format](source)}


def test_text() -> None:
    source = (
        "Title\n=====\n\nFirst. Second\ngoes on.\n\n  Indented one. More.\n\n"
        "* an item\n* another. With two.\n1. numbered\n\nSmaller\n-------\nEnd."
    )
    assert found("text", source) == {
        "Title": Rank.HEADING + 5,
        "First. Second": Rank.LINE,  # a title is not cut from what stands below it
        "Second": Rank.SENTENCE,
        "Indented one. More.": Rank.PARAGRAPH,
        "More.": Rank.SENTENCE,
        "* an item": Rank.PARAGRAPH,
        "* another. With two.": Rank.ITEM,
        "With two.": Rank.SENTENCE,
        "1. numbered": Rank.ITEM,
        "Smaller": Rank.HEADING + 4,
        "End.": Rank.LINE,
    }


def test_markdown() -> None:
    source = (
        "# Top\nText. More.\n\n## Below\n\n```python\n# no heading. None.\n\nx = 1\n```\nAfter.\n\n"
        "| a. B | b |\n|---|---|\n| 1. C | 2 |\n\nSetext\n------\n- item. Two.\n- next\n"
    )
    assert found("markdown", source) == {
        "# Top": Rank.HEADING + 5,
        "Text. More.": Rank.LINE,
        "More.": Rank.SENTENCE,
        "## Below": Rank.HEADING + 4,
        "```python": Rank.LINE,
        "After.": Rank.PARAGRAPH,
        "| a. B | b |": Rank.PARAGRAPH,
        "Setext": Rank.HEADING + 4,
        "- item. Two.": Rank.LINE,
        "Two.": Rank.SENTENCE,
        "- next": Rank.ITEM,
    }


def test_html() -> None:
    source = (
        "<body><h1>Top</h1>text<p title='a. B'>One. <b>Two</b>.</p>\n<!-- no. Thing -->"
        "<h2>Below</h2><ul><li>item</li><li>next. More</li></ul><script>a. B <p> c</script><p>End"
    )
    assert found("html", source) == {
        "<body><h1>Top</h1>text<p title": Rank.HEADING + 5,
        "text<p title='a. B'>One. <b>Tw": Rank.LINE,
        "<p title='a. B'>One. <b>Two</b": Rank.PARAGRAPH,
        "<b>Two</b>.</p>": Rank.SENTENCE,
        "<h2>Below</h2><ul><li>item</li": Rank.HEADING + 4,
        "<ul><li>item</li><li>next. Mor": Rank.LINE,  # a heading is not cut from what stands below it
        "<li>next. More</li></ul><scrip": Rank.ITEM,
        "More</li></ul><script>a. B <p>": Rank.SENTENCE,
        "<script>a. B <p> c</script><p>": Rank.PARAGRAPH,
    }


def test_code() -> None:
    source = (
        '"""Module."""\n\nimport os\nimport sys\n\n\n# A comment\n@decorated\n'
        "def one(\n    a,\n):\n    x = 1\n\n    return x\n\n\n"
        "class Two:\n    def method(self):\n        pass\n"
    )
    assert found("code", source) == {
        '"""Module."""': Rank.PARAGRAPH,
        "import os": Rank.PARAGRAPH,
        "import sys": Rank.SENTENCE,
        "# A comment": Rank.HEADING + 5,  # with what is above the definition
        "a,": Rank.LINE,
        "):": Rank.LINE,
        "x = 1": Rank.LINE,
        "return x": Rank.ITEM,
        "class Two:": Rank.HEADING + 5,
        "def method(self):": Rank.HEADING + 4,
        "pass": Rank.LINE,
    }


@pytest.mark.parametrize(
    ("format", "source", "second"),
    [
        ("text", "word " * 12 + "\n\n" + "word. More " * 6, "word. More"),
        ("markdown", "# A\n\n" + "word " * 9 + "\n\nlast\n\n# B\n\n" + "word " * 14, "# B"),
        ("markdown", "before it. " * 3 + "\n\n| a |\n|---|\n| b |\n| c |\n", "| a |"),
        ("html", "<p>One. " * 3 + "<h2>Two</h2><p>three. Four.", "<h2>Two</h2><p>three. Four."),
        ("code", "def a():\n" + "    x\n" * 3 + "\n    y\n\n@c\ndef b():\n" + "    x = 1\n" * 3, "@c\ndef b"),
    ],
)
def test_the_better_place_is_cut(format: str, source: str, second: str) -> None:
    for limit in (22, 23, 24):
        first, *others = split(source, Words(limit), format=format)
        assert source[first.end :].startswith(second)
        assert len(others) == 1


@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(
        st.sampled_from(
            ["<p>", "</p>", "<h2 ", "<!--", "-->", "<b>", ">", "<", "\n", "\n\n", "\r\n", "#", "```", "~~~",
             "|", "| a |", "-", "=====", "- ", "1. ", ".", "? ", "def f", "class", "    ", "@x", " ", "a",
             "Word", "é", "\u2028", "<script>", "</script >", "。", "\x0c", "\u0301"]
        ),
        max_size=40,
    ).map("".join),
)  # fmt: skip
def test_places_ascend_within_the_text(format: str, source: str) -> None:
    places = [place for place, _ in FORMATS[format](source)]
    assert places == sorted(places)
    assert all(0 <= place <= len(source) for place in places)
    pieces = split(source, Words(12), format=format)
    assert "".join(source[piece.start : piece.end] for piece in pieces) == source
