"""The docs name what exists; docs/reference.md lists all commands, environment variables, errors, tables."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest
import typer

from pgembed import exc
from pgembed.cli.main import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
SQL = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "sql").glob("*.sql"))


def headings(document: Path) -> set[str]:
    """The anchors of a document, as GitHub makes them of its headings."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_names_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for address, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        target = (document.parent / address).resolve() if address else document
        assert target.exists(), address
        assert not anchor or anchor in headings(target), f"{address}#{anchor}"
    for script in re.findall(r"benchmarks/\w+\.py", text):
        assert (ROOT / script).is_file()
    for name in re.findall(r"\bpgembed(?:\.\w+)+", text):
        if not re.search(rf"\b{name}\b", SQL):
            pkgutil.resolve_name(name)


def listed(pattern: str) -> set[str]:
    """What the first columns of the tables name."""
    cells = "\n".join(re.findall(r"^\| (.*?) \|", REFERENCE, re.MULTILINE))
    return set(re.findall(pattern, cells))


def test_commands() -> None:
    root = typer.main.get_command(app)
    names = set()
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        names |= {f"{name} {inner}" for inner in getattr(command, "commands", {})} or {name}
    assert listed(r"`pgembed ([a-z ]+)`") == names


def test_environment_variables() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "pgembed").rglob("*.py"))
    assert listed(r"`(PGEMBED_\w+)`") == set(re.findall(r'"(PGEMBED_\w+)"', code))


def test_errors() -> None:
    errors = {
        name
        for name, value in vars(exc).items()
        if isinstance(value, type) and issubclass(value, exc.PgembedError) and not value.__subclasses__()
    }
    assert errors <= set(re.findall(r"`(\w+Error)`", REFERENCE))
    for name in listed(r"`(\w+Error)`"):
        assert issubclass(getattr(exc, name), exc.PgembedError)


def test_sql_objects() -> None:
    made = set(re.findall(r"(?:FUNCTION|TABLE|VIEW)(?: IF NOT EXISTS)? (pgembed\.\w+)", SQL))
    assert listed(r"`(pgembed\.[a-z_]+)[`(]") <= made
    seen = set(re.findall(r"(?:TABLE|VIEW)(?: IF NOT EXISTS)? (pgembed\.\w+)", SQL))
    assert seen <= listed(r"`(pgembed\.\w+)")
