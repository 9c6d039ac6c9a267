"""The architectures that are built directly, by the ``model_type`` of their ``config.json``."""

from __future__ import annotations

from typing import Protocol

from pgembed.encoders.export import bert, distilbert, modernbert, mpnet, roberta
from pgembed.encoders.export.config import ModelConfig
from pgembed.encoders.export.graph import Graph
from pgembed.exc import UnsupportedArchitectureError


class Family(Protocol):
    """What a module such as ``bert`` provides."""

    PREFIXES: tuple[str, ...]
    ANCHOR: str

    def width(self, config: ModelConfig) -> int: ...

    def token_limit(self, config: ModelConfig) -> int: ...

    def build(self, graph: Graph, config: ModelConfig) -> str: ...


FAMILIES: dict[str, Family] = {
    "bert": bert,
    "roberta": roberta,
    "xlm-roberta": roberta,
    "camembert": roberta,
    "distilbert": distilbert,
    "mpnet": mpnet,
    "modernbert": modernbert,
}


def family(config: ModelConfig) -> Family:
    """The family of a model.

    :raises UnsupportedArchitectureError: none builds it.
    """
    try:
        return FAMILIES[config.model_type]
    except KeyError:
        raise UnsupportedArchitectureError(config.model_type, tuple(FAMILIES)) from None
