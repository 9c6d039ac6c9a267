"""What happens to a row that is written: every combination, against the rules as the guide states them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple, get_args

import pytest

from pgembed.columns.embedding import Fill
from pgembed.columns.hooks.outcome import Brought, Change, Knowledge, Outcome, Stamp, outcome


class Case(NamedTuple):
    change: Change
    texts: Knowledge
    brought: Brought
    stamp: Stamp
    fill: Fill

    @property
    def of_this_text(self) -> bool:
        """Whether the user says, or the rules say for them, what the vector belongs to."""
        said = self.stamp == "matching"
        assumed = self.brought == "own" and self.stamp in ("absent", "null") and self.change != "changed"
        return self.brought != "none" and (said or assumed)


CASES = [Case(*each) for each in product(*map(get_args, (Change, Knowledge, Brought, Stamp, Fill)))]

#: Each holds for the cases that no other holds for.
RULES: dict[str, tuple[Outcome, Callable[[Case], bool]]] = {
    "unrelated columns cost nothing": (
        Outcome.LEAVE,
        lambda c: c.change == "same" and c.brought == "none",
    ),
    "a text that only the database knows leaves the row pending": (
        Outcome.LEAVE,
        lambda c: c.texts == "unknown" and c.change != "same",
    ),
    "a vector that comes with a digest for a text that is not loaded is believed": (
        Outcome.LEAVE,
        lambda c: c.texts == "unknown" and c.change == "same" and c.brought != "none" and c.stamp != "absent",
    ),
    "a vector of one's own counts for the text that the row holds": (
        Outcome.KEEP,
        lambda c: c.texts == "unknown" and c.change == "same" and c.brought == "own" and c.stamp == "absent",
    ),
    "a vector that was loaded counts for no text": (
        Outcome.PENDING,
        lambda c: (
            c.texts == "unknown" and c.change == "same" and c.brought == "loaded" and c.stamp == "absent"
        ),
    ),
    "no text, no vector": (
        Outcome.CLEAR,
        lambda c: c.texts == "empty" and not (c.change == "same" and c.brought == "none"),
    ),
    "a vector of this text is kept": (
        Outcome.KEEP,
        lambda c: c.texts == "known" and c.of_this_text,
    ),
    "anything else is encoded in the flush": (
        Outcome.ENCODE,
        lambda c: (
            c.texts == "known"
            and c.fill == "flush"
            and not c.of_this_text
            and not (c.change == "same" and c.brought == "none")
        ),
    ),
    "for a worker, a vector without a digest is not taken for a fresh one": (
        Outcome.PENDING,
        lambda c: (
            c.texts == "known"
            and c.fill == "worker"
            and c.brought != "none"
            and c.stamp in ("absent", "null")
            and not c.of_this_text
        ),
    ),
    "for a worker, the digest in the row does not fit": (
        Outcome.LEAVE,
        lambda c: (
            c.texts == "known"
            and c.fill == "worker"
            and (c.brought == "none" or c.stamp == "other")
            and not (c.change == "same" and c.brought == "none")
        ),
    ),
}


def test_there_are_all_cases() -> None:
    assert len(CASES) == len(set(CASES)) == 3 * 3 * 3 * 4 * 2


@pytest.mark.parametrize("rule", RULES)
def test_a_rule(rule: str) -> None:
    expected, holds = RULES[rule]
    cases = [case for case in CASES if holds(case)]
    assert cases
    assert [(case, outcome(*case)) for case in cases if outcome(*case) is not expected] == []


def test_one_rule_holds_for_each_case() -> None:
    counts = {case: sum(holds(case) for _, holds in RULES.values()) for case in CASES}
    assert {case: count for case, count in counts.items() if count != 1} == {}


def test_a_row_is_fresh_only_with_a_vector_of_its_text() -> None:
    for case in CASES:
        done = outcome(*case)
        if done is Outcome.KEEP:
            assert case.brought == "own" or case.stamp == "matching"
        if case.fill == "worker":
            assert done is not Outcome.ENCODE
        if case.texts == "unknown":
            assert done not in (Outcome.ENCODE, Outcome.CLEAR)
        if case.fill == "flush" and case.texts == "known" and case.change != "same":
            assert done in (Outcome.ENCODE, Outcome.KEEP)
