"""psycopg's side of arrays of vectors (imported only where psycopg is)."""

from __future__ import annotations

from typing import Any

from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

from pgembed.columns.values import to_text
from pgembed.filling.arrays import VectorArray


class VectorArrayBinaryDumper(Dumper):
    """The array in one piece; its type is left open, and derived from the cast around the parameter."""

    format = Format.BINARY

    def dump(self, obj: VectorArray) -> Buffer:
        return obj.to_binary()


class VectorArrayTextDumper(Dumper):
    """For client-side cursors."""

    format = Format.TEXT

    def dump(self, obj: VectorArray) -> Buffer:
        return ("{" + ",".join(f'"{to_text(vector)}"' for vector in obj.vectors) + "}").encode()


def register(connection: Any) -> None:
    """Teach one psycopg connection to send arrays of vectors."""
    connection.adapters.register_dumper(VectorArray, VectorArrayTextDumper)
    connection.adapters.register_dumper(VectorArray, VectorArrayBinaryDumper)
