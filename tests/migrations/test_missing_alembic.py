"""Without Alembic the import says which extra brings it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from pgembed.exc import MissingExtraError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Neither Alembic nor what is made with it, as in a new process."""
    for name in list(sys.modules):
        if f"{name}.".startswith(("alembic.", "pgembed.migrations.")):
            monkeypatch.delitem(sys.modules, name)
    return monkeypatch


def test_it_is_not_there(nothing_loaded: pytest.MonkeyPatch) -> None:
    nothing_loaded.setitem(sys.modules, "alembic", None)
    with pytest.raises(
        MissingExtraError, match=r"needs the package 'alembic'.*'sqlalchemy-pgembed\[migrations\]'"
    ):
        importlib.import_module("pgembed.migrations")


def test_a_folder_of_migrations_does_not_pass_for_it(nothing_loaded: pytest.MonkeyPatch) -> None:
    spec = PathFinder.find_spec("alembic", [str(ROOT)])
    assert spec is not None
    assert spec.origin is None  # a namespace package
    nothing_loaded.setitem(sys.modules, "alembic", importlib.util.module_from_spec(spec))
    with pytest.raises(ImportError, match=r"pgembed\[migrations\]"):
        importlib.import_module("pgembed.migrations")
