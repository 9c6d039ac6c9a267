"""What a text is made of: the places where it may be cut, each with its rank.

A format is a function from a text to places in it, in their order, with a name and a version. Those of
:data:`FORMATS` know plain text, Markdown, HTML and code; :class:`Format` is what one of your own looks like.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from pgembed.exc import DeclarationError
from pgembed.parts.sentences import breaks_character, lines, sentences

Places = Iterable[tuple[int, int]]

_BULLET = re.compile(r"\s*(?:[-*+\u2022]|\d{1,3}[.)]|\(\d{1,3}\))\s+\S")
_UNDERLINE = re.compile(r"""\s*([=\-~^"'*#+`])\1{2,}\s*\Z""")
_ATX = re.compile(r" {0,3}(#{1,6})(?:\s|\Z)")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_DEFINITION = re.compile(
    r"(?:(?:export|default|pub(?:\(\w+\))?|public|private|protected|internal|static|final|abstract|async|"
    r"unsafe|override|extern|inline|virtual)\s+)*(?:def|class|function|func|fn|fun|impl|trait|struct|enum|"
    r"interface|type|module|namespace|package|sub|proc|CREATE|create)\b"
)
# Lines that belong to the definition below them: decorators, annotations, attributes, comments.
_ABOVE = re.compile(r"[ \t]*(?:@|#|//|/\*|\*|--|;;)")
_OPENING = re.compile(r"<[a-z]", re.IGNORECASE)
_HEADING_TAG = re.compile(r"h([1-6])\Z")
_PARAGRAPH_TAGS = re.compile(
    "address|article|aside|blockquote|body|details|dialog|div|dl|fieldset|figure|footer|form|header|hr|main|"
    "nav|ol|p|pre|section|table|ul|script|style|svg"
)
_ITEM_TAGS = re.compile("li|dt|dd|tr|caption|figcaption|option|summary|thead|tbody|tfoot|br")
_TAG = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style|svg)\b.*?(?:</\1\s*>|\Z)|<(/?)([a-z][a-z0-9]*)(?=[\s/>])[^<>]*>",
    re.IGNORECASE | re.DOTALL,
)
_HEADING = 1000  # characters behind a place that its heading is looked for in


class Rank(IntEnum):
    """How good a place is to cut at: of two, the higher one is preferred, whatever the sizes.

    Headings have ``HEADING`` and up to 5 more, the more the higher their level.
    """

    RUN = 0
    WORD = 1
    LINE = 2
    SENTENCE = 3
    ITEM = 4
    PARAGRAPH = 5
    HEADING = 6


class Format(Protocol):
    """A format of your own.

    Where ``{heading}`` is put before pieces, a method ``heading(source, place) -> str`` says what the heading
    at a place with the rank of one is called; without it, it is the line there.
    """

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def version(self) -> int:
        """Another one when the places of a text change."""
        ...

    def __call__(self, source: str, /) -> Places:
        """Positions between 0 and ``len(source)``, ascending, each with its :class:`Rank`."""
        ...


@dataclass(frozen=True)
class _Known:
    name: str
    version: int
    places: Callable[[str], Places]
    called: Callable[[str], str]

    def __call__(self, source: str, /) -> Places:
        return self.places(source)

    def heading(self, source: str, place: int) -> str:
        return self.called(source[place : place + _HEADING])


def places_of(format: Format, source: str, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Start, end and rank of what the format finds in ``source[start:end]``.

    :raises DeclarationError: its positions do not ascend, or are outside of the text.
    """
    length = end - start
    place, rank = 0, int(Rank.LINE)
    for following, found in format(source[start:end]):
        if not place <= following <= length:
            raise DeclarationError(
                f"the format {format.name!r} gave the position {following} after {place}; expected "
                f"ascending ones between 0 and {length}"
            )
        if following == place:
            rank = max(rank, int(found))
        if following in (place, length) or breaks_character(source, start + following):
            continue
        yield start + place, start + following, rank
        place, rank = following, int(found)
    yield start + place, end, rank


def heading_of(format: Format, source: str, place: int) -> str:
    """What the heading at ``place`` is called, on one line."""
    named = getattr(format, "heading", None)
    found = _line(source[place : place + _HEADING]) if named is None else named(source, place)
    return " ".join(found.split())


def _line(head: str) -> str:
    return next((line for line in head.splitlines() if line.strip()), "")


def _without_marks(head: str) -> str:
    return re.sub(r"^\s*#{1,6}(?=\s|$)|(?:(?<=\s)#+)?\s*$", "", _line(head))


def _in_tags(head: str) -> str:
    found = re.search(r"<h([1-6])\b[^<>]*>(.*?)(?:</h\1\s*>|\Z)", head, re.IGNORECASE | re.DOTALL)
    return html.unescape(_TAG.sub(" ", found[2])) if found else ""


def _definition(head: str) -> str:
    found = (line.strip() for line in head.splitlines())
    return next((line.rstrip(":{( ") for line in found if _DEFINITION.match(line)), "")


def _text(source: str) -> Iterator[tuple[int, int]]:
    """Paragraphs, titles that are underlined, items of lists, sentences."""
    yield from _prose(source, _blocks(source, markdown=False))


def _markdown(source: str) -> Iterator[tuple[int, int]]:
    """As text, and headings, fenced code and tables, of which neither is cut unless it is too long."""
    yield from _prose(source, _blocks(source, markdown=True))


def _prose(source: str, blocks: Iterable[tuple[int, int, bool]]) -> Iterator[tuple[int, int]]:
    """Blocks of (start, rank, prose), with the sentences of prose."""
    previous: tuple[int, bool] | None = None
    for start, rank, prose in blocks:
        if previous is not None and previous[1]:
            yield from ((place, Rank.SENTENCE) for place in sentences(source, previous[0], start))
        yield start, rank
        previous = start, prose
    if previous is not None and previous[1]:
        yield from ((place, Rank.SENTENCE) for place in sentences(source, previous[0], len(source)))


def _blocks(source: str, *, markdown: bool) -> Iterator[tuple[int, int, bool]]:
    fence = ""
    blank = titled = True  # what the line before was; a text begins as if below a title
    table = False
    above: tuple[int, str, int] | None = None  # a line that the next one may underline
    for start, end in lines(source):
        line = source[start:end]
        if fence:
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence, blank = "", True
            continue
        if not line.strip():
            if above is not None:
                yield above[0], above[2], True
                above, titled = None, False
            blank, table = True, False
            continue
        opening = _FENCE.match(line) if markdown else None
        atx = _ATX.match(line) if markdown else None
        rank: int = Rank.LINE if titled else Rank.PARAGRAPH
        underline = _UNDERLINE.match(line)
        if above is not None:
            if underline is not None and (not markdown or underline[1] in "=-"):
                yield above[0], Rank.HEADING + (5 if underline[1] == "=" else 4), False
                above, titled, blank = None, True, True
                continue
            yield above[0], above[2], True
            above, titled = None, False
            rank = Rank.PARAGRAPH
        if opening is not None:
            fence = opening[1]
            yield start, rank, False
            titled = table = False
        elif atx is not None:
            yield start, Rank.HEADING + 6 - len(atx[1]), False
            titled = blank = True
            table = False
            continue
        elif markdown and line.lstrip().startswith("|"):
            if not table:
                yield start, rank, False
            table, titled = True, False
        elif table or _BULLET.match(line):
            yield start, rank if blank else Rank.ITEM, True
            table = titled = False
        elif blank:
            above = start, line, rank
        blank = False
    if above is not None:
        yield above[0], above[2], True


def _html(source: str) -> Iterator[tuple[int, int]]:
    """Block elements, and sentences that end outside of tags.

    Tags with nothing but blanks between them are one place: after those that close, before those that open.
    """
    plain = _TAG.sub(lambda tag: " " * len(tag[0]), source)
    place, rank = 0, int(Rank.LINE)
    opened = titled = False
    for tag in _TAG.finditer(source):
        name = (tag[3] or tag[1] or "").lower()
        heading = _HEADING_TAG.match(name)
        closes = bool(tag[2]) or name in ("br", "hr")
        if heading:
            found = Rank.LINE if closes else Rank.HEADING + 6 - int(heading[1])
        elif _PARAGRAPH_TAGS.fullmatch(name):
            found = Rank.PARAGRAPH
        elif _ITEM_TAGS.fullmatch(name):
            found = Rank.ITEM
        else:
            continue
        if plain[place : tag.start()].strip():
            yield place, rank
            yield from ((inner, Rank.SENTENCE) for inner in _outside_tags(source, plain, place, tag.start()))
            rank, opened, titled = 0, False, False
        if heading or not titled:  # what stands below a heading is not cut from it
            rank = max(rank, found)
        if not opened:
            place = tag.end() if closes else tag.start()
        opened = opened or not closes
        titled = closes if heading else titled
    yield place, rank
    yield from ((inner, Rank.SENTENCE) for inner in _outside_tags(source, plain, place, len(source)))


def _outside_tags(source: str, plain: str, start: int, end: int) -> Iterator[int]:
    """Sentences begin after tags that close, and before those that open."""
    for place in sentences(plain, start, end):
        blank = place
        while blank > start and plain[blank - 1].isspace():
            blank -= 1
        opening = _OPENING.search(source, blank, place)
        yield opening.start() if opening else place


def _code(source: str) -> Iterator[tuple[int, int]]:
    """Lines: definitions first, then those after a blank line, those of lower indentation before others."""
    blank = True
    place: int | None = None  # the first of the comments and decorators above a line
    after_blank = True
    for start, end in lines(source):
        line = source[start:end]
        if not line.strip():
            if place is not None:
                yield place, Rank.LINE
            blank, place = True, None
            continue
        if place is None:
            place, after_blank = start, blank
        blank = False
        if _ABOVE.match(line):
            continue
        text = line.lstrip()
        indent = min((len(line.expandtabs(4)) - len(text.expandtabs(4))) // 2, 9)
        if _DEFINITION.match(text):
            rank = Rank.HEADING + 5 - min(indent // 2, 5)
        elif after_blank:
            rank = Rank.PARAGRAPH if indent == 0 else Rank.ITEM
        else:
            rank = Rank.SENTENCE if indent == 0 and text[0] not in ")]}" else Rank.LINE
        yield place, rank
        place = None
    if place is not None:
        yield place, Rank.LINE


#: The formats that :func:`split` knows by name.
FORMATS: dict[str, Format] = {
    "text": _Known("text", 1, _text, _line),
    "markdown": _Known("markdown", 1, _markdown, _without_marks),
    "html": _Known("html", 1, _html, _in_tags),
    "code": _Known("code", 1, _code, _definition),
}
