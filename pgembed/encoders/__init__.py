"""Texts to vectors: an ONNX encoder runtime that knows nothing of databases.

:class:`Encoder` computes vectors, :class:`EncoderSpec` says what decides them, :func:`export_onnx` makes an
encoder from a model's weights, :func:`packaged` from an installed package. Importing this package loads
neither a runtime nor a tokenizer.
"""

from pgembed.encoders.encoder import Encoder
from pgembed.encoders.export import export_onnx
from pgembed.encoders.packaged import packaged
from pgembed.encoders.spec import EncoderSpec

__all__ = ["Encoder", "EncoderSpec", "export_onnx", "packaged"]
