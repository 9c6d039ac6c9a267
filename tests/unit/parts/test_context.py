"""What is put before pieces: headings and texts of the row, within their share of the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgembed import Encoder
from pgembed.exc import DeclarationError, TextError
from pgembed.parts import FORMATS, Piece, Splitting, split
from tests.unit.parts.counting import Words

GUIDE = """Before all.

# Guide ##

Its beginning. {filler}

## Printers

{filler}

## Passwords

{filler}

# Other

{filler}
""".replace("{filler}", "word " * 12 + ".")


def contexts(
    source: str, context: str = "{heading}", format: str = "markdown", **options: object
) -> list[str]:
    found = split(source, Words(40), format=format, context=context, **options)  # type: ignore[arg-type]
    return [f"{piece.context}|{' '.join(source[piece.start : piece.end].split()[:2])}" for piece in found]


def test_headings_above_a_piece() -> None:
    """But for one that the piece begins with, and those beside it."""
    source = GUIDE.replace("word .", f"word . Then {'more ' * 30}.")
    assert contexts(source) == [
        "|Before all.",
        "Guide|Then more",
        "Guide|## Printers",
        "Guide > Printers|Then more",
        "Guide|## Passwords",
        "Guide > Passwords|Then more",
        "|# Other",
        "Other|Then more",
    ]


@pytest.mark.parametrize(
    ("format", "source", "heading"),
    [
        ("text", "A  title\n=====\n\nbegins. {more}", "A title"),
        ("markdown", "Setext\n------\n\nbegins. {more}", "Setext"),
        ("markdown", "## C# and F#\n\nbegins. {more}", "C# and F#"),
        ("markdown", "#\n\nbegins. {more}", ""),
        ("html", "<body><h2 id=x>One &amp; <b>two</b></h2>begins. <p>{more}", "One & two"),
        ("code", "# Above.\n@decorated\nclass One(Base):\n    begins\n\n    {more}", "class One(Base)"),
    ],
)
def test_what_a_heading_is_called(format: str, source: str, heading: str) -> None:
    source = source.format(more="more " * 60)
    pieces = split(source, Words(40), format=format, context="{heading}")
    assert {piece.heading for piece in pieces[1:]} == {heading}
    assert pieces[0].heading == ""


def test_a_format_of_ones_own_names_its_headings() -> None:
    class Speakers:
        name, version = "speakers", 1

        def __call__(self, source: str) -> list[tuple[int, int]]:
            return [(place, 6) for place in range(len(source)) if source.startswith("ANN:", place)]

    class Named(Speakers):
        def heading(self, source: str, place: int) -> str:
            return source[place : place + 3].lower()

    source = "ANN: yes\n" + "well " * 60
    for named, heading in ((Speakers(), "ANN: yes"), (Named(), "ann")):
        pieces = split(source, Words(40), format=named, context="{heading}")
        assert {piece.heading for piece in pieces[1:]} == {heading}


def test_texts_of_the_row() -> None:
    splitting = Splitting("markdown", context="{title}: {heading}\n{{}} ")
    assert splitting.fields == {"title"}
    source = "# Top\n\n" + "word " * 100
    first, *others = splitting.pieces(source, Words(40), {"title": "Of {it}", "other": "unused"})
    assert first.context == "Of {it}: \n{} "
    assert {piece.context for piece in others} == {"Of {it}: Top\n{} "}
    assert {piece.heading for piece in others} == {"Top"}
    assert others[0].encoded(source) == others[0].context + source[others[0].start : others[0].end]
    assert splitting.pieces(source, Words(40), {"title": None})[0].context == ": \n{} "


def test_neither_a_title_nor_a_heading_starves_the_pieces(minilm: Encoder) -> None:
    """Each has a quarter of the limit; of a path, the highest headings go first; the longest title is cut."""
    source = f"# {'Top ' * 300}\n\n## Below {'it ' * 20}\n\n" + "word " * 2_000
    values = {"title": "A title of many words " * 5_000, "short": "brief"}
    pieces = split(source, minilm, format="markdown", context="{title}|{short}|{heading}|", values=values)
    assert max(piece.tokens for piece in pieces) <= 256
    for piece in pieces:
        title, short, heading, rest = piece.context.split("|")
        assert 40 <= minilm.count_tokens([title])[0] - 2 <= 64
        assert not rest
        assert values["title"].startswith(title)
        assert short == "brief"
        assert heading == piece.heading
    assert pieces[-1].heading == f"Below {'it ' * 20}".strip()
    within = next(piece for piece in pieces if piece.heading.startswith("Top"))
    assert 40 <= minilm.count_tokens([within.heading])[0] - 2 <= 64
    assert len(pieces) < 2_000 / 60


@given(
    heading=st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    title=st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    format=st.sampled_from(sorted(FORMATS)),
    overlap=st.integers(0, 4),
)
def test_any_heading_and_title(heading: str, title: str, format: str, overlap: int) -> None:
    source = f"# {heading}\n\n<h2>{heading}</h2>\ndef f{heading}:\n\n{'word ' * 60}"
    options = Splitting(format, 40, overlap, "{title} {heading} ")
    pieces = options.pieces(source, Words(40), {"title": title})
    assert [piece.tokens for piece in pieces] == Words(40).count_tokens(
        [piece.encoded(source) for piece in pieces]
    )
    assert max(piece.tokens for piece in pieces) <= 40
    assert {*range(len(source))} == {place for piece in pieces for place in range(piece.start, piece.end)}


def test_a_heading_changes_the_pieces_below_it_and_no_others() -> None:
    options = Splitting("markdown", context="{heading}\n")
    sections = [
        f"# Section {number}\n\n" + " ".join(f"Sentence {number} {line} has words." for line in range(60))
        for number in range(20)
    ]

    def texts(source: str) -> set[str]:
        return {piece.encoded(source) for piece in options.pieces(source, Words(60))}

    old = texts("\n\n".join(sections))
    sections[9] = sections[9].replace("# Section 9", "# Another name that is a bit longer")
    new = texts("\n\n".join(sections))
    assert 0 < len(new - old) < 1.5 * len(old) / 20


def test_recipes_tell_settings_apart() -> None:
    class Halves:
        name, version = "halves", 1

        def __call__(self, source: str) -> list[tuple[int, int]]:
            return [(0, len(source))]

    class Newer(Halves):
        version = 2

    settings = [
        Splitting(),
        Splitting("markdown"),
        Splitting(max_tokens=100),
        Splitting(overlap=5),
        Splitting(context="{title}"),
        Splitting(splitter=Halves()),
        Splitting(splitter=Newer()),
    ]
    assert len({each.recipe for each in settings}) == len(settings)
    assert Splitting("markdown").recipe == Splitting(FORMATS["markdown"]).recipe


def test_contexts_that_cannot_be_put() -> None:
    with pytest.raises(DeclarationError, match=r"has the fields \['title'\]; expected a text for each"):
        split("text", Words(40), context="{title}")
    with pytest.raises(DeclarationError, match=r"context '\{heading!r\}' has the fields .* no more"):
        Splitting(context="{heading!r}")
    with pytest.raises(DeclarationError, match=r"context '\{' *"):
        Splitting(context="{")
    with pytest.raises(TextError, match="lone surrogate"):
        split("text", Words(40), context="{title}", values={"title": "\ud800"})
    with pytest.raises(DeclarationError, match="expected a format or a splitter: a callable with a name"):
        Splitting(len)  # type: ignore[arg-type]
    assert split("text", Words(40)) == [Piece(0, 0, 4, 3)]
