"""What is shipped: the SQL objects lie inside the wheel, and in the source distribution."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_wheel_and_sdist_hold_the_sql(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", tmp_path], cwd=ROOT, check=True)
    scripts = {path.name for path in (ROOT / "sql").glob("*.sql")}
    assert scripts
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"pgembed/sql/{script}" for script in scripts} <= names
    assert "pgembed/py.typed" in names
    assert not any(name.startswith(("tests/", "sql/", "benchmarks/")) for name in names)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert {f"pgembed-0.1.0/sql/{script}" for script in scripts} <= set(archive.getnames())
