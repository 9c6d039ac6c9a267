"""The embedding columns of models that are given by name, as in ``app.models:Base``."""

from __future__ import annotations

import importlib
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from sqlalchemy import (
    MetaData,
    Table,
)
from sqlalchemy.orm import Mapper

from pgembed.columns import Freshness, fresh_of
from pgembed.exc import DeclarationError


def embeddings_in(where: str) -> list[Freshness]:
    """The embedding columns of ``module:name``: a declarative base, a mapped class, MetaData or a Table.

    :raises DeclarationError: there is no such module or name, it cannot be imported, or it holds no embedding
        columns.
    """
    module, _, name = where.partition(":")
    if not module or not name:
        raise DeclarationError(f"models are given as module:name, such as app.models:Base; found {where!r}")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # the module is the application's code
        raise DeclarationError(f"{where}: {_what_and_where(error)}") from error
    embeddings = [embedding for table in _tables(found) for embedding in fresh_of(table)]
    if not embeddings:
        raise DeclarationError(f"{where} ({found!r}) holds no embedding columns")
    return embeddings


def _what_and_where(error: Exception) -> str:
    """The error as one line; of an error in the application's code, file and line too."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    paths = sysconfig.get_paths()
    libraries = ("<", paths["stdlib"], paths["purelib"], paths["platlib"], str(Path(__file__).parents[1]))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(libraries)
    ]
    return f"{line} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else line


def _tables(found: Any) -> list[Table]:
    if isinstance(found, Table):
        return [found]
    mapper = getattr(found, "__mapper__", None)
    if isinstance(mapper, Mapper):
        return [table for table in mapper.tables if isinstance(table, Table)]
    metadata = found if isinstance(found, MetaData) else getattr(found, "metadata", None)
    return list(metadata.tables.values()) if isinstance(metadata, MetaData) else []
