"""What is put before each piece when it is encoded: titles of the row, the headings that it stands below."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from pgembed.columns.composition import fields_of, rendered
from pgembed.parts.formats import Format, Rank, heading_of, places_of
from pgembed.parts.sentences import breaks_character

CountTokens: TypeAlias = Callable[[Sequence[str]], list[int]]

HEADING = "heading"
_BETWEEN = " > "
# The texts of the row have at most this part of the limit, and so have the headings.
_SHARE = 4
_CHARACTERS = 16  # of a token, at most


class Put(NamedTuple):
    """What is put before a piece.

    :ivar heading: the headings that it stands below, the highest first, but for one that it begins with.
    :ivar text: the template with its fields.
    """

    heading: str
    text: str


class Context:
    """What is put before the pieces of one text.

    Texts of the row that have more than a quarter of the limit together are cut, the longest first. Of
    headings that have more than another quarter, the highest are left out, and the last one is cut: what
    remains is at least half of the limit, and does not depend on headings elsewhere.

    :param template: with fields for texts of the row, and for ``{heading}``.
    :param values: the texts of the row.
    :ivar most: tokens before and around a piece, at most.
    """

    def __init__(
        self,
        template: str,
        values: Mapping[str, str | None],
        source: str,
        format: Format,
        count: CountTokens,
        limit: int,
    ) -> None:
        self._count = count
        self._share = limit // _SHARE
        self._template = template
        self._known: dict[str, tuple[Put, int]] = {}
        self._starts: list[int] = []
        self._paths: list[tuple[tuple[str, ...], tuple[str, ...]]] = []  # above each heading, and with it
        fields = fields_of(template, name="context")
        if HEADING in fields:
            self._find(source, format)
        longest = self._share * _CHARACTERS
        self._values = {field: cut(values[field] or "", longest) for field in fields if field != HEADING}
        fixed, whole = count([self._text(dict.fromkeys(fields, "")), self._text(self._values)])
        if whole - fixed > self._share:
            long = self._values
            cap = _most(
                max(map(len, long.values())),
                lambda cap: (
                    self._tokens({field: cut(text, cap) for field, text in long.items()})
                    <= fixed + self._share
                ),
            )
            self._values = {field: cut(text, cap) for field, text in long.items()}
            whole = self._tokens(self._values)
        self._base = whole
        self.most = whole + (self._share if HEADING in fields else 0)

    def at(self, place: int) -> Put:
        """What is put before a piece that begins at ``place``."""
        return self._at(place)[0]

    def spared(self, place: int) -> int:
        """By how many tokens that is fewer than the most."""
        return self.most - self._at(place)[1]

    def _at(self, place: int) -> tuple[Put, int]:
        index = bisect_right(self._starts, place) - 1
        path: tuple[str, ...] = ()
        if index >= 0:
            above, within = self._paths[index]
            path = above if self._starts[index] == place else within
        heading = _BETWEEN.join(path)
        if heading not in self._known:
            self._known[heading] = self._fitting(path)
        return self._known[heading]

    def _fitting(self, path: tuple[str, ...]) -> tuple[Put, int]:
        whole = [_BETWEEN.join(path[start:]) for start in range(len(path))]
        most = self._base + self._share
        for heading in whole:
            tokens = self._tokens({**self._values, HEADING: heading})
            if tokens <= most:
                return Put(heading, self._text({**self._values, HEADING: heading})), tokens
        heading = ""
        if path:
            last = path[-1]
            cap = _most(
                len(last),
                lambda cap: self._tokens({**self._values, HEADING: cut(last, cap)}) <= most,
            )
            heading = cut(last, cap)
        values = {**self._values, HEADING: heading}
        return Put(heading, self._text(values)), self._tokens(values)

    def _find(self, source: str, format: Format) -> None:
        above: list[tuple[int, str]] = []
        for start, _, rank in places_of(format, source, 0, len(source)):
            if rank < Rank.HEADING:
                continue
            while above and above[-1][0] <= rank:
                above.pop()
            outer = tuple(heading for _, heading in above)
            found = cut(heading_of(format, source, start), self._share * _CHARACTERS)
            if found:
                above.append((rank, found))
            self._starts.append(start)
            self._paths.append((outer, tuple(heading for _, heading in above)))

    def _text(self, values: Mapping[str, str]) -> str:
        return rendered(self._template, {HEADING: "", **values})

    def _tokens(self, values: Mapping[str, str]) -> int:
        return self._count([self._text(values)])[0]


def cut(text: str, characters: int) -> str:
    """The beginning of a text, in whole words if the first one fits, or else in whole characters."""
    if len(text) <= characters:
        return text
    while characters and breaks_character(text, characters):
        characters -= 1
    found = text[:characters].rstrip()
    if not text[characters].isspace() and len(words := found.rsplit(None, 1)) == 2:
        found = words[0]
    return found


def _most(highest: int, fits: Callable[[int], bool]) -> int:
    """The highest number that fits, or 0."""
    low, high = 0, highest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
