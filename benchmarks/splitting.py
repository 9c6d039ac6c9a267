"""Splitting long texts: pieces encoded again per edit, speed beside the tokenizer alone, limits kept.

Usage::

    python benchmarks/splitting.py ENCODER [--edits 200] [--characters 200000] [--megabytes 5]

``ENCODER`` is a folder or the name of an installed encoder; only its tokenizer is opened. The texts are those
that a Python installation carries: the topics of pydoc, docstrings, licences.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import statistics
import time
from collections import Counter
from importlib.metadata import distributions
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import corpus

from pgembed import Encoder
from pgembed.parts import sentences, split

KINDS = ("word", "longer", "inserted", "deleted", "replaced")


def prose(characters: int) -> str:
    """Different paragraphs of whole sentences."""
    found = (each for text in topics.values() for each in re.split(r"\n\n+", text))
    whole = (each for each in found if each[:1].isupper() and each.rstrip().endswith("."))
    docstrings = (each for text in corpus.docstrings(20_000) for each in re.split(r"\n\n+", text))
    more = (each for each in docstrings if each[:1].isupper() and each.rstrip().endswith("."))
    return "\n\n".join(dict.fromkeys([*whole, *more]))[:characters]


def parts(source: str) -> list[str]:
    """Sentences, each with the blanks that follow it."""
    paragraphs = (found.end() for found in re.finditer("\n\n", source))
    places = sorted({0, len(source), *sentences(source, 0, len(source)), *paragraphs})
    return [source[start:end] for start, end in pairwise(places)]


def edited(made: list[str], kind: str, rng: random.Random, words: list[str]) -> str:
    """The text with one sentence changed."""
    made = list(made)
    place = rng.randrange(20, len(made) - 20)
    body = made[place].rstrip()
    blanks = made[place][len(body) :]
    new = f"The {' '.join(rng.choices(words, k=rng.randrange(6, 30)))}."
    if kind == "word":
        found = rng.choice([*re.finditer(r"\w+", body or "x")])
        made[place] = body[: found.start()] + rng.choice(words) + body[found.end() :] + blanks
    elif kind == "longer":
        made[place] = f"{body[:-1]} {' '.join(rng.choices(words, k=rng.randrange(1, 20)))}{body[-1:]}{blanks}"
    elif kind == "inserted":
        made.insert(place, f"{new} ")
    elif kind == "deleted":
        made[place] = blanks if "\n" in blanks else ""
    else:
        made[place] = new + blanks
    return "".join(made)


def edits(encoder: Encoder, characters: int, count: int) -> None:
    """Print how many pieces an edit changes, beside pieces of a fixed number of words."""
    source = prose(characters)
    made, words = parts(source), re.findall("[a-z]{4,}", source)
    pieces = split(source, encoder)
    known = {source[piece.start : piece.end] for piece in pieces}
    fill = statistics.mean(piece.tokens for piece in pieces) / encoder.max_tokens
    print(f"{len(source):,} characters, {len(made)} sentences, {len(pieces)} pieces, {fill:.0%} full")

    def fixed(text: str) -> list[str]:
        found = text.split()
        return [" ".join(found[at : at + 150]) for at in range(0, len(found), 150)]

    known_fixed, rng = set(fixed(source)), random.Random(1)
    totals: dict[str, Counter[int]] = {kind: Counter() for kind in KINDS}
    of_fixed: dict[str, int] = dict.fromkeys(KINDS, 0)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        new = edited(made, kind, rng, words)
        changed = [piece for piece in split(new, encoder) if new[piece.start : piece.end] not in known]
        totals[kind][len(changed)] += 1
        of_fixed[kind] += sum(each not in known_fixed for each in fixed(new))
    print(f"{'sentence':12}{'mean':>7}{'most':>6}{'at most 2':>11}{'fixed positions':>17}")
    for kind, total in (*totals.items(), ("all", sum(totals.values(), Counter()))):
        number = total.total()
        mean = sum(changed * times for changed, times in total.items()) / number
        few = sum(times for changed, times in total.items() if changed <= 2) / number
        moved = (sum(of_fixed.values()) if kind == "all" else of_fixed[kind]) / number
        print(f"{kind:12}{mean:7.2f}{max(total):6}{few:11.1%}{moved:17.1f}")


def speed(encoder: Encoder, megabytes: float) -> None:
    """Print tokens per second, of the splitter and of the tokenizer alone on the same sentences."""
    source = prose(10**9)
    source = (source * (int(megabytes * 1e6 / len(source)) + 1))[: int(megabytes * 1e6)]
    made = parts(source)
    encoder.count_tokens(["open"])
    alone, whole = [], []
    for _ in range(3):
        start = time.perf_counter()
        tokens = int(encoder.count_tokens(made).sum()) - 2 * len(made)
        alone.append(time.perf_counter() - start)
        start = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pieces = split(source, encoder)
        whole.append(time.perf_counter() - start)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        alone_speed, speed = tokens / statistics.median(alone), tokens / statistics.median(whole)
    print(
        f"{megabytes:g} MB, {tokens:,} tokens, {len(pieces)} pieces: {speed:,.0f} tokens/s, "
        f"{speed / alone_speed:.0%} of the tokenizer's {alone_speed:,.0f}; "
        f"{grown / 1024:.0f} MB more memory in the last of three runs"
    )


def limits(encoder: Encoder) -> None:
    """Print how many pieces of real texts are over the limit, and how many texts are."""
    files = (
        Path(str(file.locate()))
        for installed in distributions()
        for file in installed.files or ()
        if re.search(r"LICEN[SC]E|COPYING", file.name)
    )
    licences = (file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file())
    kinds = {
        "longest docstrings": sorted(corpus.docstrings(20_000), key=len)[-200:],
        "pydoc topics": list(topics.values()),
        "licences": list(dict.fromkeys(licences)),
    }
    for name, texts in kinds.items():
        counts: list[int] = []
        lost = 0
        for text in texts:
            found = [text[piece.start : piece.end] for piece in split(text, encoder)]
            lost += "".join(found) != text
            counts += encoder.count_tokens(found).tolist()
        over = sum(count > encoder.max_tokens for count in counts)
        long = int((encoder.count_tokens(texts) > encoder.max_tokens).sum())
        print(
            f"{name}: {len(texts)} texts, {long} longer than {encoder.max_tokens} tokens; "
            f"{len(counts)} pieces, {over} over the limit, {lost} texts not covered"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder")
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--characters", type=int, default=200_000)
    parser.add_argument("--megabytes", type=float, default=5)
    options = parser.parse_args()
    encoder = Encoder(options.encoder)
    limits(encoder)
    edits(encoder, options.characters, options.edits)
    speed(encoder, options.megabytes)


if __name__ == "__main__":
    main()
