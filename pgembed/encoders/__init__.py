"""Texts to vectors: an ONNX encoder runtime that knows nothing of databases.

:class:`Encoder` computes vectors, :class:`EncoderSpec` says what decides them, :func:`export_onnx` makes an
encoder from a model's weights, :func:`packaged` from an installed package. Importing this package loads
neither a runtime nor a tokenizer.

=========================  ===============================================================================
file                       what it is for
=========================  ===============================================================================
encoder                    the encoder as users hold it
spec                       what decides a vector, and its hash: the fingerprint
files, settings            files that somebody else wrote: which belong to a folder; JSON read by type
backend                    what the sources of encoders have in common
local, lookup, graphs      an encoder's files as a source: where they lie, and what each is for
remote, client             a server as a source, and how it is asked
texts, recent              texts checked, each different one once; the vectors of recent queries
tokenizing, tokens, words  texts to token ids, by a model's tokenizer or a list of words
runtime, device, threads   ONNX Runtime: the session, the device, the threads that it may have
forks                      what a forked child inherits of it
executor                   the threads on which programs under asyncio encode
batching, feeds, lanes     batches of texts of like length, as inputs of a graph, several at once on a GPU
export                     models to encoder folders, without torch
hub, packaged              models from the Hugging Face hub, and from a package
serving                    ``pgembed serve``
=========================  ===============================================================================
"""

from pgembed.encoders.encoder import Encoder
from pgembed.encoders.export import export_onnx
from pgembed.encoders.packaged import packaged
from pgembed.encoders.spec import EncoderSpec

__all__ = ["Encoder", "EncoderSpec", "export_onnx", "packaged"]
