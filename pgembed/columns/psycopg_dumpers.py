"""psycopg's side of the vector type (imported only where psycopg is)."""

from __future__ import annotations

import struct
from typing import Any

from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

from pgembed.columns.values import BinaryVector, VectorArray, to_text


class VectorBinaryDumper(Dumper):
    """pgvector's binary form: dimensions, a reserved zero, then the numbers, all big-endian."""

    format = Format.BINARY

    def dump(self, obj: BinaryVector) -> Buffer:
        number = ">f4" if obj.storage == "vector" else ">f2"
        return struct.pack(">HH", obj.array.shape[0], 0) + obj.array.astype(number).tobytes()


class VectorTextDumper(Dumper):
    """For client-side cursors and COPY in text format."""

    format = Format.TEXT

    def dump(self, obj: BinaryVector) -> Buffer:
        return to_text(obj.array).encode()


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
    """Teach one psycopg connection, sync or async, to send vectors."""
    connection.adapters.register_dumper(BinaryVector, VectorTextDumper)
    connection.adapters.register_dumper(BinaryVector, VectorBinaryDumper)
    connection.adapters.register_dumper(VectorArray, VectorArrayTextDumper)
    connection.adapters.register_dumper(VectorArray, VectorArrayBinaryDumper)
