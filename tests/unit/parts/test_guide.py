"""The Python of docs/long_texts.md runs as it stands, and says the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[3] / "docs" / "long_texts.md"


def test_guide(
    minilm_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PGEMBED_ENCODERS", str(minilm_folder.parent))
    names: dict[str, object] = {}
    printed = []
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(GUIDE), "exec", dont_inherit=True), names)
        printed += re.findall(r"^    # (.*)$", block, re.MULTILINE)
        for line in block.splitlines():
            if claim := re.fullmatch(r"(.*?) +# (True|False)", line):
                assert str(eval(claim[1], names)) == claim[2], line
    assert capsys.readouterr().out.splitlines() == printed
    assert len(printed) == 2
