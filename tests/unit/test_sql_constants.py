"""The SQL of searches writes no number that Python has as well: it names it, and installing puts it in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pgembed import constants
from pgembed.database.scripts import installation

#: By name, the scripts without their comments.
SCRIPTS = {
    path.name: re.sub(r"--[^\n]*", "", path.read_text())
    for path in (Path(__file__).parents[2] / "sql").glob("*.sql")
}
SEARCHES = [
    "20_vector_indexes.sql",
    "21_vector_column.sql",
    "22_search.sql",
    "23_duplicates.sql",
    "28_groups.sql",
    "29_counts.sql",
]
#: A number by itself, not a part of a name, a parameter or a field of format().
NUMBER = re.compile(r"(?<![\w$%.])\d[\d_]*(?:\.\d+)?(?:e-?\d+)?(?![\w$%])")
NAME = re.compile(r"@([A-Z_]+(?:\.\w+)?)@")


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_write_no_number_but_0_and_1(name: str) -> None:
    # A default is a part of the function's signature, which readers look up here.
    code = re.sub(r"DEFAULT \d+", "", SCRIPTS[name])
    assert set(NUMBER.findall(code)) <= {"0", "1"}


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_no_script_repeats_a_bound_or_a_setting(name: str) -> None:
    assert {"16000", "32768", "5000", "5_000"}.isdisjoint(NUMBER.findall(SCRIPTS[name]))
    assert not any(setting in SCRIPTS[name] for setting in constants.ITERATIVE_SCAN.values())


def test_the_installation_has_values_for_all_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name for script in SCRIPTS.values() for name in NAME.findall(script)}
    assert {"ALIKE", "EF_SEARCH.most", "NEIGHBOURS.least", "OVERSAMPLE.bit", "EXACT_UP_TO"} < names
    before = installation("public")
    sql = "\n".join(before.statements)
    assert NAME.findall(sql) == []
    assert "max(alike) <= 80 " in sql
    assert "k NOT BETWEEN 1 AND 1000 " in sql
    # Another value is another installation: databases get it with the next upgrade.
    monkeypatch.setattr(constants, "ALIKE", 81)
    after = installation("public")
    assert after.checksum != before.checksum
    assert "max(alike) <= 81 " in "\n".join(after.statements)
    monkeypatch.delattr(constants, "ALIKE")
    with pytest.raises(AttributeError, match="ALIKE"):
        installation("public")
