"""Where sentences, words and characters end, in any script.

Sentences follow the rules of `UAX #29 <https://unicode.org/reports/tr29/#Sentence_Boundaries>`_, except
that the end of a line ends no sentence, since texts are wrapped by hand, and neither does a full stop after a
common abbreviation or an initial. Characters are its extended grapheme clusters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

# Sentence_Break=STerm; U+2026 is not of them.
_ENDS = (
    "!?\u0589\u061d-\u061f\u06d4\u0700-\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a\u104b\u1362"
    "\u1367\u1368\u166e\u1735\u1736\u17d4\u17d5\u1803\u1809\u1944\u1945\u1aa8-\u1aab\u1b4e\u1b4f\u1b5a\u1b5b"
    "\u1b5e\u1b5f\u1b7d-\u1b7f\u1c3b\u1c3c\u1c7e\u1c7f\u203c\u203d\u2047-\u2049\u2e2e\u2e3c\u2e53\u2e54\u3002"
    "\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d-\uaa5f\uaaf0\uaaf1\uabeb"
    "\ufe12\ufe15\ufe16\ufe56\ufe57\uff01\uff1f\uff61\U00010a56\U00010a57\U00011047\U00011048"
    "\U000110be-\U000110c1\U00011141-\U00011143\U000111c5\U000111c6\U000111cd\U000111de\U000111df"
    "\U00011238\U00011239\U0001123b\U0001123c\U000112a9\U0001144b\U0001144c\U000115c2\U000115c3"
    "\U000115c9-\U000115d7\U00011641\U00011642\U0001173c-\U0001173e\U00011c41\U00011c42\U00016a6e\U00016a6f"
    "\U00016af5\U00016b37\U00016b38\U00016b44\U00016e98\U0001bc9f\U0001da88"
)
_STOPS = ".\u2024\ufe52\uff0e"  # ATerm: they also end abbreviations
_CONTINUING = frozenset(",-:;\u055d\u060c\u060d\u07f8\u1802\u1808\u2013\u2014\u3001\ufe10\ufe11\ufe13\ufe31"
                        "\ufe32\ufe50\ufe51\ufe55\ufe58\ufe63\uff0c\uff0d\uff1a\uff64")  # fmt: skip
_ABBREVIATIONS = re.compile(
    r"mr|mrs|ms|dr|prof|rev|gen|col|sgt|capt|st|jr|sr|mt|vs|cf|approx|nos?|nr|bd|figs?|eqs?|sec|vol|ch|pp|ed|eds|"
    r"dept|inc|ltd|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|al|ca|bzw|vgl|usw|evtl|mme|mlle|art|abs|"
    r"e\.g|i\.e|z\.b|d\.h|u\.a|o\.ä|p\.ex|s\.a"
)
_WORD_BEFORE = re.compile(r"[^\W\d_]+(?:\.[^\W\d_]+)*\Z")
_WORD = re.compile(r"\S+\s*")
_NEWLINES = "\n\r\x0b\x0c\x85\u2028\u2029"
_LINE = re.compile(rf"[^{_NEWLINES}]*(?:\r\n|[{_NEWLINES}]|\Z)")

# Characters of an unbroken run between two places where it may be cut, about; and at most.
_RUN_BITS = 4
_LONGEST_RUN = 64
_ZWJ = "\u200d"
_JOINERS = _ZWJ + "\u200c"


def sentences(source: str, start: int, end: int) -> Iterator[int]:
    """Where sentences of ``source[start:end]`` begin, but for the first; blanks belong to the one before."""
    terminators = _terminators()
    for found in terminators.finditer(source, start, end):
        position = found.end()
        if position < end and not _goes_on(source, found, position, end):
            yield position


@cache
def _terminators() -> re.Pattern[str]:
    """Terminators with the quotes and brackets that close after them, and blanks."""
    marks = map(chr, range(0x10000))
    closing = "".join(mark for mark in marks if unicodedata.category(mark) in ("Pe", "Pf", "Pi"))
    close = f"[\"'{re.escape(closing)}]*"
    return re.compile(rf"(?P<term>[{_ENDS}{_STOPS}]+){close}(?P<blanks>\s*)")


def _goes_on(source: str, found: re.Match[str], position: int, end: int) -> bool:
    """Whether what looks like the end of a sentence is none: rules SB6 to SB8a."""
    following = source[position]
    if following in _CONTINUING:
        return True
    if found["term"][-1] not in _STOPS:
        return False
    stop = found.end("term") - 1
    if not found["blanks"] and (
        following.isnumeric() or (following.isalpha() and source[stop - 1].isalpha())
    ):
        return True
    for character in source[position : min(position + 16, end)]:
        if character.isalpha():
            if character.islower():
                return True
            break
    before = _WORD_BEFORE.search(source, max(stop - 12, 0), stop)
    if before is None or len(found["term"]) > 1:
        return False
    word = before[0].lower()
    return bool(_ABBREVIATIONS.fullmatch(word)) or (len(word) == 1 and before[0].isupper())


def lines(source: str) -> Iterator[tuple[int, int]]:
    """The start and end of each line, its end of line included."""
    for found in _LINE.finditer(source):
        if found.end() > found.start():
            yield found.span()


def words(source: str, start: int, end: int) -> Iterator[int]:
    """Where words of ``source[start:end]`` begin, but for the first; blanks belong to the one before.

    A run of more than 64 characters without a blank is cut as well, at places that its characters decide and
    not their number.
    """
    position = start
    for found in _WORD.finditer(source, start, end):
        # Blanks before the first word are its own.
        first = start if position == start else found.start()
        if first > start:
            yield first
        if found.end() - first > _LONGEST_RUN:
            yield from _run(source, first, found.end())
        position = found.end()
    if position == start and end - start > _LONGEST_RUN:  # nothing but blanks
        yield from _run(source, start, end)


def _run(source: str, start: int, end: int) -> Iterator[int]:
    codes = np.frombuffer(source[start:end].encode("utf-32-le"), dtype="<u4").astype(np.uint32)
    mixed: npt.NDArray[np.uint32] = codes[:-1] * np.uint32(0x9E3779B1) + codes[1:] * np.uint32(0x85EBCA77)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0xC2B2AE3D)
    chosen = np.flatnonzero(mixed >> np.uint32(32 - _RUN_BITS) == 0) + (start + 1)
    for left, right in pairwise([start, *chosen.tolist(), end]):
        if left > start:
            yield left
        yield from range(left + _LONGEST_RUN, right, _LONGEST_RUN)


def breaks_character(source: str, position: int) -> bool:
    """Whether ``position`` is inside what a reader takes for one character."""
    before, after = source[position - 1], source[position]
    if before.isascii() and after.isascii():
        return before == "\r" and after == "\n"
    if (
        after == _ZWJ
        or after == "\u200c"
        or before == _ZWJ
        or unicodedata.category(after) in ("Mn", "Me", "Mc")
    ):
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f":
        return True
    if _is_flag(before) and _is_flag(after):
        first = position - 1
        while first > 0 and position - first < 1024 and _is_flag(source[first - 1]):
            first -= 1
        return (position - first) % 2 == 1
    return _joins_hangul(before, after)


def _is_flag(character: str) -> bool:
    """Whether two of it are a flag."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _joins_hangul(before: str, after: str) -> bool:
    """Rules GB6 to GB8: jamo that are written as one syllable."""
    if "\u1100" <= before <= "\u115f":
        return "\u1100" <= after <= "\u11a7" or "\uac00" <= after <= "\ud7a3"
    syllable = "\uac00" <= before <= "\ud7a3"
    if "\u1160" <= before <= "\u11a7" or (syllable and (ord(before) - 0xAC00) % 28 == 0):
        return "\u1160" <= after <= "\u11ff"
    return (syllable or "\u11a8" <= before <= "\u11ff") and "\u11a8" <= after <= "\u11ff"
