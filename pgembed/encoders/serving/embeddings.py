"""``POST /v1/embeddings``: the request, and the document that answers it."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from pgembed.encoders.encoder import Encoder
from pgembed.encoders.serving.limits import RefusalError
from pgembed.encoders.text.texts import Counts, Kind, Vectors, checked
from pgembed.exc import TextError

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_FIELDS = 100
_NUMBER = 16  # bytes that one number of an answer takes, as a float and as text


@dataclass(frozen=True)
class Wish:
    """What a request asks for.

    :ivar texts: the texts, also where tokens were sent.
    """

    texts: list[str]
    kind: Kind
    as_base64: bool

    def size(self, encoder: Encoder) -> int:
        """Bytes that the answer will take, about."""
        return len(self.texts) * encoder.dimensions * _NUMBER


def parsed(content: bytearray, texts: int) -> dict[str, Any]:
    """The object in a body; fields that are null count as missing, since some clients send all.

    :param texts: how many texts a request may have; far more lists would take 30 times their bytes of memory.
    :raises RefusalError: there is none, or far more than a request needs.
    """
    if _parts(content) > texts + _FIELDS and _parts(_STRING.sub(b"", content)) > texts + _FIELDS:
        raise RefusalError(400, "the body holds more lists and fields than any request for embeddings")
    try:
        body = json.loads(content.decode(), parse_constant=_refused_constant)
    except (ValueError, RecursionError) as error:
        raise RefusalError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RefusalError(400, "the body must be a JSON object")
    return {key: value for key, value in body.items() if value is not None}


def _parts(content: bytes | bytearray) -> int:
    return sum(map(content.count, (b"[", b"{", b":")))


def _refused_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def wished(body: dict[str, Any], encoder: Encoder, most: int) -> Wish:
    """What a body requests from an encoder.

    :param most: texts that are allowed.
    :raises RefusalError: a field has a wrong value.
    """
    kind, encoding = body.get("input_type", "document"), body.get("encoding_format", "float")
    if kind not in ("document", "query"):
        raise _wrong("input_type", "input_type must be document or query")
    if encoding not in ("float", "base64"):
        raise _wrong("encoding_format", "encoding_format must be float or base64")
    dimensions = body.get("dimensions", encoder.dimensions)
    if type(dimensions) is not int or dimensions != encoder.dimensions:
        raise _wrong("dimensions", f"dimensions must be {encoder.dimensions}, as of this encoder")
    texts = _texts(body, encoder, most)
    return Wish(texts, cast("Kind", kind), encoding == "base64")


def _texts(body: dict[str, Any], encoder: Encoder, most: int) -> list[str]:
    """The texts of ``input``: one or several, as texts or as tokens."""
    given = body.get("input")
    if isinstance(given, list) and given and all(type(item) is int for item in given):
        given = [given]
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list):
        raise _wrong("input", "input must be a text or a list of texts")
    if not listed:
        raise _wrong("input", "input must hold at least one text: it is empty")
    if len(listed) > most:
        message = f"{len(listed)} texts in one request; at most {most} are allowed"
        raise RefusalError(413, message, param="input")
    try:
        if any(isinstance(item, list) for item in listed):
            return _decoded(listed, body.get("input_tokenizer"), encoder)
        return checked(listed)
    except TextError as error:
        raise _wrong("input", str(error)) from None


def _decoded(arrays: list[Any], tokenizer: Any, encoder: Encoder) -> list[str]:
    """The texts that arrays of token ids mean, if the request names the tokenizer.

    Ids do not tell their tokenizer: by default, LangChain sends those of OpenAI's to any server.
    """
    if tokenizer is None:
        raise _wrong(
            "input",
            "input holds token ids of an unknown tokenizer: send texts, with LangChain by "
            "OpenAIEmbeddings(check_embedding_ctx_length=False); ids of this model's own tokenizer are "
            f'accepted with "input_tokenizer": {json.dumps(encoder.name)}',
        )
    if tokenizer != encoder.name:
        message = f"input_tokenizer must be {encoder.name}: ids of another tokenizer mean other texts here"
        raise _wrong("input_tokenizer", message)
    return encoder.decode(arrays)


def _wrong(param: str, message: str) -> RefusalError:
    return RefusalError(400, message, param=param)


def document(vectors: Vectors, counts: Counts, tail: dict[str, str], as_base64: bool) -> bytes:
    """The answer, in JSON that is written piece by piece.

    Nine digits give back the same float32, in a fifth of the time that ``json`` takes for a float64.
    """
    if as_base64:
        written = [f'"{base64.b64encode(vector.tobytes()).decode()}"' for vector in vectors.astype("<f4")]
    else:
        pattern = f"[{','.join(['%.9g'] * vectors.shape[1])}]"
        written = [pattern % tuple(vector) for vector in vectors.tolist()]
    items = [
        f'{{"object": "embedding", "index": {index}, "embedding": {vector}}}'
        for index, vector in enumerate(written)
    ]
    tokens = int(counts.sum())
    rest = json.dumps(tail | {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
    return f'{{"object": "list", "data": [{", ".join(items)}], {rest[1:]}'.encode()
