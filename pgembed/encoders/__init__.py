"""Texts to vectors, pairs of texts to scores: an ONNX runtime that knows nothing of databases.

:class:`Encoder` computes vectors, :class:`Reranker` scores, :class:`EncoderSpec` says what decides both,
:func:`export_onnx` makes one from weights, :func:`packaged` from an installed package. Importing this
package loads neither a runtime nor a tokenizer.

========  ==========================================================================================
file      what it is for
========  ==========================================================================================
encoder   the encoder as users hold it
reranker  the same for pairs of texts
shared    what both have in common
spans     vectors of parts of texts, of tokens that have read the whole (late chunking)
spec      what decides a vector, and its hash: the fingerprint
files     files of other projects: which belong to a folder, what their JSON says
threads   how many threads a process may use, and those of programs under asyncio
forks     what a forked child inherits of native libraries
text      texts checked, and as token ids
onnx      ONNX Runtime: devices, batches, memory, sessions
export    models to encoder folders, without torch
sources   a folder, a package, the Hugging Face hub, a server
serving   ``pgembed serve``
========  ==========================================================================================
"""

from pgembed.encoders.encoder import Encoder
from pgembed.encoders.export import export_onnx
from pgembed.encoders.reranker import Reranker
from pgembed.encoders.sources.packaged import packaged
from pgembed.encoders.spec import EncoderSpec

__all__ = ["Encoder", "EncoderSpec", "Reranker", "export_onnx", "packaged"]
