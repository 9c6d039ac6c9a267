"""Models to encoder folders, without torch: :func:`export_onnx`.

Importing this package loads nothing of ``onnx``; calling the function does.
"""

from __future__ import annotations

import os
from pathlib import Path

from pgembed.exc import MissingExtraError


def export_onnx(
    model_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    name: str | None = None,
    source: str = "",
    overwrite: bool = True,
    weights: str | None = None,
) -> Path:
    """Make an encoder folder from a sentence-transformers (or plain transformers) folder with safetensors.

    The transformer, the pooling and the normalisation become one ONNX graph (opset 17 and the contrib
    operators of ONNX Runtime); tokenizer and configuration are copied, and ``encoder.json`` records what
    decides the vectors. The folder appears complete or not at all.

    :param model_dir: the model's folder: ``config.json``, ``tokenizer.json``, ``model.safetensors`` and, from
        sentence-transformers, ``modules.json`` with its subfolders.
    :param out_dir: the folder to write; an encoder in it is replaced.
    :param name: the encoder's name; that of the folder by default.
    :param source: where the model came from, as a note.
    :param overwrite: whether an existing encoder is replaced or kept.
    :param weights: the SHA-256 (hex) that the weights must have.
    :returns: ``out_dir``, absolute.
    :raises EncoderFilesError: files are missing, damaged, or do not belong together.
    :raises UnsupportedArchitectureError: no family builds the model.
    :raises MissingExtraError: the package ``onnx`` is not installed.
    """
    require_onnx()
    from pgembed.encoders.export.exporter import export

    export(model_dir, out_dir, name=name, source=source, overwrite=overwrite, expected=weights)
    return Path(out_dir).expanduser().absolute()


def require_onnx() -> None:
    """
    :raises MissingExtraError: the package ``onnx`` is not installed.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("onnx", "export", needed_for="exporting a model") from error


__all__ = ["export_onnx"]
