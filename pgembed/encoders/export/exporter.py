"""From a model folder to an encoder folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from pgembed.encoders.export import modules
from pgembed.encoders.export import pipeline as pipelines
from pgembed.encoders.export.families import BuiltModel
from pgembed.encoders.export.onnx_model import OnnxModel, find
from pgembed.encoders.export.pipeline import Pipeline
from pgembed.encoders.export.tokenizer_config import copy_tokenizer
from pgembed.encoders.export.weights import digest, has_weights
from pgembed.encoders.files import Folder, file_digest, read_json
from pgembed.encoders.onnx.graph_files import QUERY_FOLDER
from pgembed.encoders.onnx.runtime import OnnxRuntime
from pgembed.encoders.spec import SPEC_FILE, EncoderSpec
from pgembed.encoders.text.tokenizer import open_tokenizer
from pgembed.exc import (
    EncoderFilesError,
    EncoderOptionError,
    MissingExtraError,
    UnsupportedArchitectureError,
)

_LONGEST_NAME = 200
_WRITABLE = "a place that an encoder can be written to"


def export(
    model_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    name: str | None,
    source: str,
    overwrite: bool,
    expected: str | None,
) -> EncoderSpec:
    """See :func:`pgembed.encoders.export_onnx`."""
    model, target = Folder(_absolute(model_dir)), _absolute(out_dir)
    name = target.name if name is None else name
    if not name or not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
        needed = f"up to {_LONGEST_NAME} bytes without control characters"
        raise EncoderOptionError("name", name, needed=needed)
    documents = pipelines.read(model)
    queries = pipelines.read(model, route="query") if modules.has_towers(model) else None
    with _written_whole(target, overwrite=overwrite) as fresh:
        tower = ""
        if queries is not None:
            (fresh / QUERY_FOLDER).mkdir()
            spec = _write(queries, fresh / QUERY_FOLDER, name=f"{name}-query", source=source)
            tower = spec.query_fingerprint
            _try_out(fresh / QUERY_FOLDER, spec, model.path)
        spec = _write(
            documents,
            fresh,
            name=name,
            source=source,
            expected=expected,
            query_tower=tower,
        )
        _try_out(fresh, spec, model.path)
        return spec


def _absolute(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise EncoderFilesError(Path(path), str(error), needed="a path") from error


def _try_out(folder: Path, spec: EncoderSpec, model: Path) -> None:
    """Encode a text with what was written, where ONNX Runtime is installed.

    :raises EncoderFilesError: the graph cannot be run, or computes something other than numbers.
    """
    try:
        runtime = OnnxRuntime(folder, spec, device="cpu")
        vectors = runtime.encode([("text", "text") if spec.labels else "text"], "document").vectors
    except MissingExtraError:
        return
    except Exception as error:  # onnxruntime's errors share no other base
        raise EncoderFilesError(
            model, f"a model that cannot be run ({error})", needed="an intact one"
        ) from error
    if not np.isfinite(vectors).all():
        raise EncoderFilesError(model, "a model whose vectors are not finite", needed="an intact one")


def _write(
    pipeline: Pipeline,
    folder: Path,
    *,
    name: str,
    source: str,
    expected: str | None = None,
    query_tower: str = "",
) -> EncoderSpec:
    """Write one encoder into ``folder``, which exists."""
    model = _model(pipeline)
    checksum = digest(model.files)
    if expected is not None and checksum != expected:
        raise EncoderFilesError(pipeline.folder.path, f"weights with SHA-256 {checksum}", needed=expected)
    classifier = pipeline.classifier
    unstated = pipelines.LIMIT_UNSTATED if pipeline.first == "Transformer" else model.token_limit
    _check_vocabulary(pipeline, model.vocabulary)
    width = model.write(folder)
    copy_tokenizer(pipeline, folder / pipeline.tokenizer.name)
    if pipeline.folder.has("config.json"):
        config = pipeline.folder.file("config.json")
        read_json(config)  # nothing but JSON is copied under that name
        shutil.copyfile(config, folder / "config.json")
    spec = EncoderSpec(
        name=name,
        architecture=model.architecture,
        weights=checksum,
        tokenizer=file_digest(folder / pipeline.tokenizer.name),
        width=width,
        dimensions=min(pipeline.dimensions or width, width),
        max_tokens=min(pipeline.max_tokens or unstated, model.token_limit),
        token_limit=model.token_limit,
        pooling=model.pooling,
        steps=tuple(str(step) for step in pipeline.steps) if classifier is None else ("classifier",),
        normalize=pipeline.normalize,
        query_prompt=pipeline.query_prompt,
        document_prompt=pipeline.document_prompt,
        query_tower=query_tower,
        include_prompt=pipeline.include_prompt,
        lowercase=pipeline.lowercase,
        special_tokens=pipeline.first == "Transformer",
        vocabulary=model.vocabulary,
        labels=() if classifier is None else classifier.labels,
        activation="" if classifier is None else classifier.activation,
        segments=model.segments,
        token_vectors=model.token_vectors,
        files={path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()},
        source=source,
    )
    spec.save(folder / SPEC_FILE)
    return spec


def _model(pipeline: Pipeline) -> BuiltModel | OnnxModel:
    """The model, built from its weights if that is possible, else around a ready ONNX file."""
    ready = find(pipeline.folder)
    if ready is not None and not has_weights(pipeline.folder):
        return OnnxModel(pipeline, ready)
    try:
        return BuiltModel(pipeline)
    except UnsupportedArchitectureError:
        if ready is None:
            raise
    return OnnxModel(pipeline, ready)


def _check_vocabulary(pipeline: Pipeline, rows: int) -> None:
    """Refuse a tokenizer whose ids reach beyond the embedding table."""
    highest = open_tokenizer(
        pipeline.tokenizer.parent, max_tokens=8, words=pipeline.first == "WordEmbeddings"
    ).highest_id
    if rows and highest >= rows:
        raise EncoderFilesError(
            pipeline.tokenizer,
            f"token ids up to {highest}",
            needed=f"ids below {rows}, the rows of the embedding table, so the tokenizer of this model",
        )


@contextmanager
def _written_whole(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``target`` that replaces it at the end of the block.

    An existing encoder is replaced (or, without ``overwrite``, kept); any other content is left alone.

    :raises EncoderFilesError: ``target`` is something other than an encoder's folder.
    """
    try:
        if b"\0" in os.fsencode(target):
            raise ValueError("a NUL")
    except ValueError as error:  # a UnicodeEncodeError is one
        raise EncoderFilesError(target, f"a path with {error}", needed=_WRITABLE) from error
    try:
        if (
            target.exists()
            and not (target / SPEC_FILE).is_file()
            and not (target.is_dir() and not any(target.iterdir()))
        ):
            found = "a folder with other files" if target.is_dir() else "a file"
            needed = "no folder, an empty one, or an encoder to be replaced"
            raise EncoderFilesError(target, found, needed=needed)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=".export.", ignore_cleanup_errors=True
        ) as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir()
            yield fresh
            _replace(fresh, target, Path(scratch) / "old", overwrite=overwrite)
    except OSError as error:
        raise EncoderFilesError(target, str(error), needed=_WRITABLE) from error


def _replace(fresh: Path, target: Path, old: Path, *, overwrite: bool) -> None:
    """Move ``fresh`` to ``target``; renames are atomic, so readers see the old folder, none, or the new."""
    while True:
        try:
            fresh.rename(target)  # an empty folder is replaced
        except OSError:
            if not (target / SPEC_FILE).is_file():
                raise
        else:
            return
        if not overwrite:
            return
        with suppress(FileNotFoundError):  # another process may be replacing it as well
            target.rename(old)
