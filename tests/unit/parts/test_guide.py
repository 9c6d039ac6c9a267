"""The Python of docs/long_texts.md runs as it stands, and says the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parents[3] / "docs" / "long_texts.md").read_text(encoding="utf-8")
#: What needs no database, and what does.
SPLITTING, _, SEARCH = GUIDE.partition("\n## Search\n")


def run(guide: str, names: dict[str, object], capsys: pytest.CaptureFixture[str]) -> int:
    """Execute the blocks, and compare what they print and say with what is written behind it.

    :returns: how many lines they printed.
    """
    printed = []
    for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL):
        exec(compile(block, "<guide>", "exec", dont_inherit=True), names)
        printed += re.findall(r"^    # (.*)$", block, re.MULTILINE)
        for line in block.splitlines():
            if claim := re.fullmatch(r"(.*?) +# (True|False)", line):
                assert str(eval(claim[1], names)) == claim[2], line
    assert capsys.readouterr().out.splitlines() == printed
    return len(printed)


def test_guide(
    minilm_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PGEMBED_ENCODERS", str(minilm_folder.parent))
    assert run(SPLITTING, {}, capsys) == 2
