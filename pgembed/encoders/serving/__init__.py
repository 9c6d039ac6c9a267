"""Encoders for other processes: a small HTTP server that speaks OpenAI's embeddings API.

``POST /v1/embeddings`` takes ``model``, ``input`` (a text or a list), ``encoding_format`` (``float`` or
``base64``) and, beyond OpenAI's, ``input_type`` (``document``, the default, or ``query``). ``GET /v1/models``
lists the models with their specs, ``GET /health`` answers while the server lives. ``POST /rerank`` (also
``/v1/rerank`` and ``/v2/rerank``) scores texts for a query, in the form of TEI or in that of Cohere.
"""

from pgembed.encoders.serving.endpoints import Server
from pgembed.encoders.serving.limits import Limits

__all__ = ["Limits", "Server"]
