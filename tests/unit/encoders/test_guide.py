"""The guide's Python runs unchanged, and what it claims is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pgembed.encoders import Encoder

GUIDE = Path(__file__).parents[3] / "docs" / "encoders.md"


def test_guide(
    minilm_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PGEMBED_ENCODERS", str(minilm_folder.parent))
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
        for line in block.splitlines():
            claim = re.fullmatch(r"(.* == .*?) +# (True|False)", line)
            if claim:
                assert str(eval(claim[1], names)) == claim[2]
    assert capsys.readouterr().out == "(2, 384) 0\n"
    assert isinstance(names["remote"], Encoder)
